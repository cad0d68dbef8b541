"""What ships in the package: it opens, it generates, and its figures are those on its card."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ldmae
from ldmae.config import load_config
from ldmae.config.registry import SOURCES
from ldmae.core.errors import UserError
from ldmae.evaluation.api import Measured
from ldmae.evaluation.copies import measure_copies
from ldmae.evaluation.generation import generation_metrics
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.references import Reference
from ldmae.evaluation.results import write_results
from ldmae.evaluation.subject import draw, image_keys, read_batches
from ldmae.images.emoji_sets import prepare_emoji_sets
from ldmae.images.index import open_images
from ldmae.loading import SHIPPED, load_autoencoder, load_pipeline
from ldmae.perception.features import Features, load_features
from ldmae.run import evaluate_with
from ldmae.run.opening import open_accelerator
from ldmae.run.sample_cache import generated_images

pytestmark = pytest.mark.usefixtures("blank")

LARGEST_BYTES, MOST_PARAMETERS = 25_000_000, 12_000_000

names = pytest.mark.parametrize("name", SHIPPED)


@names
def test_it_opens_and_the_same_seed_gives_the_same_picture(name):
    pipeline = ldmae.LDMAEPipeline.from_pretrained(ldmae.pretrained(name))
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        np.asarray(pipeline([0], num_inference_steps=3, generator=torch.Generator().manual_seed(1)).images[0])
        for _ in range(2)
    ]
    assert pictures[0].std() > 0
    assert (pictures[0] == pictures[1]).all()


@names
def test_it_is_small(name):
    pipeline = load_pipeline(f"pretrained:{name}")
    parts = (pipeline.vae, pipeline.transformer)
    assert sum(p.numel() for part in parts for p in part.parameters()) <= MOST_PARAMETERS
    folder = ldmae.pretrained(name)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST_BYTES
    assert load_autoencoder(f"pretrained:{name}").dtype == torch.float32


@names
def test_its_card_shows_every_figure_that_was_measured_of_its_pictures(name):
    folder = ldmae.pretrained(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    shown = [key for key in figures if key.split("/")[0] in ("reconstruction", "samples", "copies")]
    assert len(shown) >= 8
    for key in shown:
        name_in_table = key.split("/")[1].replace("_", r"\_")
        assert f"| {name_in_table} | {figures[key]:.4g} " in card, key
    for picture in ("samples.png", "nearest.png"):
        assert f"({picture})" in card
        assert (folder / picture).stat().st_size > 0


@names
def test_no_path_of_where_it_was_made_is_in_it(name):
    texts = [path for path in ldmae.pretrained(name).rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) >= 5
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text, path
        assert not re.search(r"(?<![\w.:/])/\w+/", text), path


APART = {"PSNR": 0.05, "SSIM": 0.002, "L1": 2e-4, "ST-LPIPS": 0.001, "rKID": 0.004, "KID": 0.001, "IS": 0.05}
"""How far figures may lie apart on another machine, by their names' first part; of others 0.04."""

KEPT = Path(__file__).with_name("shipped")
"""What `tools/ship.py` kept: the first generated images, the features of all, and figures of few images."""


def assert_kept(figures: dict[str, float], folder: Path) -> None:
    """Checks that a folder's metrics are those of `figures`, and that none lacks."""
    results = json.loads((folder / "results.json").read_text())["results"]
    found = {f"{entry['measurement']}/{entry['name']}": entry["value"] for entry in results}
    assert found.keys() == figures.keys()
    for key, value in found.items():
        kind = key.split("/")[1]
        apart = next((gap for start, gap in APART.items() if kind.startswith(start)), 0.04)
        assert value == pytest.approx(figures[key], abs=apart), key


