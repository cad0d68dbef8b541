"""Operations are counted on a device without memory, whatever computes attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.baselines import build_baseline
from ldmae.config.autoencoder import BaselineConfig
from ldmae.core.flops import count_autoencoder_flops, count_flops


def test_a_multiply_add_counts_two():
    assert count_flops(lambda: nn.Linear(5, 7, bias=False)(torch.rand(3, 5))) == 2 * 3 * 5 * 7
    convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert count_flops(lambda: convolution(torch.rand(2, 3, 8, 8))) == 2 * 2 * 64 * 4 * 3 * 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_its_two_products_fused_or_written_out(device):
    q = torch.rand(2, 3, 10, 4, device=device)

    def written_out():
        return torch.softmax(q @ q.transpose(-2, -1) * 0.5, -1) @ q

    expected = 2 * 2 * (2 * 3 * 10 * 10 * 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == expected
    assert count_flops(written_out) == expected


def test_the_papers_sizes_cost_what_was_counted_for_them():
    with torch.device("meta"):
        vmae, sd3 = AutoencoderVMAE(), build_baseline(BaselineConfig(), 256)
    multiply_adds = [count_autoencoder_flops(model, 256).total / 2e9 for model in (vmae, sd3)]
    assert multiply_adds == pytest.approx([20.66, 447.6], abs=0.05)
    assert multiply_adds[0] / multiply_adds[1] == pytest.approx(0.046, abs=5e-4)


def test_counting_runs_nothing_and_leaves_the_model_where_it_is():
    model = build_baseline(BaselineConfig(factor=2, width=1 / 32), 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flops = count_autoencoder_flops(model, 4096)  # would take some 100 GB
    assert flops.total == flops.encode + flops.decode > 1e11
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Looks(nn.Module):
    """Looks at its values, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)

    def encode(self, x):
        assert float(x.abs().max()) >= 0
        return self.layer(x)

    def decode(self, z):
        return self.layer(z)


def test_a_model_that_looks_at_values_is_counted_where_it_lies():
    found = count_autoencoder_flops(Looks(), 8)
    assert (found.encode, found.decode) == (2 * 64 * 9, 2 * 64 * 9)


def test_what_has_no_weights_is_counted_all_the_same():
    class Halves(nn.Module):
        def encode(self, images):
            return F.conv2d(images, torch.ones(1, 3, 2, 2, device=images.device), stride=2)

        def decode(self, latents):
            return F.interpolate(latents.expand(-1, 3, -1, -1), scale_factor=2.0)

    counted = count_autoencoder_flops(Halves(), 8)
    assert (counted.encode, counted.decode) == (2 * 16 * 3 * 4, 0)
