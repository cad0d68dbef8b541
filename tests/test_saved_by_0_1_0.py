"""What 0.1.0 saved: models and latents still load and give the same; its run folders are not resumed.

`tests/data/run-0.1.0` is a run of `a tiny run, made by the first release.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.latents.shards import LatentShards
from ldmae.latents.statistics import load_statistics
from ldmae.loading import load_autoencoder
from ldmae.report.run import render_report
from ldmae.run import run_all, sample_from
from ldmae.run.run import latents_fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:setting .* is now:FutureWarning")
OLD = Path(__file__).parent / "data" / "run-0.1.0"


def test_its_pipeline_gives_the_same_pictures(tmp_path):
    grid = sample_from(str(OLD), ["bars"], {"per_class": 1}, tmp_path / "made", "cpu")
    (made,) = (grid.parent / "images").iterdir()
    pixels, before = (np.asarray(Image.open(path)).astype(int) for path in (made, OLD / "bars.png"))
    assert np.abs(pixels - before).max() <= 2  # another processor rounds otherwise


def test_its_latents_are_those_of_its_autoencoder(tmp_path):
    shards = LatentShards(OLD / "latents")
    assert shards.fingerprints == {latents_fingerprint(load_autoencoder(str(OLD)), 24)}
    assert len(shards) == len(shards.labels()) > 10
    assert load_statistics(OLD / "latents")[1].min() > 0


def test_its_run_is_refused_by_a_sentence_and_left_as_it_is(tmp_path):
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = load_config(str(run / "config.yaml"), ["data=digits"])
    message = r"stages\.json was written by another version of ldmae .*start another with --out.*run/pipeline"
    with pytest.raises(UserError, match=message):
        run_all(config, run)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert render_report(run).is_file()
