import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmae.report import paper
from ldmae.report.comparison import _radar_axes, render_comparison
from ldmae.report.data import AUTOENCODERS, read_comparison

from .drawn_units import VARIANTS, change_images, edit, results_in, write_unit
from .page import Page, section

pytestmark = pytest.mark.usefixtures("blank")

FIVE = ["ae", "dae", "vae", "sd-vae", "vmae"]
SECTIONS = [
    "metrics",
    "compared",
    "reconstruction",
    "generation",
    "cost",
    "ablation",
    "smoothness",
    "compression",
    "radar",
    "reconstructions",
    "components",
    "interpolation",
    "samples",
    "order",
    "making",
]
PICTURES = {
    f"{name}.png"
    for name in (
        "metrics",
        "radar",
        "smoothness",
        "compression",
        "reconstructions",
        "components",
        "interpolation",
        "samples",
    )
}


def write_units(folder: Path, names: list[str], seeds: list[int]) -> Path:
    for name in names:
        for seed in seeds:
            write_unit(folder, name, seed, size=32, tiles=4)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight variants at three seeds, at the size at which the comparison runs."""
    folder = tmp_path_factory.mktemp("compare-photos")
    for name in VARIANTS:
        for seed in (0, 1, 2):
            write_unit(folder, name, seed)
    assert render_comparison(folder) == folder / "comparison.html"
    return folder


def test_page_shows_every_part_of_a_comparison(whole: Path):
    page = Page(whole / "comparison.html")
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "Not done yet" not in page.text
    assert "left out" not in page.text
    for words in (
        "Autoencoders compared: compare-photos",
        "photos: 1,200 for training in 4 classes; 120 held out",
        "CC0 and others",
        "64 px",
        "3 seeds: 0, 1, 2",
        "1,500 steps on the latents of each; images are drawn in 50 steps (euler)",
        "It is not LPIPS",
        "not comparable with FID or KID in papers",
        "The baselines' width is 0.1139 of the paper's",
        "CPU, 2 threads",
        "ldmae compare compare-photos",
        "32.18",
        "The paper's metrics are of ImageNet-1K, at 256 px, by LPIPS and on Inception's features; ours of "
        "photos, at 64 px, by ST-LPIPS-alex and on efficientnet_lite0's features. Where these differ, ",
        "17,331",
        "447.6",
        "in the paper in 7 of 10",
    ):
        assert words in page.text, words
    assert page.tags.count("img") == 8


def test_page_needs_no_other_file_and_is_under_5_mb(whole: Path):
    page = Page(whole / "comparison.html")
    page.assert_alone()
    assert len(page.source.encode()) < 5_000_000


def test_plots_and_pictures_lie_beside_the_page(whole: Path):
    assert {path.name for path in whole.glob("*.png")} == PICTURES
    for name in PICTURES:
        with Image.open(whole / name) as image:
            assert image.width > 300


def test_the_same_units_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    write_units(tmp_path, FIVE[:3], [0])
    render_comparison(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert len(first) == 3 + len(PICTURES)
    render_comparison(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == first


def test_one_unit_is_a_comparison_and_what_is_missing_is_named(tmp_path: Path):
    write_units(tmp_path, ["vae"], [4])
    page = Page(render_comparison(tmp_path))
    assert "one seed, no spread" in page.text
    assert "±" not in section(page, "reconstruction").split("</table>")[0]
    missing = section(page, "compared").split("Not done yet")[1]
    for title in ("AE", "DAE", "SD-VAE", "VMAE"):
        assert f"<li>{title}: no unit of it is done</li>" in missing
    assert "VAE: seed" not in missing
    assert "radar.png: a radar needs two autoencoders" in missing
    assert not (tmp_path / "radar.png").exists()
    assert "A ranking needs three autoencoders." in (tmp_path / "tables.md").read_text()


def test_an_empty_folder_gives_a_page(tmp_path: Path):
    page = Page(render_comparison(tmp_path))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "No autoencoder of this comparison is done yet." in page.text
    assert not list(tmp_path.glob("*.png"))


def test_seeds_that_others_have_and_planned_units_are_missed(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    write_unit(tmp_path, "vmae", 1, size=32, tiles=4)
    assert "<li>AE: seed 1</li>" in section(Page(render_comparison(tmp_path)), "compared")
    units = [{"variant": name, "seed": seed} for name in ("vmae", "vmae-mse") for seed in (0, 1, 7)]
    matching = {"full_size": {"flops": 895_200_000_000, "parameters": 83_820_000}}
    (tmp_path / "comparison.json").write_text(json.dumps({"units": units, "matching": matching}))
    compared = section(Page(render_comparison(tmp_path)), "compared")
    assert "<li>VMAE: seed 7</li>" in compared
    assert "<li>MSE only: no unit of it is done</li>" in compared
    assert "<li>AE: seed 1</li>" not in compared
    assert "would cost 895.2 GFLOPs and 83.8 M parameters" in compared


def test_speeds_of_another_device_are_left_out_and_not_averaged(tmp_path: Path):
    write_units(tmp_path, ["vmae"], [0, 1, 2])
    edit(tmp_path / "units/vmae/seed-2", device="NVIDIA H200", seconds={"autoencoder.baseline": 3.0})
    stats = read_comparison(tmp_path, problems := []).stats()
    assert problems == ["rates, memory and times of 1 unit on NVIDIA H200: most are on CPU, 2 threads"]
    assert stats.loc[("time", "autoencoder training", "vmae")]["mean"] == 202.0
    assert stats.loc[("efficiency", "encode rate", "vmae")]["count"] == 2
    assert stats.loc[("efficiency", "parameters", "vmae")]["count"] == 3


def test_damaged_units_are_named_and_left_out(tmp_path: Path):
    contents = [b"", b'{"schema": 2, "vari', b"[]", b"null", b"\xff\xfe", b"7"]
    write_units(tmp_path, ["ae"], list(range(len(contents))))
    write_units(tmp_path, ["vae"], [0])
    for seed, content in enumerate(contents):
        (tmp_path / "units" / "ae" / f"seed-{seed}" / "unit.json").write_bytes(content)
    page = Page(render_comparison(tmp_path))
    left_out = page.text.split("Left out")[1]
    for seed in range(len(contents)):
        assert f"units/ae/seed-{seed}/unit.json" in left_out
    assert section(page, "reconstruction").count('<th scope="row">') == 2  # VAE, and the paper's


def test_a_unit_that_says_something_unexpected_is_named_and_left_out(tmp_path: Path):
    write_units(tmp_path, ["ae", "vae", "vmae", "sd-vae", "vmae-lm"], [0])
    units = tmp_path / "units"
    shutil.copytree(units / "vmae", units / "dae")
    edit(units / "vae" / "seed-0", schema=1)
    edit(units / "ae" / "seed-0", results="none")
    edit(units / "sd-vae" / "seed-0", group="others")
    edit(units / "vmae-lm" / "seed-0", seed="0")
    text = Page(render_comparison(tmp_path)).text
    assert "units/dae/seed-0/unit.json is left out: it says that it is vmae/seed-0" in text
    assert "units/vae/seed-0/unit.json is left out: its schema is 1, this version reads 2" in text
    assert "units/ae/seed-0/unit.json is left out: it holds no results" in text
    assert "SD-VAE is left out: its group is others, not autoencoders or ablation" in text
    assert "units/vmae-lm/seed-0/unit.json is left out" in text


def test_measurements_that_no_unit_has_leave_their_plots_out_by_name(tmp_path: Path):
    write_units(tmp_path, ["ae", "dae", "vmae"], [0])
    render_comparison(tmp_path)
    for unit in (tmp_path / "units").glob("*/seed-0"):
        shown = ("reconstruction", "samples")
        edit(unit, results=[r for r in results_in(unit) if r["measurement"] in shown])
    page = Page(render_comparison(tmp_path))
    missing = page.text.split("Not done yet")[1]
    assert "smoothness.png: no autoencoder's smoothness is measured yet" in missing
    assert "compression.png: no autoencoder's σ² and ρ are measured yet" in missing
    assert {path.name for path in tmp_path.glob("*.png")} == PICTURES - {"smoothness.png", "compression.png"}
    assert "no autoencoder has these metrics" in section(page, "smoothness")


def test_units_of_unexpected_types_never_stop_the_page(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    for value in (None, 3, "text", [], {}, [None, 3, {}, {"name": None, "counts": 3, "value": {}}]):
        fields = ("title", "group", "order", "command", "image_size", "steps", "width", "parameters")
        edit(tmp_path / "units" / "ae" / "seed-0", **dict.fromkeys(fields, value))
        edit(tmp_path / "units" / "vmae" / "seed-0", seconds=value, device=value, data=value, results=value)
        (tmp_path / "comparison.json").write_text(json.dumps({"units": value, "matching": value}))
        Page(render_comparison(tmp_path))


def test_names_from_units_are_escaped_everywhere(tmp_path: Path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    unit = write_unit(tmp_path, "ae", 0, size=32, tiles=4)
    result = {
        "measurement": "reconstruction",
        "name": f"{evil}LPIPS-x",
        "value": 1,
        "better": evil,
        "note": evil,
    }
    data = {"name": evil, "licence": evil, "classes": [{"name": evil}] * 4}
    results = [result, {**result, "name": "L1"}]
    edit(unit, preset=evil, title=evil, command=evil, device=evil, data=data, results=results)
    page = Page(render_comparison(tmp_path))
    assert "script" not in page.tags
    assert "<script" not in page.source
    assert "onerror" not in "".join(page.tags)


def test_a_picture_of_other_images_is_left_out_and_named(tmp_path: Path):
    write_units(tmp_path, ["ae", "dae", "vae", "vmae"], [0])
    other = tmp_path / "units" / "dae" / "seed-0"
    with np.load(other / "images.npz") as arrays:
        change_images(other, originals=255 - arrays["originals"])
    (tmp_path / "units" / "ae" / "seed-0" / "images.npz").write_bytes(b"no arrays")
    text = Page(render_comparison(tmp_path)).text
    assert "dae/seed-0: its images are left out because they are of other images" in text
    assert "ae/seed-0: images.npz could not be read" in text


def test_a_figure_that_is_gone_leaves_no_old_picture(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    render_comparison(tmp_path)
    assert (tmp_path / "radar.png").exists()
    shutil.rmtree(tmp_path / "units" / "vmae")
    render_comparison(tmp_path)
    assert not (tmp_path / "radar.png").exists()
    assert (tmp_path / "samples.png").exists()


def test_the_radar_has_an_axis_for_each_property_and_names_those_left_out(tmp_path: Path):
    write_units(tmp_path, ["ae", "vae", "vmae"], [0])
    comparison = read_comparison(tmp_path, [])
    axes, left_out = _radar_axes(comparison)
    assert [(axis.subject, axis.title) for axis in axes] == [
        ("smoothness", "rKID-efficientnet_lite0 at ε = 0.3"),
        ("compression", "σ², mean of 2 levels"),
        ("compression", "ρ, mean of 2 levels"),
        ("reconstruction", "PSNR"),
        ("reconstruction", "ST-LPIPS-alex"),
        ("reconstruction", "rKID-efficientnet_lite0"),
        ("generation", "FD-efficientnet_lite0"),
        ("generation", "KID-efficientnet_lite0"),
    ]
    assert left_out == []
    sigma2 = axes[1]
    means = comparison.stats()["mean"]
    levels = [means["compression", f"sigma2({level})", "ae"] for level in ("part", "pattern")]
    assert sigma2.values["ae"] == pytest.approx(np.mean(levels))
    for path in (tmp_path / "units").glob("*/seed-0"):
        same = [r | {"value": 20.0} if r["name"] == "PSNR" else r for r in results_in(path)]
        edit(path, results=same)
    axes, left_out = _radar_axes(read_comparison(tmp_path, []))
    assert "PSNR" not in [axis.title for axis in axes]
    assert left_out == ["PSNR (equal for all)"]


def test_the_radars_smoothness_is_at_the_largest_noise_that_all_have_else_the_area(tmp_path: Path):
    write_units(tmp_path, ["ae", "vae", "vmae"], [0])
    for gone, title in (("eps=0.3", "rKID-efficientnet_lite0 at ε = 0.2"), ("eps=", "ST-LPIPS-alex-AUC")):
        for name in ("ae", "vae", "vmae") if gone == "eps=" else ("ae",):
            unit = tmp_path / "units" / name / "seed-0"
            edit(unit, results=[r for r in results_in(unit) if gone not in r["name"]])
        axes, _ = _radar_axes(read_comparison(tmp_path, []))
        assert [axis.title for axis in axes if axis.subject == "smoothness"] == [title]


def test_the_radar_marks_what_autoencoders_were_trained_on(whole: Path):
    axes, _ = _radar_axes(read_comparison(whole, []).select(AUTOENCODERS))
    taught = {axis.title: axis.taught for axis in axes if axis.taught}
    assert taught == {"ST-LPIPS-alex": ["SD-VAE", "VMAE"]}
    assert [axis.label for axis in axes if axis.taught] == ["reconstruction\nST-LPIPS-alex†"]
    said = section(Page(whole / "comparison.html"), "radar")
    assert "† trained on ST-LPIPS-alex: SD-VAE and VMAE." in said
    assert "rKID-efficientnet_lite0 at ε = 0.3 contains what reconstruction without noise costs, too." in said


def test_what_is_measured_as_the_paper_does_is_not_called_other(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    for name in ("ae", "vmae"):
        unit = tmp_path / "units" / name / "seed-0"
        results = results_in(unit)
        for entry in results:
            for ours, papers in (("-efficientnet_lite0", ""), ("ST-LPIPS-alex", "LPIPS-vgg"), ("FD", "FID")):
                entry["name"] = entry["name"].replace(ours, papers)
        edit(unit, results=results, image_size=256, data={"name": "imagenet-1k"})
    text = render_comparison(tmp_path).with_name("tables.md").read_text()
    assert "ours of imagenet-1k, at 256 px, by LPIPS-vgg and on Inception's features." in text
    for name in ("ae", "vmae"):
        edit(tmp_path / "units" / name / "seed-0", results=[], image_size=None, data=None)
    assert "The paper's metrics are" not in render_comparison(tmp_path).with_name("tables.md").read_text()


def test_shares_that_are_all_next_to_0_are_in_no_count_and_are_named(tmp_path: Path):
    write_units(tmp_path, ["ae", "vae", "vmae"], [0])
    before = Page(render_comparison(tmp_path)).text
    assert "of the 11 metrics of reconstruction and generation" in before
    assert "Over 11 metrics, " in before
    assert "not counted" not in before
    for name in ("ae", "vae", "vmae"):
        unit = tmp_path / "units" / name / "seed-0"
        results = results_in(unit)
        few = {"recall-efficientnet_lite0": 0.019, "L1": 0.001}  # an L1 may be small, and says a lot
        edit(unit, results=[r | {"value": few.get(r["name"], r["value"])} for r in results])
    text = Page(render_comparison(tmp_path)).text
    assert "of the 10 metrics of reconstruction and generation" in text
    assert "Over 10 metrics, " in text
    assert "not counted: recall-efficientnet_lite0, whose means are all below 0.02" in text
    tables = (tmp_path / "tables.md").read_text()
    assert "not counted: recall-efficientnet\\_lite0, whose means are all below 0.02." in tables
    assert "| recall-efficientnet\\_lite0 | recall |" in tables  # it is shown


def test_units_that_differ_in_what_was_compared_say_so(tmp_path: Path):
    write_units(tmp_path, ["ae", "dae", "vmae"], [0])
    edit(
        tmp_path / "units" / "vmae" / "seed-0", steps={"autoencoder": 900, "diffusion": 1500}, device="a GPU"
    )
    text = Page(render_comparison(tmp_path)).text
    assert "700 (AE and DAE); 900 (VMAE)" in text
    assert "CPU, 2 threads (AE and DAE); a GPU (VMAE)" in text


def test_tables_in_markdown_say_what_the_page_says(whole: Path):
    text, page = (whole / "tables.md").read_text(), Page(whole / "comparison.html")
    for title in ("Reconstruction", "Generation", "Cost", "Ablation", "Smoothness", "Perceptual compression"):
        lines = text.split(f"## {title}\n")[1].strip().split("\n\n")[0].splitlines()
        assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
        rows = [line for line in lines[2:] if "*in the paper*" not in line]
        figures = [cell.strip(" *†") for line in rows for cell in line.split("|")[3:-1]]
        assert figures
        for figure in figures:
            assert figure in page.text, figure
    assert (
        len(text.split("## Ablation\n")[1].split("## ")[0].split("*in the paper*")) == len(paper.ABLATION) + 1
    )


def test_the_ablation_is_compared_at_the_seeds_that_its_rows_share(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0, 1])
    write_units(tmp_path, ["vmae-mse"], [0])
    text = render_comparison(tmp_path).with_name("tables.md").read_text()
    (row,) = [line for line in table_of(text, "Ablation") if line.startswith("| + L")]
    assert row.split("|")[2].strip() == "1"
    (row,) = [line for line in table_of(text, "Reconstruction") if line.startswith("| VMAE")]
    assert row.split("|")[2].strip() == "2"


def test_without_the_papers_other_steps_vmae_is_no_step_of_an_ablation(tmp_path: Path):
    write_units(tmp_path, ["vmae", "vmae-mse"], [0])
    (tmp_path / "units" / "vmae-mse").rename(tmp_path / "units" / "vmae-noise")
    edit(tmp_path / "units" / "vmae-noise" / "seed-0", variant="vmae-noise", title="noise in tuning")
    shown = section(Page(render_comparison(tmp_path)), "ablation")
    assert "noise in tuning" in shown
    assert "L_P" not in shown


def test_an_ablation_that_nobody_asked_for_is_not_shown(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    units = [{"variant": name, "seed": 0} for name in ("ae", "vmae")]
    (tmp_path / "comparison.json").write_text(json.dumps({"units": units}))
    page = Page(render_comparison(tmp_path))
    assert "ablation" not in page.ids
    assert "Ablation" not in page.text
    assert "Ablation" not in (tmp_path / "tables.md").read_text()


def test_a_width_that_was_not_fitted_is_not_called_so(tmp_path: Path):
    write_units(tmp_path, ["ae", "vmae"], [0])
    for fitted in (True, False):
        (tmp_path / "comparison.json").write_text(json.dumps({"matching": {"fitted": fitted}}))
        text = Page(render_comparison(tmp_path)).text
        assert "The baselines' width is 0.1139 of the paper's" in text
        assert ("fitted to what VMAE's encode + decode costs" in text) is fitted


def table_of(markdown: str, heading: str) -> list[str]:
    """Returns the rows of the table below a heading."""
    below = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in below.splitlines() if line.startswith("|")]
