"""What can be found impossible before the first stage, and not after hours: models, parts of a user's own."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ldmae.config import Config
from ldmae.config.registry import AUTOENCODERS, resolve
from ldmae.core.autoencoding import decode, encode_moments, reconstruct
from ldmae.core.device import pick_device
from ldmae.core.errors import UserError, reason_of
from ldmae.diffusion.backbones import build_backbone, patch_size, refuse_unloadable
from ldmae.diffusion.flow import set_sampling_times
from ldmae.diffusion.solvers import solver_class, take_step
from ldmae.run.run import Run, latent_channels
from ldmae.run.trainings import autoencoder_trainings, trainings, untrained, untrained_objective
from ldmae.training.sharding import check_launch


def check_models(config: Config, initial: Any) -> dict[str, nn.Module]:
    """Builds what a run trains without memory, by stage, so that none is found impossible after hours.

    `initial` is the autoencoder that training starts from, on the device `meta`.
    """
    auto = config.autoencoder
    # the grid of a foreign autoencoder is not known yet
    grid = config.image_size // auto.patch_size if auto.has_shape else patch_size(config.diffusion)
    shape, names = (auto.latent_channels, grid), [*autoencoder_trainings(config), "diffusion"]
    with torch.device("meta"):
        built = {name: untrained_objective(config, name, shape, 2, initial) for name in names}
    check_components(config)
    return built


def check_training(stage: str, config: Config, accelerator: Accelerator, objective: nn.Module) -> None:
    """Raises a UserError where processes are not as a training needs them (see `check_launch`)."""
    if (training := trainings(config).get(stage)) is not None:
        check_launch(stage, training, accelerator, objective)


def check_components(config: Config) -> None:
    """Tries a run's own autoencoder, and its own solver.

    Raises:
        UserError: one of them could not be saved, gives what later stages can't use, or fails.
    """
    auto = config.autoencoder
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if auto.own_kind is not None and auto.source is None and auto.init is None:
            _try_autoencoder(config, auto.own_kind)
        if config.sampling.own_solver is not None:
            _try_solver(config.sampling.own_solver, config.sampling.num_inference_steps)


def _try_autoencoder(config: Config, name: str) -> None:
    model: Any = untrained(config, [*autoencoder_trainings(config)][-1], None).model
    kind, size = resolve(AUTOENCODERS, name), config.image_size
    if isinstance(kind, type) and type(model) is not kind:
        raise UserError(
            f"the trainings of autoencoder.kind={name} train a {type(model).__name__}, which would be loaded "
            f"as a {kind.__name__}; build a {kind.__name__} in them, or name the other class"
        )
    if isinstance(model, ModelMixin) or not hasattr(model, "save_pretrained"):
        refuse_unloadable(model)
    model.eval()
    grey = torch.zeros(1, 3, size, size)
    try:
        decode(model, encode_moments(model, grey)[0])
    except UserError:
        if pick_device(config.device).type == "cpu":
            raise
        return  # it may need its device
    latent_channels(model, size)
    reconstruct(model, grey)


def _try_solver(name: str, steps: int) -> None:
    solver, x = solver_class(name)(), torch.zeros(1, 3, 8, 8)
    try:
        set_sampling_times(solver, steps, None, 64, "cpu")
        take_step(solver, x, solver.timesteps[0], x, torch.Generator())
    except Exception as error:
        reason = error if isinstance(error, UserError) else reason_of(error)
        raise UserError(f"sampling.solver={name} fails at its first step: {reason}") from error


def check_guidance(run: Run) -> None:
    """Raises a UserError where a diffusion model of the user's own has no class to be guided away from."""
    config, classes = run.config, len(run.train.classes)
    scales = {config.sampling.guidance_scale, config.evaluation.guidance_scale} - {None, 1}
    if config.diffusion.other_kind is None or not scales or classes < 2:
        return
    with torch.device("meta"):
        model = build_backbone(config.diffusion, patch_size(config.diffusion), 4, classes)
    if model.null_class is None:
        raise UserError(
            f"guidance needs a null class, which {type(model).__name__} does not have (null_class=None); set "
            "sampling.guidance_scale=1 and evaluation.guidance_scale=1"
        )
