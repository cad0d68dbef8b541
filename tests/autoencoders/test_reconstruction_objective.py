import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from ldmae.autoencoders.baselines import build_baseline, build_vit_baseline
from ldmae.autoencoders.discriminator import PatchDiscriminator, hinge_discriminator_loss
from ldmae.autoencoders.latent_terms import relative_std
from ldmae.autoencoders.reconstruction_objective import ReconstructionObjective, gaussian_kl
from ldmae.config.autoencoder import BaselineConfig, ReconstructionObjectiveConfig
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.core.random import normal

from ..tiny import vmae_sizes
from .distance import Distance

BATCH = 6


def objective(perceptual=None, adversary=False, **changes) -> ReconstructionObjective:
    torch.manual_seed(0)
    model = build_baseline(BaselineConfig(factor=2, latent_channels=3, width=1 / 32), 12)
    discriminator = PatchDiscriminator(1, 8) if adversary else None
    settings = {
        "perceptual_weight": 0.0 if perceptual is None else 0.7,
        "kl_weight": 0.01,
        "adversarial_weight": 0.5 if adversary else 0.0,
        **changes,
    }
    return ReconstructionObjective(
        model, ReconstructionObjectiveConfig(**settings), perceptual, discriminator
    )


def images() -> torch.Tensor:
    return torch.rand(BATCH, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


def keys(rows=range(BATCH), step=5) -> BatchKeys:
    return BatchKeys(seed=0, step=step, rows=list(rows), batch_size=BATCH)


def piece(module, rows=range(BATCH), step=5, **extra):
    return module({"images": images()[list(rows)], **extra}, keys(rows, step))


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


# ---- terms


def test_terms_are_those_of_the_method():
    module = objective(Distance())
    found, x = piece(module), images()
    posterior = module.model.encode(x).latent_dist
    z = posterior.mean + posterior.std * normal((3, 6, 6), keys(), "posterior")
    decoded = module.model.decode(z).sample
    expected = {
        "pixel": (decoded - x).square().mean(),
        "perceptual": Distance()(decoded, x).mean(),
        "kl": kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum(1).mean(),
        "relative_std": relative_std(posterior.mean, posterior.logvar).mean(),
    }
    assert set(found.terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value.detach(), msg=name)
        assert not found.terms[name].requires_grad
    torch.testing.assert_close(
        found.loss, expected["pixel"] + 0.7 * expected["perceptual"] + 0.01 * expected["kl"]
    )


def test_the_kl_of_the_variance_alone_is_vmaes():
    module = objective(variance_kl=True)
    found, posterior = piece(module), module.model.encode(images()).latent_dist
    same_mean = Normal(posterior.mean, torch.ones(()))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), same_mean).sum(1).mean()
    torch.testing.assert_close(found.terms["kl"], expected.detach())
    torch.testing.assert_close(found.loss, found.terms["pixel"] + 0.01 * expected)


def test_vmaes_network_trains_by_a_baselines_objective_and_its_discriminator():
    torch.manual_seed(0)
    model = build_vit_baseline({"patch_size": 4, "latent_channels": 3, **vmae_sizes()}, 12)
    config = ReconstructionObjectiveConfig(perceptual_weight=0.0, adversarial_weight=0.5, pixel_loss="l1")
    module = ReconstructionObjective(model, config, None, PatchDiscriminator(1, 8))
    found = piece(module)
    decoded, _ = module._restore(images(), keys())
    last = model.decoder_pred.conv_smoother.weight
    both = ((decoded - images()).abs().mean(), -module.adversary(decoded).mean())
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in both]
    torch.testing.assert_close(found.terms["adaptive_weight"], norms[0] / (norms[1] + 1e-4))
    found.loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_deterministic_latent_is_the_mean_and_has_no_kl():
    module = objective(sample_posterior=False, kl_weight=0.0, pixel_loss="l1")
    found = piece(module)
    assert set(found.terms) == {"pixel"}
    torch.testing.assert_close(found.loss, F.l1_loss(module.model(images()).sample, images()))


