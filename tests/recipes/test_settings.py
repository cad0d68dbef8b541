"""What a training's record holds."""

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
