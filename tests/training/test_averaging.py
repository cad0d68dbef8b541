"""Averaged weights: where they start."""

import torch
from torch import nn

from ldmae.training.averaging import AveragedWeights


def test_the_average_of_a_trained_model_starts_at_its_weights_and_a_random_one_s_after_a_step():
    for started, expected in ((True, 0.9 * 2.0 + 0.1 * 3.0), (False, 3.0)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        average = AveragedWeights(model, 0.9, started)
        nn.init.constant_(model.weight, 3.0)
        average.update(0)
        torch.testing.assert_close(average.averages["weight"].item(), expected)
