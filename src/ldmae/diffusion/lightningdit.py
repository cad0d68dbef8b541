"""LightningDiT, the transformer that learns the velocity between noise and latents.

After "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models" (arXiv
2501.01423): DiT with adaLN-zero, rotary positions, RMSNorm, SwiGLU and normalised queries and keys. Parameter
names are those of the official files, so that weights go over one by one.
"""

# B batch, C latent channels, H W latent grid, p patch size, h w token grid (h = H/p), N tokens (h*w),
# D width, A heads, d head width (D = A*d)

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from ldmae.config.diffusion import LightningDiTConfig
from ldmae.core.device import attention
from ldmae.core.errors import UserError
from ldmae.core.fused import rms_norm, swiglu
from ldmae.core.patches import PatchEmbedding, start_linear_layers
from ldmae.core.positions import sincos_2d
from ldmae.core.saving import SavedModel

_TIME_FREQUENCIES = 256
_ROPE_BASE = 10000.0
_NORM_EPS = 1e-6
_SINCOS_TOLERANCE = 1e-2
"""How far a stored table may lie from the sine-cosine one and still be it; bfloat16 moves it by 4e-3."""


def rotary_tables(
    head_dim: int, rows: int, columns: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Computes the rotation of queries and keys on a token grid, as cosines and sines (arXiv 2104.09864).

    The first half of a head turns by the row, the second by the column; each pair of channels (2i, 2i + 1)
    shares an angle.

    Args:
        head_dim: d, a multiple of 4.
        rows: h.
        columns: w.
        device: where to put the tables.

    Returns:
        Two tables (h*w, d) in float32, row by row.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
    frequencies = _ROPE_BASE**-exponents  # (d/4,)
    by_row = torch.arange(rows, dtype=torch.float32, device=device)[:, None] * frequencies  # (h, d/4)
    by_column = torch.arange(columns, dtype=torch.float32, device=device)[:, None] * frequencies  # (w, d/4)
    angles = torch.cat(
        [
            by_row[:, None].expand(rows, columns, half // 2),
            by_column[None].expand(rows, columns, half // 2),
        ],
        dim=-1,
    )
    angles = angles.reshape(rows * columns, half).repeat_interleave(2, dim=-1)  # (N, d)
    return angles.cos(), angles.sin()


def _signed(sin: Tensor) -> Tensor:
    """Turns sines into those that `_rotate` takes: minus for the first channel of each pair."""
    return torch.stack([-sin[..., 0::2], sin[..., 1::2]], dim=-1).flatten(-2)


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    # (a, b) -> (a cos - b sin, b cos + a sin)
    pairs = x.unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        # one pass each way; half precision has no complex numbers, and compilers fuse the formula below
        turn = torch.complex(cos[..., 0::2], signed_sin[..., 1::2])
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
    return torch.addcmul(x * cos, pairs.flip(-1).flatten(-2), signed_sin)


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis, and scales (arXiv 1910.07467).

    `F.rms_norm` has no fused kernel for a half-precision input with float32 weights (autocast's case), nor
    any fused backward on a CPU.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (…, D)."""
        return rms_norm(x, self.weight[None].to(x.dtype), x.new_zeros(1, 1), _NORM_EPS)


class _ModulatedNorm(nn.Module):
    """Norm(x) · (1 + scale) + shift, both from the condition (adaLN, arXiv 2212.09748)."""

    def __init__(self, width: int, use_rmsnorm: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if use_rmsnorm else None  # LayerNorm has none here

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Normalises x (B, N, D), then modulates it by shift and scale (B, D)."""
        gain, shift = (1 + scale)[:, None].to(x.dtype), shift[:, None].to(x.dtype)  # (B, 1, D)
        if self.weight is None:
            return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS), gain)
        # the weight joins the small gain instead of taking a pass over all tokens of its own
        return rms_norm(x, gain * self.weight.to(x.dtype), shift, _NORM_EPS)


class _Attention(nn.Module):
    """Self-attention over all tokens, with normalised and rotated queries and keys."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool, use_rmsnorm: bool):
        super().__init__()
        head_dim = width // num_heads
        norm = RMSNorm if use_rmsnorm else nn.LayerNorm
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mixes tokens (B, N, D); rotary holds cosines and signed sines (N, d)."""
        # heads are put before tokens last: the norms then work on what lies together
        q, k, v = rearrange(self.qkv(x), "b n (three a d) -> three b n a d", three=3, a=self.num_heads)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # autocast's LayerNorm gives float32
        if rotary is not None:
            cos, signed_sin = (table.to(v.dtype)[:, None] for table in rotary)  # (N, 1, d)
            q, k = _rotate(q, cos, signed_sin), _rotate(k, cos, signed_sin)
        mixed = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, A, N, d)
        return self.proj(rearrange(mixed, "b a n d -> b n (a d)"))


class _SwiGLU(nn.Module):
    """The gated MLP: w3(silu(gate) · value), gate and value stacked in w12 (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token of (B, N, D)."""
        return self.w3(swiglu(self.w12(x)))


class _MLP(nn.Module):
    """The plain MLP with tanh GELU, DiT's."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token of (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class LightningDiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition; the gates start at zero (adaLN-zero)."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool, use_swiglu: bool, use_rmsnorm: bool
    ):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = _ModulatedNorm(width, use_rmsnorm)
        self.attn = _Attention(width, num_heads, qk_norm, use_rmsnorm)
        self.norm2 = _ModulatedNorm(width, use_rmsnorm)
        # two thirds: SwiGLU has three matrices, so it costs what the plain MLP costs
        self.mlp = _SwiGLU(width, int(2 / 3 * hidden)) if use_swiglu else _MLP(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Transforms tokens (B, N, D) under the condition (B, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attn(self.norm1(x, shift1, scale1), rotary)
        return x + gate2[:, None] * self.mlp(self.norm2(x, shift2, scale2))


class _FinalLayer(nn.Module):
    """The last norm and the projection of each token to its patch of velocity."""

    def __init__(self, width: int, out_features: int, use_rmsnorm: bool):
        super().__init__()
        self.norm_final = _ModulatedNorm(width, use_rmsnorm)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps tokens (B, N, D) and the condition (B, D) to patches (B, N, p*p*C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm_final(x, shift, scale))


class _TimestepEmbedder(nn.Module):
    """Times in [0, 1] to conditions.

    Times are taken as they are: DiT multiplies them by 1000, LightningDiT does not.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """Maps times (B,) to conditions (B, D)."""
        waves = get_timestep_embedding(
            timestep, _TIME_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.mlp(waves.to(dtype))


class LightningDiTTransformer2DModel(SavedModel, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A class-conditional transformer that predicts the flow-matching velocity of latents.

    Args:
        sample_size: height and width of the latent grid whose positions lie in the weights; others are
            computed.
        patch_size: edge of the latent patch that makes one token.
        in_channels: latent channels, in and out.
        num_layers: blocks.
        num_attention_heads: heads.
        attention_head_dim: width of a head; the model's width is heads times this.
        mlp_ratio: hidden width of the MLP over the model's (SwiGLU takes two thirds of it).
        num_classes: classes; 1 for a model without classes.
        class_dropout_prob: share of training labels that the objective replaces by the null class. With 0, or
            with one class, there is no null class, hence no guidance.
        qk_norm: normalise queries and keys in each head.
        use_swiglu: SwiGLU in place of a tanh-GELU MLP.
        use_rope: rotate queries and keys by their place, besides the added sine-cosine positions.
        use_rmsnorm: RMSNorm in place of LayerNorm.
        label_std: standard deviation of the class embeddings at the start, and nothing else. DiT's 0.02 is
            little beside the zero-initialised modulation, so that classes are told apart late: hundreds of
            steps, which only short trainings feel.

    Raises:
        UserError: the sizes do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LightningDiTBlock"]  # noqa: RUF012 - diffusers reads a plain class attribute
    _repeated_blocks = ["LightningDiTBlock"]  # noqa: RUF012 - as above
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012 - as above

    ignore_for_config = ["label_std"]  # noqa: RUF012 - as above; a start value is no property of the model

    pos_embed: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 1,
        in_channels: int = 16,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        qk_norm: bool = True,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        label_std: float = 0.02,
    ):
        super().__init__()
        shape = {name: self.config[name] for name in LightningDiTConfig.model_fields if name != "label_std"}
        LightningDiTConfig.check(**shape, label_std=label_std)
        if sample_size < 1 or sample_size % patch_size:
            raise UserError(
                f"sample_size must be a positive multiple of patch_size, got sample_size={sample_size} and "
                f"patch_size={patch_size}; change one of the two"
            )
        if num_classes < 1:
            raise UserError(
                f"num_classes must be at least 1, got {num_classes}; 1 is a model without classes"
            )
        width = num_attention_heads * attention_head_dim
        self.gradient_checkpointing = False
        self.patch_size = patch_size
        self.attention_head_dim = attention_head_dim
        self.use_rope = use_rope
        self.null_class: int | None = num_classes if class_dropout_prob > 0 and num_classes > 1 else None
        """Row of the class that stands for no class, or None where there is none."""

        grid = sample_size // patch_size
        table = sincos_2d(width, grid, grid)
        self.register_buffer("pos_embed", table[None])  # (1, N, D)
        self.x_embedder = PatchEmbedding(in_channels, width, patch_size)
        self.t_embedder = _TimestepEmbedder(width)
        rows = num_classes + (self.null_class is not None)
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(rows, width)})
        self.blocks = nn.ModuleList(
            LightningDiTBlock(width, num_attention_heads, mlp_ratio, qk_norm, use_swiglu, use_rmsnorm)
            for _ in range(num_layers)
        )
        self.final_layer = _FinalLayer(width, patch_size * patch_size * in_channels, use_rmsnorm)
        self._initialize(label_std)

    def _initialize(self, label_std: float) -> None:
        """Starts as DiT does: the blocks are the identity and the velocity is zero."""
        start_linear_layers(self, self.x_embedder)
        nn.init.normal_(cast(Tensor, self.y_embedder["embedding_table"].weight), std=label_std)
        for module in [self.t_embedder.mlp[0], self.t_embedder.mlp[2]]:
            nn.init.normal_(cast(Tensor, module.weight), std=0.02)
        modulations = [module.adaLN_modulation[1] for module in [*self.blocks, self.final_layer]]
        for linear in [*modulations, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predicts the velocity, data minus noise.

        Args:
            hidden_states: (B, C, H, W) latents on the way from noise to data; H and W are multiples of the
                patch size.
            timestep: (B,) or a single time in [0, 1]; 0 is noise, 1 is data.
            class_labels: (B,) classes, int64.
            return_dict: return an object with `sample` instead of a tuple.

        Returns:
            The velocity, (B, C, H, W).

        Raises:
            UserError: the patch size does not divide the latents' height or width.
        """
        p = self.patch_size
        batch, _, height, width = hidden_states.shape
        if height % p or width % p:
            raise UserError(
                f"latent height and width must be multiples of patch_size={p}, got {height}x{width}; "
                "pad or crop the latents, or take images whose size fits"
            )
        rows, columns = height // p, width // p
        tokens = self.x_embedder(hidden_states)  # (B, N, D)
        timestep = torch.as_tensor(timestep, device=tokens.device).reshape(-1).expand(batch)
        of_class = self.y_embedder["embedding_table"](class_labels)
        condition = self.t_embedder(timestep, tokens.dtype) + of_class  # (B, D)
        rotary = None
        if self.use_rope:
            cos, sin = rotary_tables(self.attention_head_dim, rows, columns, tokens.device)
            rotary = cos, _signed(sin)
        tokens = tokens + self._positions(rows, columns)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, condition, rotary)  # pyright: ignore[reportOptionalCall]
            else:
                tokens = block(tokens, condition, rotary)
        patches = self.final_layer(tokens, condition)  # (B, N, p*p*C)
        velocity = rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, w=columns, p=p, q=p
        )  # (B, C, H, W)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Returns the added positions of a token grid, (1, N, D)."""
        own = self.config["sample_size"] // self.patch_size
        if rows == own and columns == own:
            return self.pos_embed
        stored, width = self.pos_embed, self.pos_embed.shape[-1]
        like = {"device": stored.device, "dtype": stored.dtype}
        distance = (stored - sincos_2d(width, own, own, **like)[None]).abs().max()
        square = rearrange(stored, "1 (h w) d -> 1 d h w", h=own)
        stretched = F.interpolate(square, size=(rows, columns), mode="bilinear", align_corners=False)
        stretched = rearrange(stretched, "1 d h w -> 1 (h w) d")
        # chosen by a tensor, not an `if`, so that the graph has no break; the tables are small
        computed = sincos_2d(width, rows, columns, **like)[None]
        return torch.where(distance < _SINCOS_TOLERANCE, computed, stretched)
