import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmae.contracts import RESULTS_SCHEMA
from ldmae.report.run import render_report

from .drawn_units import edit, results_of
from .page import Page, section

pytestmark = pytest.mark.usefixtures("blank")

SECTIONS = ["samples", "reconstructions", "metrics", "losses", "stages", "data", "making"]
PARTS = [
    "config.yaml",
    "data.json",
    "parameters.json",
    "stages.json",
    "results.json",
    "metrics.jsonl",
    "results/reconstruction.npz",
    "samples/samples.json",
]


def test_report_shows_every_part_of_a_run(run_folder: Path):
    path = render_report(run_folder)
    assert path == run_folder / "report.html"
    page = Page(path)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "Not done yet" not in page.text
    assert "left out" not in page.text.replace("2 left out", "")
    assert (
        "An autoencoder (4.8 M parameters) and a diffusion model (15.1 M parameters), trained on" in page.text
    )
    assert "1,037 images of twemoji, 470 of them in 5 classes, made in 10 min 3 s on cpu; 103" in page.text
    for words in ("21.93 dB", "↑", "↓", "1,000 generated", "ldmae run emoji seed=3", "CC-BY 4.0"):
        assert words in page.text
    assert "guidance scale 2.5, 50 steps, seed 0" in page.text
    assert page.tags.count("img") == 5  # samples, reconstructions, three stages' losses


def test_report_needs_no_other_file(run_folder: Path):
    Page(render_report(run_folder)).assert_alone()


