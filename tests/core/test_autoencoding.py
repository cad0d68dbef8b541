"""One way to call any autoencoder."""

from collections import namedtuple
from types import SimpleNamespace
from typing import ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ConsistencyDecoderVAE, VQModel
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import nn

from ldmae.contracts import Autoencoder
from ldmae.core.autoencoding import (
    decode,
    denormalised,
    encode_moments,
    normalised,
    placement,
    reconstruct,
    size_multiple,
)
from ldmae.core.errors import UserError

from .tiny import CONSISTENCY, IMAGES, THERE, tiny, tiny_kl, tiny_rae, tiny_vmae

# ---- the classes of diffusers, and ours


@pytest.mark.parametrize("make", [tiny_vmae, tiny_kl])
def test_a_probabilistic_autoencoder_gives_mean_and_log_variance(make):
    model = make()
    assert isinstance(model, Autoencoder)
    posterior = model.encode(IMAGES).latent_dist
    mean, logvar = encode_moments(model, IMAGES)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(logvar, posterior.logvar)


@pytest.mark.parametrize("name", THERE)
@torch.no_grad()
def test_every_two_dimensional_autoencoder_of_diffusers_reconstructs_as_it_does_itself(name):
    model = tiny(name)
    mean, logvar = encode_moments(model, IMAGES)
    assert mean.shape == (2, model.config.get("latent_channels", 4), 8, 8)
    assert (logvar is not None) == ("KL" in name)
    # what its own forward makes; AutoencoderTiny's rounds the latents to bytes on the way
    own = model.decode(mean) if name == "AutoencoderTiny" else model(IMAGES)
    torch.testing.assert_close(reconstruct(model, IMAGES), own.sample.clamp(-1, 1))


@pytest.mark.parametrize("name", THERE)
def test_the_needed_multiple_is_found_and_other_sizes_and_channels_are_refused(name):
    model = tiny(name)
    assert size_multiple(model) == 2
    for shape, told in (
        ((1, 3, 16, 15), "whose height .* multiples of 2, got 16x15; give .*image_size="),
        ((1, 1, 16, 16), "of 3 channels, got 1; name an autoencoder"),
    ):
        with pytest.raises(UserError, match=rf"^{name} takes images {told}"):
            encode_moments(model, torch.zeros(shape))


def test_our_patches_are_the_multiple():
    assert size_multiple(tiny_vmae()) == 4
    with pytest.raises(UserError, match=r"multiples of 4, got 18x18; .*such as image_size=16"):
        encode_moments(tiny_vmae(), torch.zeros(1, 3, 18, 18))


def test_an_autoencoder_of_videos_is_named_with_its_own_complaint():
    class Video(nn.Module):
        def encode(self, x):
            _b, _c, _t, _h, _w = x.shape

        decode = encode

    expected = r"^Video.encode failed on images of shape \(2, 3, 16, 16\) \(ValueError: not enough values .*"
    with pytest.raises(UserError, match=expected + r"images \(B, 3, H, W\), not of videos"):
        encode_moments(Video(), IMAGES)
    with pytest.raises(UserError, match=r"^Video.decode failed on latents of shape \(2, 3, 16, 16\)"):
        decode(Video(), IMAGES)


def test_latents_of_another_shape_are_a_failure_that_is_explained():
    with pytest.raises(
        UserError, match=r"^AutoencoderKL.decode failed on latents of shape \(1, 5, 4, 4\) \(R"
    ):
        decode(tiny_kl(), torch.zeros(1, 5, 4, 4))


