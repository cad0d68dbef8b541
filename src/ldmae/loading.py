"""Opens what a user names: a run folder, a diffusers folder or Hub name, or an official checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.conversion import load_official_vmae
from ldmae.core.errors import UserError
from ldmae.core.files import read_json
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline

FORMS = "a run folder, a diffusers folder or Hub name, or official:FILE"
_PIPELINE_FORMS = "a run folder, or the folder or Hub name of a saved LDMAEPipeline"


def is_run_folder(source: str) -> bool:
    """Says whether a source is the folder of a run."""
    return (Path(source) / "config.yaml").is_file()


def load_autoencoder(source: str) -> Any:
    """Loads any autoencoder on the CPU, in fp32 whatever it was saved in, in evaluation mode.

    Args:
        source: a run folder, a diffusers folder (of a model or of a pipeline with a `vae`) or Hub name, or
            `official:FILE` for an official VMAE checkpoint.

    Raises:
        UserError: there is no such thing, or it holds no autoencoder.
    """
    if source.startswith("official:"):
        return load_official_vmae(source.removeprefix("official:")).eval()
    folder = Path(source)
    if is_run_folder(source):
        folder = folder / "autoencoder"
        if not folder.exists():
            raise UserError(
                f"the run {source} has no autoencoder yet; train it with `ldmae train autoencoder`"
            )
    elif (folder / "model_index.json").is_file():
        folder = folder / "vae"
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        return _load_class(config.get("_class_name") if isinstance(config, dict) else None, str(folder))
    if Path(source).exists():
        raise UserError(
            f"{source} holds no diffusers autoencoder (no {folder / 'config.json'}); expected {FORMS}"
        )
    if not _may_be_hub_name(source):
        raise UserError(f"there is no {source}; expected {FORMS}")
    return _from_hub(source)


def load_pipeline(source: str) -> LDMAEPipeline:
    """Loads a pipeline from a run folder, a folder saved with `save_pretrained`, or the Hub.

    Raises:
        UserError: there is no such thing, or it is of another kind.
    """
    folder = Path(source) / "pipeline" if is_run_folder(source) else Path(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise UserError(f"{source} holds no pipeline (no model_index.json); expected {_PIPELINE_FORMS}")
    if not folder.exists() and (is_run_folder(source) or not _may_be_hub_name(source)):
        raise UserError(f"there is no pipeline {folder}; make it with `ldmae run`, or name {_PIPELINE_FORMS}")
    try:
        return LDMAEPipeline.from_pretrained(folder if folder.exists() else source)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot load the pipeline {source}: {error}. Expected {_PIPELINE_FORMS}, whole"
        ) from error


def _may_be_hub_name(source: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) is not None


def _load_class(name: str | None, source: str, **arguments: Any) -> Any:
    if name == "AutoencoderVMAE":
        kind: Any = AutoencoderVMAE
    else:
        kind = getattr(diffusers, str(name), None)
        if kind is None or not hasattr(kind, "encode"):
            raise UserError(
                f"{source} holds {name or 'a model without a class'}, which is no autoencoder that diffusers "
                "knows; name one of those, such as an AutoencoderVMAE or an AutoencoderKL"
            )
    try:
        return kind.from_pretrained(source, **arguments).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot load the {name} in {source}: {error} Make or fetch it again: a file is missing, "
            "damaged, or does not belong to its config.json"
        ) from error


def _from_hub(source: str) -> Any:
    try:
        config: Any = AutoencoderVMAE.load_config(source)
        return _load_class(config.get("_class_name"), source)
    except (OSError, ValueError) as first:
        if isinstance(first, UserError):
            raise
        try:  # a whole pipeline on the Hub keeps its autoencoder in a subfolder
            config = AutoencoderVMAE.load_config(source, subfolder="vae")
        except (OSError, ValueError):
            raise UserError(f"{source} is no folder here and no autoencoder on the Hub: {first}") from first
        return _load_class(config.get("_class_name"), source, subfolder="vae")
