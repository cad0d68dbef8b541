"""Reading official checkpoints safely: tensors and plain values, and one class more, never code."""

from __future__ import annotations

import argparse
import contextlib
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmae.core.errors import UserError, reason_of, shortened

_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def read_official_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a `.pth` or `.pt` file of the official training codes.

    Beside tensors and plain Python values, only `argparse.Namespace` is allowed (the official files keep
    their command line in one); any other class is refused before it can run code. Tensors come to the CPU,
    memory-mapped where the file's format allows it: optimizer states that nobody asks for are not read.

    Returns:
        The file's dictionary as it is: `{"model": …, "args": …}`, or a bare state dict.

    Raises:
        UserError: no such file, safetensors, a truncated or foreign file, or one with another class in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: expected a .pth or .pt file; check the path")
    if _is_safetensors(path):
        raise UserError(
            f"{path} is a safetensors file, expected an official .pth or .pt file; a folder saved by "
            "diffusers or ldmae is opened with from_pretrained(FOLDER), without conversion"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise UserError(_refused(path, str(error))) from error
    except Exception as error:  # unpickling raises whatever it likes
        raise UserError(
            f"{path} is not a readable PyTorch checkpoint ({reason_of(error)}); "
            "it may be truncated: download or copy it again"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(
            f"{path} holds a {type(checkpoint).__name__}, expected a dictionary of tensors, "
            "or one with it under 'model'; take the file that the official training wrote"
        )
    return dict(checkpoint)


def state_dict_of(checkpoint: Mapping[str, Any], *names: str) -> dict[str, Tensor]:
    """Returns the first of the named entries that is a state dict, or the checkpoint itself where none is.

    Lightning's, `state_dict`, is looked for last. Prefixes that DistributedDataParallel and torch.compile add
    are taken off; entries that are no tensors are left out.
    """
    found: Mapping[str, Any] = checkpoint
    for name in (*names, "state_dict"):
        if isinstance(checkpoint.get(name), Mapping):
            found = checkpoint[name]
            break
    return {_unwrapped(str(key)): value for key, value in found.items() if isinstance(value, Tensor)}


def require_keys(state: Mapping[str, Any], required: Iterable[str], path: str | Path, what: str) -> None:
    """Checks that a state dict holds what tells its shapes.

    Raises:
        UserError: the file is of another layout; names what it lacks and what it begins with instead.
    """
    missing = [key for key in required if key not in state]
    if missing:
        raise UserError(
            f"{path} is no {what}: it lacks {shortened(missing, 6)}; it holds "
            f"{shortened(state, 6) or 'no tensors'}{_guess(state)}"
        )


@contextlib.contextmanager
def layout_errors(path: str | Path, what: str) -> Iterator[None]:
    """Turns what shapes and values that nobody expects lead to into a message.

    Raises:
        UserError: anything failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is no known {what} ({type(error).__name__}: {reason_of(error)}); "
            "check that it is a whole file of the official training"
        ) from error


def require_numbers(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Checks that weights are finite numbers.

    Raises:
        UserError: one of them is not.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(
                f"{path}: {key} holds {'NaN or infinity' if tensor.is_floating_point() else tensor.dtype}, "
                "expected weights; use a checkpoint of a training that did not diverge"
            )


def depth_of(state: Mapping[str, Any], prefix: str, path: str | Path) -> int:
    """Returns how many blocks a state dict holds, by keys such as `blocks.0.norm.weight`.

    Raises:
        UserError: one in between is missing.
    """
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    if numbers != {str(number) for number in range(len(numbers))}:
        raise UserError(
            f"{path} lacks some of {prefix}*, it has {shortened(sorted(numbers), 6)}; fetch it again"
        )
    return len(numbers)


def side_of(pos_embed: Tensor, path: str | Path) -> int:
    """Returns the side of the grid whose positions (1, N, D) a table holds.

    Raises:
        UserError: the grid is not square.
    """
    side = math.isqrt(pos_embed.shape[1])
    if side**2 != pos_embed.shape[1]:
        raise UserError(
            f"{path}: pos_embed holds {pos_embed.shape[1]} places, expected a square number (no class "
            "token); convert a checkpoint of such a grid"
        )
    return side


def check_layout(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: str | Path, what: str
) -> None:
    """Checks that a state dict has the keys and shapes of our model's.

    Raises:
        UserError: it has not; the message names what it lacks, has beyond them, or has of other shapes.
    """
    found = {
        "lacks": [key for key in ours if key not in state],
        "does not know": [key for key in state if key not in ours],
        "other shapes": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in ours.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if told := "; ".join(f"{kind}: {shortened(names, 6)}" for kind, names in found.items() if names):
        raise UserError(
            f"{path} is no {what} in the known layout ({told}); check that it is a whole file of the "
            "official training"
        )


def _guess(state: Mapping[str, Any]) -> str:
    if "cls_token" in state:
        return "; a class token suggests a plain MAE or ViT checkpoint"
    if "x_embedder.proj.weight" in state:
        return "; this looks like a LightningDiT transformer: see ldmae.conversion.load_official_lightningdit"
    if "to_latent.weight" in state:
        return "; this looks like a VMAE autoencoder: see ldmae.conversion.load_official_vmae"
    if any(key.startswith(("encoder.down", "encoder.conv_in")) for key in state):
        return "; this looks like a convolutional (SD-like) autoencoder"
    return ""


def _unwrapped(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _refused(path: Path, error: str) -> str:
    # torch's own message is not passed on: it advises to set weights_only=False
    found = re.search(r"GLOBAL (\S+)", error)
    if found is None:
        return (
            f"{path} is not a PyTorch checkpoint, or not one that can be read without running code from it; "
            "check that it is a whole .pth or .pt file, as torch.save writes it"
        )
    return (
        f"{path} holds an object of {found[1]}, expected tensors, plain values and argparse.Namespace alone, "
        "so it is not opened: reading it could run code; if you trust its origin, save its weights by "
        "themselves with torch.save(checkpoint['model'], NEW_FILE)"
    )


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)  # the length of the header (8 bytes), then its JSON
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
