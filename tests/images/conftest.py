"""Small pictures and shards that the tests of the images stage are made of."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image


def noise_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Returns a picture with structure at several scales, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, extension: str = "png", **options) -> bytes:
    """Returns the picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(extension, extension.upper()), **options)
    return buffer.getvalue()


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    """Writes a tar file with these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Make:
    """The helpers above, for tests."""

    image = staticmethod(noise_image)
    encoded = staticmethod(encoded)
    tar = staticmethod(write_tar)

    @staticmethod
    def folder(root, layout: dict[str, list[int]]):
        """Writes pictures by class and seed: `{"cats": [0, 1]}`; the class "" is the folder itself."""
        for name, seeds in layout.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for seed in seeds:
                (root / name / f"{seed:04}.png").write_bytes(encoded(noise_image(seed)))
        return root


@pytest.fixture
def make() -> type[Make]:
    return Make
