"""Small pictures and shards that the tests of the images stage are made of."""

import numpy as np
import pytest
from PIL import Image

from ..pictures import encoded, tarred


def noise_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Returns a picture with structure at several scales, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


class Make:
    """The helpers above, for tests."""

    image = staticmethod(noise_image)
    encoded = staticmethod(encoded)

    @staticmethod
    def tar(path, members: list[tuple[str, bytes]]) -> None:
        path.write_bytes(tarred(members))

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
