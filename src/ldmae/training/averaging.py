"""Averaged weights: an exponential moving average of a model's parameters over the steps."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ldmae.config.training import TrainingConfig
from ldmae.core.progress import tell
from ldmae.training.sharding import copy_whole, gathered, piece, plain_name

_LONGEST = 0.2
"""Share of a training's steps that its average may reach back without a word."""


class AveragedWeights:
    """The averages lie where the parameters lie: on the device, and in pieces where these are sharded.

    Args:
        model: its trainable and frozen parameters are averaged; buffers are not.
        decay: share of the old average that a step keeps, in [0, 1).
        started: whether the weights are worth averaging before the first step, as those of a trained model
            are.
    """

    def __init__(self, model: nn.Module, decay: float, started: bool = False) -> None:
        self.started = started
        self.parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._mix = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step; before the first one, `step` 0, random ones are not kept."""
        averages = [piece(average) for average in self.averages.values()]
        now = [piece(parameter.detach()) for parameter in self.parameters.values()]
        if step == 0 and not self.started:
            for average, parameter in zip(averages, now, strict=True):
                average.copy_(parameter)
        else:
            self._mix(averages, now, step)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the whole averages by the parameters' names (all processes must call it)."""
        return gathered(self.averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the averages that `state_dict` returned."""
        for name, average in self.averages.items():
            copy_whole(state[name], average)


def report_long_average(stage: str, config: TrainingConfig) -> None:
    """Says where a training's average, which is what it saves, is mostly of weights long before its end."""
    decay = config.ema_decay or 0.0
    age = (1 - decay**config.steps) / (1 - decay) - 1  # of the steps, or of the start that is left
    if age > _LONGEST * config.steps:
        tell(
            f"{stage}: the saved weights are averages (ema_decay={decay}), {age:,.{age < 10:d}f} steps old "
            f"on average, and the training has {config.steps:,}: they lag; set {stage}.training.ema_decay to "
            f"{max(0.0, 1 - 10 / config.steps):.3g}, or train longer"
        )
