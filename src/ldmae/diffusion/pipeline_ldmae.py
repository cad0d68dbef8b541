"""The diffusers pipeline: classes in, images out."""

# B batch, C latent channels, h w latent grid, H W image size

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn

# a saved pipeline can only be loaded once its classes are imported
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.core.autoencoding import decode, denormalised, plain_module, require_finite, setting
from ldmae.core.errors import UserError, check_known, nearest, shortened
from ldmae.core.saving import SavedPipeline
from ldmae.diffusion import pipeline_arguments as arguments
from ldmae.diffusion.flow import predict_velocity, set_sampling_times
from ldmae.diffusion.guidance import guided_velocity
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.diffusion.own_autoencoder import OwnAutoencoder
from ldmae.diffusion.solvers import take_step

__all__ = ["AutoencoderVMAE", "LDMAEPipeline", "LightningDiTTransformer2DModel"]

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_MOST_STEPS = 1_000_000
IMAGES_DECODED_AT_ONCE = 8
"""Bounds memory: a convolutional decoder at 256 px takes a few hundred MB an image."""


class LDMAEPipeline(SavedPipeline, DiffusionPipeline, SanaLoraLoaderMixin):  # its LoRA is of any transformer
    """Generates images of classes: flow matching in an autoencoder's latents.

    Args:
        vae: `AutoencoderVMAE`, any diffusers autoencoder, or a module of your own, which a saved pipeline
            does not hold (see `OwnAutoencoder`). None: the pipeline gives latents only.
        transformer: predicts the velocity.
        scheduler: `FlowMatchEulerDiscreteScheduler` or `FlowMatchHeunDiscreteScheduler`.
        id2label: names of the classes by number; lets `class_labels` be names. A name may list synonyms
            between commas.
        latents_mean: per-channel mean that the transformer's latents were normalised with (C numbers). For
            autoencoders whose config holds no statistics; where given, together with `latents_std`, the
            autoencoder's own statistics, scaling and shift factor are not used.
        latents_std: per-channel standard deviation, likewise.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers reads a plain class attribute
    _optional_components = ["vae"]  # noqa: RUF012

    vae: Any
    transformer: Any
    scheduler: Any

    def __init__(
        self,
        vae: AutoencoderVMAE | AutoencoderKL | ModelMixin | nn.Module | None,
        transformer: LightningDiTTransformer2DModel | ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler,
        id2label: dict[int, str] | dict[str, str] | None = None,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        super().__init__()
        if (latents_mean is None) != (latents_std is None):
            raise UserError(
                "latents_mean and latents_std belong together, got only one of them; give both or none"
            )
        if vae is not None and not isinstance(plain_module(vae), ModelMixin):
            vae = OwnAutoencoder(vae)
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        names = arguments.names_by_number(id2label)
        self.register_to_config(
            id2label=names, latents_mean=_as_floats(latents_mean), latents_std=_as_floats(latents_std)
        )
        self._ids_by_name = _ids_by_name(names or {})
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the running or last call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Network evaluations of the running or last call, a guided one counted once."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop (by setting `pipe._interrupt`)."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[Any] | Tensor,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        num_inference_steps: int = 50,
        timestep_shift: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generates one image for each class label.

        Args:
            class_labels: a class number or name, or a list (nested or not) or tensor of them; its length is
                the batch.
            guidance_scale: classifier-free guidance v_null + scale · (v_class - v_null); 1 is none, 0 leaves
                the class out.
            guidance_interval: guidance acts at times t in this interval, ends included; 0 is noise, 1 is
                data. None: at all times.
            guidance_channels: guide only that many first latent channels (3 is what the official sampler
                does); None guides all, which wants a smaller scale, of about 4.
            num_inference_steps: steps N. Euler's are N evaluations of the transformer on a uniform grid (the
                official 250 points of time are N = 249). Heun's scheduler uses its own grid and 2N - 1
                evaluations.
            timestep_shift: s of t' = s·t / (1 + (s - 1)·t), for this call, in place of the scheduler's own
                shift (which is 1/s); below 1 spends more steps near the noise. 0 and 1 mean no shift, None
                the scheduler's own.
            generator: one for the whole batch, or a list of one for each image, whose images then don't
                depend on the batch they are in. A decoder that draws noise gets it too.
            latents: (B, C, h, w) noise to start from, in place of the generator's; any h and w that fit the
                patch size.
            output_type: `pil` (a list of images), `np` ((B, H, W, 3) float32 in [0, 1]), `pt` ((B, 3, H, W)
                float32 in [0, 1]) or `latent` ((B, C, h, w) float32, normalised).
            return_dict: return an object with `images` instead of a tuple.
            callback_on_step_end: called as `callback(pipe, i, timestep, tensors)` after each evaluation; the
                tensors that it returns, if any, replace the pipeline's.
            callback_on_step_end_tensor_inputs: names of the tensors it is given; only `latents`.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            UserError: an argument does not fit the models, or a model returned NaN or infinity.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_models(output_type)
        labels = [self.class_id(label) for label in arguments.flattened(class_labels)]
        if not labels:
            raise UserError("class_labels is empty; give at least one class number or name")
        interval = arguments.guidance_interval(guidance_interval)
        steps = arguments.whole_number("num_inference_steps", num_inference_steps, _MOST_STEPS, "50 is usual")
        shift = arguments.timestep_shift(timestep_shift)
        noises = arguments.generators(generator, len(labels))
        guided_channels = self._guided_channels(guidance_channels)
        self._check_callback(callback_on_step_end_tensor_inputs or ())
        self._guidance_scale = arguments.number("guidance_scale", guidance_scale, "1 is none")
        self._check_guidance(self._guidance_scale)
        self._interrupt = False

        device = self._execution_device
        x: Tensor = self._starting_latents(len(labels), latents, noises, device)  # (B, C, h, w), x_t
        classes = torch.tensor(labels, device=device)  # (B,)
        tokens = x[0, 0].numel() // self.transformer.config["patch_size"] ** 2
        set_sampling_times(self.scheduler, steps, shift, tokens, device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        predict = partial(self._velocity, dtype := self.transformer.dtype)  # it walks over all weights
        # to the CPU at once, so that the loop does not wait for the device at every step
        times = (1 - timesteps.cpu().double() / self.scheduler.config["num_train_timesteps"]).tolist()

        with self.progress_bar(total=len(times)) as bar:  # pyright: ignore[reportCallIssue]
            for i, (timestep, t) in enumerate(zip(timesteps, times, strict=True)):
                if self.interrupt:
                    continue
                velocity = guided_velocity(
                    predict,
                    x,
                    t,
                    classes,
                    null_class=self._null_class,
                    scale=self.guidance_scale,  # a callback may change it
                    interval=interval,
                    channels=guided_channels,
                )
                # float32 in, float32 out: steps of a half-precision sampler would round away
                x = take_step(self.scheduler, -velocity, timestep, x, noises)
                if callback_on_step_end is not None:
                    tensors = {"latents": x} if callback_on_step_end_tensor_inputs else {}
                    x = arguments.replaced_latents(callback_on_step_end(self, i, timestep, tensors), x)
                bar.update()

        made_by = f"{type(self.transformer).__name__}, in steps of {type(self.scheduler).__name__},"
        require_finite(x, made_by, dtype)
        images = x if output_type == "latent" else _as_output(self.decode_latents(x, noises), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # pyright: ignore[reportArgumentType]

    @property
    def components(self) -> dict[str, Any]:
        """The models, and what else `LDMAEPipeline(**pipe.components)` needs to make the same images."""
        settings = ("id2label", "latents_mean", "latents_std")
        return super().components | {name: self.config[name] for name in settings}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Makes a pipeline of another's models, with whatever autoencoder, as diffusers' `from_pipe` does."""
        # handed in by name, for diffusers passes over a model whose class is not in __init__'s annotation
        parts = pipeline.components if isinstance(pipeline, LDMAEPipeline) else {}
        return super().from_pipe(pipeline, **{**parts, **kwargs})

    @property
    def _null_class(self) -> int | None:
        return getattr(self.transformer, "null_class", None)

    def _velocity(self, dtype: torch.dtype, latents: Tensor, t: float, class_labels: Tensor) -> Tensor:
        times = torch.full((len(latents),), t, device=latents.device)
        return predict_velocity(self.transformer, latents.to(dtype), times, class_labels)

    @torch.no_grad()
    def decode_latents(
        self, latents: Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Tensor:
        """Decodes what `output_type="latent"` gives, a few at a time.

        Args:
            latents: (B, C, h, w), normalised.
            generator: of a decoder that draws noise; one, or one for each image.

        Returns:
            Images (B, 3, H, W), float32 in [-1, 1], on the CPU.
        """
        decoded, n = [], IMAGES_DECODED_AT_ONCE
        for i, piece in enumerate(self._denormalise(latents).split(n)):
            noise = generator[i * n : (i + 1) * n] if isinstance(generator, list) else generator
            decoded.append(decode(self.vae, piece, piece.device, noise).cpu())
        return torch.cat(decoded)

    def _denormalise(self, latents: Tensor) -> Tensor:
        """Undoes the normalisation that the transformer was trained in, by the first statistics there are."""
        mean, std = self.config["latents_mean"], self.config["latents_std"]
        if mean is None:
            return denormalised(self.vae, latents)
        mean, std = (latents.new_tensor(value).reshape(1, -1, 1, 1) for value in (mean, std))
        return latents * std + mean

    def _starting_latents(
        self,
        batch: int,
        latents: Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> Tensor:
        config = self.transformer.config
        channels, size, patch = config["in_channels"], config["sample_size"], config["patch_size"]
        if latents is not None:
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else ()
            matched = len(shape) == 4 and shape[:2] == (batch, channels)
            if not matched or any(n == 0 or n % patch for n in shape[2:]):
                raise UserError(
                    f"latents must have the shape ({batch}, {channels}, h, w), a row for each label, h and w "
                    f"multiples of {patch}, got {shape or type(latents).__name__}; "
                    f"draw them with torch.randn({batch}, {channels}, {size}, {size})"
                )
            if not latents.isfinite().all():
                raise UserError(f"latents hold NaN or infinity; draw them with torch.randn{shape}")
            return latents.to(device, torch.float32)
        return randn_tensor((batch, channels, size, size), generator, device, torch.float32)

    def class_id(self, label: int | str) -> int:
        """Returns the number of a class given by its number or by its name in `id2label`.

        Raises:
            UserError: an unknown name, one of several classes, or a number out of range.
        """
        if isinstance(label, str):
            label = unicodedata.normalize("NFC", label)  # macOS writes accents as characters of their own
        if isinstance(label, str) and label in self._ids_by_name:
            ids = self._ids_by_name[label]
            if len(ids) > 1:
                raise UserError(f"class name {label!r} stands for classes {ids}; give one of these numbers")
            label = ids[0]
        if isinstance(label, str) and not label.isdecimal():
            if not self._ids_by_name:
                raise UserError(
                    f"class {label!r} is a name, but this pipeline has no id2label; give a number"
                )
            known = shortened(self._ids_by_name)
            raise UserError(f"unknown class {label!r}{nearest(label, self._ids_by_name)}; known are {known}")
        if isinstance(label, bool) or not isinstance(label, int | str | np.integer):
            raise UserError(f"a class label is a number or a name, got {label!r} ({type(label).__name__})")
        last = self.transformer.config["num_classes"] - 1
        if not 0 <= int(label) <= last:
            null = "; for images without a class set guidance_scale=0" if label == self._null_class else ""
            raise UserError(
                f"class label {label} is out of range; this model knows classes 0 to {last}{null}"
            )
        return int(label)

    def _check_models(self, output_type: str) -> None:
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler):
            raise UserError(
                "the scheduler must be FlowMatchEulerDiscreteScheduler or FlowMatchHeunDiscreteScheduler, "
                f"got {type(self.scheduler).__name__}; others don't follow straight paths from noise to data"
            )
        if self.scheduler.config.get("invert_sigmas"):
            raise UserError("the scheduler's invert_sigmas reverses time; set it to False")
        check_known("output_type", str(output_type), _OUTPUT_TYPES)
        arguments.check_transformer(self.transformer)
        if output_type == "latent":
            return
        if self.vae is None:
            raise UserError("this pipeline has no autoencoder (vae=None); set output_type='latent'")
        channels = self.transformer.config["in_channels"]
        own = setting(self.vae, "latent_channels")
        if own not in (None, channels):
            raise UserError(
                f"the autoencoder's latents have {own} channels, the transformer's {channels}; "
                "take the autoencoder that the transformer was trained with"
            )
        for name in ("latents_mean", "latents_std"):
            numbers = self.config[name] or setting(self.vae, name)
            if numbers is not None and len(numbers) not in (1, channels):
                raise UserError(
                    f"{name} has {len(numbers)} numbers for {channels} channels; give one for each channel"
                )

    def _check_callback(self, wanted: str | Sequence[str]) -> None:
        for name in [wanted] if isinstance(wanted, str) else wanted:
            kind = "tensor for callback_on_step_end_tensor_inputs"
            check_known(kind, name, self._callback_tensor_inputs, "the pipeline")

    def _guided_channels(self, channels: Any) -> int | None:
        if channels is None:
            return None
        most = self.transformer.config["in_channels"]
        return arguments.whole_number("guidance_channels", channels, most, "None guides all")

    def _check_guidance(self, scale: float) -> None:
        if scale != 1 and self._null_class is None:
            raise UserError(
                f"guidance_scale={scale} needs a null class, which this transformer does not have "
                "(one class only, or class_dropout_prob=0); use guidance_scale=1"
            )


def _as_floats(values: Any) -> list[float] | None:
    return None if values is None else torch.as_tensor(values, dtype=torch.float64).flatten().tolist()


def _ids_by_name(id2label: dict[int, str]) -> dict[str, list[int]]:
    """Maps names to class numbers; a whole label wins over another's synonym of the same spelling."""
    id2label = {number: unicodedata.normalize("NFC", label) for number, label in id2label.items()}
    synonyms: dict[str, list[int]] = {}
    for number, label in id2label.items():
        for name in {part.strip() for part in label.split(",")}:
            synonyms.setdefault(name, []).append(number)
    whole: dict[str, list[int]] = {}
    for number, label in id2label.items():
        whole.setdefault(label, []).append(number)
    return {**synonyms, **whole}


def _as_output(images: Tensor, output_type: str) -> Any:
    """Turns images (B, 3, H, W) in [-1, 1] into what was asked for."""
    if output_type == "pil":
        pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)  # the official rounding
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
    images = (images / 2 + 0.5).clamp(0, 1)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()
