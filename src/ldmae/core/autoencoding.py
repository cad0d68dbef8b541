"""One way to call any autoencoder, whatever its output is called: ours, diffusers' and a user's own.

An autoencoder here is a module with `encode`, which takes images (B, 3, H, W) in [-1, 1], and `decode`, which
takes what `encode` gave. Latents that are handed around are RAW: as `encode` gives and `decode` takes them.
`normalised` makes of them what a diffusion model sees.
"""

# B batch, C latent channels, h w latent grid, H W image, p side of a patch of latent cells

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmae.core.errors import UserError, counted

DECODER = ("decoder", "post_quant_conv")
"""Parts of a diffusers autoencoder that no latent depends on."""
_BY_ROW = "image {} of the batch".format


def placement(autoencoder: Any) -> tuple[torch.device, torch.dtype]:
    """Returns where an autoencoder computes, and in which number format; without weights CPU, fp32."""
    for tensor in chain(autoencoder.parameters(), autoencoder.buffers()):
        if tensor.is_floating_point():
            stored = tensor.dtype.itemsize == 1  # in 8 bits, as diffusers' layer-wise casting does
            return tensor.device, plain_module(autoencoder).dtype if stored else tensor.dtype
    return torch.device("cpu"), torch.float32


def encode_moments(
    autoencoder: Any, images: Tensor, describe: Callable[[int], str] = _BY_ROW
) -> tuple[Tensor, Tensor | None]:
    """Encodes images to the posterior's mean and log variance.

    Args:
        autoencoder: a module with `encode`. It may return a tensor; an object or a dictionary with
            `latent_dist`, `latent`, `latents` or `z`, or whose only tensor of four dimensions the latents
            are; a distribution (with `mean`, and `logvar` or `variance`); or a tuple, whose first such
            counts.
        images: (B, 3, H, W) in [-1, 1].
        describe: what an error message calls an image, by its row in the batch.

    Returns:
        The mean (B, C, h, w), and the log variance (B, C, h, w) or None where the latent is deterministic;
        both fp32.

    Raises:
        UserError: the images are of a size or of channels that it does not take, it failed, or its output
            holds no latents, NaN or infinity.
    """
    _check_images(autoencoder, images)
    device, dtype = placement(autoencoder)
    seen = (images + 1) / 2 if _sees_zero_to_one(autoencoder) else images
    with _explained(autoencoder, "encode", images):
        output = autoencoder.encode(seen.to(device, dtype))
    moments = _moments(output)
    if moments is None or moments[0].shape[0] != images.shape[0]:
        raise UserError(
            f"{_name(autoencoder)}.encode returned {_described(output)}, which holds no latents of "
            f"{counted(len(images), 'image')}; expected a tensor (B, C, h, w), a tuple that begins with one, "
            "or an object with latent_dist, latent or latents"
        )
    mean, logvar = (None if moment is None else moment.float() for moment in moments)
    assert mean is not None
    require_finite(mean, f"{_name(autoencoder)}.encode", dtype, describe)
    if logvar is not None:  # -inf is a posterior without noise
        require_finite(logvar.clamp_min(-1e9), f"{_name(autoencoder)}.encode", dtype, describe)
    return mean, logvar


