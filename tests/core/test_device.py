"""Devices, precision, and the kernels chosen for them."""

import pytest
import torch
import torch.nn.functional as F

from ldmae.core.device import (
    _PLAIN_ATTENTION_TOKENS,
    attention,
    check_processes,
    pick_device,
    resolve_precision,
)
from ldmae.core.errors import UserError


@pytest.mark.parametrize(
    "tokens", sorted({5} | {limit + i for limit in _PLAIN_ATTENTION_TOKENS.values() for i in (0, 1)})
)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_is_that_of_torch_with_every_kernel(tokens, dtype, near, grad):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, 8, dtype=dtype, requires_grad=grad) for _ in range(3))
    exact = [x.detach().float().requires_grad_(grad) for x in (q, k, v)]
    with torch.set_grad_enabled(grad):
        ours, reference = attention(q, k, v), F.scaled_dot_product_attention(*exact)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), reference, rtol=near, atol=near)
    if grad:
        weight = torch.randn_like(reference)
        for mine, theirs in zip(
            torch.autograd.grad((ours * weight.to(dtype)).sum(), (q, k, v)),
            torch.autograd.grad((reference * weight).sum(), exact),
            strict=True,
        ):
            torch.testing.assert_close(mine.float(), theirs, rtol=5 * near, atol=5 * near)


def test_attention_under_autocast_gives_the_values_number_format():
    q, k, v = (torch.randn(1, 2, 4, 8).bfloat16() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v).dtype == torch.bfloat16


def test_attention_compiles_into_one_graph():
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    q = torch.randn(1, 2, 4, 8)
    torch.testing.assert_close(compiled(q, q, q), attention(q, q, q))


def test_auto_picks_the_best_device_there_is():
    assert pick_device("cpu").type == "cpu"
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == best


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_an_unknown_device_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match=r"no device .* here; take one of: auto, .*cpu"):
        pick_device(name)
    with pytest.raises(UserError, match=r"no device 'cpu:first' \(Invalid device string"):
        pick_device("cpu:first")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused_whatever_the_precision():
    with pytest.raises(UserError, match="no device 'cuda'"):
        resolve_precision("no", "cuda")


def test_precision_is_what_was_asked_for_or_what_the_device_computes_in():
    assert resolve_precision("no", "cpu") == "no"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("auto", "cpu") in ("no", "bf16")


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")


def test_processes_that_were_launched_and_do_not_see_each_other_are_refused(monkeypatch):
    for launched, joined in ((None, 1), ("1", 1), ("2", 2)):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if launched is not None:
            monkeypatch.setenv("WORLD_SIZE", launched)
        check_processes(joined)
    with pytest.raises(UserError, match="2 processes were launched that do not see each other"):
        check_processes(1)
