"""Operations with a backward pass written by hand: fewer passes over memory than autograd's own.

On a CPU they take the time that the matrix products leave, see `benchmarks/models.py`. They are
differentiable once; compiled, they are the plain formulas, which the compiler fuses.
"""

# … leading axes, D width, B batch, N tokens

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Computes x / √(mean(x²) + eps) · gain + shift over the last axis (arXiv 1910.07467).

    Args:
        x: (…, D).
        gain: of x's dtype, at least two axes, broadcast to x: (1, D), or (B, 1, D) for x (B, N, D).
        shift: broadcast likewise.
        eps: keeps the root from 0.

    Returns:
        (…, D) in x's dtype; the mean is taken in float32 or better.
    """
    if torch.compiler.is_compiling():
        return torch.addcmul(shift, x * _inverse_rms(x, eps), gain)
    return _RMSNorm.apply(x, gain, shift, eps)  # pyright: ignore[reportReturnType]


def swiglu(gate_and_value: Tensor) -> Tensor:
    """Computes silu(gate) · value of (…, 2 D), the gate's D before the value's (arXiv 2002.05202): (…, D)."""
    if torch.compiler.is_compiling():
        gate, value = gate_and_value.chunk(2, dim=-1)
        return F.silu(gate) * value
    return _SwiGLU.apply(gate_and_value)  # pyright: ignore[reportReturnType]


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    exact = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    return torch.rsqrt(norm * norm * (1 / x.shape[-1]) + eps).to(x.dtype)  # (…, 1)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        inverse = _inverse_rms(x, eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, gain)
        ctx.shift_shape = shift.shape
        return torch.addcmul(shift, normed, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        # with n = x · r the normed x: dx = r · (grad · gain − n · mean(grad · gain · n))
        normed, inverse, gain = ctx.saved_tensors
        product = grad * normed
        grad_gain = product.sum_to_size(gain.shape) if ctx.needs_input_grad[1] else None
        grad_shift = grad.sum_to_size(ctx.shift_shape) if ctx.needs_input_grad[2] else None
        mean = (product @ gain.mT).mul_(-1 / normed.shape[-1])  # (…, 1), negative
        grad_x = torch.mul(grad, gain, out=product)
        return grad_x.addcmul_(normed, mean).mul_(inverse), grad_gain, grad_shift, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate_and_value: Tensor) -> Tensor:  # type: ignore[override]
        gate, value = gate_and_value.chunk(2, dim=-1)
        gated = F.silu(gate)
        ctx.save_for_backward(gate_and_value, gated)
        return gated * value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate_and_value, gated = ctx.saved_tensors
        gate, value = gate_and_value.chunk(2, dim=-1)
        # both halves go where they belong at once, instead of being put together afterwards
        grads = torch.empty_like(gate_and_value)
        grad_gate, grad_value = grads.chunk(2, dim=-1)
        torch.mul(grad, gated, out=grad_value)
        torch.mul(grad, value, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grads
