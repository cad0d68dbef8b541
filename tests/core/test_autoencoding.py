"""One way to call any autoencoder."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from ldmae import AutoencoderVMAE
from ldmae.contracts import Autoencoder
from ldmae.core.autoencoding import decode, encode_moments, reconstruct

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tiny_vmae() -> AutoencoderVMAE:
    torch.manual_seed(0)
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    arguments = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in part.items()}
    return AutoencoderVMAE(sample_size=16, patch_size=4, latent_channels=4, **arguments).eval()


def tiny_kl() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()


@pytest.mark.parametrize("make", [tiny_vmae, tiny_kl])
def test_a_probabilistic_autoencoder_gives_mean_and_log_variance(make):
    model = make()
    assert isinstance(model, Autoencoder)
    posterior = model.encode(IMAGES).latent_dist
    mean, logvar = encode_moments(model, IMAGES)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(logvar, posterior.logvar)
    with torch.no_grad():
        expected = model.decode(posterior.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(reconstruct(model, IMAGES), expected)


def test_a_deterministic_autoencoder_gives_no_log_variance():
    torch.manual_seed(0)
    channels = {"encoder_block_out_channels": (4,), "decoder_block_out_channels": (4,)}
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    model = AutoencoderTiny(**channels, **blocks, latent_channels=2).eval()
    mean, logvar = encode_moments(model, IMAGES)
    assert torch.equal(mean, model.encode(IMAGES).latents)
    assert logvar is None


class Plain(nn.Module):
    """Encodes to whatever `wrap` makes of the latents, decodes to a bare tensor."""

    def __init__(self, wrap):
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.full((1,), 3.0)), wrap

    def encode(self, x):
        return self.wrap(x * self.weight)

    def decode(self, z):
        return z


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: SimpleNamespace(latent=z)])
def test_other_forms_of_output_are_understood_and_images_stay_in_range(wrap):
    mean, logvar = encode_moments(Plain(wrap), IMAGES)
    assert torch.equal(mean, IMAGES * 3)
    assert logvar is None
    assert decode(Plain(wrap), IMAGES * 3).abs().max() <= 1


def test_an_output_without_latents_is_a_type_error():
    with pytest.raises(TypeError, match=r"Plain.encode returned SimpleNamespace, which holds no latents"):
        encode_moments(Plain(lambda z: SimpleNamespace(logits=z)), IMAGES)


def test_a_half_precision_autoencoder_takes_and_gives_fp32():
    model = tiny_vmae().bfloat16()
    mean, logvar = encode_moments(model, IMAGES)
    assert mean.dtype == logvar.dtype == decode(model, mean).dtype == torch.float32
