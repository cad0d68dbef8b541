"""Patches as tokens."""

# B batch, C channels, H W picture, p patch edge, D width, N tokens

import pytest
import torch

from ldmae.core.patches import PatchEmbedding


@pytest.mark.parametrize("grid", [(1, 1), (8, 1), (1, 8), (4, 6)])
@pytest.mark.parametrize("patch_size", [1, 2, 6])
def test_it_is_the_convolution_in_bf16_too(grid, patch_size):
    torch.manual_seed(0)
    embedding = PatchEmbedding(3, 64, patch_size)
    x = torch.randn(4, 3, grid[0] * patch_size, grid[1] * patch_size)
    expected = embedding.proj.double()(x.double()).flatten(2).transpose(1, 2)  # (B, N, D)
    embedding.float()
    torch.testing.assert_close(embedding(x).double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = embedding(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=0, atol=0.02)