def require_finite(
    output: Tensor, what: str, dtype: torch.dtype, describe: Callable[[int], str] = _BY_ROW
) -> None:
    """Checks what a network returned, before clipping or normalising makes something of NaN or infinity.

    Args:
        output: (B, ...); a tensor without memory passes, and so does all in a graph that is exported.
        what: the name of what returned it.
        dtype: what it computed in.
        describe: what the message calls an image, by its row.

    Raises:
        UserError: it holds NaN or infinity.
    """
    if output.is_meta or torch.compiler.is_compiling() or output.isfinite().all():
        return
    row = int(output.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
    value = "NaN" if output[row].isnan().any() else "infinity"
    raise UserError(
        f"{what} returned {value} for {describe(row)}, computing in {str(dtype).removeprefix('torch.')}; "
        "load it in float32 or bfloat16, or name one with valid weights"
    )


def decode(
    autoencoder: Any,
    latents: Tensor,
    device: torch.device | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    *,
    clip: bool = True,
) -> Tensor:
    """Decodes raw latents (B, C, h, w), as `encode_moments` gives them, to images (B, 3, H, W) in [-1, 1].

    They go to `device`; None: to where the weights are, which those of an offloaded model are only later.
    `generator` goes to a `decode` that takes one, as a ConsistencyDecoderVAE's does to draw noise. Without it
    each image of such a class of diffusers gets the same noise, so that none depends on its batch.

    `decode` of the autoencoder may return a tensor; an object or a dictionary with `sample`, or whose only
    tensor of four dimensions the images are; or a tuple, whose first such counts. Values outside [-1, 1] are
    clipped, but for `clip=False`, as a loss wants them. A VQModel's `decode` quantises what it gets.

    Raises:
        UserError: it failed, or its output holds no images, or NaN or infinity.
    """
    where, dtype = placement(autoencoder)
    with _explained(autoencoder, "decode", latents):
        output = autoencoder.decode(
            latents.to(device or where, dtype), **_noise(autoencoder, latents, generator)
        )
    images = _find(output, ("sample", "images"))
    if images is None or images.shape[0] != latents.shape[0]:
        raise UserError(
            f"{_name(autoencoder)}.decode returned {_described(output)}, which holds no images of "
            f"{counted(len(latents), 'latent')}; expected a tensor (B, 3, H, W), a tuple that begins with "
            "one, or an object with sample"
        )
    images = images.float()
    require_finite(images, f"{_name(autoencoder)}.decode", dtype)
    images = images * 2 - 1 if _sees_zero_to_one(autoencoder) else images
    return images.clamp(-1, 1) if clip else images


def _noise(autoencoder: Any, latents: Tensor, generator: Any) -> dict[str, Any]:
    """Returns the generator as an argument of `decode`, where that takes one."""
    inner = plain_module(getattr(autoencoder, "module", autoencoder))
    takes = inspect.signature(inner.decode).parameters  # which a wrapper hides before diffusers 0.42
    if "generator" not in takes and not _is_kind(inner, "ConsistencyDecoderVAE"):
        return {}
    if generator is None and _is_known(autoencoder):
        generator = [torch.Generator().manual_seed(0) for _ in latents]
    return {} if generator is None else {"generator": generator}


def plain_module(module: Any) -> Any:
    """Returns the module that torch.compile was given, or the module itself."""
    return getattr(module, "_orig_mod", module)


@torch.no_grad()
def reconstruct(autoencoder: Any, images: Tensor, describe: Callable[[int], str] = _BY_ROW) -> Tensor:
    """Encodes to the posterior mean and decodes it: (B, 3, H, W) to (B, 3, H, W), in [-1, 1].

    Raises:
        UserError: as `encode_moments` and `decode`; or what comes back is of another shape.
    """
    restored = decode(autoencoder, encode_moments(autoencoder, images, describe)[0])
    if restored.shape != images.shape:
        move = (
            f"mend its decode, or give image_size a multiple of its patches, as {restored.shape[-1]} may be"
            if restored.shape[-2:] != images.shape[-2:]
            else f"name one that decodes to {images.shape[1]} channels"
        )
        raise UserError(
            f"{_name(autoencoder)} made {_pictures(restored)} of {_pictures(images)}; expected the same "
            f"shape again: {move}"
        )
    return restored


def normalised(autoencoder: Any, latents: Tensor) -> Tensor:
    """Returns raw latents in the form that a diffusion model sees, as the autoencoder's config has it.

    With `latents_mean` and `latents_std` in the config it is (z − mean) / std · scaling_factor per channel,
    as diffusers' SDXL pipelines have it; else (z − shift_factor) · scaling_factor. What is absent is 0 or 1.
    An AutoencoderRAE normalises in its own `encode`, so that nothing is left to do. An AutoencoderKLFlux2 has
    its statistics in a batch normalisation of 2 x 2 patches of cells; the cells stay where they are.

    Args:
        autoencoder: any; without a config its latents are taken as they are.
        latents: (B, C, h, w), as `encode_moments` gives them.

    Raises:
        UserError: the patches do not divide the latent grid.
    """
    mean, std, scale = _statistics(autoencoder, latents)
    return (latents - mean) / std * scale


def denormalised(autoencoder: Any, latents: Tensor) -> Tensor:
    """Returns the raw latents of what a diffusion model sees, (B, C, h, w): the inverse of `normalised`."""
    mean, std, scale = _statistics(autoencoder, latents)
    return latents * std / scale + mean


def _statistics(autoencoder: Any, latents: Tensor) -> tuple[Any, Any, float]:
    """Returns mean, standard deviation and factor of `normalised`: numbers, (1, C, 1, 1) or (1, C, h, w)."""
    if _is_kind(autoencoder, "AutoencoderRAE"):
        return 0.0, 1.0, 1.0
    if _is_kind(autoencoder, "AutoencoderKLFlux2"):
        p, bn, (h, w) = setting(autoencoder, "patch_size")[0], autoencoder.bn, latents.shape[-2:]
        if h % p or w % p:
            raise UserError(
                f"the latents of {_name(autoencoder)} are normalised in patches of {p} x {p} cells, got "
                f"{h} x {w} cells; give image_size a multiple of {p * (size_multiple(autoencoder) or 1)}"
            )
        found = (t.to(latents).reshape(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var))
        mean, variance = (F.pixel_shuffle(t.expand(-1, -1, h // p, w // p), p) for t in found)
        return mean, (variance + bn.eps).sqrt(), 1.0
    scale = setting(autoencoder, "scaling_factor") or 1.0
    found = [setting(autoencoder, name) for name in ("latents_mean", "latents_std")]
    if len({value is None for value in found}) > 1:
        raise UserError(f"{_name(autoencoder)} has one of latents_mean and latents_std; set both or neither")
    if found[0] is None:
        return setting(autoencoder, "shift_factor") or 0.0, 1.0, scale
    mean, std = (latents.new_tensor(value).reshape(1, -1, 1, 1) for value in found)
    return mean, std, scale


def decoder_modules(autoencoder: Any) -> list[torch.nn.Module]:
    """Returns the modules that make images of latents as `encode` gives them; the others make the latents.

    Of a diffusers autoencoder they are `decoder` and `post_quant_conv`. A quantising layer, which latents
    pass on their way, is none of them.

    Raises:
        UserError: it has not one encoder and one decoder.
    """
    parts = (getattr(autoencoder, name, None) for name in ("encoder", "decoder"))
    if not all(isinstance(part, torch.nn.Module) for part in parts):
        raise UserError(
            f"{_name(autoencoder)} has no encoder and decoder of these names, so that its decoder can't be "
            "trained alone; name an AutoencoderVMAE or an autoencoder of diffusers, such as an AutoencoderKL"
        )
    return [part for name in DECODER if (part := getattr(autoencoder, name, None)) is not None]


def size_multiple(autoencoder: Any) -> int | None:
    """Returns what height and width must be multiples of; None where the autoencoder does not say.

    Known of ours and diffusers' classes; a user's own may have an attribute `spatial_compression_ratio`.
    """
    told = setting(autoencoder, "spatial_compression_ratio")
    told = getattr(autoencoder, "spatial_compression_ratio", None) if told is None else told
    if isinstance(told, int) or not _is_known(autoencoder):
        return told if isinstance(told, int) else None
    for name in ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels", "ch_mult"):
        if (stages := setting(autoencoder, name)) is not None:
            return 2 ** (len(stages) - 1)  # each stage but one halves the grid
    patch = setting(autoencoder, "patch_size")
    return patch if isinstance(patch, int) else None


def _check_images(autoencoder: Any, images: Tensor) -> None:
    """Raises a UserError for images that a known autoencoder would not take, or not give back as large."""
    assert images.ndim == 4, f"images are (B, 3, H, W), got {tuple(images.shape)}"
    size, name = f"{images.shape[-2]}x{images.shape[-1]}", _name(autoencoder)
    if _is_known(autoencoder):
        for medium, names in _OTHER_MEDIA.items():
            if name in names or any(setting(autoencoder, entry) is not None for entry in names):
                raise UserError(
                    f"{name} is an autoencoder of {medium}; name one of images, such as an AutoencoderKL"
                )
        channels = setting(autoencoder, "in_channels") or setting(autoencoder, "num_channels")
        if channels is not None and channels != images.shape[1]:
            raise UserError(
                f"{name} takes images of {channels} channels, got {images.shape[1]}; "
                f"name an autoencoder of images of {images.shape[1]} channels"
            )
    if _is_kind(autoencoder, "AutoencoderRAE"):  # it would resize whatever it gets
        patches = setting(autoencoder, "encoder_input_size") // setting(autoencoder, "encoder_patch_size")
        fixed = patches * setting(autoencoder, "patch_size")
        if tuple(images.shape[-2:]) != (fixed, fixed):
            raise UserError(
                f"{name} takes images of {fixed}x{fixed} only, got {size}; give image_size={fixed}"
            )
        return
    multiple = size_multiple(autoencoder)
    if multiple is not None and any(side % multiple or not side for side in images.shape[-2:]):
        near = max(multiple, round(images.shape[-1] / multiple) * multiple)
        raise UserError(
            f"{name} takes images whose height and width are multiples of {multiple}, got {size}; "
            f"give image_size a multiple of {multiple}, such as image_size={near}"
        )


_OTHER_MEDIA = {
    "sound": ("sampling_rate", "sample_rate", "audio_channels"),
    "videos": (
        "temporal_compression_ratio",
        "temperal_downsample",  # as diffusers spells it
        "temporal_expansions",
        "spatio_temporal_scaling",
        "temporal_compress_times",
        "AutoencoderKLTemporalDecoder",
    ),
}
"""Entries of a diffusers autoencoder's config that tell what it is of; a class whose config has none."""


@contextlib.contextmanager
def _explained(autoencoder: Any, method: str, tensor: Tensor) -> Iterator[None]:
    """Turns whatever an autoencoder raises into a message that names it and what it got."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kind = "images" if method == "encode" else "latents"
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        raise UserError(
            f"{_name(autoencoder)}.{method} failed on {kind} of shape {tuple(tensor.shape)} ({reason}). "
            "Expected an autoencoder of images (B, 3, H, W), not of videos or sound; if it is one, it "
            "may need another image_size, such as a multiple of 32"
        ) from error


def _is_kind(autoencoder: Any, name: str) -> bool:
    # by name: not every diffusers that is supported has every class
    return any(kind.__name__ == name for kind in type(plain_module(autoencoder)).__mro__)


def _is_known(autoencoder: Any) -> bool:
    """Says whether the names in its config mean what they mean in diffusers."""
    homes = ("diffusers.models.autoencoders.", "ldmae.autoencoders.")
    return any(kind.__module__.startswith(homes) for kind in type(plain_module(autoencoder)).__mro__)


def _sees_zero_to_one(autoencoder: Any) -> bool:
    # it subtracts ImageNet's mean of images in [0, 1], where all others of diffusers take [-1, 1]
    return _is_kind(autoencoder, "AutoencoderRAE")


def setting(autoencoder: Any, name: str) -> Any:
    """Returns an entry of an autoencoder's config; None where it has none, or no config."""
    config = getattr(autoencoder, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _moments(output: Any) -> tuple[Tensor, Tensor | None] | None:
    if isinstance(output, (tuple, list)):
        return next((found for part in output if (found := _moments(part)) is not None), None)
    if (posterior := _field(output, "latent_dist")) is not None:
        return _moments(posterior)
    mean = None if isinstance(output, Tensor) else _field(output, "mean")
    if not _is_grid(mean):
        latents = _find(output, ("latent", "latents", "z"))
        return None if latents is None else (latents, None)
    logvar, variance = _field(output, "logvar"), _field(output, "variance")
    if _is_grid(logvar):
        return mean, logvar
    return mean, variance.log() if _is_grid(variance) else None


def _find(output: Any, names: tuple[str, ...]) -> Tensor | None:
    """Returns the (B, C, h, w) in an output: a tensor, what bears one of the names, or the only one."""
    if isinstance(output, Tensor):
        return output if _is_grid(output) else None
    if isinstance(output, (tuple, list)):
        return next((found for part in output if (found := _find(part, names)) is not None), None)
    for name in names:
        if _is_grid(value := _field(output, name)):
            return value
    grids = [value for value in _fields(output).values() if _is_grid(value)]
    return grids[0] if len(grids) == 1 else None


def _is_grid(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _fields(output: Any) -> dict[str, Any]:
    return dict(output) if isinstance(output, Mapping) else dict(getattr(output, "__dict__", {}))


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    names = ", ".join(map(str, _fields(output)))
    return type(output).__name__ + (f" with {names}" if names else "")


def _name(autoencoder: Any) -> str:
    return type(plain_module(autoencoder)).__name__


def _pictures(images: Tensor) -> str:
    return f"{images.shape[1]}-channel images of {images.shape[2]}x{images.shape[3]}"
