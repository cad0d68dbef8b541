"""What a training's record holds, and what it costs."""

import pytest

from ldmae.config import load_config
from ldmae.core.provenance import changed
from ldmae.run.plan import plan_trainings
from ldmae.run.trainings import training_settings


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
    assert [line.split(": ", 1) for line in changed(before, after)] == [
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


@pytest.mark.parametrize(
    "term",
    [
        "spectrum_weight=0.1",
        "equivariance=1",
        "alignment_weight=1",
        "expansion_weight=1e-4",
        "latent_noise=0.3",
    ],
)
def test_every_term_beyond_the_paper_is_counted_in_the_plan(term):
    config = load_config("smoke", [f"autoencoder.pretraining.objective.{term}"])
    flops = {plan.stage: plan.flops for plan in plan_trainings(config)}
    assert flops["autoencoder.pretraining"] > 0
