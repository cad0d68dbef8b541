"""Any autoencoder, measured on images as users have them: in a folder, under whatever names."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import nn

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import load_config, save_config
from ldmae.contracts import RESULTS_SCHEMA, Metric
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint_model
from ldmae.core.provenance import Record
from ldmae.evaluation import compression, groupings
from ldmae.evaluation.api import Measured, checked
from ldmae.evaluation.probe import _halves
from ldmae.evaluation.subject import draw, image_keys
from ldmae.run import describe_results, encode_with, evaluate_samples, evaluate_with
from ldmae.run.initial import teachers
from ldmae.run.initial_diffusion import with_initial_weights
from ldmae.run.judging import mark_taught
from ldmae.run.run import latents_fingerprint

pytestmark = pytest.mark.usefixtures("blank")

SIZE = 24
FEW = ["evaluation.images=20", "evaluation.latent_images=20", "evaluation.epsilons=[0,0.3]"]
"""Settings that make a measurement quick, by drawing some of the images."""
FEWER = [*FEW, "evaluation.images=9"]
"""Too few for distances between features, which take most of the time."""
OWN = """\
import torch, torch.nn.functional as F

class Means(torch.nn.Module):
    "Has no weights at all."
    def encode(self, images): return F.avg_pool2d(images, 4)
    def decode(self, latents): return F.interpolate(latents, scale_factor=4.0)

class Finer(torch.nn.Module):
    def encode(self, images): return F.interpolate(images, scale_factor=2.0)
    def decode(self, latents): return F.avg_pool2d(latents, 2)

class One(torch.nn.Module):
    def encode(self, images): return images.mean(dim=(2, 3), keepdim=True)
    def decode(self, latents): return latents.expand(-1, -1, 24, 24)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def autoencoder(path: str = "kl", **config: Any) -> str:
    """Saves a small AutoencoderKL, always of the same weights, and returns its folder."""
    torch.manual_seed(0)
    blocks: Any = (8, 8)  # diffusers' annotation knows one alone
    model = AutoencoderKL(block_out_channels=blocks, norm_num_groups=4, latent_channels=2)
    model.register_to_config(**config)
    for module in model.modules():  # at first it sees next to nothing
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight, 2.0)
    model.save_pretrained(path)
    return path


def evaluated(
    source: str, images: Path, *settings: str, only: list[str] | None = None, out: str = "figures"
) -> dict[str, Any]:
    """Measures, and returns each figure by its measurement and name, but for times and memory."""
    evaluate_with(source, [f"data={images}", f"image_size={SIZE}", *settings], Path(out), only)
    results = json.loads(Path(out, "results.json").read_text())["results"]
    passing = [f"{name} {what}" for name in ("encode", "decode") for what in ("rate", "memory")]
    return {f"{row['measurement']} {row['name']}": row for row in results if row["name"] not in passing}


def names_of(figures: dict[str, Any]) -> set[str]:
    return {name.split()[0] for name in figures}


# ---- the same figures, whatever plays no part


def test_metrics_are_the_same_under_other_file_names_and_to_rounding_at_another_batch_size(
    pictures, tmp_path
):
    renamed = tmp_path / "renamed"
    for k, path in enumerate(sorted(pictures.rglob("*.png"))):
        (renamed / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed / path.parent.name / f"{(k * 7) % 60:02d}-of-another-name.png")
    source = autoencoder()
    first = evaluated(source, pictures, *FEW, out="first")
    assert names_of(first) == {
        "reconstruction", "smoothness", "interpolation", "ifid", "compression", "probe", "components",
        "efficiency",
    }  # fmt: skip
    assert evaluated(source, renamed, *FEW, out="renamed") == first
    for picture in ("reconstruction", "interpolation", "components"):
        with (
            np.load(f"first/results/{picture}.npz") as one,
            np.load(f"renamed/results/{picture}.npz") as other,
        ):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    but_efficiency = ["reconstruction", "smoothness", "interpolation", "compression", "probe", "components"]
    odd = evaluated(source, pictures, *FEW, "evaluation.batch_size=3", only=but_efficiency, out="odd")
    assert odd.keys() == {name for name in first if name.split()[0] in but_efficiency}
    for name, row in odd.items():
        assert row["value"] == pytest.approx(first[name]["value"], rel=1e-4, abs=1e-6), name


