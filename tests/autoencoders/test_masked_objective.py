import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldmae.autoencoders.discriminator import PatchDiscriminator
from ldmae.autoencoders.latent_terms import (
    alignment,
    draw_transform,
    relative_std,
    scale_guard,
    spectrum_kl,
    variance_expansion,
    variance_kl,
)
from ldmae.autoencoders.masked_objective import MaskedObjective, patch_errors, set_initial_logvar
from ldmae.autoencoders.masking import mask_share, random_visible_indices, visible_mask
from ldmae.config.autoencoder import MaskedObjectiveConfig, MaskingConfig
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.core.random import normal, uniform
from ldmae.perception.spatial import SpatialFeatures

from ..tiny import tiny_vmae
from .distance import Distance

BATCH = 8


def network() -> SpatialFeatures:
    """A small frozen network with five features a cell of two pixels."""
    torch.manual_seed(4)
    convolution = nn.Conv2d(3, 5, 2, 2)
    return SpatialFeatures("tiny", 5, 2, convolution, lambda images: convolution(images / 127.5 - 1))


def objective(perceptual=None, use_mask_token=True, layers=0, features=None, **changes) -> MaskedObjective:
    model = tiny_vmae(latent_channels=3, use_mask_token=use_mask_token).train()
    settings = {"perceptual_weight": 0.0 if perceptual is None else 0.7, "kl_weight": 0.01, **changes}
    discriminator = PatchDiscriminator(layers, 8) if layers else None
    return MaskedObjective(model, MaskedObjectiveConfig(**settings), perceptual, discriminator, features)


def test_a_mask_that_hides_nothing_is_refused_for_its_token_would_get_no_gradient():
    with pytest.raises(
        UserError, match=r"ratio=0\.03 hides none of an image's 16 patches; give .*=0\.062 or more"
    ):
        objective(masking=MaskingConfig(ratio=0.03))
    assert objective(masking=MaskingConfig(ratio=0.0625)).model.mask_token.requires_grad


def images() -> torch.Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def keys(rows=range(BATCH)) -> BatchKeys:
    return BatchKeys(seed=0, step=5, rows=list(rows), batch_size=BATCH)


def unmasked(**changes):
    return objective(masking=MaskingConfig(ratio=0.0), use_mask_token=False, **changes)


def piece(module, rows, **extra):
    return module({"images": images()[list(rows)], **extra}, keys(rows))


def patches(x: torch.Tensor) -> torch.Tensor:
    """Cuts images into patches of 4 × 4 pixels, (B, N, 48)."""
    return nn.functional.unfold(x, 4, stride=4).mT


def listen(module, monkeypatch) -> list[torch.Tensor]:
    """Returns a list to which all latents that are decoded from now on are added."""
    decoded, decode = [], module.model.decode

    def decode_and_keep(z, **options):
        decoded.append(z.detach())
        return decode(z, **options)

    monkeypatch.setattr(module.model, "decode", decode_and_keep)
    return decoded


def test_terms_are_what_the_paper_writes():
    module = objective(Distance())
    found = piece(module, range(BATCH))
    x, model = images(), module.model
    visible = random_visible_indices(keys(), 16, 0.6)
    posterior = model.encode(x, visible_indices=visible).latent_dist
    z = posterior.mean + posterior.std * normal((3, visible.shape[1]), keys(), "posterior")
    decoded = model.decode(z, visible_indices=visible).sample
    seen = visible_mask(visible, 16)
    error = patches(decoded - x) ** 2
    expected = {
        "visible": error[seen].mean(),
        "masked": error[~seen].mean(),
        "perceptual": Distance()(decoded, x).mean(),
        "kl": kl_divergence(Normal(posterior.mean, posterior.std), Normal(posterior.mean, 1.0)).sum(1).mean(),
        "relative_std": (posterior.var.mean((1, 2)) / posterior.mean.var((1, 2))).sqrt().mean(),
    }
    assert set(found.terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value.detach(), msg=name)
        assert not found.terms[name].requires_grad
    weights = {"visible": 1.0, "masked": 1.0, "perceptual": 0.7, "kl": 0.01, "relative_std": 0}
    torch.testing.assert_close(found.loss, sum(weights[name] * value for name, value in expected.items()))
    assert found.loss.shape == ()


