import pytest
import torch

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.baselines import (
    build_baseline,
    build_vit_baseline,
    fit_width,
)
from ldmae.autoencoders.reconstruction_objective import gaussian_kl
from ldmae.config.autoencoder import KINDS, BaselineConfig
from ldmae.config.baselines import _VAE_PIXEL_STD, _elbo_kl_weight, baseline_objective
from ldmae.core.errors import UserError
from ldmae.core.flops import count_autoencoder_flops

from ..tiny import vmae_sizes


def test_the_full_width_is_stable_diffusion_3s():
    with torch.device("meta"):
        model = build_baseline(BaselineConfig(), 256)
    assert sum(p.numel() for p in model.parameters()) == 83_819_683
    assert model.config["block_out_channels"] == (128, 256, 512, 512)
    assert model.config["norm_num_groups"] == 32
    assert model.quant_conv is None
    assert model.post_quant_conv is None
    assert model.encode(torch.zeros(1, 3, 256, 256, device="meta")).latent_dist.mean.shape == (1, 16, 32, 32)


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_any_power_of_two_is_a_factor(factor):
    model = build_baseline(BaselineConfig(factor=factor, latent_channels=5, width=1 / 32), 32)
    images = torch.rand(2, 3, 32, 32)
    latents = model.encode(images).latent_dist.mode()
    assert latents.shape == (2, 5, 32 // factor, 32 // factor)
    assert model.decode(latents).sample.shape == images.shape


@pytest.mark.parametrize(("factor", "near"), [(6, "4 or 8"), (3, "2 or 4")])
def test_a_factor_that_is_no_power_of_two_is_refused_with_its_neighbours(factor, near):
    with pytest.raises(UserError, match=f"factor must be a power of two.*got {factor}.*{near}"):
        BaselineConfig(factor=factor)


def test_an_image_size_that_the_factor_does_not_divide_is_refused():
    with pytest.raises(UserError, match="images of 36 px are no multiple of factor=8"):
        build_baseline(BaselineConfig(width=1 / 32), 36)


@pytest.mark.parametrize("setting", [{"latent_channels": 0}, {"width": 0.0}, {"width": float("inf")}])
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} must be"):
        BaselineConfig(**setting)


@pytest.mark.parametrize("step", range(1, 300, 7))
def test_norm_groups_divide_every_width(step):
    with torch.device("meta"):
        model = build_baseline(BaselineConfig(width=step / 128), 8)
    widths, groups = model.config["block_out_channels"], model.config["norm_num_groups"]
    assert 1 <= groups <= 32
    assert all(width % groups == 0 and width // groups >= 4 for width in widths)


def test_a_deterministic_latent_has_no_width_and_keeps_none_through_training():
    torch.manual_seed(0)
    model = build_baseline(BaselineConfig(factor=2, latent_channels=3, width=1 / 32), 8, deterministic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        images = torch.rand(2, 3, 8, 8)
        optimizer.zero_grad()
        (model.decode(model.encode(images).latent_dist.mode()).sample - images).square().mean().backward()
        optimizer.step()
    posterior = model.encode(torch.rand(2, 3, 8, 8)).latent_dist
    # AdamW pulls the bias of -30 (a deviation of 3e-7) by its decay; the training loop exempts biases
    torch.testing.assert_close(posterior.sample(), posterior.mode(), rtol=0, atol=1e-5)
    assert posterior.mean.std() > 0.01


def test_vmaes_network_starts_as_a_baseline_does():
    shape = {f"{side}_hidden_size": 16 for side in ("encoder", "decoder")} | {"latent_channels": 3}
    shape |= {f"{side}_num_attention_heads": 2 for side in ("encoder", "decoder")}
    images = torch.rand(2, 3, 16, 16)
    for settings, expected in (({"deterministic": True}, -30.0), ({"initial_logvar": -4.0}, -4.0)):
        model = build_vit_baseline(shape, 16, **settings)
        assert model.mask_token is None
        assert model.to_latent.bias[3:].tolist() == [expected] * 3
        posterior = model.encode(images).latent_dist
        assert (posterior.logvar == expected).all() == ("deterministic" in settings)


def test_the_log_variance_starts_where_asked():
    shape = BaselineConfig(factor=2, latent_channels=3, width=1 / 32)
    first = [
        build_baseline(shape, 8, initial_logvar=value).encoder.conv_out.bias[3:] for value in (-4.0, 1.0)
    ]
    assert [bias.tolist() for bias in first] == [[-4.0] * 3, [1.0] * 3]


# ---- width for a number of operations


def test_the_width_found_comes_closest_to_the_operations_of_a_vmae():
    vmae = AutoencoderVMAE(sample_size=32, patch_size=4, **vmae_sizes(96, layers=4, heads=4))
    target = count_autoencoder_flops(vmae, 32).total
    shape = BaselineConfig(factor=4, latent_channels=8)
    width, cost = fit_width(shape, 32, target)

    def flops(width):
        model = build_baseline(BaselineConfig(factor=4, latent_channels=8, width=width), 32)
        return count_autoencoder_flops(model, 32).total

    assert cost == flops(width)
    assert cost == pytest.approx(target, rel=0.05)
    for other in (width - 1 / 256, width + 1 / 256):
        assert abs(flops(other) - target) >= abs(cost - target)


def test_a_target_below_the_narrowest_gives_the_narrowest():
    width, _ = fit_width(BaselineConfig(factor=2), 16, 1)
    assert build_baseline(BaselineConfig(factor=2, width=width), 16).config["block_out_channels"] == (4, 4)


# ---- objectives


def test_the_baselines_differ_in_their_objectives_as_the_paper_says():
    found = {kind: baseline_objective(kind) for kind in KINDS}
    assert {kind: config.sample_posterior for kind, config in found.items()} == {
        "ae": False,
        "dae": False,
        "vae": True,
        "sd-vae": True,
    }
    assert [kind for kind, config in found.items() if config.input_noise > 0] == ["dae"]
    assert [kind for kind, config in found.items() if config.adversarial_weight > 0] == ["sd-vae"]
    assert [kind for kind, config in found.items() if config.perceptual_weight > 0] == ["sd-vae"]
    assert (found["ae"].kl_weight, found["dae"].kl_weight, found["sd-vae"].kl_weight) == (0, 0, 1e-6)
    assert found["vae"].kl_weight == _elbo_kl_weight(_VAE_PIXEL_STD, 8)
    with pytest.raises(UserError, match="no baseline 'gan'; take one of: ae, dae, vae, sd-vae"):
        baseline_objective("gan")


def test_the_weight_of_the_kl_makes_the_loss_the_evidence_bound():
    std, weight = 0.3, _elbo_kl_weight(0.3, 4)
    images, decoded = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    mean, logvar = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    loss = (images - decoded).square().mean() + weight * gaussian_kl(mean, logvar).mean()
    likelihood = torch.distributions.Normal(decoded, std).log_prob(images)
    constant = torch.distributions.Normal(images, std).log_prob(images)
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * logvar).exp()), prior)
    bound = (constant - likelihood).flatten(1).sum(1).mean() + kl.flatten(1).sum(1).mean()
    torch.testing.assert_close(loss, bound * 2 * std**2 / (3 * 16 * 16))
