"""Pictures and archives as the bytes of files."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    """Returns a picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def png_of_short_data() -> bytes:
    """Returns a PNG file whose pixels end early, with no chunk after them: a SyntaxError of Pillow's."""
    content = bytearray(encoded(Image.effect_noise((9, 9), 60)))
    start = content.index(b"IDAT") - 4
    content[start : start + 4] = (int.from_bytes(content[start : start + 4], "big") - 20).to_bytes(4, "big")
    return bytes(content)


def tarred(members: dict[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> bytes:
    """Returns a tar file with these members, in this order; a list may name one twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_shard(path: Path, count: int, size: int, first: int = 0, seed: int = 0) -> None:
    """Writes a tar shard of noise in two classes, whose numbers begin at `first`."""
    random, members = np.random.default_rng(seed), {}
    for number in range(count):
        pixels = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
        members[f"{number:04d}.png"] = encoded(Image.fromarray(pixels))
        members[f"{number:04d}.cls"] = b"%d" % (first + number % 2)
    path.write_bytes(tarred(members))