EVERYTHING = {
    "latent_noise": 0.5,
    "interpolation_noise": 1.0,
    "expansion_weight": 0.1,
    "expansion": "absolute",
    "spectrum_weight": 0.1,
    "alignment_weight": 0.1,
    "adversarial_weight": 0.5,
    "layers": 1,
}


@pytest.mark.parametrize("more", [{}, EVERYTHING, EVERYTHING | {"equivariance": 1.0}])
@pytest.mark.parametrize("perceptual_rows", [None, 1, 3, 5, 100])
def test_pieces_of_different_size_sum_to_the_whole_batch(perceptual_rows, more):
    settings = {"perceptual_rows": perceptual_rows, "prior_std": 0.3, **more}
    features = network() if more else None
    whole, parts = (objective(Distance(), features=features, **settings) for _ in range(2))
    expected = piece(whole, range(BATCH))
    expected.loss.backward()
    totals: dict[str, torch.Tensor] = {}
    loss, cuts, extra = torch.zeros(()), (range(3), range(3, BATCH)), {}
    if more:
        shares = [parts.look_ahead({"images": images()[list(rows)]}, keys(rows)) for rows in cuts]
        extra["whole_batch"] = {name: sum(share[name] for share in shares) for name in shares[0]}
    for rows in cuts:
        output = piece(parts, rows, **extra)
        output.loss.backward()
        loss = loss + output.loss.detach()
        for name, term in output.terms.items():
            totals[name] = totals.get(name, 0) + term
    torch.testing.assert_close(loss, expected.loss.detach())
    torch.testing.assert_close(totals, expected.terms)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_rows_with_perceptual_term_are_chosen_by_global_index_evenly():
    distance = Distance()
    module = objective(distance, perceptual_rows=3)
    counts = []
    for row in range(BATCH):
        distance.rows = 0
        term = piece(module, [row]).terms["perceptual"]
        counts.append(distance.rows)
        assert bool(term) == bool(distance.rows)
    assert sum(counts) == 3
    chosen = [row for row, count in enumerate(counts) if count]
    assert all(2 <= b - a <= 3 for a, b in itertools.pairwise(chosen))


def test_without_mask_the_loss_is_over_all_patches_and_finite():
    module = unmasked(sample_posterior=False)
    output = piece(module, range(BATCH))
    assert set(output.terms) == {"visible", "kl", "relative_std"}
    reconstruction = module.model(images()).sample
    torch.testing.assert_close(output.terms["visible"], (reconstruction - images()).square().mean().detach())


def test_noise_on_latents_is_of_each_images_own_deviation_and_of_a_share_up_to_the_setting(monkeypatch):
    module = unmasked(sample_posterior=False, latent_noise=0.5)
    decoded = listen(module, monkeypatch)
    scaled = images() * torch.linspace(0.1, 1, BATCH)[:, None, None, None]
    shares = []
    for step in range(40):
        module({"images": scaled}, BatchKeys(seed=0, step=step, rows=range(BATCH), batch_size=BATCH))
        mean = module.model.encode(scaled).latent_dist.mean.detach()
        every = tuple(range(1, mean.ndim))
        shares.append((decoded[-1] - mean).std(every) / mean.std(every))
    found = torch.stack(shares)  # (step, image)
    assert found.max() < 0.65  # 48 numbers a latent: the deviation of a draw scatters by a tenth
    assert found.mean(0).sub(0.25).abs().max() < 0.08
    assert found.std() > 0.1


def test_interpolated_noise_is_l_detoks_and_of_each_images_own_deviation(monkeypatch):
    module = unmasked(sample_posterior=False, interpolation_noise=3.0)
    decoded, found = listen(module, monkeypatch), piece(module, range(BATCH))
    z = module.model.encode(images()).latent_dist.mean.detach()
    tau, noise = uniform((1, 1, 1), keys(), "interpolation share"), normal((3, 4, 4), keys(), "interpolation")
    expected = torch.stack([(1 - t) * x + t * 3 * x.std() * e for t, x, e in zip(tau, z, noise, strict=True)])
    torch.testing.assert_close(decoded[0], expected)
    assert found.loss.isfinite()


