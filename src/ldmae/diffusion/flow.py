"""Flow matching: the path from noise to data, the density of training times, the objective.

The convention of time, stated here once for the whole package:

- t = 0 is noise, t = 1 is data, x_t = t · z + (1 - t) · noise;
- the network predicts the velocity dx_t/dt = z - noise;
- diffusers counts the other way: its sigma is 1 - t, and its models predict noise - z, the velocity's
  negative;
- the time shift s of SD3 and LightningDiT, t' = s·t / (1 + (s - 1)·t), is diffusers' shift 1/s on sigma.
"""

# b rows of a piece of the batch, C latent channels, h w latent grid

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from ldmae.config.diffusion import FlowConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.errors import UserError
from ldmae.core.random import normal, uniform


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Returns x_t, the point of time t (b,) on the straight path from noise to latents, both (b, C, h, w)."""
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return t * latents + (1 - t) * noise


def scheduler_shift(timestep_shift: float) -> float:
    """Returns diffusers' shift on sigma for the time shift s on t; 0 and 1 mean no shift.

    With sigma = 1 - t, t' = s·t / (1 + (s - 1)·t) reads sigma' = k·sigma / (1 + (k - 1)·sigma) at k = 1/s.
    """
    return 1.0 if timestep_shift == 0 else 1.0 / timestep_shift


def set_sampling_times(
    scheduler: Any,
    steps: int,
    timestep_shift: float | None = None,
    tokens: int = 256,
    device: torch.device | str = "cpu",
) -> None:
    """Gives a diffusers scheduler its grid of times from noise to data.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, which gets a uniform grid of N steps and shifts it once,
            or `FlowMatchHeunDiscreteScheduler`, which takes no grid and uses its own (2N - 1 evaluations).
        steps: N.
        timestep_shift: s, in place of the scheduler's own shift, this once; None keeps the scheduler's.
        tokens: length of the transformer's sequence, which dynamic shifting goes by.
        device: where the times go.
    """
    with _shift_overridden(scheduler, timestep_shift):
        if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
            scheduler.set_timesteps(steps, device=device)
        else:
            mu = (
                _dynamic_shift(scheduler.config, tokens) if scheduler.config["use_dynamic_shifting"] else None
            )
            sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].tolist()
            scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
    scheduler.set_begin_index(0)


def _dynamic_shift(config: Any, tokens: int) -> float:
    """Returns the scheduler's `mu` for a number of tokens: a line through its two (tokens, shift) points."""
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    return config["base_shift"] + (config["max_shift"] - config["base_shift"]) * (tokens - few) / (many - few)


@contextlib.contextmanager
def _shift_overridden(scheduler: Any, timestep_shift: float | None) -> Iterator[None]:
    """Gives the scheduler another shift while its grid is made, and its own back afterwards."""
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        own, own_min = scheduler.config["shift"], scheduler.sigma_min
        scheduler.register_to_config(shift=own if timestep_shift is None else scheduler_shift(timestep_shift))
        scheduler.sigma_min = (
            1 / scheduler.config["num_train_timesteps"]
        )  # the stored one bears its own shift
        try:
            yield
        finally:
            scheduler.register_to_config(shift=own)
            scheduler.sigma_min = own_min
    elif timestep_shift is None:
        yield
    else:
        own, dynamic = scheduler.shift, scheduler.config["use_dynamic_shifting"]
        scheduler.set_shift(scheduler_shift(timestep_shift))
        scheduler.register_to_config(use_dynamic_shifting=False)
        try:
            yield
        finally:
            scheduler.set_shift(own)
            scheduler.register_to_config(use_dynamic_shifting=dynamic)


def predict_velocity(model: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Returns the velocity (B, C, h, w) that a diffusion model predicts for x_t (B, C, h, w), in float32.

    Raises:
        UserError: the model returns something else.
    """
    output = model(x, t, labels, return_dict=False)
    first = output[0] if isinstance(output, tuple | list | BaseOutput) and output else None
    if not isinstance(first, Tensor) or first.shape != x.shape:
        got = f"one of {tuple(first.shape)}" if isinstance(first, Tensor) else type(output).__name__
        raise UserError(
            f"{type(model).__name__} must return a tuple of the velocity, a tensor of {tuple(x.shape)}, got "
            f"{got}; change what its forward returns"
        )
    return first.float()


class FlowMatchingObjective(nn.Module):
    """The mean squared error of the predicted velocity (arXiv 2210.02747).

    Args:
        model: predicts velocities, `model(x_t, t, class_labels, return_dict=False)[0]`; its config's
            `class_dropout_prob` is the share of labels replaced by its `null_class`, where it has one.
        config: the density of training times.
    """

    def __init__(self, model: Any, config: FlowConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.null_class: int | None = model.null_class
        self.class_dropout_prob: float = model.config.class_dropout_prob

    def forward(self, batch: dict[str, Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Computes the piece's share of the batch's loss.

        Args:
            batch: `latents` (b, C, h, w), normalised, and `labels` (b,).
            keys: the piece's place in the training; noise, times and dropped labels follow from it alone.

        Returns:
            The loss and its term `velocity`, the mean squared error.
        """
        latents = batch["latents"].float()
        noise = normal(tuple(latents.shape[1:]), keys, "noise", latents.device)
        t = self._times(keys, latents.device)  # (b,)
        labels = self._drop_labels(batch["labels"], keys)
        predicted = predict_velocity(self.model, interpolate(latents, noise, t), t, labels)
        share = len(keys.rows) / keys.batch_size
        mse = F.mse_loss(predicted, latents - noise) * share
        return ObjectiveOutput(loss=mse, terms={"velocity": mse.detach()})

    def _times(self, keys: BatchKeys, device: torch.device) -> Tensor:
        if self.config.time_density == "uniform":
            return uniform((), keys, "time", device)
        return torch.sigmoid(
            self.config.logit_mean + self.config.logit_std * normal((), keys, "time", device)
        )

    def _drop_labels(self, labels: Tensor, keys: BatchKeys) -> Tensor:
        if self.null_class is None:
            return labels
        dropped = uniform((), keys, "label_dropout", labels.device) < self.class_dropout_prob
        return torch.where(dropped, self.null_class, labels)
