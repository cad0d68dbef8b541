"""What ships in the package: it opens, it generates, and its figures are those on its card."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import ldmae
from ldmae import recipes
from ldmae.loading import SHIPPED, load_autoencoder, load_pipeline

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
        assert f"| {key.split('/')[1]} | {figures[key]:.4g} " in card, key
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


APART = {"PSNR": 0.05, "SSIM": 0.002, "L1": 2e-4, "ST-LPIPS": 0.001, "rKID": 0.004, "KID": 0.008, "IS": 0.25}
"""How far figures may lie apart on another machine, by their names' first part; of others 0.04."""


@names
@pytest.mark.slow
def test_evaluating_it_gives_the_figures_on_its_card(name, tmp_path):
    measured = ["reconstruction", "smoothness", "probe", "generation"]
    recipes.evaluate_with(f"pretrained:{name}", [], tmp_path, measured)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    kept = json.loads((ldmae.pretrained(name) / "figures.json").read_text(encoding="utf-8"))
    card = (ldmae.pretrained(name) / "README.md").read_text(encoding="utf-8")
    found = {f"{entry['measurement']}/{entry['name']}": entry["value"] for entry in results}
    shown = {key for key in kept if f"| {key.split('/')[1]} | {kept[key]:.4g} " in card}
    assert shown <= set(found)
    for key, value in found.items():
        kind = key.split("/")[1]
        apart = next((gap for start, gap in APART.items() if kind.startswith(start)), 0.04)
        assert value == pytest.approx(kept[key], abs=apart), key