def on_card(name: str, *wanted: str) -> dict[str, float]:
    """Returns the figures on a card; each of `wanted` is a pattern of `MEASUREMENT/METRIC`."""
    kept = json.loads((ldmae.pretrained(name) / "figures.json").read_text(encoding="utf-8"))
    return {key: value for key, value in kept.items() if any(fnmatch(key, pattern) for pattern in wanted)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns a folder with the images of emoji-three, or without them where they can't be downloaded."""
    folder = tmp_path_factory.mktemp("prepared")
    with suppress(UserError):
        prepare_emoji_sets(folder / "emoji-three", sets=["twemoji", "noto", "fluent"])
    return folder


def enter(prepared: Path, name: str, monkeypatch) -> None:
    if load_config(SHIPPED[name]).data.source not in SOURCES and not (prepared / name).exists():
        pytest.skip("its images can't be downloaded here")
    monkeypatch.chdir(prepared)


@names
def test_its_autoencoder_gives_the_figures_that_were_kept(name, tmp_path, prepared, monkeypatch):
    enter(prepared, name, monkeypatch)
    kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    evaluate_with(f"pretrained:{name}", kept["settings"], tmp_path, ["reconstruction", "smoothness"])
    assert_kept(kept["figures"], tmp_path)
    if name == "emoji":  # no more than that are held out
        assert kept["figures"] == on_card(name, "reconstruction/*", "smoothness/*(eps=0.2)")


@names
def test_probing_its_latents_gives_the_figures_on_its_card(name, tmp_path, prepared, monkeypatch):
    enter(prepared, name, monkeypatch)
    evaluate_with(f"pretrained:{name}", [], tmp_path, ["probe"])
    assert_kept(on_card(name, "probe/*"), tmp_path)


@pytest.fixture(scope="module", params=SHIPPED)
def kept(request):
    """A shipped model's name, its settings, and what was kept of its generated images."""
    name = request.param
    with np.load(KEPT / f"{name}.npz") as arrays:
        scale = float(arrays["scale"])
        features = {kind: torch.from_numpy(arrays[kind]) * scale for kind in ("generated", "real")}
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    config = load_config(SHIPPED[name], ["sampling.batch_size=8"])
    return SimpleNamespace(name=name, config=config, images=images, **features)


@pytest.fixture
def sources(kept, tmp_path, prepared, monkeypatch):
    """The images that it was trained on and those held out."""
    enter(prepared, kept.name, monkeypatch)
    return open_images(kept.config.data, tmp_path / "data")


def test_it_generates_the_images_whose_features_were_kept(kept, sources, tmp_path):
    accelerator = open_accelerator(kept.config, tmp_path)
    made = generated_images(f"pretrained:{kept.name}", (), kept.config, accelerator, tmp_path / "kept")
    extractor = load_features(kept.config.evaluation.features)
    images = next(made.batches(0, 8))
    assert (images.float() - kept.images[:8].float()).abs().mean() < 0.5  # of 255 levels
    chosen = draw(image_keys(sources[0]), None, 0)
    assert (made.count, len(chosen)) == (len(kept.generated), len(kept.real))
    real = next(read_batches(sources[0], chosen[:8], kept.config.image_size, 8, torch.device("cpu")))[1]
    for found, features in ((images, kept.generated), (to_uint8(real), kept.real)):
        torch.testing.assert_close(extractor(found), features[:8], atol=0.05, rtol=0.02)


def test_the_kept_features_and_images_give_the_figures_on_its_card(kept, sources, tmp_path):
    evaluation = kept.config.evaluation
    classify = load_features(evaluation.features)._network.classify
    fake, real = (
        Features(evaluation.features, pooled, torch.empty(len(pooled), 0), classify(pooled))
        for pooled in (kept.generated, kept.real)
    )
    metrics = generation_metrics(fake, Reference(evaluation.features, images=real), seed=evaluation.seed)
    write_results(tmp_path, "samples", "Samples", Measured(metrics))
    copies = measure_copies(
        kept.images,
        *sources,
        size=kept.config.image_size,
        mirrored=kept.config.latents.flip,
        batch_size=evaluation.batch_size,
        seed=evaluation.seed,
    )
    write_results(tmp_path, "copies", "Copies", copies)
    # MIND's 1,000 real images are not kept apart
    assert_kept(on_card(kept.name, "samples/[!M]*", "copies/*"), tmp_path)
