"""What the page loads from a folder or the Hub: weights as safetensors into known classes, and never code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmae.app.compare import check_hub
from ldmae.app.uploads import upload_folder
from ldmae.core.errors import UserError
from ldmae.loading import load_autoencoder, may_be_hub_name


def load_named(source: str) -> Any:
    """Loads the autoencoder that a visitor named, in a form that `compare.check_names` allows.

    Raises:
        UserError: there is none, it lies where visitors' files lie, its folder names code, or its weights are
            not safetensors.
    """
    folder = Path(source)
    if folder.resolve().is_relative_to(upload_folder()):
        raise UserError(f"{source} is where the page keeps visitors' uploads; choose another folder")
    if may_be_hub_name(source) and not folder.exists():
        check_hub(source)
    return load_autoencoder(source, use_safetensors=True)
