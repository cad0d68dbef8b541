"""Averaged weights: where they start."""

import pytest
import torch
from torch import nn

from ldmae.config import load_config, preset_names
from ldmae.config.training import TrainingConfig
from ldmae.run.trainings import trainings
from ldmae.training.averaging import AveragedWeights, report_long_average
from ldmae.training.optim import report_long_warmup


def test_the_average_of_a_trained_model_starts_at_its_weights_and_a_random_one_s_after_a_step():
    for started, expected in ((True, 0.9 * 2.0 + 0.1 * 3.0), (False, 3.0)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        average = AveragedWeights(model, 0.9, started)
        nn.init.constant_(model.weight, 3.0)
        average.update(0)
        torch.testing.assert_close(average.averages["weight"].item(), expected)


def test_a_training_too_short_for_its_average_says_so(capsys):
    report_long_average("diffusion", TrainingConfig(steps=300, ema_decay=0.98))
    report_long_average("diffusion", TrainingConfig(steps=300))
    assert capsys.readouterr().err == ""
    for steps, decay, age, better in (
        (300, 0.9995, "278", "0.967"),
        (3200, 0.999, "958", "0.997"),
        (2, 0.5, "0.5", "0"),
    ):
        report_long_average("diffusion", TrainingConfig(steps=steps, ema_decay=decay))
        said = " ".join(capsys.readouterr().err.split())
        assert f"{age} steps old on average, and the training has {steps:,}" in said
        assert f"set diffusion.training.ema_decay to {better}," in said


@pytest.mark.parametrize("preset", sorted(set(preset_names()) - {"compare-photos", "compare-emoji"}))
def test_no_preset_is_too_short_for_its_average_or_warm_up(preset, capsys):  # but those of published results
    for stage, training in trainings(load_config(preset)).items():
        report_long_average(stage, training)
        report_long_warmup(stage, training)
    assert capsys.readouterr().err == ""