def test_lack_of_memory_is_not_blamed_on_the_autoencoder():
    def encode(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Plain()
    model.encode = encode
    with pytest.raises(torch.OutOfMemoryError):
        encode_moments(model, IMAGES)


def test_an_autoencoder_that_changes_the_image_is_refused():
    model = Plain(unwrap=lambda z: z[..., :8, :8])
    with pytest.raises(
        UserError, match=r"made 3-channel images of 8x8 of 3-channel .*16x16.*patches, as 8 may be"
    ):
        reconstruct(model, IMAGES)
    with pytest.raises(UserError, match=r"made 1-channel images of 16x16.*decodes to 3 channels"):
        reconstruct(Plain(unwrap=lambda z: z[:, :1]), IMAGES)


# ---- RAE, which sees [0, 1] and normalises inside itself


@torch.no_grad()
def test_an_rae_gets_images_in_zero_to_one_and_normalises_once():
    model = tiny_rae()
    mean, logvar = encode_moments(model, IMAGES)
    latent = model.encode((IMAGES + 1) / 2).latent
    torch.testing.assert_close(mean, latent)
    assert logvar is None
    assert torch.equal(normalised(model, mean), mean)
    expected = (model.decode(latent).sample * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(reconstruct(model, IMAGES), expected)


def test_an_rae_takes_its_own_size_only():
    with pytest.raises(UserError, match=r"AutoencoderRAE takes images of 16x16 only, got 32x32; .*=16$"):
        encode_moments(tiny_rae(), torch.zeros(1, 3, 32, 32))


def test_what_is_called_rae_gets_and_gives_zero_to_one_also_where_transformers_lacks():
    class AutoencoderRAE(nn.Module):
        config: ClassVar = {"encoder_input_size": 28, "encoder_patch_size": 14, "patch_size": 8}

        def encode(self, x):
            assert x.min() >= 0
            return x - 0.5

        def decode(self, z):
            return z + 0.5

    torch.testing.assert_close(encode_moments(AutoencoderRAE(), IMAGES)[0], IMAGES / 2)
    torch.testing.assert_close(reconstruct(AutoencoderRAE(), IMAGES), IMAGES)
    assert torch.equal(normalised(AutoencoderRAE(), LATENTS), LATENTS)


# ---- a user's own


class Plain(nn.Module):
    """Encodes to whatever `wrap` makes of the latents, decodes to whatever `unwrap` makes of them."""

    def __init__(self, wrap=lambda z: z, unwrap=lambda z: z):
        super().__init__()
        self.weight, self.wrap, self.unwrap = nn.Parameter(torch.full((1,), 3.0)), wrap, unwrap

    def encode(self, x):
        return self.wrap(x * self.weight)

    def decode(self, z):
        return self.unwrap(z / self.weight)


Codes = namedtuple("Codes", "loss latents")

FORMS = {
    "tensor": lambda z: z,
    "tuple": lambda z: (z, z.sum()),
    "list": lambda z: [z],
    "tuple with a loss before": lambda z: Codes(z.sum(), z),
    "tuple in a tuple": lambda z: ((z,), None),
    "object": lambda z: SimpleNamespace(latent=z, other=-z),
    "object of another name": lambda z: SimpleNamespace(code=z, loss=z.sum()),
    "dictionary": lambda z: {"z": z, "noise": -z},
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_latents_are_understood(form):
    mean, logvar = encode_moments(Plain(FORMS[form]), IMAGES)
    assert torch.equal(mean, IMAGES * 3)
    assert logvar is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: torch.distributions.Normal(z, (0.5 * z).exp()),
        lambda z: (torch.distributions.Normal(z, (0.5 * z).exp()), z.sum()),
        lambda z: SimpleNamespace(latent_dist=SimpleNamespace(mean=z, logvar=z)),
        lambda z: {"mean": z, "logvar": z, "z": -z},
    ],
)
def test_other_forms_of_posteriors_are_understood(wrap):
    mean, logvar = encode_moments(Plain(wrap), IMAGES)
    assert torch.equal(mean, IMAGES * 3)
    torch.testing.assert_close(logvar, IMAGES * 3)


@pytest.mark.parametrize(
    "unwrap",
    [lambda x: x, lambda x: (x, 0), lambda x: {"sample": x, "z": -x}, lambda x: SimpleNamespace(pixels=x)],
)
def test_other_forms_of_images_are_understood(unwrap):
    torch.testing.assert_close(reconstruct(Plain(unwrap=unwrap), IMAGES), IMAGES)


def test_images_stay_in_range():
    assert decode(Plain(), IMAGES * 30).abs().max() == 1


@pytest.mark.parametrize(
    ("wrap", "described"),
    [
        (lambda z: SimpleNamespace(a=z, b=z), "SimpleNamespace with a, b"),
        (lambda z: z.flatten(2), r"a tensor of shape \(2, 3, 256\)"),
        (lambda z: z.round().int(), r"a tensor of shape \(2, 3, 16, 16\)"),
        (lambda z: None, "NoneType"),
        (lambda z: z[:1], r"a tensor of shape \(1, 3, 16, 16\)"),
    ],
)
def test_an_output_without_latents_or_images_is_named(wrap, described):
    with pytest.raises(UserError, match=rf"Plain.encode returned {described}, which holds no latents of 2"):
        encode_moments(Plain(wrap), IMAGES)
    with pytest.raises(UserError, match=rf"Plain.decode returned {described}, which holds no images of 2"):
        decode(Plain(unwrap=wrap), IMAGES)


def test_a_users_own_class_may_tell_its_multiple_and_what_it_does_not_tell_is_not_guessed():
    model = Plain()
    model.config = SimpleNamespace(block_out_channels=(1, 1, 1, 1, 1, 1), in_channels=1, patch_size=5)
    assert size_multiple(model) is None
    encode_moments(model, IMAGES)
    model.spatial_compression_ratio = 5
    with pytest.raises(UserError, match=r"Plain takes images .*multiples of 5, got 16x16.*image_size=15$"):
        encode_moments(model, IMAGES)


def test_an_autoencoder_without_weights_runs_on_the_cpu_in_fp32():
    class Identity(nn.Module):
        encode = decode = staticmethod(lambda x: x)

    assert placement(Identity()) == (torch.device("cpu"), torch.float32)
    assert torch.equal(reconstruct(Identity(), IMAGES), IMAGES)


def test_a_half_precision_autoencoder_takes_and_gives_fp32():
    model = tiny_vmae().bfloat16()
    assert placement(model)[1] == torch.bfloat16
    mean, logvar = encode_moments(model, IMAGES)
    assert mean.dtype == logvar.dtype == decode(model, mean).dtype == torch.float32


# ---- what a diffusion model sees

LATENTS = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scaling_factor": 1.0}, LATENTS),
        ({"scaling_factor": 2.0}, LATENTS * 2),
        ({"scaling_factor": 2.0, "shift_factor": 0.5}, (LATENTS - 0.5) * 2),
        (
            {
                "scaling_factor": 2.0,
                "latents_mean": [0.0, 1.0, 2.0, 3.0],
                "latents_std": [1.0, 2.0, 4.0, 8.0],
            },
            (LATENTS - torch.arange(4.0).view(4, 1, 1)) / 2 ** torch.arange(4.0).view(4, 1, 1) * 2,
        ),
    ],
)
def test_shift_scale_and_statistics_are_applied_once(settings, expected):
    torch.testing.assert_close(normalised(tiny_kl(**settings), LATENTS), expected)


