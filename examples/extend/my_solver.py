"""A sampler of one's own: the midpoint method (order 2, two evaluations a step), as a diffusers scheduler."""

# N steps; sigma = 1 - t runs from 1 (noise) to 0 (data)

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class Midpoint(FlowMatchEulerDiscreteScheduler):
    """Takes half a step, evaluates the velocity there, and takes the whole step with it."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Puts a time halfway between any two of Euler's: 2N evaluations."""
        super().set_timesteps(*args, **kwargs)
        whole = self.sigmas  # (N + 1,)
        halves = (whole[:-1] + whole[1:]) / 2
        self.sigmas = torch.cat([torch.stack([whole[:-1], halves], 1).flatten(), whole[-1:]])  # (2N + 1,)
        self.timesteps = self.sigmas[:-1].to(self.timesteps) * self.config.num_train_timesteps

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> tuple[Tensor]:
        """Moves latents (B, C, h, w) by the velocity's negative, `model_output`; returns them in a tuple."""
        if self.step_index is None:
            self._init_step_index(timestep)
        i = self.step_index
        if i % 2 == 0:
            self._start, before = sample, self.sigmas[i]
        else:
            before = self.sigmas[i - 1]
        self._step_index += 1
        return (self._start + (self.sigmas[i + 1] - before) * model_output,)
