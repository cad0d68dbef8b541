"""Averaged weights: where they start."""

import torch
from torch import nn

from ldmae.config.training import TrainingConfig
from ldmae.training.averaging import AveragedWeights, report_long_average


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
    report_long_average("diffusion", TrainingConfig(steps=300, ema_decay=0.9995))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "after 300 steps still are 86% those of the start; set diffusion.training.ema_decay to 0.983" in said
    )