def test_a_drawn_share_is_a_steps_own_and_may_hide_nothing():
    config = MaskingConfig(ratio_range=[-0.1, 0.7])
    shares = [mask_share(BatchKeys(0, step, [step % 3], 3), config) for step in range(500)]
    assert shares == [mask_share(BatchKeys(0, step, [0], 1), config) for step in range(500)]
    assert 0.07 < sum(share == 0 for share in shares) / 500 < 0.18  # 0.1 of 0.8
    assert 0.29 < sum(shares) / 500 < 0.33  # 0.7² / 2 / 0.8
    module = objective(masking=config)
    for step, share in list(enumerate(shares))[:30]:
        module.zero_grad()
        output = module({"images": images()}, BatchKeys(0, step, range(BATCH), BATCH))
        output.loss.backward()
        hidden = 16 - max(1, round(16 * (1 - share)))
        assert ("masked" in output.terms) == (hidden > 0)
        assert module.model.mask_token.grad.any() == (hidden > 0)


def test_terms_of_the_latents_enter_with_their_weights():
    plain = piece(objective(), range(BATCH)).loss
    visible = random_visible_indices(keys(), 16, 0.6)
    for form, weight in (("relative", 0.1), ("absolute", 0.2)):
        module = objective(expansion_weight=weight, expansion=form, spectrum_weight=0.3)
        found = piece(module, range(BATCH))
        seen = module.model.encode(images(), visible_indices=visible).latent_dist
        z = seen.mean + seen.std * normal((3, visible.shape[1]), keys(), "posterior")
        expected = {
            "expansion": variance_expansion(seen.mean, seen.logvar, form == "relative").mean(),
            "spectrum": spectrum_kl(images(), module.model.encode(images()).latent_dist.mean).mean(),
        }
        if form == "absolute":
            expected["scale_guard"] = scale_guard(z).mean()
        for name, value in expected.items():
            torch.testing.assert_close(found.terms[name], value.detach(), msg=name)
        total = weight * expected["expansion"] + 0.3 * expected["spectrum"]
        total = total + 1e-6 * expected.get("scale_guard", 0)
        torch.testing.assert_close(found.loss - plain, total, rtol=1e-3, atol=1e-6)


def test_variance_expansion_raises_the_relative_deviation_where_the_kl_lets_it_fall():
    found = {}
    for weight in (0.0, 1e-3):
        module = unmasked(kl_weight=0.0, expansion_weight=weight)
        set_initial_logvar(module.model, -4.0)
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for step in range(150):
            output = module({"images": images()}, BatchKeys(0, step, range(BATCH), BATCH))
            optimizer.zero_grad(), output.loss.backward(), optimizer.step()
        posterior = module.model.encode(images()).latent_dist
        found[weight] = relative_std(posterior.mean, posterior.logvar).mean().item()
    assert found[1e-3] > 2 * found[0.0]


def test_an_equivariant_step_decodes_transformed_latents_to_the_transformed_image(monkeypatch):
    module = objective(equivariance=1.0, sample_posterior=False)
    decoded, sizes = listen(module, monkeypatch), set()
    for step in range(12):
        where = BatchKeys(0, step, range(BATCH), BATCH)
        output = module({"images": images()}, where)
        transform = draw_transform(where, 1.0, (4, 4), 1)
        z = transform(module.model.encode(images()).latent_dist.mean, 1)
        torch.testing.assert_close(decoded[-1], z.detach())
        error = (module.model.decode(z).sample - transform(images(), 4)).square().mean()
        torch.testing.assert_close(output.terms["visible"], error.detach())
        assert "masked" not in output.terms
        sizes.add(z.shape[-1])
        module.zero_grad()
        output.loss.backward()  # every parameter gets a gradient, which other processes wait for
        assert all(p.grad is not None for p in module.parameters())
    assert len(sizes) > 2
    module.eval()
    assert "masked" in piece(module, range(BATCH)).terms