def test_scaling_and_shift_factors_play_no_part_in_what_is_decoded(pictures):
    plain = evaluated(autoencoder(), pictures, *FEWER, only=["smoothness", "interpolation"], out="plain")
    Path("plain/results.json").unlink()  # killed before the metrics were merged
    assert evaluated(autoencoder(), pictures, *FEWER, only=["smoothness"], out="plain") == plain
    scaled = autoencoder("scaled", scaling_factor=0.18, shift_factor=0.7)
    assert evaluated(scaled, pictures, *FEWER, only=["smoothness", "interpolation"], out="other") == plain


def test_noise_is_measured_in_deviations_of_the_training_images(pictures, tmp_path):
    grey = tmp_path / "grey"  # whose own latents vary by far less
    for path in sorted(pictures.rglob("0*.png")):
        (grey / path.parent.name).mkdir(parents=True, exist_ok=True)
        faint = np.asarray(Image.open(path), float) / 20 + 120
        Image.fromarray(faint.astype(np.uint8)).save(grey / path.parent.name / path.name)
    Path("own_autoencoder.py").write_text(OWN)
    source, only = "own_autoencoder:Means", ["smoothness"]
    own = evaluated(source, grey, *FEWER, only=only, out="own")
    held = evaluated(source, pictures, f"data.val={grey}", *FEWER, only=only, out="held")
    clean, noisy = ("smoothness PSNR(eps=0)", "smoothness PSNR(eps=0.3)")
    assert held[clean]["value"] == own[clean]["value"]
    assert held[noisy]["value"] < own[noisy]["value"] - 1


def test_equal_files_are_images_of_their_own(pictures, tmp_path):
    twice = tmp_path / "twice"
    for k, path in enumerate([*sorted(pictures.rglob("00.png")), *sorted(pictures.rglob("00.png"))]):
        twice.mkdir(exist_ok=True)
        shutil.copy(path, twice / f"{k}.png")
    figures = evaluated(autoencoder(), twice, only=["smoothness", "interpolation", "compression"])
    assert figures["smoothness PSNR(eps=0)"]["counts"] == {"images": 6}


def test_what_is_drawn_hangs_on_keys_not_on_places():
    keys = [f"{k * 37 % 101:04d}" for k in range(101)]
    drawn = draw(keys, 10, 0)
    back = keys[::-1]
    assert [keys[i] for i in drawn] == [back[i] for i in draw(back, 10, 0)]
    assert len(set(drawn.tolist())) == 10
    assert set(drawn.tolist()) != set(draw(keys, 10, 1).tolist())
    assert [keys[i] for i in draw(keys, None, 0)] == sorted(keys)


def test_keys_of_images_that_nobody_looked_at_are_their_places():
    class Streamed:
        def __len__(self):
            return 3

    assert image_keys(Streamed()) == sorted(image_keys(Streamed()))  # type: ignore[arg-type]
    assert len(set(image_keys(Streamed()))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [7, 1000])
def test_compression_segments_no_more_images_than_it_measures(pictures, limit, monkeypatch):
    chosen = functools.partial(compression._chosen_images, limit=limit)
    monkeypatch.setattr(compression, "_chosen_images", chosen)
    segmented: list[int] = []
    parts, few = groupings._parts_by_felzenszwalb, ["evaluation.images=20", "evaluation.batch_size=3"]

    def counted(pixels: np.ndarray) -> np.ndarray:
        segmented.append(1)
        return parts(pixels)

    monkeypatch.setattr(groupings, "_parts_by_felzenszwalb", counted)
    found = evaluated(autoencoder(), pictures, *few, only=["compression"])
    assert len(segmented) == min(limit, 20) == found["compression sigma2(part)"]["counts"]["images"]
    assert ("drawn from 20" in found["compression sigma2(part)"]["note"]) == (limit == 7)


# ---- what is measured


def test_a_class_without_weights_is_measured_in_every_way(pictures):
    Path("own_autoencoder.py").write_text(OWN)
    figures = evaluated("own_autoencoder:Means", pictures, *FEW)
    assert len(names_of(figures)) == 8
    assert figures["efficiency parameters"]["value"] == 0


