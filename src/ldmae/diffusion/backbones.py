"""Diffusion models, by the names that settings have for them."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from ldmae.config.base import as_dict
from ldmae.config.diffusion import DiffusionConfig
from ldmae.config.registry import DIFFUSION, own_settings, resolve
from ldmae.core.errors import UserError, reason_of

_GIVEN = ("self", "sample_size", "in_channels", "num_classes")
"""What the latents and the images decide of a diffusion model."""


def backbone_class(config: DiffusionConfig) -> Any:
    """Returns the class of the diffusion model that settings name."""
    return resolve(DIFFUSION, config.kind)


def backbone_settings(config: DiffusionConfig) -> dict[str, Any]:
    """Returns the arguments of its constructor that the settings decide.

    Raises:
        UserError: an option that a user's own class does not take.
    """
    if config.other_kind is None:
        return as_dict(config.model)
    return as_dict(own_settings(backbone_class(config), config.options, "diffusion.options", _GIVEN))


def patch_size(config: DiffusionConfig) -> int:
    """Returns the latent cells along a token's side, which divide the grid; 1 where a model has none."""
    return backbone_settings(config).get("patch_size", 1)


def build_backbone(config: DiffusionConfig, sample_size: int, in_channels: int, num_classes: int) -> Any:
    """Builds a diffusion model: takes x_t (B, C, h, w), t (B,), labels (B,) and gives the velocity.

    `sample_size` is that of the latents, in cells along a side; `in_channels` is C.

    Raises:
        UserError: the patches do not divide the grid; or a user's own class can't be built so, or lacks what
            training and guidance need.
    """
    kind, settings = backbone_class(config), backbone_settings(config)
    if config.other_kind is None and sample_size % (patch := settings["patch_size"]):
        raise UserError(
            f"the latent grid has {sample_size} cells a side, which diffusion.model.patch_size={patch} does "
            f"not divide; take the image_size that gives {max(1, round(sample_size / patch)) * patch}"
        )
    try:
        model = kind(sample_size=sample_size, in_channels=in_channels, num_classes=num_classes, **settings)
        _ = model.null_class, model.config.class_dropout_prob, model.config.patch_size
    except (TypeError, AttributeError) as error:
        if config.other_kind is None:
            raise
        raise UserError(
            f"diffusion.kind={config.kind} can't be built, or lacks what it must have: {reason_of(error)}; "
            "see docs/how-to/extend.md"
        ) from error
    refuse_unloadable(model)
    return model


def refuse_unloadable(model: Any) -> None:
    """Raises a UserError for a model that diffusers would not save, or save in a pipeline but not load."""
    kind = type(model)
    name, place, module = kind.__name__, kind.__module__, sys.modules.get(kind.__module__)
    why = ""
    if not (isinstance(model, ModelMixin) and isinstance(model, ConfigMixin)):
        why = f"{name} must extend diffusers' ModelMixin and ConfigMixin"
    elif getattr(module, name, None) is not kind or not hasattr(module, "ModelMixin"):
        # diffusers looks for both there
        why = f"{place} must import ModelMixin and have the class {name} at its top level"
    elif named := [part for part in (place, *place.split(".")[-2:-1]) if hasattr(diffusers.pipelines, part)]:
        why = f"diffusers has pipelines called {named[0]}, and would look for {name} there; rename the module"
    elif len([*model.named_parameters()]) < len([*model.named_parameters(remove_duplicate=False)]):
        why = f"two parameters of {name} are the same tensor, which safetensors does not hold"
    else:
        try:
            model.to_json_string()
        except TypeError as error:
            why = f"the arguments of {name} go into its config.json, and one can't ({error}); give its name"
    if why:
        raise UserError(f"{why}; else the model could not be saved, or not loaded from a pipeline")
