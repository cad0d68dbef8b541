"""Official checkpoints ↔ folders that diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.conversion.checkpoints import read_official_checkpoint, state_dict_of
from ldmae.conversion.lightningdit import load_official_lightningdit, to_official_lightningdit
from ldmae.conversion.vmae import load_official_vmae, to_official_checkpoint
from ldmae.core.errors import UserError, shortened
from ldmae.core.files import atomic_folder, atomic_path, check_new_folder, read_json
from ldmae.core.progress import tell
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.loading import load_model

_TELLING = {"vmae": "to_latent.weight", "lightningdit": "x_embedder.proj.weight"}
"""A key that only this kind of official checkpoint has."""


def convert_official(file: Path, folder: Path, kind: str | None = None, **options: Any) -> Any:
    """Converts an official VMAE or LightningDiT checkpoint to a new or empty diffusers folder.

    The kind, `vmae` or `lightningdit`, is found by the file's keys where None; the options are arguments of
    its loader in `ldmae.conversion`. Returns the model.

    Raises:
        UserError: the file is neither, an option belongs to the other kind, or the folder holds something.
    """
    check_new_folder(folder)
    kind = kind or _kind_of(file)
    load = {"vmae": load_official_vmae, "lightningdit": load_official_lightningdit}.get(kind)
    if load is None:
        raise UserError(f"a checkpoint's kind is {' or '.join(_TELLING)}, got {kind!r}")
    given = {name: value for name, value in options.items() if value is not None}
    foreign = set(given) - set(load.__annotations__)
    if foreign:
        raise UserError(f"{file} is a {kind} checkpoint, which knows no {shortened(sorted(foreign), 6)}")
    model: Any = load(file, **given)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
    return model


def convert_to_official(folder: Path, file: Path) -> Any:
    """Writes a new official checkpoint, `.pth` or `.pt`, of the model in a diffusers folder.

    Returns the model, an `AutoencoderVMAE` or a `LightningDiTTransformer2DModel`.

    Raises:
        UserError: the folder holds neither, or one that is not whole, or the file exists.
    """
    if file.exists() or file.suffix not in (".pth", ".pt"):
        what = "exists" if file.exists() else "does not end in .pth or .pt, as official files do"
        raise UserError(f"{file} {what}; name another file, or delete it")
    path = folder / "config.json"
    if not path.is_file():
        parts = [str(part.parent) for part in sorted(folder.glob("*/config.json"))]
        hint = f"; name one of its models: {shortened(parts, 6)}" if parts else ""
        raise UserError(f"{folder} holds no diffusers model (no config.json){hint}")
    name = read_json(path, dict).get("_class_name")
    if name == "AutoencoderVMAE":
        model = load_model(AutoencoderVMAE, folder)
        checkpoint = to_official_checkpoint(model)
        if model.config["latents_mean"] is None:
            tell(
                f"{folder} has no statistics of its latents, so {file} has none, and generating needs them; "
                "of a run, RUN/pipeline/vae has them"
            )
    elif name == "LightningDiTTransformer2DModel":
        model = load_model(LightningDiTTransformer2DModel, folder)
        weights = to_official_lightningdit(model)
        data = {"num_classes": model.config["num_classes"]}  # which the class table does not tell for certain
        # one set of weights; its readers take either
        checkpoint = {"model": weights, "ema": weights, "config": {"data": data}}
    else:
        raise UserError(
            f"{folder} holds {name}, which has no official layout; expected a VMAE or LightningDiT"
        )
    with atomic_path(file) as temporary:
        torch.save(checkpoint, temporary)
    return model


def _kind_of(file: Path) -> str:
    state = state_dict_of(read_official_checkpoint(file), "ema", "model")
    for kind, key in _TELLING.items():
        if key in state:
            return kind
    raise UserError(
        f"{file} is neither a VMAE nor a LightningDiT checkpoint: it has neither "
        f"{' nor '.join(_TELLING.values())}; it holds {shortened(state, 6) or 'no tensors'}"
    )
