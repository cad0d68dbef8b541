"""Solvers of sampling: diffusers' schedulers, by the names that settings have for them."""

from __future__ import annotations

from functools import cache
from typing import Any

from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from ldmae.config.registry import SOLVERS, resolve
from ldmae.core.errors import UserError
from ldmae.diffusion.flow import set_sampling_times


def solver_class(name: str) -> Any:
    """Returns the scheduler of a solver, by its name in settings.

    Raises:
        UserError: there is none, or it does not follow straight paths from noise to data.
    """
    kind = resolve(SOLVERS, name)
    usable = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
    if not isinstance(kind, type) or not issubclass(kind, usable):
        raise UserError(
            f"sampling.solver={name} must be a class that extends FlowMatchEulerDiscreteScheduler"
        )
    try:
        kind()
    except TypeError as error:
        raise UserError(
            f"sampling.solver={name} can't be built without arguments ({error}); give each a default"
        ) from error
    return kind


def solver_name(scheduler: Any) -> str:
    """Returns the name in settings of a scheduler's class."""
    names = [name for name in SOLVERS if type(scheduler) is solver_class(name)]
    return names[0] if names else f"{type(scheduler).__module__}:{type(scheduler).__qualname__}"


@cache
def evaluations(name: str, steps: int) -> int:
    """Returns how often a solver evaluates the network in a number of steps."""
    scheduler = solver_class(name)()
    set_sampling_times(scheduler, steps)
    return len(scheduler.timesteps)


def take_step(scheduler: Any, velocity: Tensor, timestep: Tensor, x: Tensor, noises: Any) -> Tensor:
    """Returns the latents after a scheduler's step; raises a UserError where it returns something else."""
    moved = scheduler.step(velocity, timestep, x, generator=noises, return_dict=False)
    first = moved[0] if isinstance(moved, tuple | list | BaseOutput) and moved else None
    if not isinstance(first, Tensor) or first.shape != x.shape:
        raise UserError(
            f"{type(scheduler).__name__}.step must return a tuple of latents of shape {tuple(x.shape)}"
        )
    return first