def test_reconstruction_holds_the_distance_between_features(pictures):
    figures = evaluated(autoencoder(), pictures, *FEW, only=["reconstruction", "smoothness"])
    distance = figures["reconstruction rKID-efficientnet_lite0"]
    assert distance["value"] == figures["smoothness rKID-efficientnet_lite0(eps=0)"]["value"]
    assert "rFD-efficientnet_lite0 needs 1281 images" in distance["note"]
    asked = evaluated(
        autoencoder(), pictures, *FEW, "evaluation.shrink_covariance=true", only=["reconstruction"]
    )
    shrunk = asked["reconstruction rFD-efficientnet_lite0"]
    assert shrunk["value"] > 0
    assert "shrunk" in shrunk["note"]


def test_too_few_images_for_a_distance_leave_the_rest_of_the_curve(pictures, capsys):
    figures = evaluated(autoencoder(), pictures, "evaluation.images=9", only=["smoothness"])
    assert "smoothness ST-LPIPS-alex-AUC" in figures
    assert not any("KID" in name for name in figures)
    assert "which need at least 10 images, got 9" in capsys.readouterr().err.replace("\n", " ")


# ---- measured again


def test_what_is_measured_is_not_measured_again(pictures):
    source, only = autoencoder(), ["reconstruction"]
    evaluated(source, pictures, *FEWER, only=only)
    before = Path("figures/results/reconstruction.json").stat().st_mtime_ns
    evaluated(source, pictures, *FEWER, "evaluation.batch_size=5", only=only)
    assert Path("figures/results/reconstruction.json").stat().st_mtime_ns == before
    evaluated(source, pictures, "evaluation.images=8", only=only)
    assert Path("figures/results/reconstruction.json").stat().st_mtime_ns > before


def test_figures_of_weights_that_changed_do_not_stay_beside_the_new_ones(pictures, capsys):
    source = autoencoder()
    evaluated(source, pictures, *FEW, only=["probe", "components"])
    model: Any = AutoencoderKL.from_pretrained(source)
    nn.init.ones_(model.encoder.conv_in.bias)
    model.save_pretrained(source)
    assert names_of(evaluated(source, pictures, *FEW, only=["probe"])) == {"probe"}
    assert (
        "removed, because they are damaged or of other weights, images, sizes or versions: components, probe"
        in " ".join(capsys.readouterr().err.split())
    )


def test_a_measurement_that_fails_leaves_no_older_figures(pictures):
    source = autoencoder()
    evaluated(source, pictures, *FEW, only=["probe", "components"])
    with pytest.raises(UserError, match=r"at least 10 (training|held-out) images"):
        evaluated(source, pictures, "evaluation.images=12", only=["probe"])
    results = json.loads(Path("figures/results.json").read_text())["results"]
    assert {row["measurement"] for row in results} == {"components"}


def test_a_folder_of_other_measurements_is_refused(pictures, tmp_path):
    source = autoencoder()
    evaluated(source, pictures, *FEW, only=["components"])
    before = Path("figures/results.json").read_bytes()
    shutil.copytree(source, "other")
    with pytest.raises(UserError, match=r"autoencoder: 'kl' -> 'other'.*--out"):
        evaluated("other", pictures, *FEW, only=["components"])
    with pytest.raises(UserError, match="holds measurements of something else: data: "):
        evaluated(source, pictures / "bars", *FEW, only=["components"])
    with pytest.raises(UserError, match=r"there is no folder or file .*bers.*did you mean 'bars'"):
        evaluated(source, pictures / "bers", *FEW, only=["components"])
    assert Path("figures/results.json").read_bytes() == before


def test_a_single_generated_image_is_refused_before_real_ones_are_measured(pictures, tmp_path, monkeypatch):
    Path("one").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save("one/a.png")
    monkeypatch.setattr("ldmae.run.external_samples.reference_of", None)
    with pytest.raises(UserError, match="needs at least 2 generated images, got 1"):
        evaluate_samples("one", [f"data={pictures}"], tmp_path / "figures")


