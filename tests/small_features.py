"""Features of small images: the same networks and weights, at a twelfth of the time."""

from collections.abc import Iterator

import pytest

from ldmae.perception import efficientnet

SIZE = 64
"""Pixels along the side that the networks get, in place of 224 and 260."""


def look_small(patch: pytest.MonkeyPatch) -> None:
    """Lets EfficientNets look at small images: at full size they take most of a tiny run's time."""
    small = {"size": SIZE, "middle_grid": SIZE // efficientnet.MIDDLE_STRIDE}
    for name, variant in efficientnet.VARIANTS.items():
        patch.setitem(efficientnet.VARIANTS, name, variant._replace(**small))


@pytest.fixture(scope="module")
def small_features() -> Iterator[None]:
    """Lets EfficientNets look at small images, for tests that don't compare values with a reference."""
    with pytest.MonkeyPatch.context() as patch:
        look_small(patch)
        yield
