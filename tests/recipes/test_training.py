"""The arrows that train."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from ldmae.core.errors import UserError
from ldmae.images.sources import FolderSource
from ldmae.recipes.training import _check_shards, spread


def test_losses_on_some_held_out_images_are_of_all_classes(pictures: Path) -> None:
    source = FolderSource(pictures)  # 3 classes of 20, sorted
    some = spread(source, 6)
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    assert len({some.describe(k) for k in range(6)}) == 6
    assert [spread(source, 100).describe(k) for k in range(60)] == [source.describe(k) for k in range(60)]


def test_shards_of_another_number_of_images_are_refused_unless_they_are_foreign_on_purpose():
    def run(fingerprint: str) -> Any:
        latents = SimpleNamespace(fingerprint=fingerprint)
        return SimpleNamespace(config=SimpleNamespace(latents=latents), stream=None, train=range(5))

    class Shards(list):
        folder = "latents"

    _check_shards(run("skip"), Shards(range(7)), nn.Identity())
    with pytest.raises(UserError, match="holds latents of 7 images, the run has 5"):
        _check_shards(run("check"), Shards(range(7)), nn.Identity())
