"""docs/reference/results-format.md against what real measurements write."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import RESULTS_SCHEMA, Metric
from ldmae.evaluation.api import MEASUREMENTS, OF_GENERATED
from ldmae.evaluation.copies import measure_copies
from ldmae.evaluation.results import write_results
from ldmae.evaluation.subject import Subject
from ldmae.images.sources import FolderSource
from ldmae.perception.names import FEATURES
from ldmae.run.evaluate import measure
from ldmae.run.external_samples import evaluate_samples

from ..tiny import tiny_vmae
from .drawn_units import crops, write_unit

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "results-format.md").read_text(
    encoding="utf-8"
)
PLACEHOLDERS = {
    "<perceptual>": r"(ST-)?LPIPS-(alex|vgg)",
    "<features>": r"[a-z0-9_]+",
    "<eps>": r"[0-9.e-]+",
    "<t>": r"[0-9.e-]+",
    "<level>": r"(object|part|pattern)",
}


def rows(heading: str) -> list[list[str]]:
    """Returns the cells of the first table below a heading."""
    below = DOCUMENT.split(f"\n{heading}\n")[1]
    lines = below[below.index("|") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def pattern(cell: str) -> str:
    names = [re.escape(name) for name in re.findall(r"`([^`]+)`", cell)]
    whole = "|".join(names)
    for placeholder, regex in PLACEHOLDERS.items():
        whole = whole.replace(re.escape(placeholder), regex)
    return whole


def write_images(folder: Path) -> Path:
    for i, image in enumerate(crops(20, 32)):
        path = folder / f"class {i % 4}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a tiny autoencoder and some images can be asked."""
    folder = tmp_path_factory.mktemp("measured")
    source = FolderSource(write_images(folder / "images"))
    subject = Subject(
        autoencoder=tiny_vmae(sample_size=32, patch_size=8).requires_grad_(False),
        held_out=source,
        train=source,
        size=32,
        config=EvaluationConfig(epsilons=[0, 0.1], pairs=4, speed_batch_size=2),
    )
    measure(subject, folder)
    evaluate_samples(
        str(folder / "images"), ["evaluation.shrink_covariance=true"], folder, reference=folder / "images"
    )
    generated = torch.from_numpy(crops(20, 32)).permute(0, 3, 1, 2)
    copies = measure_copies(generated, source, source, size=32, mirrored=True, batch_size=8, seed=0)
    write_results(folder, "copies", OF_GENERATED["copies"], copies)
    return folder


@pytest.fixture
def measured(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


def test_the_fields_of_a_file_are_documented(folder: Path):
    fields = {row[0].strip("`") for row in rows("## A results file")}
    single = json.loads((folder / "results" / "probe.json").read_text())
    assert set(single) == fields - {"titles"}
    merged = json.loads((folder / "results.json").read_text())
    assert set(merged) == fields - {"record", "title"}
    assert merged["schema"] == single["schema"] == RESULTS_SCHEMA


def test_every_figure_of_a_real_measurement_is_documented(measured: list[dict]):
    assert {entry["measurement"] for entry in measured} == {*MEASUREMENTS, *OF_GENERATED} - {"generation"}
    for entry in measured:
        found = [
            row for row in rows(f"### {entry['measurement']}") if re.fullmatch(pattern(row[0]), entry["name"])
        ]
        assert len(found) == 1, f"{entry['measurement']}, {entry['name']}: {found}"
        _, unit, better, counts, _ = found[0]
        assert entry["unit"] == unit, entry
        if " at t = " in better:
            direction, at = better.split(", ")[0].split(" at t = ")
            better = direction if entry["name"].endswith(f"(t={at})") else "neither"
        assert entry["better"] == ("" if better == "neither" else better), entry
        assert list(entry["counts"]) == [name.strip() for name in counts.split(",") if name], entry


def test_every_documented_figure_is_measured_or_said_to_be_conditional(measured: list[dict]):
    names = [(entry["measurement"], entry["name"]) for entry in measured]
    for heading in re.findall(r"^### (\w+)$", DOCUMENT, re.MULTILINE):
        if heading == "generation":  # of whole runs, whose names the next test compares
            continue
        for cell, *_, what in rows(f"### {heading}"):
            there = any(kind == heading and re.fullmatch(pattern(cell), name) for kind, name in names)
            assert there or "only with" in what, cell


def test_every_name_on_features_is_documented():
    for labels in FEATURES.values():
        for name in labels:
            kinds = [
                heading
                for heading in ("generation", "samples")
                if any(re.fullmatch(pattern(row[0]), name) for row in rows(f"### {heading}"))
            ]
            assert "samples" in kinds, name
    assert re.fullmatch(pattern(rows("### generation")[-1][0]), "recognised-as-asked")


def test_the_fields_of_an_entry_are_those_of_a_result(measured: list[dict]):
    fields = [row[0].strip("`") for row in rows("## An entry")]
    assert set(fields) == {*Metric(name="PSNR", value=1.0).to_dict(), "measurement"} == set(measured[0])


def test_every_measurement_has_a_heading():
    assert re.findall(r"^### (\w+)$", DOCUMENT, re.MULTILINE) == [*MEASUREMENTS, *OF_GENERATED]


def test_the_documented_fields_of_a_unit_are_what_the_report_reads(tmp_path: Path):
    record = json.loads((write_unit(tmp_path, "vmae", 0, size=32, tiles=2) / "unit.json").read_text())
    fields = {row[0].strip("`") for row in rows("## A comparison's unit")}
    assert fields == set(record)
    arrays = re.findall(
        r"`(\w+)`",
        " ".join(
            row[0] for row in rows("In the same folder is `images.npz`, arrays of uint8 except the last two:")
        ),
    )
    with np.load(tmp_path / "units" / "vmae" / "seed-0" / "images.npz") as found:
        assert set(found.files) == set(arrays)


def test_the_arrays_of_pictures_are_documented(folder: Path):
    for name, arrays in rows("## Images"):
        with np.load(folder / name.strip("`")) as found:
            assert set(found.files) == set(re.findall(r"`(\w+)`", arrays))