def test_scaled_images_stay_as_large_as_the_networks_need(monkeypatch):
    module = unmasked(equivariance=1.0, layers=2, adversarial_weight=0.5)  # 12 px, 3 cells
    decoded = listen(module, monkeypatch)
    for step in range(30):
        module({"images": images()}, BatchKeys(0, step, range(BATCH), BATCH))
    assert {z.shape[-1] for z in decoded} == {3, 4}


def test_alignment_pulls_as_hard_as_its_share_of_reconstruction_does():
    module, features = objective(features=network(), alignment_weight=0.1), network()
    found, x, last = piece(module, range(BATCH)), images(), module.model.to_latent.weight
    visible = random_visible_indices(keys(), 16, 0.6)
    seen = module.model.encode(x, visible_indices=visible).latent_dist
    z = seen.mean + seen.std * normal((3, visible.shape[1]), keys(), "posterior")
    of_cells = features(x, (4, 4)).flatten(2)
    of_seen = torch.stack([f[:, places] for f, places in zip(of_cells, visible, strict=True)])
    term = alignment(z, (module.projection.weight @ z), of_seen).mean()
    torch.testing.assert_close(found.terms["alignment"], term.detach())
    plain = objective()
    restoration = piece(plain, range(BATCH)).terms
    error = patches(module.model.decode(z, visible_indices=visible).sample - x)
    seen_places = visible_mask(visible, 16)
    reconstruction = error.square()[seen_places].mean() + error.square()[~seen_places].mean()
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (reconstruction, term)]
    weight = norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(found.terms["alignment_weight"], weight)
    rest = restoration["visible"] + restoration["masked"] + 0.01 * restoration["kl"]
    torch.testing.assert_close(found.loss, rest + 0.1 * weight * term)
    found.loss.backward()
    assert module.projection.weight.grad.any()
    module.eval()
    evaluated = piece(module, range(BATCH))
    torch.testing.assert_close(evaluated.loss, rest)
    assert "alignment" in evaluated.terms


def test_tuning_has_the_baselines_discriminator_beside_a_frozen_encoder():
    module = unmasked(perceptual=Distance(), layers=1, adversarial_weight=0.5, adversarial_start_step=5)
    module.model.freeze_encoder()
    found, x = piece(module, range(BATCH)), images()
    posterior = module.model.encode(x).latent_dist
    z = posterior.mean + posterior.std * normal((3, 4, 4), keys(), "posterior")
    decoded = module.model.decode(z.detach()).sample
    restoration = (decoded - x).square().mean() + 0.7 * Distance()(decoded, x).mean()
    adversarial = -module.adversary(decoded).mean()
    last = module.model.decoder_pred.conv_smoother.weight
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (restoration, adversarial)]
    torch.testing.assert_close(found.terms["adversarial"], adversarial.detach())
    torch.testing.assert_close(found.terms["adaptive_weight"], norms[0] / (norms[1] + 1e-4))
    found.loss.backward()
    assert module.adversary.layers[0].weight.grad.any()
    assert all(p.grad is not None for p in module.adversary.parameters())
    assert "discriminator" not in module({"images": x}, BatchKeys(0, 4, range(BATCH), BATCH)).terms


def test_mask_token_that_stands_nowhere_is_not_trained():
    module = objective(masking=MaskingConfig(ratio=0.0))
    piece(module, range(BATCH)).loss.backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_frozen_encoder_gets_no_gradient_and_the_decoder_does():
    module = unmasked()
    module.model.freeze_encoder()
    piece(module, range(BATCH)).loss.backward()
    assert all(p.grad is None for p in module.model.encoder_parameters())
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_variance_kl_matches_torch_distributions():
    mean, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(mean, 0.2))
    torch.testing.assert_close(variance_kl(logvar, 0.2), expected.sum(1).flatten(1).mean(1))
    assert not variance_kl(torch.full((1, 2, 3), 2 * torch.tensor(0.2).log().item()), 0.2).abs().max() > 1e-6