def test_input_noise_is_keyed_and_the_target_stays_clean():
    module = objective(sample_posterior=False, kl_weight=0.0, input_noise=0.3)
    noisy = images() + 0.3 * normal((3, 12, 12), keys(), "input")
    torch.testing.assert_close(piece(module).loss, F.mse_loss(module.model(noisy).sample, images()))
    assert torch.equal(piece(module).loss, piece(module).loss)
    assert not torch.equal(piece(module).loss, piece(module, step=6).loss)


def test_gaussian_kl_is_that_of_torch_and_a_share_of_diffusers_sum():
    mean, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected.sum(1).mean((1, 2)))
    posterior = objective().model.encode(images()).latent_dist
    torch.testing.assert_close(gaussian_kl(posterior.mean, posterior.logvar) * 36, posterior.kl())


# ---- the adversary


def test_the_adversarial_terms_are_vqgans():
    module = objective(Distance(), adversary=True)
    found, x = piece(module), images()
    decoded, posterior = module._restore(x, keys())
    restoration = F.mse_loss(decoded, x) + 0.7 * Distance()(decoded, x).mean()
    adversarial = -module.adversary(decoded).mean()
    hinge = hinge_discriminator_loss(module.adversary(x), module.adversary(decoded)).mean()
    last = module.model.decoder.conv_out.weight
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (restoration, adversarial)]
    weight = norms[0] / (norms[1] + 1e-4)
    kl = gaussian_kl(posterior.mean, posterior.logvar).mean()
    torch.testing.assert_close(found.terms["adversarial"], adversarial.detach())
    torch.testing.assert_close(found.terms["discriminator"], hinge.detach())
    torch.testing.assert_close(found.terms["adaptive_weight"], weight)
    torch.testing.assert_close(found.loss, restoration + 0.01 * kl + 0.5 * weight * adversarial + hinge)


