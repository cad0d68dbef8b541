"""Official LDMAE and LightningDiT transformer checkpoints, to our model and back."""

# D width, A heads, d head width, C latent channels, p patch size

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmae.conversion.checkpoints import (
    check_layout,
    depth_of,
    layout_errors,
    read_official_checkpoint,
    require_keys,
    require_numbers,
    side_of,
    state_dict_of,
)
from ldmae.core.errors import UserError
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel, rotary_tables

_ROTARY_KEYS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
"""Constants that official files hold beside the weights; ours are computed for each grid."""
_ROTARY_TOLERANCE = 1e-2
"""A table that went through bfloat16 lies 4e-3 off."""
_REQUIRED = (
    "pos_embed",
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "final_layer.linear.weight",
)
"""Keys whose shapes tell the configuration."""


def load_official_lightningdit(
    path: str | Path, num_attention_heads: int | None = None, num_classes: int | None = None
) -> LightningDiTTransformer2DModel:
    """Reads an official transformer checkpoint, `{"model", "ema", "opt", "config"}` or a bare state dict.

    The averaged weights (`ema`) are taken where there are any. Sizes follow from the tensors' shapes;
    `pos_embed` must belong to a square grid.

    Args:
        path: the `.pt` file.
        num_attention_heads: needed only where the file has neither rotary tables nor q/k norms, which tell
            the head width.
        num_classes: how many classes there are: with one row less in the class table there is a null class,
            with as many there is none. Where None, the file's own configuration says it; where that is
            missing too, a table of one row is one class without a null class, and of R rows R - 1 classes and
            a null class.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        UserError: the file is of another layout; names what it lacks or has beyond.
    """
    checkpoint = read_official_checkpoint(path)
    state = state_dict_of(checkpoint, "ema", "model")
    require_keys(state, _REQUIRED, path, "official LightningDiT checkpoint")
    require_numbers(state, path)
    rotary = {key: state.pop(key) for key in _ROTARY_KEYS if key in state}
    if num_classes is None:
        num_classes = _configured_classes(checkpoint)
    with layout_errors(path, "official LightningDiT checkpoint"):
        config = _infer_config(state, rotary, path, num_attention_heads, num_classes)
        model = LightningDiTTransformer2DModel(**config)
        _check_rotary(rotary, model, path)
        check_layout(state, model.state_dict(), path, "official LightningDiT checkpoint")
        model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval()


def to_official_lightningdit(model: LightningDiTTransformer2DModel) -> dict[str, Tensor]:
    """Returns the weights as a bare state dict in the official layout, rotary constants included."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    if model.use_rope:
        grid = model.config["sample_size"] // model.config["patch_size"]
        state.update(zip(_ROTARY_KEYS, rotary_tables(model.attention_head_dim, grid, grid), strict=True))
    return state


def _configured_classes(checkpoint: Mapping[str, Any]) -> int | None:
    config = checkpoint.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    found = data.get("num_classes") if isinstance(data, Mapping) else None
    return found if isinstance(found, int) else None


def _infer_config(
    state: Mapping[str, Tensor],
    rotary: Mapping[str, Tensor],
    path: str | Path,
    num_attention_heads: int | None,
    num_classes: int | None,
) -> dict[str, Any]:
    width, channels, patch_size = state["x_embedder.proj.weight"].shape[:3]
    grid = side_of(state["pos_embed"], path)
    heads = _heads(state, rotary, path, width, num_attention_heads)
    swiglu = "blocks.0.mlp.w12.weight" in state
    first = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"
    require_keys(state, [first], path, "official LightningDiT checkpoint")
    classes, has_null = _classes(state["y_embedder.embedding_table.weight"].shape[0], num_classes, path)
    return {
        "sample_size": grid * patch_size,
        "patch_size": patch_size,
        "in_channels": channels,
        "num_layers": depth_of(state, "blocks.", path),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "mlp_ratio": _mlp_ratio(state[first].shape[1], width, swiglu),
        "num_classes": classes,
        "class_dropout_prob": 0.1 if has_null else 0.0,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "use_swiglu": swiglu,
        "use_rope": bool(rotary),
        "use_rmsnorm": "final_layer.norm_final.weight" in state,
    }


def _heads(
    state: Mapping[str, Tensor], rotary: Mapping[str, Tensor], path: str | Path, width: int, given: int | None
) -> int:
    telling = rotary.get(_ROTARY_KEYS[0], state.get("blocks.0.attn.q_norm.weight"))
    found = None if telling is None else width // telling.shape[-1]
    if given is None and found is None:
        raise UserError(
            f"{path} has neither rotary tables nor q/k norms, so its number of heads is in no shape; "
            "give num_attention_heads (12 for B, 16 for L and XL)"
        )
    if given is not None and found is not None and given != found:
        raise UserError(
            f"{path} has {found} attention heads, got num_attention_heads={given}; leave the argument out"
        )
    heads = given if found is None else found
    assert heads is not None
    if heads < 1 or width % heads:
        raise UserError(
            f"num_attention_heads={heads} does not divide the width {width} of {path}; give another number"
        )
    return heads


def _classes(rows: int, given: int | None, path: str | Path) -> tuple[int, bool]:
    """Returns the number of classes and whether a row more stands for no class."""
    classes = given if given is not None else max(rows - 1, 1)
    if rows not in (classes, classes + 1):
        raise UserError(
            f"{path} has {rows} rows of classes, which fits num_classes={rows} (no null class) or "
            f"num_classes={rows - 1} (and a null class), got num_classes={classes}; give one of the two"
        )
    if classes == 1 and rows == 2:
        raise UserError(
            f"{path} has 2 rows of classes, and this model has no null class beside a single class; "
            "give num_classes=2, and use class 0 (class 1 is then the null class)"
        )
    return classes, rows == classes + 1


def _mlp_ratio(hidden: int, width: int, swiglu: bool) -> float:
    """Returns the ratio that gives the hidden width, a round one where several do."""

    def gives(ratio: float) -> bool:
        whole = int(width * ratio)
        return (int(2 / 3 * whole) if swiglu else whole) == hidden

    exact = hidden / width * (1.5 if swiglu else 1.0)
    candidates = [4.0, *(round(exact, digits) for digits in range(9)), (int(exact * width) + 1) / width]
    return next((ratio for ratio in candidates if gives(ratio)), exact)


def _check_rotary(
    rotary: Mapping[str, Tensor], model: LightningDiTTransformer2DModel, path: str | Path
) -> None:
    if not rotary:
        return
    grid = model.config["sample_size"] // model.config["patch_size"]
    expected = dict(zip(_ROTARY_KEYS, rotary_tables(model.attention_head_dim, grid, grid), strict=True))
    for key, ours in expected.items():
        table = rotary.get(key, ours)
        if table.shape != ours.shape or not torch.allclose(
            table.float(), ours, rtol=0, atol=_ROTARY_TOLERANCE
        ):
            raise UserError(
                f"{path}: {key} is not LightningDiT's rotary table for a {grid}x{grid} grid and heads of "
                f"{model.attention_head_dim}; another frequency base or scaling is not supported"
            )
