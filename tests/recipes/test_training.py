"""The arrows that train."""

from pathlib import Path

import numpy as np

from ldmae.images.sources import FolderSource
from ldmae.recipes.training import spread


def test_losses_on_some_held_out_images_are_of_all_classes(pictures: Path) -> None:
    source = FolderSource(pictures)  # 3 classes of 20, sorted
    some = spread(source, 6)
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    assert len({some.describe(k) for k in range(6)}) == 6
    assert [spread(source, 100).describe(k) for k in range(60)] == [source.describe(k) for k in range(60)]
