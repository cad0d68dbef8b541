"""Attention kernels by number of tokens: what `ldmae.core.device.attention` chooses from.

Usage: python benchmarks/attention.py [--device cuda]
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _timing import side_by_side
from torch import Tensor

from ldmae.core.device import _PLAIN_ATTENTION_TOKENS, reuse_freed_memory


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    return weights.to(v.dtype) @ v


def run(kernel: Callable[..., Tensor], qkv: list[Tensor], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = kernel(*qkv)
        if backward:
            out.sum().backward()
    if out.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    reuse_freed_memory()
    print(
        f"{device}; on a CPU in half precision the written-out product is chosen up to so many tokens: "
        f"{_PLAIN_ATTENTION_TOKENS}\n"
    )
    print("| tokens | dtype | pass | fused ms | written out ms | fused is faster by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tokens in (16, 64, 256, 1024):
        for dtype in (torch.bfloat16, torch.float32):
            for backward in (False, True):
                shape = (max(1, 8192 // tokens), 4, tokens, 64)
                qkv = [
                    torch.randn(shape, device=device, dtype=dtype, requires_grad=backward) for _ in range(3)
                ]
                seconds = side_by_side(
                    {
                        "fused": lambda qkv=qkv, b=backward: run(F.scaled_dot_product_attention, qkv, b),
                        "plain": lambda qkv=qkv, b=backward: run(plain, qkv, b),
                    }
                )
                name = "forward + backward" if backward else "forward"
                fused, written = seconds["fused"], seconds["plain"]
                print(
                    f"| {tokens} | {str(dtype).removeprefix('torch.')} | {name} | {fused * 1e3:.2f} | "
                    f"{written * 1e3:.2f} | {written / fused:.2f} × |"
                )


if __name__ == "__main__":
    main()