def test_no_gradient_of_one_network_reaches_the_other():
    module = objective(adversary=True)
    piece(module).loss.backward()
    found = gradients(module)
    decoded, posterior = module._restore(images(), keys())
    module.zero_grad()
    hinge_discriminator_loss(module.adversary(images()), module.adversary(decoded.detach())).mean().backward()
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(found.pop(name), gradient, rtol=1e-4, atol=1e-7, msg=name)
    weight = piece(module).terms["adaptive_weight"]
    module.zero_grad()
    kl = gaussian_kl(posterior.mean, posterior.logvar).mean()
    adversarial = -module.adversary(decoded).mean()
    (F.mse_loss(decoded, images()) + 0.01 * kl + 0.5 * weight * adversarial).backward()
    assert {name.split(".")[0] for name in found} == {"model"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients(module)[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("perceptual_rows", [None, 1, 4])
@pytest.mark.parametrize("adversary", [True, False])
def test_pieces_of_different_size_sum_to_the_whole_batch(perceptual_rows, adversary):
    settings = {"perceptual_rows": perceptual_rows, "input_noise": 0.1, "adversary": adversary}
    whole, parts = objective(Distance(), **settings), objective(Distance(), **settings)
    expected = piece(whole)
    expected.loss.backward()
    cuts, extra = (range(2), range(2, BATCH)), {}
    if adversary:
        shares = [parts.look_ahead({"images": images()[list(rows)]}, keys(rows)) for rows in cuts]
        extra["whole_batch"] = {"adversarial": sum(share["adversarial"] for share in shares)}
    totals, loss = {}, torch.zeros(())
    for rows in cuts:
        output = piece(parts, rows, **extra)
        output.loss.backward()
        loss = loss + output.loss.detach()
        totals = {name: totals.get(name, 0) + term for name, term in output.terms.items()}
    torch.testing.assert_close(loss, expected.loss.detach())
    torch.testing.assert_close(totals, expected.terms)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_looking_ahead_gives_gradients_of_both_losses_and_leaves_none_behind():
    module = objective(adversary=True)
    found = module.look_ahead({"images": images()}, keys())["adversarial"]
    decoded, _ = module._restore(images(), keys())
    last = module.model.decoder.conv_out.weight
    for gradient, loss in zip(
        found, (F.mse_loss(decoded, images()), -module.adversary(decoded).mean()), strict=True
    ):
        torch.testing.assert_close(gradient, torch.autograd.grad(loss, last, retain_graph=True)[0])
    assert gradients(module) == {}


def test_the_adversary_is_not_asked_before_its_start_nor_in_evaluation():
    module = objective(adversary=True, adversarial_start_step=5)
    assert set(piece(module, step=4).terms) == {"pixel", "kl", "relative_std"}
    assert module.look_ahead({"images": images()}, keys(step=4)) is None
    assert module.look_ahead({"images": images()}, keys(step=5)) is not None
    assert "discriminator" in piece(module, step=5).terms
    # every parameter has a gradient, which processes that share a batch wait for; here it is zero
    piece(module, step=4).loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(not p.grad.any() for p in module.adversary.parameters())
    module.eval()
    evaluated = piece(module)
    assert set(evaluated.terms) == {"pixel", "kl", "relative_std"}
    torch.testing.assert_close(evaluated.loss, evaluated.terms["pixel"] + 0.01 * evaluated.terms["kl"])


def test_a_piece_without_word_of_the_whole_batch_is_a_mistake():
    with pytest.raises(AssertionError, match="looked ahead"):
        piece(objective(adversary=True), range(3))


@pytest.mark.parametrize(("size", "batch_size"), [(12, 2), (12, 4096), (192, 2)])
def test_gradients_for_the_adaptive_weight_neither_vanish_nor_overflow_in_fp16(size, batch_size):
    module = objective(adversary=True)
    batch = {"images": torch.ones(2, 3, size, size)}
    where = BatchKeys(seed=0, step=5, rows=[0, 1], batch_size=batch_size)
    exact = module.look_ahead(batch, where)["adversarial"]
    with torch.autocast("cpu", torch.float16):
        half = module.look_ahead(batch, where)["adversarial"]
    for found, expected in zip(half, exact, strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_infinite_gradients_stop_the_training_in_place_of_a_weight_at_its_limit():
    module = objective(lambda x, y: 1e38 * (x - y).square().mean((1, 2, 3)), adversary=True)
    with pytest.raises(
        UserError, match=r"at step 5 .*not finite: norm (inf|nan) of the reconstruction.*bf16"
    ):
        piece(module)


def test_losses_are_single_precision_under_autocast():
    module = objective(Distance(), adversary=True)
    exact = piece(module)
    with torch.autocast("cpu", torch.bfloat16):
        output = piece(module)
    assert {output.loss.dtype, *(term.dtype for term in output.terms.values())} == {torch.float32}
    for name, term in exact.terms.items():
        torch.testing.assert_close(output.terms[name], term, rtol=0.1, atol=0.02, msg=name)
    output.loss.backward()


# ---- what is trained


def test_the_perceptual_network_is_never_part_of_the_module_and_the_adversary_is():
    module = objective(Distance(), adversary=True)
    assert [name for name, _ in module.named_children()] == ["model", "adversary"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perceptual_weight": 1.0}, "'lpips-vgg', but none was given"),
        ({"adversarial_weight": 0.5}, "adversarial_weight=0.5 was given without a discriminator"),
        ({"adversary": True, "adversarial_weight": 0.0}, "=0.0 was given with a discriminator; give both"),
    ],
)
def test_a_network_that_is_missing_or_too_many_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        objective(**changes)


def test_images_too_small_for_the_discriminator_are_refused():
    model = build_baseline(BaselineConfig(factor=2, width=1 / 32), 8)
    config = ReconstructionObjectiveConfig(perceptual_weight=0.0, adversarial_weight=0.5)
    with pytest.raises(UserError, match=r"images of 8 px .* which needs 24; give it fewer layers"):
        ReconstructionObjective(model, config, None, PatchDiscriminator(3, 8))


@pytest.mark.parametrize(
    "setting",
    [
        {"pixel_loss": "huber"},
        {"input_noise": -0.1},
        {"kl_weight": float("nan")},
        {"perceptual_weight": float("inf")},
        {"adversarial_weight": -1.0},
        {"adversarial_start_step": -1},
        {"perceptual_rows": 0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        ReconstructionObjectiveConfig(**setting)
