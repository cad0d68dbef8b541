"""A module of a user's own in the place where diffusers' pipelines hold an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ldmae.core.errors import UserError
from ldmae.core.files import write_json


class OwnAutoencoder(ModelMixin):
    """Gives a module the `device` and `dtype` that a pipeline asks for; `encode` and `decode` are its own.

    A saved pipeline does not hold it, for a folder must not say which code is to be run: it is loaded with
    `LDMAEPipeline.from_pretrained(FOLDER, vae=OwnAutoencoder(…))`, and that of a run folder by what the run's
    settings name.

    Args:
        module: has `decode`, as `ldmae.core.autoencoding` calls it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise UserError(
                f"an autoencoder is a torch.nn.Module, got {type(module).__name__}; omit it or load one"
            )
        self.module = module
        self.register_buffer("_place", torch.zeros(()), persistent=False)  # where a module without weights is

    @property
    def config(self) -> Any:
        """The module's own config, or an empty one."""
        return getattr(self.module, "config", {})

    @property
    def spatial_compression_ratio(self) -> int | None:
        """The module's own, where it has one."""
        return getattr(self.module, "spatial_compression_ratio", None)

    def encode(self, images: Any) -> Any:
        """Does what the module's `encode` does."""
        return self.module.encode(images)  # pyright: ignore[reportCallIssue]

    def decode(self, latents: Any, **arguments: Any) -> Any:
        """Does what the module's `decode` does."""
        return self.module.decode(latents, **arguments)  # pyright: ignore[reportCallIssue]

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Writes which class it is, and no weights."""
        made_of = f"{type(self.module).__module__}:{type(self.module).__qualname__}"
        config = {"_class_name": type(self).__name__, "module": made_of}
        write_json(Path(save_directory) / "config.json", config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **_: Any) -> Any:
        """Raises a UserError: what was saved is the class's name alone."""
        raise UserError(
            f"{pretrained_model_name_or_path} names a custom module, which a saved pipeline does not "
            "contain; name the run folder that contains it, or load it with LDMAEPipeline.from_pretrained("
            "FOLDER, vae=OwnAutoencoder(MODULE)), of ldmae.diffusion.own_autoencoder"
        )