def other_contents(pictures: Path, folder: Path) -> Path:
    """Copies pictures; one file gets another picture, and keeps its name, size and time."""
    shutil.copytree(pictures, folder)
    first, second = sorted((folder / "bars").iterdir(), key=lambda path: path.stat().st_size)[:2]
    state = second.stat()
    second.write_bytes(first.read_bytes().ljust(state.st_size, b"\0"))  # decoders stop at the end mark
    os.utime(second, ns=(state.st_atime_ns, state.st_mtime_ns))
    return folder


def test_latents_of_images_of_equal_names_and_sizes_are_not_kept(pictures, tmp_path):
    source, settings = autoencoder(), [f"image_size={SIZE}"]
    with pytest.raises(UserError, match=r"takes all images of data and holds none out; omit data\.val"):
        encode_with(source, [f"data={pictures}", "data.val=0.5", *settings], Path("latents"))
    encode_with(source, [f"data={pictures}", *settings], Path("latents"))
    before = {path: path.read_bytes() for path in Path("latents").glob("*.safetensors")}
    other = other_contents(pictures, tmp_path / "other")
    with pytest.raises(UserError, match=r"holds latents of something else: images: "):
        encode_with(source, [f"data={other}", *settings], Path("latents"))
    assert {path: path.read_bytes() for path in Path("latents").glob("*.safetensors")} == before


def test_figures_of_images_of_equal_names_and_sizes_do_not_mix(pictures, tmp_path):
    own = shutil.copytree(pictures, tmp_path / "own")
    evaluated(autoencoder(), own, *FEW, only=["components"])
    other = other_contents(pictures, tmp_path / "other")
    shutil.rmtree(own)
    other.rename(own)
    with pytest.raises(UserError, match="holds measurements of something else: images: "):
        evaluated(autoencoder(), own, *FEW, only=["efficiency"])


# ---- masks, and what is not there


def masks_for(pictures: Path, folder: Path, pattern: str = "*.png") -> Path:
    for path in sorted(pictures.rglob(pattern)):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        labels = np.zeros((20, 24), np.uint8)
        labels[:, 12:] = 1
        Image.fromarray(labels).save(folder / path.parent.name / path.name)
    return folder


def test_masks_that_changed_are_measured_again(pictures, tmp_path):
    masks = masks_for(pictures, tmp_path / "masks")
    settings, only = (*FEW, f"evaluation.masks={masks}"), ["compression"]
    first = evaluated(autoencoder(), pictures, *settings, only=only)
    for path in masks.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).T.repeat(2, 1)[:20, :24].copy()).save(path)
    second = evaluated(autoencoder(), pictures, *settings, only=only)
    assert first["compression sigma2(object)"] != second["compression sigma2(object)"]
    assert first["compression sigma2(part)"] == second["compression sigma2(part)"]


def test_masks_that_do_not_match_are_an_error_before_anything_is_measured(pictures, tmp_path):
    masks = masks_for(pictures, tmp_path / "masks", "0*.png")
    with pytest.raises(UserError, match="30 of 60 images have no mask"):
        evaluated(autoencoder(), pictures, f"evaluation.masks={masks}")
    assert not Path("figures/results").exists()


def test_missing_weights_are_an_error_before_anything_is_measured(pictures, monkeypatch):
    def offline(*arguments: object, **named: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"Inception's weights could not be downloaded.*efficientnet_lite0"):
        evaluated(autoencoder(), pictures, *FEW, "evaluation.features=inception")
    assert not Path("figures/results").exists()


NOISY = """\
import torch, torch.nn.functional as F

class Drawn(torch.nn.Module):
    "Its posteriors have a deviation of 0.5 about means that hardly differ."
    def encode(self, images):
        mean = F.avg_pool2d(images, 4) / 100
        return {"latent_dist": type("Dist", (), {"mean": mean, "logvar": torch.full_like(mean, -1.386294)})()}
    def decode(self, latents): return F.interpolate(latents * 100, scale_factor=4.0)
"""


def test_noise_is_of_the_deviation_of_drawn_latents_not_of_their_means(pictures):
    Path("own_noisy.py").write_text(NOISY)
    Path("own_autoencoder.py").write_text(OWN)
    only = ["smoothness"]
    noisy = evaluated("own_noisy:Drawn", pictures, *FEWER, only=only, out="noisy")
    plain = evaluated("own_autoencoder:Means", pictures, *FEWER, only=only, out="plain")
    clean, far = "smoothness PSNR(eps=0)", "smoothness PSNR(eps=0.3)"
    assert noisy[clean]["value"] == pytest.approx(plain[clean]["value"], abs=0.05)
    # 0.3 · 0.5 · 100 = 15 in images of [-1, 1]: nothing is left of them
    assert noisy[far]["value"] < 6 < plain[far]["value"] - 6


