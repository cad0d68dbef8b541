"""`evaluate-samples`: what is wrong with the question is said before anything is generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.run import evaluate_samples

pytestmark = pytest.mark.usefixtures("blank")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flat(folder: str, height: int, width: int, count: int = 4) -> str:
    Path(folder).mkdir()
    for k in range(count):
        Image.new("RGB", (width, height), (60 * k, 0, 90)).save(Path(folder, f"{k}.png"))
    return folder


def measure(source: str, *settings: str, **files: Path) -> None:
    evaluate_samples(source, list(settings), Path("figures"), **files)


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("made", {"npz": Path("samples.npy")}, r"--npz samples\.npy must end in \.npz"),
        ("made", {"reference": Path("nowhere")}, "there is no reference nowhere"),
        ("nowhere", {}, r"a folder of images, or an \.npz file"),
    ],
)
def test_a_wrong_path_is_told_first(pictures, source, files, message):
    flat("made", 24, 24)
    with pytest.raises(UserError, match=message):
        measure(source, f"data={pictures}", **files)


def test_oblong_samples_are_not_compared_with_squares(pictures):
    oblong = flat("made", 24, 36)
    with pytest.raises(UserError, match="are 24x36, which data=… is not prepared for"):
        measure(oblong, f"data={pictures}")
    measure(oblong, reference=Path(oblong))
    assert Path("figures/results.json").is_file()


def test_images_written_for_adm_are_those_that_are_measured(pictures):
    made = flat("made", 24, 24)
    measure(made, f"data={pictures}", npz=Path("samples.npz"))
    first = Path("figures/results.json").read_bytes()
    with np.load("samples.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 24, 24, 3)
    measure("samples.npz", f"data={pictures}")
    assert Path("figures/results.json").read_bytes() == first


def test_images_of_another_size_than_the_reference_s_are_told(capsys):
    made, reference = flat("made", 24, 24), flat("reference", 32, 32)
    measure(made, reference=Path(reference))
    told = "the images are 24x24, those of the reference 32x32: resize one of them first"
    assert told in capsys.readouterr().err
    results = json.loads(Path("figures/results.json").read_text())["results"]
    assert told in results[0]["note"]