def test_variance_kl_ignores_posterior_mean():
    module = unmasked()
    before = piece(module, range(BATCH)).terms["kl"]
    with torch.no_grad():
        module.model.to_latent.bias[:3] += 10
    torch.testing.assert_close(piece(module, range(BATCH)).terms["kl"], before)
    with torch.no_grad():
        module.model.to_latent.bias[3:] += 1
    assert piece(module, range(BATCH)).terms["kl"] > before


def test_same_key_gives_the_same_loss_and_another_step_another():
    module = objective()
    first, second = piece(module, range(BATCH)), piece(module, range(BATCH))
    assert torch.equal(first.loss, second.loss)
    other = module({"images": images()}, BatchKeys(seed=0, step=6, rows=list(range(BATCH)), batch_size=BATCH))
    assert not torch.equal(first.loss, other.loss)


def test_losses_are_single_precision_under_autocast():
    module = objective(Distance())
    with torch.autocast("cpu", torch.bfloat16):
        output = piece(module, range(BATCH))
    assert output.loss.dtype == torch.float32
    assert {term.dtype for term in output.terms.values()} == {torch.float32}
    exact = piece(module, range(BATCH))
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.05, atol=0)
    output.loss.backward()


def test_the_official_posteriors_noise_is_not_rounded_away_under_autocast(monkeypatch):
    module = objective()
    with torch.no_grad():
        module.model.to_latent.weight[3:] = 0
        module.model.to_latent.bias[:3] = 1.5
    set_initial_logvar(module.model, 2 * math.log(1e-3))
    decoded = listen(module, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        piece(module, range(BATCH))
        visible = random_visible_indices(keys(), 16, 0.6)
        mean = module.model.encode(images(), visible_indices=visible).latent_dist.mean.detach()
    noise = 1e-3 * normal((3, visible.shape[1]), keys(), "posterior")
    torch.testing.assert_close(decoded[0] - mean, noise, rtol=1e-2, atol=1e-6)


def test_images_of_another_size_than_the_models_train_masked():
    module = objective()
    x = torch.rand(2, 3, 8, 24)
    output = module({"images": x}, BatchKeys(seed=0, step=0, rows=[0, 1], batch_size=2))
    assert set(output.terms) == {"visible", "masked", "kl", "relative_std"}


def test_perceptual_network_is_never_part_of_the_module():
    distance = Distance()
    module = objective(distance)
    assert not any(distance.features.weight is p for p in module.parameters())
    assert all(name.startswith("model.") for name in module.state_dict())
    module.train()
    assert not distance.training
    assert [name for name, _ in module.named_children()] == ["model"]


def test_patch_errors_are_means_over_patches():
    x, y = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    expected = patches(x - y).square().mean(2)
    torch.testing.assert_close(patch_errors(x, y, 4), expected)


def test_initial_log_variance_is_set_for_all_tokens():
    module = objective()
    with torch.no_grad():
        module.model.to_latent.weight[3:] = 0
    set_initial_logvar(module.model, -4.0)
    posterior = module.model.encode(images()).latent_dist
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -4))


def test_masking_needs_a_mask_token():
    with pytest.raises(UserError, match="use_mask_token=True"):
        objective(use_mask_token=False)


def test_alignment_needs_its_network():
    with pytest.raises(UserError, match="'efficientnet_lite0', but none was given"):
        objective(alignment_weight=1.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"visible_weight": -1.0},
        {"masked_weight": float("nan")},
        {"perceptual_weight": float("inf")},
        {"kl_weight": -1e-6},
        {"prior_std": 0.0},
        {"perceptual_rows": 0},
        {"latent_noise": -0.1},
        {"interpolation_noise": -1.0},
        {"expansion_weight": -1.0},
        {"expansion": "relatve"},
        {"expansion_weight": 1.0, "sample_posterior": False},
        {"equivariance": 1.1},
        {"alignment": "dino"},
        {"spectrum_weight": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        MaskedObjectiveConfig(**setting)


@pytest.mark.parametrize("drawn", [[0.5, 0.2], [0.2], [0.1, 1.0], [-2.0, 0.5]])
def test_a_range_of_mask_shares_is_two_numbers_in_order(drawn):
    with pytest.raises(UserError, match="ratio_range"):
        MaskingConfig(ratio_range=drawn)