def test_half_of_the_statistics_is_refused():
    with pytest.raises(UserError, match="AutoencoderKL has one of latents_mean and latents_std"):
        denormalised(tiny_kl(latents_mean=[0.0, 1.0, 2.0, 3.0]), LATENTS)


def test_statistics_of_one_s_own_autoencoder_may_be_arrays():
    model = Plain()
    model.config = {"latents_mean": np.array([1.0, 2, 3, 4]), "latents_std": np.full(4, 2.0)}
    expected = (LATENTS - torch.arange(1.0, 5).view(4, 1, 1)) / 2
    torch.testing.assert_close(normalised(model, LATENTS), expected)
    torch.testing.assert_close(denormalised(model, expected), LATENTS)


def test_our_pipeline_undoes_the_normalised_form():
    from ldmae import LDMAEPipeline

    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    settings = statistics | {"scaling_factor": 0.7}, {"scaling_factor": 0.7, "shift_factor": 0.2}
    models = [*(tiny_kl(**each) for each in settings), tiny_rae()]
    if "AutoencoderKLFlux2" in THERE:
        models.append(tiny("AutoencoderKLFlux2"))
        models[-1].bn.running_mean.normal_()
    for vae in models:
        pipeline = SimpleNamespace(vae=vae, config={"latents_mean": None, "latents_std": None})
        undone = LDMAEPipeline._denormalise(pipeline, normalised(vae, LATENTS))  # type: ignore[arg-type]
        torch.testing.assert_close(undone, LATENTS)


def test_an_autoencoder_that_is_stored_in_8_bits_computes_in_what_it_says():
    vae = tiny_kl().to(torch.bfloat16)
    expected = reconstruct(vae, IMAGES)
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e5m2, compute_dtype=torch.bfloat16)
    assert placement(vae)[1] == torch.bfloat16
    assert (reconstruct(vae, IMAGES) - expected).abs().mean() < 0.1


def test_without_a_config_latents_are_taken_as_they_are():
    assert torch.equal(normalised(Plain(), LATENTS), LATENTS)
    for model in (tiny("AutoencoderTiny"), tiny_vmae()):  # whose factors are 1 and 0
        assert torch.equal(normalised(model, LATENTS), LATENTS)


