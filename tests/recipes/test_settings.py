"""What a training's record holds."""

import pytest

from ldmae.config import load_config
from ldmae.recipes.settings import training_settings
from ldmae.stages import ADDED, changed_settings


def test_setting_that_came_later_is_recorded_only_where_it_changes_something():
    without, with_noise = (
        training_settings(load_config("emoji", [f"autoencoder.tuning.objective.latent_noise={noise}"]), "no")
        for noise in (0.0, 0.3)
    )
    assert "latent_noise" not in without["autoencoder.tuning"]["objective"]
    assert "gpu_decoding" not in without["autoencoder.pretraining"]["augment"]
    assert with_noise["autoencoder.tuning"]["objective"]["latent_noise"] == 0.3
    assert changed_settings(without, with_noise) == ["autoencoder.tuning.objective.latent_noise: 0.0 -> 0.3"]
    changed = with_noise["autoencoder.tuning"]["objective"]
    assert {k: v for k, v in changed.items() if k not in ADDED} == without["autoencoder.tuning"]["objective"]


BASELINE = {
    "pixel_loss",
    "input_noise",
    "sample_posterior",
    "kl_weight",
    "perceptual_weight",
    "perceptual",
    "perceptual_rows",
    "adversarial_weight",
    "adversarial_start_step",
}
MASKED = {
    "masking",
    "visible_weight",
    "masked_weight",
    "perceptual_weight",
    "perceptual",
    "perceptual_rows",
    "kl_weight",
    "prior_std",
    "sample_posterior",
}


@pytest.mark.parametrize("kind", ["vmae", "ae", "vae", "sd-vae"])
def test_records_are_those_of_runs_that_were_made_before_there_was_more_to_set(kind):
    record = training_settings(load_config("compare-photos", [f"autoencoder.kind={kind}"]), "no")
    for name, stage in record.items():
        if name == "autoencoder.baseline":
            assert set(stage["objective"]) == BASELINE
            assert set(stage["model"]) == {"factor", "latent_channels", "width"}
            assert stage["discriminator"] == [2, 32]
            assert "network" not in stage
        elif name != "diffusion":
            assert set(stage["objective"]) == MASKED
            assert set(stage["objective"]["masking"]) == {"ratio"}
            assert "discriminator" not in stage
            assert "head_features" not in stage.get("model", {})


def test_what_is_switched_on_beyond_the_paper_is_recorded():
    before = training_settings(load_config("emoji"), "no")
    overrides = [
        "model.head_features=8",
        "pretraining.objective.equivariance=0.5",
        "pretraining.objective.masking.ratio_range=[0,0.5]",
        "tuning.objective.adversarial_weight=0.5",
    ]
    overrides = [f"autoencoder.{override}" for override in overrides]
    after = training_settings(load_config("emoji", overrides), "no")
    assert [line.split(": ", 1) for line in changed_settings(before, after)] == [
        ["autoencoder.pretraining.model.head_features", "None -> 8"],
        ["autoencoder.pretraining.objective.equivariance", "0.0 -> 0.5"],
        ["autoencoder.pretraining.objective.masking.ratio_range", "None -> [0.0, 0.5]"],
        ["autoencoder.tuning.discriminator", "None -> [2, 64]"],
        ["autoencoder.tuning.objective.adversarial_weight", "0.0 -> 0.5"],
        ["autoencoder.tuning.training.optimizer.discriminator_betas", "None -> [0.5, 0.9]"],
    ]


def test_a_baselines_objective_on_vmaes_network_records_that_network():
    plain, vit = (
        training_settings(
            load_config("emoji", ["autoencoder.kind=vae", f"autoencoder.baseline.network={network}"]), "no"
        )["autoencoder.baseline"]
        for network in ("conv", "vit")
    )
    assert plain["model"]["factor"] == 8
    assert (vit["network"], vit["model"]["patch_size"]) == ("vit", 6)
    assert vit["objective"]["kl_weight"] == pytest.approx(plain["objective"]["kl_weight"] * 64 / 36)