def test_report_is_the_same_bytes_each_time(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    first = render_report(run_folder).read_bytes()
    assert render_report(run_folder).read_bytes() == first
    assert not list(run_folder.glob(".writing-*"))


def test_names_from_data_are_escaped_everywhere(run_folder: Path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    edit(run_folder / "data.json", name=evil, licence=evil)
    edit(run_folder / "data.json", classes=[{"name": evil, "train": evil, "held_out": 1}])
    result = {"name": evil, "value": 1, "unit": evil, "better": evil, "counts": {evil: 2}, "note": evil}
    edit(run_folder / "results.json", results=[result | {"measurement": evil}])
    stage = {"name": evil, "status": evil, "seconds": 3, "device": evil, "finished": evil}
    edit(run_folder / "stages.json", stages=[stage])
    (run_folder / "config.yaml").write_text(json.dumps({"note": evil}))
    edit(run_folder / "run.json", command=["ldmae", "run", evil])
    (run_folder / "metrics.jsonl").write_text(
        json.dumps({"stage": evil, "step": 1, "loss": 1, "terms": {evil: 3}})
    )
    page = Page(render_report(run_folder))
    assert "script" not in page.tags
    assert page.tags.count("img") == 3
    assert page.source.count("<script") == 0
    assert "&lt;script&gt;" in section(page, "data")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_said_to_be_missing(run_folder: Path, part: str):
    (run_folder / part).unlink()
    page = Page(render_report(run_folder))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "Left out" not in page.text
    assert ("Not done yet" in page.text) == (part != "parameters.json")
    images = {"metrics.jsonl": 2, "results/reconstruction.npz": 4, "samples/samples.json": 4}
    assert page.tags.count("img") == images.get(part, 5)


def test_an_empty_folder_gives_a_page(tmp_path: Path):
    page = Page(render_report(tmp_path))
    assert page.text.count("Not done yet") == len(SECTIONS)
    assert "This run has no results yet." in page.text


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe not this", b'{"stages": 3', b"[[[1, 2", b"[]", b"null", b'"x"']
)
def test_damaged_parts_never_stop_the_page(run_folder: Path, content: bytes):
    for part in PARTS:
        (run_folder / part).write_bytes(content)
    for image in (run_folder / "samples" / "images").iterdir():
        image.write_bytes(content)
    page = Page(render_report(run_folder))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "reconstruction.npz could not be read" in page.text


def test_damaged_samples_are_named(run_folder: Path):
    next((run_folder / "samples" / "images").iterdir()).write_bytes(b"no picture")
    page = Page(render_report(run_folder))
    assert "samples/images could not be read" in page.text
    assert page.tags.count("img") == 4


def test_metrics_of_another_schema_are_named_and_not_shown(run_folder: Path):
    edit(run_folder / "results.json", schema=1)
    page = Page(render_report(run_folder))
    assert "results.json is left out: its schema is 1, this version reads 2; `ldmae evaluate`" in page.text
    assert "21.93" not in page.text


def test_records_of_unexpected_types_never_stop_the_page(run_folder: Path):
    (run_folder / "results" / "reconstruction.npz").unlink()
    for value in (None, 3, "text", [], {}, [None, 3, "text", {}, {"name": None, "counts": [], "value": {}}]):
        edit(run_folder / "stages.json", stages=value)
        edit(run_folder / "results.json", results=value)
        edit(
            run_folder / "data.json", name=value, licence=value, train=value, unreadable=value, classes=value
        )
        edit(run_folder / "parameters.json", autoencoder=value, diffusion=value)
        edit(run_folder / "samples" / "samples.json", seed=value, guidance_scale=value, labels=value)
        (run_folder / "metrics.jsonl").write_text(json.dumps(value))
        Page(render_report(run_folder))


def test_a_half_written_metrics_line_and_nan_values_are_survived(run_folder: Path):
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().splitlines()[:40]
    lines.append(
        json.dumps({"stage": "diffusion", "step": 1, "loss": math.nan, "terms": {"velocity": math.nan}})
    )
    lines.append(json.dumps({"stage": "diffusion", "step": 2, "loss": 0.5, "terms": {"velocity": 0.4}}))
    path.write_text("\n".join(lines) + '\n{"stage": "diffusion", "step": 3, "loss"')
    page = Page(render_report(run_folder))
    assert "2 logged values are not finite numbers and are not drawn." in page.text
    assert "not whole JSON" not in page.text


def test_figures_that_are_no_numbers_are_said_to_be_none(run_folder: Path):
    values = [math.nan, math.inf, None, "<b>"]
    edit(
        run_folder / "results.json",
        results=[{"name": f"metric {i}", "value": v} for i, v in enumerate(values)],
    )
    text = Page(render_report(run_folder)).text
    assert "not a number" in text
    assert "∞" in text


def test_substitute_metrics_say_that_they_compare_with_no_paper(run_folder: Path):
    page = Page(render_report(run_folder))
    assert section(page, "metrics").count("<li") == 2
    assert "It is not LPIPS" in page.text
    assert "not comparable with FID or KID in papers" in page.text
    results = [{"name": "LPIPS", "value": 0.1}, {"name": "KID", "value": 0.1}, {"name": "PSNR", "value": 20}]
    edit(run_folder / "results.json", results=results)
    assert "<li" not in section(Page(render_report(run_folder)), "metrics")


def test_a_thousand_classes_are_folded_away_and_more_are_counted(run_folder: Path):
    classes = [{"name": f"class {i}", "train": i, "held_out": 1} for i in range(1200)]
    edit(run_folder / "data.json", classes=classes)
    data = section(Page(render_report(run_folder)), "data")
    assert data.count("<tr>") == 1001
    assert "and 200 more classes." in data
    assert "<details>" in data
    assert "1,200 classes" in data


def test_one_class_is_one_class(run_folder: Path):
    edit(run_folder / "data.json", classes=[{"name": "everything", "train": 1037, "held_out": 103}])
    page = Page(render_report(run_folder))
    assert "1 class " in page.text
    assert "1 classes" not in page.text
    assert "images of twemoji, made in" in page.text


def test_a_device_of_a_long_name_is_named_once(run_folder: Path):
    device = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
    stages = [{"name": name, "seconds": 3, "device": device} for name in ("latents", "diffusion")]
    edit(run_folder / "stages.json", stages=stages)
    summary = "made in 6.0 s on NVIDIA RTX PRO 6000 Blackwell Max-Q Work… (15 more characters); 103"
    assert summary in Page(render_report(run_folder)).text


def test_the_page_stays_under_5_mb_whatever_the_run(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (10, 512, 512, 3)).astype(np.uint8)
    np.savez(run_folder / "results" / "reconstruction.npz", originals=noise, reconstructions=noise[::-1])
    for path in (run_folder / "samples" / "images").iterdir():
        Image.fromarray(noise[int(path.stem) % 10, :256, :256]).save(path)
    (run_folder / "config.yaml").write_text("key: value\n" * 300_000)
    classes = [{"name": "long name " * 500, "train": i, "held_out": 1} for i in range(3000)]
    edit(run_folder / "data.json", classes=classes)
    results = [{"name": "metric " * 300, "value": i, "note": "note " * 1000} for i in range(2000)]
    edit(run_folder / "results.json", results=results)
    with (run_folder / "metrics.jsonl").open("w") as file:
        for stage in range(9):
            for step in range(600):
                terms = {f"term {i}": abs(random.normal()) * 10 ** (i % 3) for i in range(12)}
                file.write(
                    json.dumps({"stage": f"stage {stage}", "step": step, "loss": 1, "terms": terms}) + "\n"
                )
    path = render_report(run_folder)
    assert path.stat().st_size < 5_000_000
    page = Page(path)
    assert page.tags.count("img") == 6
    assert "holds 9 stages; 4 are plotted" in page.text


def measure_all(folder: Path) -> None:
    """Adds to a run what `ldmae evaluate` measures."""
    record = json.loads((folder / "results.json").read_text())
    titles = record["titles"] | {"smoothness": "Latent smoothness"}
    edit(folder / "results.json", titles=titles, results=results_of("vmae", 0) + record["results"])
    images = np.stack([np.asarray(Image.new("RGB", (48, 48), (40 * i, 90, 120))) for i in range(6)])
    np.savez(folder / "results" / "components.npz", originals=images, components=images[::-1])
    rows = images.reshape(1, 6, 48, 48, 3)
    np.savez(folder / "results" / "interpolation.npz", rows=rows, fractions=np.linspace(0, 1, 4))


def test_report_shows_what_evaluate_measures_in_its_order(run_folder: Path):
    measure_all(run_folder)
    page = Page(render_report(run_folder))
    assert page.ids.index("latents") < page.ids.index("metrics")
    assert section(page, "latents").count("<img") == 3  # curves over noise, interpolation, components
    shown = [part.split("</h3>")[0] for part in section(page, "metrics").split("<h3>")[1:]]
    assert shown == [
        "Reconstruction",
        "Latent smoothness",
        "Compression",
        "Probe",
        "Efficiency",
        "Samples",
        "Generation",
    ]
    assert '<summary><h3>Latent smoothness</h3> <span class="soft">19 metrics</span>' in page.source


def test_a_run_that_measured_no_latents_has_no_section_for_them(run_folder: Path):
    assert "latents" not in Page(render_report(run_folder)).ids


def test_damaged_pictures_of_latents_are_named(run_folder: Path):
    measure_all(run_folder)
    for name in ("components", "interpolation"):
        (run_folder / "results" / f"{name}.npz").write_bytes(b"no arrays")
    text = Page(render_report(run_folder)).text
    assert "components.npz could not be read" in text
    assert "interpolation.npz could not be read" in text


def test_a_foreign_autoencoders_report_misses_no_stage_that_will_never_come(run_folder: Path, tmp_path: Path):
    measure_all(run_folder)
    foreign = tmp_path / "results" / "sd3"
    foreign.mkdir(parents=True)
    shutil.copytree(run_folder / "results", foreign / "results")
    shutil.copy(run_folder / "results.json", foreign)
    measured = {"autoencoder": "stabilityai/sd3-vae", "data": "photos/", "image_size": 256}
    (foreign / "measured.json").write_text(json.dumps({"settings": measured}))
    page = Page(render_report(foreign))
    assert "Measured: stabilityai/sd3-vae" in page.text
    assert "An autoencoder, measured on the images of photos/, at 256 px." in page.text
    assert "Not done yet" not in page.text
    assert page.ids == ["reconstructions", "latents", "metrics", "making"]


def test_a_report_of_measured_samples_says_what_was_compared(run_folder: Path, tmp_path: Path):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "results.json").write_text(
        json.dumps({"schema": RESULTS_SCHEMA, "results": results_of("vmae", 0)[-6:]})
    )
    settings = {"source": "images/", "reference": "real.npz", "sampling": {}}
    (folder / "measured.json").write_text(json.dumps({"settings": settings}))
    page = Page(render_report(folder))
    assert "Generated images, compared with the real ones of real.npz." in page.text
    assert "Not done yet" not in page.text
    assert page.ids == ["metrics", "making"]
