"""A decoder that is trained alone, on the latents of any autoencoder."""

from typing import Any

import pytest
import torch
from torch import nn

from ldmae.autoencoders.decoder_training import DecoderObjective, freeze_all_but_decoder
from ldmae.autoencoders.discriminator import PatchDiscriminator
from ldmae.config.autoencoder import DecoderObjectiveConfig
from ldmae.contracts import BatchKeys
from ldmae.core.autoencoding import encode_moments, reconstruct
from ldmae.core.errors import UserError

from ..core.tiny import IMAGES, THERE, tiny, tiny_vmae

KINDS = ["AutoencoderVMAE", *THERE, "AutoencoderRAE"]


def make(name: str) -> Any:
    return tiny_vmae() if name == "AutoencoderVMAE" else tiny(name)


def keys(step: int = 5, rows=range(2)) -> BatchKeys:
    return BatchKeys(seed=0, step=step, rows=list(rows), batch_size=2)


def objective(model: Any, **settings: Any) -> DecoderObjective:
    freeze_all_but_decoder(model)
    config = DecoderObjectiveConfig(**{"perceptual_weight": 0.0, **settings})
    discriminator = PatchDiscriminator(1, 4) if config.adversarial_weight else None
    return DecoderObjective(model, config, None, discriminator, 16).train()


def trained(module: DecoderObjective, steps: int = 3) -> None:
    """Takes steps on the images."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        module({"images": IMAGES}, keys(step)).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", KINDS)
def test_the_decoder_learns_and_the_latents_stay_bit_for_bit(name: str):
    model = make(name)
    module = objective(
        model, adversarial_weight=0.5, latent_noise=0.1
    )  # frozen, some CPUs take other kernels
    before, images = encode_moments(model, IMAGES), reconstruct(model, IMAGES)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained(module)
    after = encode_moments(model, IMAGES)
    assert torch.equal(before[0], after[0])
    assert before[1] is None or torch.equal(before[1], after[1])
    changed = {part for part, weight in model.state_dict().items() if not torch.equal(weight, weights[part])}
    allowed = ("decoder", "post_quant_conv", "from_latent")
    assert changed
    assert {part for part in changed if not part.startswith(allowed)} == set()
    assert not torch.equal(reconstruct(model, IMAGES), images)


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_that_is_trained_gets_a_gradient(name: str):
    model = make(name)
    module = objective(model)
    module({"images": IMAGES}, keys()).loss.backward()
    lacking = [
        part for part, weight in model.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    assert lacking == []


def test_the_loss_is_of_what_decode_gives_and_values_beyond_the_range_are_pulled_back():
    model = tiny_vmae()
    with torch.no_grad():
        model.decoder_pred.conv_smoother.bias += 3  # all pixels are above 1
    module = objective(model, pixel_loss="mse")
    found = module({"images": IMAGES}, keys())
    decoded = model.decode(model.encode(IMAGES).latent_dist.mean).sample
    torch.testing.assert_close(found.loss, (decoded - IMAGES).square().mean())
    found.loss.backward()
    assert model.decoder_pred.conv_smoother.bias.grad.gt(0).all()


def test_latent_noise_is_drawn_by_step_and_row():
    module = objective(tiny_vmae(), latent_noise=0.5)
    one, same, other = (module({"images": IMAGES}, keys(step)).loss for step in (1, 1, 2))
    assert one == same
    assert one != other
    halves = [module({"images": IMAGES[i : i + 1]}, keys(1, [i])).loss for i in range(2)]
    torch.testing.assert_close(sum(halves), one)


def test_dropout_and_batch_statistics_stay_off():
    model = tiny("AutoencoderKL")
    model.decoder.conv_act = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5))
    module = objective(model)
    first, again = (module({"images": IMAGES}, keys()).loss for _ in range(2))
    assert first == again
    assert model.decoder.conv_act[0].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["AutoencoderVMAE", "AutoencoderKL", "AutoencoderTiny"])
def test_gradient_checkpointing_changes_no_gradient(name: str):
    found = []
    for checkpointing in (False, True):
        module = objective(make(name))
        if checkpointing:
            module.model.enable_gradient_checkpointing()
        module({"images": IMAGES}, keys()).loss.backward()
        found.append({part: w.grad for part, w in module.named_parameters() if w.grad is not None})
    torch.testing.assert_close(found[0], found[1])


def test_what_has_no_decoder_of_its_own_is_refused():
    class Own(nn.Module):
        pass

    for model in (tiny("AutoencoderKL").encoder, Own()):
        with pytest.raises(UserError, match=r"is no autoencoder of diffusers, .*; name an AutoencoderVMAE"):
            freeze_all_but_decoder(model)
