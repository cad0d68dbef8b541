"""VMAE: a masked autoencoder with a Gaussian latent, as a diffusers autoencoder (Lee et al., ICCV 2025)."""

# B batch, C latent channels, H W image, p patch size, h w token grid (H/p, W/p), N = h·w tokens,
# V visible tokens, D width of a token

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from ldmae.config.autoencoder import VMAEConfig
from ldmae.core.device import attention
from ldmae.core.errors import UserError
from ldmae.core.patches import PatchEmbedding, start_linear_layers
from ldmae.core.positions import sincos_2d
from ldmae.core.saving import SavedModel

_LAYER_NORM_EPSILON = 1e-6
_SINCOS_TOLERANCE = 1e-2
"""A stored table this near to the sine-cosine one is that table, rounded to half precision at most."""


class _PosteriorDistribution(DiagonalGaussianDistribution):
    """diffusers' diagonal Gaussian, for latents (B, 2C, h, w) and for visible tokens alone (B, 2C, V)."""

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:  # type: ignore[override]
        """Returns the divergence to `other`, or to N(0, 1), summed over all but the batch: (B,)."""
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        mean, variance, logvar = (0.0, 1.0, 0.0) if other is None else (other.mean, other.var, other.logvar)
        each = (self.mean - mean) ** 2 / variance + self.var / variance - 1.0 - self.logvar + logvar
        return 0.5 * each.flatten(1).sum(1)

    def nll(self, sample: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:  # type: ignore[override]
        """Returns the negative log likelihood of `sample`, summed over `dims` (None: all but the batch)."""
        return super().nll(sample, tuple(range(1, sample.ndim)) if dims is None else dims)


class _SelfAttention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        b, n, width = tokens.shape
        qkv = self.qkv(tokens).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D/heads)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class _Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = get_activation(activation)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return self.fc2(self.act(self.fc1(tokens)))


class VMAEBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_LAYER_NORM_EPSILON)
        self.attn = _SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_LAYER_NORM_EPSILON)
        self.mlp = _Mlp(width, int(width * mlp_ratio), activation)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _PixelHead(nn.Module):
    """Tokens to pixels: a linear layer, then a 3 × 3 convolution that removes seams between patches.

    With `features`, the linear layer gives so many features a pixel in place of its colours, and a further 3
    × 3 convolution and an activation come before the last.
    """

    def __init__(
        self, width: int, patch_size: int, channels: int, smooth: bool, features: int | None, activation: str
    ):
        super().__init__()
        self.patch_size = patch_size
        inner = features or channels
        self.linear_pred = nn.Linear(width, patch_size**2 * inner)
        self.conv_features = nn.Conv2d(inner, inner, kernel_size=3, padding=1) if features else None
        self.act = get_activation(activation) if features else None
        self.conv_smoother = nn.Conv2d(inner, channels, kernel_size=3, padding=1) if smooth else None

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) → (B, channels, H, W)."""
        patches, (h, w), p = self.linear_pred(tokens), grid, self.patch_size
        images = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
        if self.conv_features is not None and self.act is not None:
            images = self.act(self.conv_features(images))  # (B, features, H, W)
        return images if self.conv_smoother is None else self.conv_smoother(images)


def _exact(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """Applies a layer of float32 weights in float32, under autocast too.

    A narrow posterior's noise would be rounded away: the official prior's is 1e-3, and bfloat16's numbers
    beside a latent of 1 lie 8e-3 apart.
    """
    kind = tokens.device.type
    if layer.weight.dtype != torch.float32 or kind == "meta":
        return layer(tokens)
    with torch.autocast(kind, enabled=False):
        return layer(tokens.float())


class AutoencoderVMAE(SavedModel, ModelMixin, ConfigMixin):
    """Variational masked autoencoder (arXiv 2507.09984): ViT encoder, Gaussian latent a token, ViT decoder.

    Takes and gives images in [-1, 1], of any height and width that are multiples of `patch_size`. Parameter
    names are those of the official checkpoints.

    Args:
        sample_size: image size in pixels whose position tables lie in the weights.
        in_channels: channels of the images it takes.
        out_channels: channels of the images it gives.
        patch_size: p, pixels a side of what one token stands for.
        latent_channels: C.
        encoder_hidden_size: width of the encoder, a multiple of 4 and of its heads.
        encoder_num_hidden_layers: transformer blocks of the encoder.
        encoder_num_attention_heads: attention heads of the encoder.
        decoder_hidden_size: width of the decoder, a multiple of 4 and of its heads.
        decoder_num_hidden_layers: transformer blocks of the decoder.
        decoder_num_attention_heads: attention heads of the decoder.
        mlp_ratio: hidden width of the blocks' MLP over their width.
        hidden_act: their activation, by diffusers' names; the method's is "gelu".
        smooth_output: whether a 3 × 3 convolution on the decoded image removes seams between patches.
        use_mask_token: whether a learned token stands where a patch was hidden; masked training needs it.
        scaling_factor: kept for pipelines, which decode latents / scaling_factor.
        latents_mean: kept for pipelines: per-channel mean of the training set's latents, C numbers.
        latents_std: kept for pipelines: per-channel standard deviation, C numbers.
        head_features: features a pixel that the decoder's linear layer gives to two 3 × 3 convolutions, which
            see across seams with more than colours; None: the paper's head. Official checkpoints have none.

    Raises:
        UserError: sizes that do not go together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VMAEBlock"]  # noqa: RUF012 (diffusers reads it as a plain class attribute)
    _repeated_blocks = ["VMAEBlock"]  # noqa: RUF012 (as above)
    # its groups come to the device by `forward`, which `encode` and `decode` go around: position tables and
    # mask token would stay behind. It is small; in a pipeline `exclude_modules="vae"` leaves it out
    _supports_group_offloading = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 8,
        latent_channels: int = 16,
        encoder_hidden_size: int = 192,
        encoder_num_hidden_layers: int = 12,
        encoder_num_attention_heads: int = 12,
        decoder_hidden_size: int = 192,
        decoder_num_hidden_layers: int = 12,
        decoder_num_attention_heads: int = 12,
        mlp_ratio: float = 4.0,
        hidden_act: str = "gelu",
        smooth_output: bool = True,
        use_mask_token: bool = False,
        scaling_factor: float = 1.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        head_features: int | None = None,
    ):
        super().__init__()
        VMAEConfig.check(**{name: self.config[name] for name in VMAEConfig.model_fields})
        _check_images(patch_size, sample_size=sample_size, in_channels=in_channels, out_channels=out_channels)
        _check_activation(hidden_act)
        _check_statistics(latent_channels, latents_mean=latents_mean, latents_std=latents_std)
        side = sample_size // patch_size

        def blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(VMAEBlock(width, heads, mlp_ratio, hidden_act) for _ in range(depth))

        self.patch_embed = PatchEmbedding(in_channels, encoder_hidden_size, patch_size)
        self.register_buffer("pos_embed", sincos_2d(encoder_hidden_size, side, side)[None])
        self.blocks = blocks(encoder_hidden_size, encoder_num_hidden_layers, encoder_num_attention_heads)
        self.norm = nn.LayerNorm(encoder_hidden_size, eps=_LAYER_NORM_EPSILON)
        self.to_latent = nn.Linear(encoder_hidden_size, 2 * latent_channels)

        self.from_latent = nn.Linear(latent_channels, encoder_hidden_size)
        self.decoder_embed = nn.Linear(encoder_hidden_size, decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size)) if use_mask_token else None
        self.register_buffer("decoder_pos_embed", sincos_2d(decoder_hidden_size, side, side)[None])
        self.decoder_blocks = blocks(
            decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads
        )
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=_LAYER_NORM_EPSILON)
        self.decoder_pred = _PixelHead(
            decoder_hidden_size, patch_size, out_channels, smooth_output, head_features, hidden_act
        )

        self.use_slicing = False
        self.gradient_checkpointing = False
        start_linear_layers(self, self.patch_embed)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    # ---- encoder

    @apply_forward_hook
    def encode(
        self, x: Tensor, return_dict: bool = True, *, visible_indices: Tensor | None = None
    ) -> AutoencoderKLOutput | tuple[_PosteriorDistribution]:
        """Encodes images, or only some of their patches.

        Args:
            x: (B, 3, H, W) in [-1, 1], H and W multiples of `patch_size`.
            return_dict: False gives a tuple.
            visible_indices: (B, V) int64, distinct places in the grid, row by row; only these patches enter.

        Returns:
            `latent_dist`, the posterior of latents (B, C, h, w), or (B, C, V) of the visible patches in their
            order; log variances are clamped to [-30, 20].

        Raises:
            UserError: an image size that is no multiple of the patch size.
        """
        self._check_images(x)
        if visible_indices is not None:
            assert visible_indices.shape[:-1] == x.shape[:1], "visible_indices is (B, V)"
        posterior = _PosteriorDistribution(self._sliced(self._moments, x, visible_indices))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def _moments(self, x: Tensor, visible_indices: Tensor | None) -> Tensor:
        p = self.config["patch_size"]
        h, w = x.shape[2] // p, x.shape[3] // p
        tokens = self.patch_embed(x) + self._positions(self.pos_embed, h, w)  # (B, N, D)
        if visible_indices is not None:
            # hidden patches are taken out, not replaced: the blocks' work shrinks with them
            tokens = tokens.gather(1, visible_indices[..., None].expand(-1, -1, tokens.shape[2]))  # (B, V, D)
        tokens = self._run(self.blocks, tokens)
        moments = _exact(self.to_latent, self.norm(tokens)).transpose(1, 2)  # (B, 2C, N or V)
        return moments if visible_indices is not None else moments.unflatten(2, (h, w))

    # ---- decoder

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        *,
        visible_indices: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents, with mask tokens in the place of patches that have none.

        Args:
            z: (B, C, h, w), or (B, C, V) with `visible_indices`.
            return_dict: False gives a tuple.
            generator: not used; pipelines pass it to every autoencoder.
            visible_indices: (B, V) int64, their places in the grid; needs `use_mask_token=True`.
            grid: (h, w) of the whole image in tokens, for `visible_indices` (None: that of `sample_size`).

        Returns:
            `sample`, images (B, 3, h·p, w·p), about in [-1, 1], not clamped.

        Raises:
            UserError: latents of another shape, or a part of the patches for a model without mask token.
        """
        channels, sides = self.config["latent_channels"], "h, w" if visible_indices is None else "V"
        if z.ndim != (4 if visible_indices is None else 3) or z.shape[1] != channels:
            raise UserError(
                f"latents are (B, {channels}, {sides}) here, as encode gives them, got {tuple(z.shape)}"
            )
        if visible_indices is None:
            grid = (z.shape[2], z.shape[3])
        else:
            assert visible_indices.shape == (z.shape[0], z.shape[2]), "visible_indices is (B, V)"
            grid = grid or self._own_grid()
            if self.mask_token is None:
                raise UserError(
                    "decoding a part of the patches needs a mask token, and this model has none "
                    "(use_mask_token=False; final official checkpoints lack it): build or train the model "
                    "with use_mask_token=True, or encode and decode whole images without visible_indices"
                )
        sample = self._sliced(partial(self._pixels, grid), z, visible_indices)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _pixels(self, grid: tuple[int, int], z: Tensor, visible_indices: Tensor | None) -> Tensor:
        tokens = _exact(self.from_latent, z.flatten(2).transpose(1, 2))
        tokens = _exact(self.decoder_embed, tokens)  # (B, N or V, D)
        if visible_indices is not None:
            assert self.mask_token is not None
            b, _, width = tokens.shape
            # autocast may give the tokens another type than the weights have
            hidden = self.mask_token.to(tokens.dtype).expand(b, grid[0] * grid[1], width)
            tokens = hidden.scatter(1, visible_indices[..., None].expand(-1, -1, width), tokens)  # (B, N, D)
        tokens = tokens + self._positions(self.decoder_pos_embed, *grid)
        tokens = self._run(self.decoder_blocks, tokens)
        return self.decoder_pred(self.decoder_norm(tokens), grid)

    # ---- both

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encodes and decodes images.

        Args:
            sample: (B, 3, H, W) in [-1, 1].
            sample_posterior: whether to decode a draw from the posterior rather than its mean.
            return_dict: False gives a tuple.
            generator: of the draw; a list has one for each image.

        Returns:
            `sample`, the reconstruction (B, 3, H, W).
        """
        posterior = self.encode(sample, return_dict=False)[0]
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def _sliced(
        self, run: Callable[[Tensor, Tensor | None], Tensor], rows: Tensor, visible_indices: Tensor | None
    ) -> Tensor:
        """Runs a batch at once, or one row after the other where slicing is on."""
        if not self.use_slicing or len(rows) < 2:
            return run(rows, visible_indices)
        visible = [None] * len(rows) if visible_indices is None else visible_indices.split(1)
        return torch.cat([run(row, seen) for row, seen in zip(rows.split(1), visible, strict=True)])

    def _run(self, blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens)  # type: ignore[misc]
            else:
                tokens = block(tokens)
        return tokens

    def _own_grid(self) -> tuple[int, int]:
        side = self.config["sample_size"] // self.config["patch_size"]
        return side, side

    def _positions(self, table: Tensor, height: int, columns: int) -> Tensor:
        """Returns (1, h·w, D) for any grid.

        Where the stored table (1, N, D) is the sine-cosine one, the other grid's is computed; where it is not
        (official files hold a stretched one), the stored table is resampled bilinearly. The choice is made on
        the device: no synchronisation, no graph break, and right however the weights came in.
        """
        own = self._own_grid()
        if (height, columns) == own:
            return table
        width = table.shape[2]
        stored = table.float()  # not all devices interpolate in half precision
        image = stored.reshape(1, *own, width).permute(0, 3, 1, 2)
        resampled = F.interpolate(image, (height, columns), mode="bilinear").flatten(2).transpose(1, 2)
        computed = sincos_2d(width, height, columns, device=table.device, dtype=torch.float32)
        return torch.where(self._is_sincos(table), computed, resampled).to(table.dtype)

    def _is_sincos(self, table: Tensor) -> Tensor:
        expected = sincos_2d(table.shape[2], *self._own_grid(), device=table.device, dtype=torch.float32)
        return (table.float() - expected).abs().max() < _SINCOS_TOLERANCE  # ()

    def _check_images(self, x: Tensor) -> None:
        p, channels = self.config["patch_size"], self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels:
            raise UserError(f"images must be (B, {channels}, H, W), got {tuple(x.shape)}; convert them first")
        if not x.is_floating_point():
            raise UserError(f"images must be floats in [-1, 1], got {x.dtype}; divide by 127.5, subtract 1")
        h, w = x.shape[2:]
        if h % p or w % p or not h or not w:
            raise UserError(
                f"image height and width must be multiples of patch_size={p}, got {h}x{w}; "
                "resize or crop first"
            )

    # ---- what trainers and pipelines ask for

    def enable_slicing(self) -> None:
        """Encodes and decodes one image of a batch at a time from now on, to save memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encodes and decodes whole batches at once again."""
        self.use_slicing = False

    def enable_tiling(self) -> None:
        """Raises NotImplementedError, as diffusers' autoencoders without tiling do."""
        raise NotImplementedError(
            "AutoencoderVMAE has no tiling, for each of its tokens sees the whole image; enable_slicing() "
            "saves memory, one image of a batch at a time"
        )

    def disable_tiling(self) -> None:
        """Changes nothing: there is no tiling."""

    def _encoder_modules(self) -> dict[str, nn.Module]:
        return {
            "patch_embed": self.patch_embed,
            "blocks": self.blocks,
            "norm": self.norm,
            "to_latent": self.to_latent,
        }

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters that determine the latents: patch embedding, blocks, norm, `to_latent`."""
        for module in self._encoder_modules().values():
            yield from module.parameters()

    def freeze_encoder(self) -> None:
        """Freezes what determines the latents, and the mask token: decoder tuning trains the rest."""
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(False)
        if self.mask_token is not None:
            self.mask_token.requires_grad_(False)

    def encoder_state(self) -> dict[str, Tensor]:
        """Returns the tensors that determine the latents, by their state-dict names, for fingerprints.

        The position table is among them only where it is not the sine-cosine one, which any image size
        remakes: so the same encoder at another `sample_size` has the same fingerprint.
        """
        state = {
            f"{name}.{key}": tensor
            for name, module in self._encoder_modules().items()
            for key, tensor in module.state_dict().items()
        }
        if not bool(self._is_sincos(self.pos_embed)):
            state["pos_embed"] = self.pos_embed
        return state


def _check_images(patch_size: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {size!r}; set it so")
    if sizes["sample_size"] % patch_size:
        raise UserError(
            f"sample_size must be a multiple of patch_size={patch_size}, got {sizes['sample_size']}; "
            f"take {max(1, round(sizes['sample_size'] / patch_size)) * patch_size}, or another patch size"
        )


def _check_activation(name: str) -> None:
    try:
        get_activation(name)
    except ValueError as error:
        raise UserError(
            f"hidden_act is no activation of diffusers: {error}; the paper takes 'gelu'"
        ) from error


def _check_statistics(channels: int, **statistics: list[float] | None) -> None:
    for name, values in statistics.items():
        if values is not None and len(values) != channels:
            raise UserError(
                f"{name} must hold latent_channels={channels} numbers, got {len(values)}; give one each"
            )
    std = statistics["latents_std"]
    if (statistics["latents_mean"] is None) != (std is None) or (std is not None and not all(std)):
        raise UserError(
            "give latents_mean and latents_std together, without a zero in latents_std, or neither"
        )
