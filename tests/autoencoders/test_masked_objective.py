import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldmae.autoencoders.latent_terms import variance_kl
from ldmae.autoencoders.masked_objective import MaskedObjective, patch_errors, set_initial_logvar
from ldmae.autoencoders.masking import random_visible_indices, visible_mask
from ldmae.autoencoders.settings import MaskedObjectiveConfig, MaskingConfig
from ldmae.autoencoders.vmae import AutoencoderVMAE, patchify
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.core.random import normal

BATCH = 8


class Distance(nn.Module):
    """A small learned distance, with parameters, dropout and a count of what it saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.requires_grad_(False).eval()
        self.rows = 0

    def forward(self, x, y):
        self.rows += len(x)
        return (self.dropout(self.features(x)) - self.features(y)).square().mean((1, 2, 3))


def objective(perceptual=None, use_mask_token=True, **changes) -> MaskedObjective:
    torch.manual_seed(0)
    model = AutoencoderVMAE(
        sample_size=16,
        patch_size=4,
        latent_channels=3,
        encoder_hidden_size=16,
        encoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        use_mask_token=use_mask_token,
    )
    settings = {"perceptual_weight": 0.0 if perceptual is None else 0.7, "kl_weight": 0.01, **changes}
    return MaskedObjective(model, MaskedObjectiveConfig(**settings), perceptual)


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


def piece(module, rows):
    return module({"images": images()[list(rows)]}, keys(rows))


def test_terms_are_what_the_paper_writes():
    module = objective(Distance())
    found = piece(module, range(BATCH))
    x, model = images(), module.model
    visible = random_visible_indices(keys(), 16, 0.6)
    posterior = model.encode(x, visible_indices=visible).latent_dist
    z = posterior.mean + posterior.std * normal((3, visible.shape[1]), keys(), "posterior")
    decoded = model.decode(z, visible_indices=visible).sample
    seen = visible_mask(visible, 16)
    error = (patchify(decoded, 4) - patchify(x, 4)) ** 2
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


@pytest.mark.parametrize("latent_noise", [0.0, 0.5])
@pytest.mark.parametrize("perceptual_rows", [None, 1, 3, 5, 100])
def test_pieces_of_different_size_sum_to_the_whole_batch(perceptual_rows, latent_noise):
    settings = {"perceptual_rows": perceptual_rows, "prior_std": 0.3, "latent_noise": latent_noise}
    whole, parts = objective(Distance(), **settings), objective(Distance(), **settings)
    expected = piece(whole, range(BATCH))
    expected.loss.backward()
    totals: dict[str, torch.Tensor] = {}
    loss = torch.zeros(())
    for rows in (range(3), range(3, BATCH)):
        output = piece(parts, rows)
        output.loss.backward()
        loss = loss + output.loss.detach()
        for name, term in output.terms.items():
            totals[name] = totals.get(name, 0) + term
    torch.testing.assert_close(loss, expected.loss.detach())
    torch.testing.assert_close(totals, expected.terms)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


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
    decoded: list[torch.Tensor] = []
    decode = module.model.decode

    def listen(z, **options):
        decoded.append(z.detach())
        return decode(z, **options)

    monkeypatch.setattr(module.model, "decode", listen)
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
    decoded, decode = [], module.model.decode

    def listen(z, **options):
        decoded.append(z.detach())
        return decode(z, **options)

    monkeypatch.setattr(module.model, "decode", listen)
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
    expected = (patchify(x, 4) - patchify(y, 4)).square().mean(2)
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


def test_perceptual_weight_needs_a_network():
    with pytest.raises(UserError, match="'lpips-vgg', none was given"):
        objective(perceptual_weight=1.0)


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
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        MaskedObjectiveConfig(**setting)
