import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from ldmae.core.fused import rms_norm, swiglu

EPS = 1e-6


def drawn(*shape, dtype=torch.float64):
    source = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=source, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(1, 6), (3, 1, 6)], ids=["one gain", "a gain for each row"])
def test_rms_norm_and_its_gradients_match_torch(shape):
    x, gain, shift = drawn(3, 4, 6), drawn(*shape), drawn(*shape)
    expected = F.rms_norm(x, (6,), eps=EPS) * gain + shift
    torch.testing.assert_close(rms_norm(x, gain, shift, EPS), expected)
    assert gradcheck(lambda *inputs: rms_norm(*inputs, EPS), (x, gain, shift))


def test_rms_norm_trains_what_needs_it_only():
    x = drawn(3, 4, 6)
    rms_norm(x, torch.ones(1, 6, dtype=x.dtype), torch.zeros(1, 6, dtype=x.dtype), EPS).sum().backward()
    assert x.grad is not None


def test_swiglu_and_its_gradient_match_the_formula():
    x = drawn(3, 4, 10)
    gate, value = x.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(x), F.silu(gate) * value)
    assert gradcheck(swiglu, (x,))


def test_half_precision_stays_half():
    x, gain = drawn(3, 4, 6, dtype=torch.bfloat16), drawn(1, 6, dtype=torch.bfloat16)
    out = rms_norm(x, gain, gain, EPS)
    (out.sum() + swiglu(x).sum()).backward()
    assert out.dtype == x.grad.dtype == gain.grad.dtype == torch.bfloat16


def test_compiled_operations_equal_eager_ones():
    x, gain = drawn(3, 4, 6), drawn(1, 6)

    def both(x, gain):
        return swiglu(rms_norm(x, gain, gain, EPS))

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, gain), both(x, gain))
