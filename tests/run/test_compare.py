"""`ldmae compare`: units that are alike but for what sets them apart, resumable, and joined from files."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from ldmae.config import load_config, preset_names, save_config
from ldmae.config import plain as plain_settings
from ldmae.config.autoencoder import KINDS
from ldmae.config.schema import _TRAINED, ABLATION
from ldmae.config.variants import VARIANTS
from ldmae.core.errors import UserError
from ldmae.core.provenance import Record, Records, changed
from ldmae.loading import check_run_folder
from ldmae.report.comparison import render_comparison
from ldmae.run.commands import evaluate_run, run_all, run_stages
from ldmae.run.comparison import _check_networks, compare
from ldmae.run.comparison_plan import (
    _unit_changes,
    check_restart,
    chosen_units,
    describe_comparison,
    plan_comparison,
    refuse_run,
)
from ldmae.run.external_metrics import evaluate_with
from ldmae.run.external_samples import evaluate_samples
from ldmae.run.flatness import train_diffusion_with_curve
from ldmae.run.plan import describe_plan
from ldmae.run.real_images import trained_images
from ldmae.run.schedule import open_run
from ldmae.run.trainings import training_steps

from ..drawings import leave_blank

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
EXTEND = RESULTS.parents[1] / "examples" / "extend"
COMPARISONS = [name for name in preset_names() if name.startswith("compare-")]
TINY = [
    "device=cpu",
    "autoencoder.pretraining.training.steps=3",
    "autoencoder.tuning.training.steps=2",
    "diffusion.training.steps=3",
    "diffusion.model.num_layers=1",
    "evaluation.samples=10",
    "evaluation.images=10",
    "evaluation.latent_images=30",
    "evaluation.pairs=4",
    "evaluation.real_images=10",
    "evaluation.epsilons=[0,0.1]",
    "evaluation.speed_batch_size=2",
    "sampling.num_inference_steps=2",
    "sampling.per_class=1",
]


pytestmark = pytest.mark.usefixtures("blank")
units_of = functools.cache(lambda preset: plan_comparison(preset, [])[0])
"""The units of a comparison; resolving the settings of all takes seconds."""


# ---- what is compared


@pytest.mark.parametrize("preset", COMPARISONS)
def test_all_autoencoders_get_the_same_images_steps_latents_and_diffusion_model(preset):
    units = units_of(preset)
    assert {unit.name for unit in units} >= set(_TRAINED)
    first = units[0].config
    for unit in units:
        config, auto = unit.config, unit.config.autoencoder
        steps = training_steps(config)
        assert sum(n for name, n in steps.items() if name.startswith("autoencoder.")) == 2000
        assert {getattr(auto, part).training.batch_size for part in auto.stages} == {16}
        assert (auto.patch_size, auto.latent_channels) == (8, 16)
        assert config.seed == unit.seed
        for part in ("data", "image_size", "latents", "diffusion", "sampling", "evaluation"):
            assert getattr(config, part) == getattr(first, part), part


@pytest.mark.parametrize("preset", COMPARISONS)
def test_baselines_cost_what_the_vmae_costs(preset):
    _, matching = plan_comparison(preset, ["comparison.seeds=[0]", "comparison.ablation=[]"])
    widths = {u.config.autoencoder.baseline.model.width for u in units_of(preset) if u.name in KINDS}
    assert widths == {matching.width}
    assert matching.baseline_flops == pytest.approx(matching.vmae_flops, rel=0.02)
    assert matching.full_size["parameters"] == pytest.approx(83.82e6, rel=1e-3)  # METHOD
    assert matching.full_size["flops"] > 50 * matching.vmae_flops


@pytest.mark.parametrize("preset", COMPARISONS)
def test_units_that_were_made_are_those_that_the_preset_makes(preset):
    made = RESULTS / preset / "units"
    planned = {unit.place: unit for unit in units_of(preset)}
    found = [path.parent.relative_to(made) for path in made.rglob("unit.json")]
    assert len(found) >= 5
    for place in found:
        kept = json.loads((made / place / "unit.json").read_text())
        assert _unit_changes(planned[place], kept) == [], place


def test_a_finished_unit_is_the_same_on_another_machine_with_the_same_images():
    here, there = (
        plan_comparison("compare-photos", [f"data={place}", "latents.batch_size=8"][:many])[0][0]
        for place, many in (("here/photos", 1), ("there/photos", 2))
    )
    made = {"settings": json.loads(json.dumps(here.settings)), "data": {"fingerprint": "f"}}
    assert _unit_changes(there, made) == []
    assert _unit_changes(there, made | {"data": {}}) != []
    other = plan_comparison("compare-photos", ["latents.flip=true", "image_size=32"])[0][0]
    assert {line.partition(":")[0] for line in _unit_changes(other, made)} >= {"image_size"}


def test_only_the_sd_vae_has_an_adversary_and_only_it_and_the_vmae_a_perceptual_term():
    stages = {
        u.name: [getattr(u.config.autoencoder, s).objective for s in u.config.autoencoder.stages]
        for u in units_of("compare-photos")
    }
    assert {n for n, o in stages.items() if any(x.perceptual_weight > 0 for x in o)} == {
        "sd-vae",
        "vmae",
        "vmae-noise",
    }
    adversarial = {
        name: getattr(objectives[0], "adversarial_weight", 0) for name, objectives in stages.items()
    }
    assert {name for name, weight in adversarial.items() if weight > 0} == {"sd-vae"}
    assert stages["dae"][0].input_noise > 0
    assert stages["vae"][0].kl_weight > 100 * stages["sd-vae"][0].kl_weight


def test_the_ablations_rows_add_one_term_each():
    units = units_of("compare-photos")
    rows = [
        next(u for u in units if u.name == name).config.autoencoder
        for name in ("vmae-mse", "vmae-lm", "vmae-lm-lreg", "vmae", "vmae-noise")
    ]
    objectives = [row.pretraining.objective for row in rows]
    assert [o.masking.ratio > 0 and o.masked_weight > 0 for o in objectives] == [False, *4 * [True]]
    assert [o.kl_weight > 0 and o.sample_posterior for o in objectives] == [False, False, True, True, True]
    assert [o.perceptual_weight > 0 for o in objectives] == [False, False, False, True, True]
    assert [row.tuning.objective.perceptual_weight > 0 for row in rows] == [False, False, False, True, True]
    assert [row.tuning.objective.latent_noise > 0 for row in rows] == [False, False, False, False, True]
    assert {row.model for row in rows} == {rows[0].model}


def test_variants_beyond_the_paper_differ_from_vmae_in_what_they_are_called_after():
    plain = load_config("compare-photos", ["autoencoder.kind=vmae"])
    for name in (name for name in ABLATION if name.startswith(("vmae-", "vit-vmae", "vit-ae-noise"))):
        settings = [s for s in VARIANTS[name].settings if "${" not in s]
        changes = changed(plain_settings(plain), plain_settings(load_config("compare-photos", settings)))
        assert changes, name
        assert all(line.startswith("autoencoder.") for line in changes), changes
        assert VARIANTS[name].is_baseline is VARIANTS[name].is_conv is False
    assert VARIANTS["vit-ae-noise"].settings[:-1] == VARIANTS["vmae-mse"].settings
    assert set(VARIANTS) == {*_TRAINED, *ABLATION}


def test_a_row_that_has_none_of_the_seeds_is_named():
    units, _ = plan_comparison(
        "compare-photos", ["comparison.seeds=[0,1]", "comparison.ablation=[vmae-noise]"]
    )
    assert [unit.seed for unit in chosen_units(units, ["vmae-noise"], [0])] == [0]
    with pytest.raises(UserError, match="vmae-noise is compared at seed 0 alone, got --seed 1; add it"):
        chosen_units(units, ["vmae", "vmae-noise"], [1])


def test_objectives_on_the_other_network_are_trained_as_its_own():
    one = ["comparison.seeds=[0]", "comparison.autoencoders=[vae,vmae]"]
    wanted = ["vit-ae", "vit-dae", "vit-vae", "conv-vmae-loss"]
    units, matching = plan_comparison("compare-photos", [*one, f"comparison.ablation=[{','.join(wanted)}]"])
    configs = {unit.name: unit.config.autoencoder for unit in units}
    vmae, conv = configs["vmae"], configs["conv-vmae-loss"].baseline
    for name in ("vit-ae", "vit-dae", "vit-vae"):
        auto = configs[name]
        assert (auto.kind, auto.is_vit, auto.model) == (name.removeprefix("vit-"), True, vmae.model)
        assert auto.baseline.training.optimizer.learning_rate == 1.2e-3
        assert auto.baseline.training.optimizer.weight_decay == 0.05
        assert auto.baseline.training.steps == 2000
    assert configs["vit-vae"].baseline.objective == configs["vae"].baseline.objective
    assert (conv.network, conv.model.width) == ("conv", matching.width)
    assert (conv.objective.variance_kl, conv.objective.pixel_loss) == (True, "mse")
    assert conv.objective.kl_weight == vmae.pretraining.objective.kl_weight
    assert conv.objective.perceptual_weight == vmae.tuning.objective.perceptual_weight


def test_settings_of_one_autoencoder_reach_it_alone():
    units, _ = plan_comparison(
        {
            "base": "compare-photos",
            "comparison": {
                "seeds": [0],
                "ablation": [],
                "settings": {"dae": ["autoencoder.baseline.objective.input_noise=0.3"]},
            },
        },
        [],
    )
    noise = {u.name: u.config.autoencoder.baseline.objective.input_noise for u in units}
    assert noise["dae"] == 0.3
    assert {noise[name] for name in noise if name != "dae"} == {0.0}


# ---- wrong input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["comparison.autoencoders=[vmea]"], "did you mean 'vmae'"),
        (["comparison.ablation=[vmae]"], "ablation[0] must be vmae-mse, vmae-lm, vmae-lm-lreg"),
        (["comparison.seeds=[1,1]"], "seeds holds 1 more than once"),
        (["comparison.autoencoders=[vmae,ae,vmae]"], "autoencoders holds vmae more than once"),
        (["comparison.settings={'my_ae:Other': []}"], "my_ae:Other, which is not among the autoencoders"),
        (["comparison.seeds=[]", "comparison.ablation=[]"], "it compares nothing"),
        (["comparison.autoencoders=[]", "comparison.ablation_seeds=[]"], "it compares nothing"),
        (["autoencoder.kind=ae"], "leave autoencoder.source and autoencoder.kind out"),
        (["image_size=48", "autoencoder.model.patch_size=6"], "factor must be a power of two"),
    ],
)
def test_impossible_comparison_is_refused_before_any_work(overrides, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        plan_comparison("compare-photos", overrides)


def test_missing_images_are_refused_before_anything_is_said_to_be_compared(tmp_path):
    one = ["data=/no/such", "comparison.seeds=[0]", "comparison.ablation=[]"]
    with pytest.raises(UserError, match="no/such"):
        compare("compare-photos", one, tmp_path / "runs", tmp_path / "results", ["vmae"], [0])
    assert not (tmp_path / "results").exists()


def test_a_network_that_cannot_be_had_is_named_before_the_first_autoencoder(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    wanted = ["autoencoder.baseline.objective.perceptual=lpips-vgg", "comparison.autoencoders=[vmae,sd-vae]"]
    with pytest.raises(
        UserError, match=r"sd-vae: autoencoder\.baseline: .*`perceptual`, as st-.* with --only"
    ):
        compare("smoke", wanted, tmp_path / "runs", tmp_path / "results")
    assert not (tmp_path / "runs" / "vmae").exists()
    units, _ = plan_comparison("smoke", wanted)
    for unit in units:  # it is needed for no training that is done
        records = Records(tmp_path / unit.place)
        for name in training_steps(unit.config):
            records.stages[name] = Record(status="done")
        (tmp_path / unit.place).mkdir(parents=True)
        records.write()
    _check_networks(units, tmp_path)


def test_unknown_name_or_seed_is_refused(tmp_path):
    few = [*TINY, "comparison.seeds=[0]", "comparison.ablation=[]"]
    for only, seeds, message in (
        (["sdvae"], None, "did you mean 'sd-vae'"),
        (None, [7], "seed 7 is not among"),
    ):
        with pytest.raises(UserError, match=message):
            compare("compare-photos", few, tmp_path / "runs", tmp_path / "results", only, seeds)
    assert not list(tmp_path.rglob("unit.json"))


# ---- a comparison at work


@pytest.fixture(scope="module")
def made(tmp_path_factory, pictures) -> Path:
    """Two autoencoders and a step of the ablation, compared on small pictures."""
    folder = tmp_path_factory.mktemp("compare")
    AcceleratorState._reset_state(True)
    settings = {
        "base": "compare-photos",
        "data": {"source": str(pictures), "val": "0.4"},
        "image_size": 32,
        "autoencoder": {
            "model": {
                "encoder_hidden_size": 24,
                "encoder_num_hidden_layers": 1,
                "decoder_hidden_size": 24,
                "decoder_num_hidden_layers": 1,
            },
        },
        "diffusion": {"training": {"optimizer": {"schedule": "constant"}}},
        "evaluation": {"sample_labels": "training", "second_features": "efficientnet_lite2"},
        "comparison": {
            "checkpoints": [0.4, 1.0],
            "checkpoint_samples": 10,
            "autoencoders": ["sd-vae", "vmae"],
            "seeds": [3],
            "ablation": ["vmae-mse"],
            "ablation_seeds": [3],
            "settings": {"sd-vae": ["autoencoder.baseline.objective.adversarial_start_step=2"]},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch)
        command = ["ldmae", "compare", "tiny.yaml"]
        compare(str(folder / "tiny.yaml"), TINY, folder / "runs", folder / "results", command=command)
    return folder


def test_unit_leaves_its_figures_and_pictures(made):
    for name in ("sd-vae", "vmae", "vmae-mse"):
        folder = made / "results" / "units" / name / "seed-3"
        unit = json.loads((folder / "unit.json").read_text())
        title = VARIANTS[name].title + ("-style (small)" if name == "sd-vae" else "")  # its width is fitted
        assert (unit["variant"], unit["seed"], unit["title"]) == (name, 3, title)
        assert unit["steps"] == {"autoencoder": 5, "diffusion": 3}
        measured = {result["measurement"] for result in unit["results"]} - {"floor"}
        assert measured == {
            "reconstruction",
            "smoothness",
            "interpolation",
            "ifid",
            "compression",
            "probe",
            "components",
            "efficiency",
            "samples",
            "copies",
        }
        assert all(np.isfinite(result["value"]) for result in unit["results"])
        assert {"diffusion", "latents", "measurements"} <= set(unit["seconds"])
        assert min(unit["seconds"].values()) > 0
        assert (unit["width"] is None) == (name != "sd-vae")
        with np.load(folder / "images.npz") as images:
            assert images["originals"].shape == images["reconstructions"].shape == images["components"].shape
            assert images["originals"].shape[1:] == images["samples"].shape[1:] == (32, 32, 3)
            assert images["interpolation"].shape[1] == len(images["fractions"]) + 2
            assert len(images["labels"]) == len(images["samples"]) > 0


def test_units_keep_kid_at_checkpoints_of_the_diffusion_model(made):
    unit = json.loads((made / "results" / "units" / "vmae" / "seed-3" / "unit.json").read_text())
    curve = unit["curves"]["diffusion"]
    assert curve["name"] == "KID-efficientnet_lite0"
    assert [step for step, _ in curve["points"]] == [1, 3]
    stages = json.loads((made / "runs" / "vmae" / "seed-3" / "stages.json").read_text())["stages"]
    assert {stage["steps"] for stage in stages if stage["name"] == "diffusion"} == {3}


def test_samples_are_judged_by_both_networks_in_the_training_images_proportion(made):
    unit = json.loads((made / "results" / "units" / "vmae" / "seed-3" / "unit.json").read_text())
    samples = [result for result in unit["results"] if result["measurement"] == "samples"]
    kid = {r["name"]: r["counts"] for r in samples if r["name"].startswith("KID")}
    assert list(kid) == ["KID-efficientnet_lite0", "KID-efficientnet_lite2"]
    assert {counts["real"] for counts in kid.values()} == {10}  # evaluation.real_images
    assert "training labels" in samples[0]["note"]


def test_kid_at_checkpoints_needs_a_rate_that_does_not_hang_on_the_steps(made, tmp_path):
    cosine = [*TINY, "diffusion.training.optimizer.schedule=cosine"]
    with pytest.raises(UserError, match=r"set diffusion\.training\.optimizer\.schedule_steps=3, or"):
        plan_comparison(str(made / "tiny.yaml"), cosine)


def test_units_show_the_same_images(made):
    folders = [made / "results" / "units" / name / "seed-3" for name in ("sd-vae", "vmae")]
    ours, theirs = (np.load(folder / "images.npz")["originals"] for folder in folders)
    np.testing.assert_array_equal(ours, theirs)


def test_the_arenas_are_judged_by_a_network_that_no_row_is_trained_on():
    for preset in ("arena-emoji", "arena-photos"):
        units = units_of(preset)
        assert {(unit.name, unit.seed) for unit in units} == {
            (name, seed) for name in ("sd-vae", "vmae") for seed in (0, 1, 2)
        }
        steps = [training_steps(unit.config) for unit in units]
        assert len({sum(of.values()) for of in steps}) == 1
        assert {unit.config.evaluation.judges for unit in units} == {
            ("efficientnet_lite2", "efficientnet_lite0")
        }
        assert {unit.config.evaluation.sample_labels for unit in units} == {"training"}


def test_report_and_tables_are_there(made, monkeypatch):
    monkeypatch.undo()  # it is drawn
    render_comparison(made / "results")
    page = (made / "results" / "comparison.html").read_text()
    tables = (made / "results" / "tables.md").read_text()
    for title in ("SD-VAE", "VMAE"):
        assert title in page
        assert title in tables


def test_the_folder_of_a_comparison_is_no_run_and_a_unit_of_it_is_named(made):
    with pytest.raises(UserError, match=r"runs is not a run folder .*, or .*seed-\d, of a comparison"):
        check_run_folder(made / "runs")


def test_finished_units_are_not_made_again_even_without_their_runs(made, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(made / "results", results)
    before = {path: path.read_bytes() for path in results.rglob("unit.json")}
    compare(str(made / "tiny.yaml"), TINY, tmp_path / "runs", results)
    assert {path: path.read_bytes() for path in results.rglob("unit.json")} == before
    assert not list((tmp_path / "runs").rglob("checkpoints"))


def test_units_of_other_images_of_the_same_settings_are_refused(made, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(made / "results", results)
    path = results / "units" / "vmae" / "seed-3" / "unit.json"
    unit = json.loads(path.read_text())
    assert unit["data"]["fingerprint"]
    unit["data"]["fingerprint"] = "of other images"
    path.write_text(json.dumps(unit))
    with pytest.raises(UserError, match=r"vmae/seed-3: made of other images than .*pictures holds now"):
        compare(str(made / "tiny.yaml"), TINY, tmp_path / "runs", results, ["sd-vae"])
    del unit["data"]["fingerprint"]  # as 0.1.0 wrote it
    path.write_text(json.dumps(unit))
    compare(str(made / "tiny.yaml"), TINY, tmp_path / "runs", results)
    assert "units that record no fingerprint of their images" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["data.val=0.2", "image_size=32"])
def test_images_of_one_unit_alone_cannot_be_changed(change):
    settings = {"base": "compare-photos", "comparison": {"settings": {"dae": [change]}}}
    with pytest.raises(UserError, match=r"comparison\.settings\.dae changes the images"):
        plan_comparison(settings, [])


def test_unit_of_other_settings_is_named_with_what_changed(made, tmp_path):
    with pytest.raises(UserError, match=r"learning_rate: 0\.0012 -> 0\.0013.*--results"):
        compare(
            str(made / "tiny.yaml"),
            [*TINY, "autoencoder.pretraining.training.optimizer.learning_rate=1.3e-3"],
            tmp_path / "runs",
            made / "results",
            only=["vmae"],
        )


def test_a_unit_s_diffusion_model_is_trained_again_on_the_same_latents(made, tmp_path, monkeypatch):
    shutil.copytree(made / "runs", tmp_path / "runs")
    run, old = (folder / "runs" / "vmae" / "seed-3" for folder in (tmp_path, made))
    settings = [*TINY, "diffusion.training.optimizer.learning_rate=0.3"]
    call = functools.partial(
        compare, str(made / "tiny.yaml"), settings, tmp_path / "runs", tmp_path / "results"
    )
    with pytest.raises(UserError, match=r"learning_rate: \S+ -> 0\.3\. .*--restart diffusion"):
        call(["vmae"])
    with pytest.raises(UserError, match=r"no stage 'autoencoder\.baseline' in this run"):
        call(["vmae"], restart="autoencoder.baseline")  # before the first unit
    (run / "measured.json").write_text('{"source": "as an older version wrote it"}')
    with pytest.raises(UserError, match=r"measured\.json was written by another version"):
        call(["vmae"], restart="diffusion")
    shutil.copy(old / "measured.json", run)
    with monkeypatch.context() as patch:  # a kill after the stage was forgotten
        patch.setattr("ldmae.run.comparison.make_unit", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            call(["vmae-mse", "vmae"], restart="diffusion")
    for name in ("vmae", "vmae-mse"):
        assert not (tmp_path / "runs" / name / "seed-3" / "kid_curve.json").exists()
        assert "diffusion" not in Records(tmp_path / "runs" / name / "seed-3").stages
    call(["vmae"])  # it resumes without --restart
    for path in (old / "latents").glob("*.safetensors"):
        assert (run / "latents" / path.name).read_bytes() == path.read_bytes()
    points, before = (json.loads((folder / "kid_curve.json").read_text()) for folder in (run, old))
    for new, past in zip(points, before, strict=True):
        assert (new["step"], new["value"] != past["value"]) == (past["step"], True)


def test_restarting_what_is_finished_says_that_it_stays(made, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(made / "results", results)
    call = functools.partial(compare, str(made / "tiny.yaml"), TINY, tmp_path / "runs", results, ["vmae"])
    with pytest.raises(UserError, match=r"no stage 'diffusoin' in this run; did you mean 'diffusion'"):
        call(restart="diffusoin")
    with pytest.raises(UserError, match=r"^vmae: no stage 'autoencoder\.baseline' in .*with --only$"):
        call(restart="autoencoder.baseline")
    call(restart="diffusion")
    assert "--restart diffusion: finished units stay as they are: vmae seed 3" in capsys.readouterr().err


def test_a_restart_that_one_unit_refuses_changes_none(made, tmp_path):
    shutil.copytree(made / "runs", tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("stages.json")}
    changes = ["diffusion.training.optimizer.learning_rate=0.3", "autoencoder.tuning.training.batch_size=3"]
    call = functools.partial(compare, str(made / "tiny.yaml"), [*TINY, *changes], tmp_path / "runs")
    told = "vmae/seed-3: autoencoder.tuning: refused without --restart autoencoder.tuning .*nothing was rest"
    with pytest.raises(UserError, match=told):
        call(tmp_path / "results", restart="diffusion")
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("stages.json")} == before
    shutil.copytree(made / "results", tmp_path / "results")
    for name in ("vmae", "vmae-mse"):  # what is finished need not have the stage
        shutil.rmtree(tmp_path / "results" / "units" / name)
    changes = ["autoencoder.tuning.training.batch_size=3"]
    units, _ = plan_comparison(str(made / "tiny.yaml"), [*TINY, *changes])
    check_restart(units, tmp_path / "results", "autoencoder.tuning")


def test_images_that_change_after_the_comparison_began_are_not_mixed_with_those_before(
    made, tmp_path, monkeypatch
):
    for name in ("results", "runs"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.rmtree(tmp_path / "results" / "units" / "sd-vae")
    path = tmp_path / "results" / "units" / "vmae" / "seed-3" / "unit.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["data"]["fingerprint"], "other"))
    monkeypatch.setattr("ldmae.run.comparison._refuse_other_images", lambda *_: None)  # so far all is well
    with pytest.raises(UserError, match=r"vmae/seed-3: made of other images than .*pictures holds now"):
        compare(str(made / "tiny.yaml"), TINY, tmp_path / "runs", tmp_path / "results")
    run = tmp_path / "runs" / "vmae" / "seed-3"
    config = load_config(str(run / "config.yaml"))
    assert trained_images(str(run), config, tmp_path) is not None
    described = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(described | {"fingerprint": "other"}))
    with pytest.raises(UserError, match=r"pictures does not hold the images that .*seed-3 was trained on"):
        evaluate_samples(str(run), [], tmp_path / "out", allow_code=True)


def test_points_of_other_settings_are_dropped_from_a_curve(made, tmp_path):
    shutil.copytree(made / "runs" / "vmae" / "seed-3", tmp_path / "run")
    path = tmp_path / "run" / "kid_curve.json"
    before = json.loads(path.read_text())
    units, _ = plan_comparison(str(made / "tiny.yaml"), TINY)
    unit = next(unit for unit in units if unit.name == "vmae")
    train_diffusion_with_curve(open_run(unit.config, tmp_path / "run"))
    assert json.loads(path.read_text()) == before
    other = unit.config.replace(
        evaluation=unit.config.evaluation.replace(batch_size=3, epsilons=[0.1], pairs=2),
        sampling=unit.config.sampling.replace(batch_size=3, per_class=2, seed=7),
    )
    train_diffusion_with_curve(open_run(other, tmp_path / "run"))  # on which no KID hangs
    assert json.loads(path.read_text()) == before
    more = unit.config.replace(comparison=unit.config.comparison.replace(checkpoint_samples=12))
    train_diffusion_with_curve(open_run(more, tmp_path / "run"))
    (last,) = json.loads(path.read_text())
    assert last["step"] == 3
    assert last["made_of"] != before[-1]["made_of"]


def test_a_run_and_a_comparison_do_not_share_a_folder(made, tmp_path):
    shutil.copytree(made / "results", tmp_path / "mine" / "results")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config = load_config(str(made / "tiny.yaml"), TINY)
    told = "mine holds a comparison's results, which this would replace; name another folder with --out"
    for call in (
        lambda: run_all(config, tmp_path / "mine", "evaluation"),
        lambda: run_stages(config, tmp_path / "mine", "autoencoder"),
        lambda: evaluate_run(config, tmp_path / "mine"),
        lambda: describe_plan(config, tmp_path / "mine"),
        lambda: evaluate_with("pretrained:emoji", ["evaluation.images=10"], tmp_path / "mine", ["probe"]),
    ):
        with pytest.raises(UserError, match=told):
            call()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    run = tmp_path / "run"
    run.mkdir()
    save_config(config, run / "config.yaml")
    refuse_run(run / "results")  # a file of settings that somebody called so
    (run / "stages.json").write_text("{}")
    refuse_run(run / "comparison")
    with pytest.raises(UserError, match=r"results belongs to the run in .*run; name another folder"):
        compare(str(made / "tiny.yaml"), TINY, run, run / "results")


def test_a_folder_is_a_comparison_s_before_its_first_unit_is_finished(made, tmp_path, monkeypatch):
    monkeypatch.setattr("ldmae.run.unit.execute_stages", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        compare(str(made / "tiny.yaml"), TINY, tmp_path, tmp_path / "results", ["vmae"])
    with pytest.raises(UserError, match="holds a comparison's results"):
        run_all(load_config(str(made / "tiny.yaml"), TINY), tmp_path)


def test_the_dry_run_says_which_units_are_finished_and_which_would_be_refused(made):
    text = describe_comparison(str(made / "tiny.yaml"), TINY, made / "results")
    assert text.count(" steps), finished\n") == 3
    text = describe_comparison(str(made / "tiny.yaml"), TINY, made / "nowhere")
    assert "finished" not in text
    with pytest.raises(UserError, match=r"made with other settings: steps\.diffusion: 3 -> 8"):
        describe_comparison(str(made / "tiny.yaml"), [*TINY, "diffusion.training.steps=8"], made / "results")


def test_an_autoencoder_of_ones_own_is_compared_and_shown(made, tmp_path, monkeypatch):
    monkeypatch.chdir(EXTEND)
    mine = "my_ae:MyAutoencoder"
    settings = [*TINY, f"comparison.autoencoders=[vmae,{mine}]", "comparison.ablation=[]"]
    settings += ["autoencoder.options.training.steps=2", "evaluation.second_features=null"]
    compare(str(made / "tiny.yaml"), settings, tmp_path / "runs", tmp_path / "results", [mine])
    tables = (tmp_path / "results" / "tables.md").read_text()
    assert r"| my\_ae:MyAutoencoder | 1 |" in tables
    assert "Not done yet: VMAE.\n" in tables
    assert "SD-VAE" not in tables.partition("## Reconstruction")[2].partition("## Cost")[0]


def test_a_seed_changes_the_unit_and_nothing_else():
    units, _ = plan_comparison("compare-emoji", ["comparison.seeds=[0,1]"])
    one, other = (next(u for u in units if (u.name, u.seed) == ("vmae", seed)) for seed in (0, 1))
    assert one.config != other.config
    assert load_config("compare-emoji", ["seed=1"]).autoencoder == other.config.autoencoder