def test_what_an_own_autoencoders_latents_do_not_allow_is_said_and_the_rest_is_measured(pictures, capsys):
    Path("own_autoencoder.py").write_text(OWN)
    found = {name.split()[0] for name in evaluated("own_autoencoder:Finer", pictures, *FEWER)}
    assert {"reconstruction", "components"} <= found
    assert "compression" not in found
    told = " ".join(capsys.readouterr().err.split())
    assert "compression needs at least 48 pixels a side, got 24; measure without it" in told
    with pytest.raises(UserError, match="deviation needs at least 2 cells, got 1; give more images"):
        evaluated("own_autoencoder:One", pictures, "evaluation.latent_images=1", only=["smoothness"], out="x")


def test_near_duplicates_lie_in_one_half():
    keys = [f"{k:02d}" for k in range(40)]
    labels = np.arange(40) // 10 % 2
    pairs = [k // 2 for k in range(40)]
    half = _halves(labels, keys, pairs, 0)
    assert (half[::2] == half[1::2]).all()
    assert [int((half[labels == label] == 0).sum()) for label in (0, 1)] == [10, 10]
    uneven = _halves(np.repeat([0, 1, 2], 10), keys[:30], [0] * 10 + keys[:20], 0)  # all of one class alike
    assert [int((uneven[k : k + 10] == 0).sum()) for k in (0, 10, 20)] == [10, 5, 5]
    threes = _halves(np.arange(39) // 3, keys[:39], keys[:39], 0)
    assert sorted(np.bincount(threes)) == [19, 20]
    alone = _halves(labels, keys, keys, 0)
    assert sorted(np.bincount(alone)) == [20, 20]
    assert (alone[::2] != alone[1::2]).any()


def test_an_autoencoder_of_the_same_weights_and_other_settings_is_another():
    shape: Any = {"sample_size": 16, "patch_size": 4, "latent_channels": 2, "decoder_hidden_size": 16}
    shape |= {"encoder_hidden_size": 16, "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    shape |= {"decoder_num_attention_heads": 2}
    two, four = (AutoencoderVMAE(encoder_num_attention_heads=heads, **shape) for heads in (2, 4))
    four.load_state_dict(two.state_dict())
    assert fingerprint_model(two) != fingerprint_model(four)
    four = AutoencoderVMAE(encoder_num_attention_heads=2, **shape)
    four.load_state_dict(two.state_dict())
    assert fingerprint_model(two) == fingerprint_model(four)


def test_latents_know_their_encoder_whatever_its_parts_are_called():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.bottleneck, self.decoder = (nn.Linear(1, 1, bias=False) for _ in range(3))

    model = Own()
    prints = [latents_fingerprint(model, 8)]
    for part in (model.decoder, model.bottleneck, model.encoder):
        nn.init.constant_(part.weight, 3.0)
        prints.append(latents_fingerprint(model, 8))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_pictures_and_figures_of_generated_images_go_with_the_weights_they_are_of(pictures):
    source = autoencoder()
    evaluated(source, pictures, *FEW, only=["components", "interpolation"])
    results = Path("figures/results")
    entry = {**Metric(name="KID", value=1.0).to_dict(), "measurement": "samples"}
    for name, inputs in (("generation", {}), ("samples", {"weights": "of another"})):
        written = {"schema": RESULTS_SCHEMA, "results": [entry], "record": vars(Record({}, inputs))}
        (results / f"{name}.json").write_text(json.dumps(written))
    model: Any = AutoencoderKL.from_pretrained(source)
    nn.init.ones_(model.encoder.conv_in.bias)
    model.save_pretrained(source)
    evaluated(source, pictures, *FEW, only=["probe"])
    assert sorted(path.name for path in results.iterdir()) == ["generation.json", "probe.json"]


def test_an_autoencoder_without_weights_is_encoded_with(pictures):
    Path("own_autoencoder.py").write_text(OWN)
    count = encode_with("own_autoencoder:Means", [f"data={pictures}", f"image_size={SIZE}"], Path("latents"))
    assert count == len(list(pictures.rglob("*.png")))


def test_teachers_are_known_where_the_source_is_gone(tmp_path):
    config = load_config("emoji", [f"autoencoder.source={tmp_path / 'source'}"])
    save_config(load_config("emoji"), tmp_path / "source" / "config.yaml")
    started, _ = with_initial_weights(config, tmp_path / "run")
    assert started.autoencoder.taught_by == ["st-lpips-alex"]
    save_config(started, tmp_path / "run" / "config.yaml")
    (tmp_path / "source" / "config.yaml").unlink()
    assert teachers(config) == set()
    again, _ = with_initial_weights(config, tmp_path / "run")
    assert teachers(again) == {"st-lpips-alex"}
    other = load_config("emoji", ["autoencoder.source=OWNER/NAME", "autoencoder.taught_by=[lpips-vgg]"])
    assert teachers(with_initial_weights(other, tmp_path / "other")[0]) == {"lpips-vgg"}
    wrong = load_config("emoji", [f"autoencoder.source={tmp_path / 'source'}", "autoencoder.taught_by=[]"])
    save_config(load_config("emoji"), tmp_path / "source" / "config.yaml")
    assert teachers(with_initial_weights(wrong, tmp_path / "other")[0]) == {"st-lpips-alex"}
    (tmp_path / "source" / "config.yaml").write_text("renamed: 1")  # of another version
    assert teachers(with_initial_weights(config, tmp_path / "run")[0]) == {"st-lpips-alex"}


def test_teachers_are_those_of_every_stage_and_of_what_it_started_from(tmp_path):
    mute = "autoencoder.tuning.objective.perceptual_weight=0"
    assert teachers(load_config("emoji", [mute])) == {"st-lpips-alex"}
    both = "autoencoder.pretraining.objective.perceptual_weight=0"
    assert teachers(load_config("emoji", [mute, both])) == set()
    other = "autoencoder.tuning.objective.perceptual=lpips-vgg"
    assert teachers(load_config("emoji", [other])) == {"st-lpips-alex", "lpips-vgg"}
    save_config(load_config("emoji", []), tmp_path / "config.yaml")
    (tmp_path / "stages.json").write_text('{"schema": 1, "stages": []}')
    assert teachers(load_config("emoji", [f"autoencoder.source={tmp_path}"])) == {"st-lpips-alex"}
    started = load_config("emoji", [f"autoencoder.init={tmp_path}", mute, both])
    assert teachers(started) == {"st-lpips-alex"}
    save_config(started, tmp_path / "config.yaml")  # of itself, as where a decoder was tuned and taken back
    assert teachers(started) == set()
    aligned = load_config("emoji", [mute, both, "autoencoder.pretraining.objective.alignment_weight=0.1"])
    assert teachers(aligned) == {"efficientnet_lite0"}
    judged = [
        Metric(name=f"KID-{network}", value=0.1) for network in ("efficientnet_lite0", "efficientnet_lite2")
    ]
    assert [metric.trained_on_metric for metric in mark_taught(judged, aligned)] == [True, False]


# ---- a measurement of one's own


SHARPNESS = """\
from ldmae.contracts import Metric
from ldmae.core.autoencoding import reconstruct
from ldmae.evaluation.api import Measured, Measurement

def measure(subject):
    shares = [reconstruct(subject.autoencoder, images).diff(dim=-1).abs().mean()
              for _, images in subject.batches("sharpness")]
    value = float(sum(shares) / len(shares))
    return Measured([Metric(name="sharpness", value=value, better="higher", trained_on_metric=True)])

Sharpness = Measurement(name="sharpness", title="Sharpness", measure=measure, reads=frozenset({"images"}))
"""


def test_a_measurement_of_ones_own_is_in_results_table_and_report(pictures):
    Path("my_metric.py").write_text(SHARPNESS)
    source, only = autoencoder(), ["my_metric:Sharpness"]
    found = evaluated(source, pictures, *FEWER, only=only)["sharpness sharpness"]
    assert found["value"] > 0
    assert found["trained_on_metric"] is True
    assert "sharpness  " in describe_results(Path("figures/results.json"))
    report = Path("figures/report.html").read_text()
    assert "<h3>Sharpness</h3>" in report
    assert "the autoencoder was trained on this metric" in report
    before = Path("figures/results/sharpness.json").stat().st_mtime_ns
    evaluated(source, pictures, *FEWER, "evaluation.pairs=3", only=only)
    assert Path("figures/results/sharpness.json").stat().st_mtime_ns == before
    Path("my_metric.py").write_text(SHARPNESS + "# edited\n")
    evaluated(source, pictures, *FEWER, only=only)
    assert Path("figures/results/sharpness.json").stat().st_mtime_ns > before
    for line in ("subject.autoencoder.train()", "next(subject.autoencoder.parameters()).data.add_(1)"):
        Path("my_metric.py").write_text(SHARPNESS.replace("    value =", f"    {line}\n    value ="))
        sys.modules.pop("my_metric", None)
        with pytest.raises(UserError, match="the measurement sharpness changed the autoencoder"):
            evaluated(source, pictures, *FEWER, only=only)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smothness", "no measurement 'smothness'; did you mean 'smoothness'"),
        ("my_metric:Blur", "has no Blur"),
        ("my_metric:measure", "expected a Measurement"),
        ("my_metric:Taken", "is called 'Probe', as one of the package is"),
        ("my_metric:Outside", r"is called '\.\./x'; take letters"),
        ("my_metric:Needs", r"my_metric:Needs needs it, has no attribute 'featurs'; did you mean 'features'"),
        ("my_metric:Reads", r"my_metric:Reads reads, has no setting 'imagse'; did you mean 'images'"),
        ("my_metric:Sharpness my_metric:Again", "several measurements are called 'sharpness'"),
    ],
)
def test_a_measurement_that_is_none_is_refused_before_anything_is_loaded(pictures, name, told):
    called = {"Taken": "Probe", "Outside": "../x", "Again": "Sharpness"}
    more = [f'{key} = Measurement(name="{of}", title="", measure=measure)\n' for key, of in called.items()]
    more.append('Needs = Measurement(name="n", title="", measure=measure, needs=("featurs",))\n')
    more.append('Reads = Measurement(name="r", title="", measure=measure, reads=frozenset({"imagse"}))\n')
    Path("my_metric.py").write_text(SHARPNESS + "".join(more))
    sys.modules.pop("my_metric", None)
    with pytest.raises(UserError, match=told):
        evaluated("nothing", pictures, only=name.split())


def test_numbers_of_ones_own_become_plain_ones_and_what_is_none_is_refused():
    metric = Metric(name="A", value=torch.tensor(0.5), counts={"images": np.int64(3)})  # type: ignore
    (found,) = checked(Measured([metric]), "mine").metrics
    plain = Metric(name="A", value=0.5, counts={"images": 3})
    assert json.dumps(found.to_dict()) == json.dumps(plain.to_dict())
    for wrong, told in (
        (0.5, "no attribute 'metrics'"),
        (Measured([0.5]), "no attribute"),  # type: ignore
        (Measured([]), "it holds no metric"),
        (Measured([Metric(name="A", value=1.0), Metric(name="A", value=2.0)]), "two metrics are called 'A'"),
        (Measured([Metric(name="A", value=math.nan)]), "A is nan"),
        (Measured([Metric(name="A", value=1.0, spread={"over images": math.inf})]), "A is inf"),
        (Measured([Metric(name="A", value=None)]), "float"),  # type: ignore
        (Measured([Metric(name="A", value=1.0, better="sideways")]), "better='sideways'"),
        (Measured([Metric(name="A", value=1.0, counts={"images": -4})]), "counts=.*-4"),
        (Measured([], {"file": np.zeros(3)}), "can't be called 'file'"),
        (Measured([], {"a": np.array([None])}), "must be an array of numbers"),
        (Measured([Metric(name="A", value=1.0, counts={"images": math.inf})]), "infinity"),  # type: ignore
        (Measured([Metric(name="A", value=1.0, note=None)]), "must be texts"),  # type: ignore
    ):
        with pytest.raises(UserError, match=f"the measurement mine must return a Measured .*{told}"):
            checked(wrong, "mine")
