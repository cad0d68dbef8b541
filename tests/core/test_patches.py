"""Patches as tokens."""

# B batch, C channels, H W picture, p patch edge, D width, N tokens

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload

from ldmae.core.patches import PatchEmbedding


@pytest.mark.parametrize("grid", [(1, 1), (8, 1), (1, 8), (4, 6)])
@pytest.mark.parametrize("patch_size", [1, 2, 6])
def test_it_is_the_convolution_in_bf16_too(grid, patch_size):
    torch.manual_seed(0)
    embedding = PatchEmbedding(3, 64, patch_size)
    x = torch.randn(4, 3, grid[0] * patch_size, grid[1] * patch_size)
    weight, bias = embedding.proj.weight.double(), embedding.proj.bias.double()
    expected = F.conv2d(x.double(), weight, bias, stride=patch_size).flatten(2).transpose(1, 2)  # (B, N, D)
    torch.testing.assert_close(embedding(x).double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = embedding(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=0, atol=0.02)


def test_its_weights_may_lie_elsewhere_until_the_layer_runs():
    # as pipelines' offloading to the CPU has it: hooks on each layer fetch its weights, and put them back
    embedding = PatchEmbedding(3, 8, 2)
    x = torch.randn(2, 3, 4, 6)
    expected = embedding(x)
    cpu_offload(embedding, execution_device=torch.device("cpu"), offload_buffers=True)
    assert embedding.proj.weight.is_meta
    torch.testing.assert_close(embedding(x), expected, rtol=0, atol=0)