@pytest.mark.skipif("AutoencoderKLFlux2" not in THERE, reason="this diffusers has no AutoencoderKLFlux2")
def test_the_statistics_of_flux_2_are_those_of_patches_of_cells():
    model = tiny("AutoencoderKLFlux2")
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    patches = rearrange(LATENTS, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)  # as its pipeline does it
    expected = rearrange(model.bn(patches), "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
    torch.testing.assert_close(normalised(model, LATENTS), expected)
    for change in (normalised, denormalised):
        with pytest.raises(UserError, match=r"patches of 2 x 2 cells, got 3 x 4 cells; .* a multiple of 4$"):
            change(model, torch.zeros(1, 4, 3, 4))


def test_classes_that_are_named_in_tests_are_there():
    assert {AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel} <= {type(tiny(name)) for name in THERE}


class Constant(torch.nn.Module):
    """Decodes and encodes to one value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def encode(self, images):
        return torch.full_like(images, self.value)

    decode = encode


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_a_decoder_that_is_not_finite_is_told_and_not_clipped_to_a_picture(value, told):
    with pytest.raises(UserError, match=f"Constant.decode returned {told}.*computing in float32; load it in"):
        decode(Constant(value), torch.ones(1, 3, 4, 4))


def test_an_encoder_that_is_not_finite_is_told():
    with pytest.raises(UserError, match=r"Constant.encode returned NaN for image 0 of the batch"):
        encode_moments(Constant(float("nan")), IMAGES)


def test_a_posterior_without_noise_is_taken():
    class Exact(torch.nn.Module):
        def encode(self, images):
            return SimpleNamespace(mean=images, variance=torch.zeros_like(images))

    assert encode_moments(Exact(), IMAGES)[1].isneginf().all()


def test_an_overflow_in_half_precision_is_told():
    model = tiny_kl()
    for parameter in model.decoder.conv_in.parameters():
        parameter.data.mul_(1e30)  # float16 overflows; group normalisation turns that into NaN
    with pytest.raises(UserError, match=r"AutoencoderKL.decode returned NaN.*computing in float16"):
        decode(model.half(), torch.ones(1, 4, 16, 16))


def test_a_compiled_autoencoder_counts_as_what_it_is():
    model = tiny_kl(scaling_factor=0.5)
    compiled = torch.compile(model, backend="eager")
    assert size_multiple(compiled) == size_multiple(model) == 1
    with pytest.raises(UserError, match="AutoencoderKL takes images of 3 channels, got 1"):
        encode_moments(compiled, IMAGES[:, :1])


class Drawing(torch.nn.Module):
    """Its decoder draws noise."""

    def decode(self, latents, generator=None):
        return randn_tensor(latents.shape, generator)


def test_a_decoder_that_draws_noise_gets_the_generator():
    latents = torch.zeros(2, 3, 4, 4)
    one, other = (decode(Drawing(), latents, None, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)


def test_a_consistency_decoder_without_a_generator_gives_each_image_the_same_noise_in_any_batch():
    torch.manual_seed(0)
    model = ConsistencyDecoderVAE(**CONSISTENCY).eval()
    latents = torch.ones(1, 4, 8, 8)
    alone = decode(model, latents)
    torch.testing.assert_close(decode(model, latents.repeat(2, 1, 1, 1)), alone.repeat(2, 1, 1, 1))
    other = decode(model, latents, None, torch.Generator().manual_seed(1))
    assert not torch.equal(other, alone)


def test_an_autoencoder_of_sound_or_videos_is_named_as_one():
    for name, medium, arguments in (
        (
            "AutoencoderOobleck",
            "sound",
            {"encoder_hidden_size": 4, "decoder_channels": 4, "decoder_input_channels": 4},
        ),
        (
            "AutoencoderSAME",
            "sound",
            {"encoder_channels": 8, "encoder_transformer_depths": [1], "dim_heads": 8},
        ),
        ("AutoencoderKLCogVideoX", "videos", {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2}),
        ("AutoencoderKLTemporalDecoder", "videos", {"block_out_channels": (32,)}),
    ):
        kind = getattr(diffusers, name, None)
        if kind is not None:
            with pytest.raises(UserError, match=f"{name} is an autoencoder of {medium}; name one of images"):
                encode_moments(kind(**arguments), IMAGES)
