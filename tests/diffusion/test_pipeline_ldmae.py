import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors.torch import load_file

from ldmae.conversion import load_official_lightningdit, load_official_vmae
from ldmae.core.errors import UserError
from ldmae.diffusion.own_autoencoder import OwnAutoencoder
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline

from .. import tiny
from ..golden import GOLDEN, needs_golden
from ..tiny import tiny_vmae

NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane, bird", 3: "hen", 4: "crane, machine"}


tiny_transformer = functools.partial(tiny.tiny_transformer, std=0.2, num_layers=2, num_classes=5)


def tiny_kl(**changes) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        **changes,
    )


def pipeline(vae=None, transformer=None, scheduler=None, **options) -> LDMAEPipeline:
    pipe = tiny.tiny_pipeline(vae, transformer or tiny_transformer(), scheduler, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(batch=2, height=4, width=4) -> torch.Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(3))


def sampled(pipe, labels=(1, 3), **options) -> torch.Tensor:
    options = {"latents": noise(len(labels)), "num_inference_steps": 4, "output_type": "latent", **options}
    return pipe(list(labels), **options).images


# ---- against the official sampler


@pytest.fixture(scope="module")
def official():
    vae = load_official_vmae(
        GOLDEN / "vmae_tiny.pth", encoder_num_attention_heads=4, decoder_num_attention_heads=4
    )
    golden = load_file(GOLDEN / "sampling_golden.safetensors")
    statistics = {name: golden[name].flatten().tolist() for name in ("latents_mean", "latents_std")}
    vae.register_to_config(**statistics)
    return pipeline(vae, load_official_lightningdit(GOLDEN / "lightningdit_tiny.pt")), golden


def official_run(official, **options):
    pipe, golden = official
    options = {"num_inference_steps": 10, "output_type": "latent", **options}
    return pipe(golden["class_labels"], latents=golden["noise"], **options).images


def assert_golden(found, reference):
    assert (found - reference).abs().max() <= 2e-5 * max(1.0, reference.abs().max().item())


@needs_golden
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("latents_plain", {}),
        ("latents_shift", {"timestep_shift": 0.3}),
        ("latents_cfg", {"guidance_scale": 4.0, "guidance_channels": 3}),
        ("latents_cfg_allchannels", {"guidance_scale": 4.0}),
        (
            "latents_cfg_interval_shift",
            {
                "guidance_scale": 4.0,
                "guidance_channels": 3,
                "guidance_interval": (0.1, 1.0),
                "timestep_shift": 0.3,
            },
        ),
        (
            "latents_cfg_interval_shift_allchannels",
            {"guidance_scale": 4.0, "guidance_interval": (0.1, 1.0), "timestep_shift": 0.3},
        ),
    ],
)
def test_latents_match_the_official_sampler(official, name, options):
    assert_golden(official_run(official, **options), official[1][name])


@needs_golden
def test_whole_trajectory_matches_the_official_sampler(official):
    points = [official[1]["noise"]]

    def keep(pipe, i, timestep, tensors):
        points.append(tensors["latents"])
        return tensors

    official_run(official, timestep_shift=0.3, callback_on_step_end=keep)
    assert_golden(torch.stack(points), official[1]["trajectory_shift"])
    times = 1 - official[0].scheduler.sigmas
    torch.testing.assert_close(times, official[1]["times_shift"], rtol=0, atol=2e-6)


@needs_golden
def test_images_match_the_official_sampler(official):
    options = {"guidance_scale": 4.0, "guidance_channels": 3, "guidance_interval": (0.1, 1.0)}
    options["timestep_shift"] = 0.3
    reference = official[1]["image_cfg_interval_shift"]
    pt = official_run(official, output_type="pt", **options)
    assert_golden(pt, (reference / 2 + 0.5).clamp(0, 1))
    pil = np.stack([np.asarray(image) for image in official_run(official, output_type="pil", **options)])
    expected = official[1]["image_cfg_interval_shift_uint8"].numpy()
    assert np.abs(pil.astype(int) - expected.astype(int)).max() <= 1


# ---- sampling


def test_guidance_of_scale_one_is_none_and_an_empty_interval_too():
    pipe = pipeline()
    plain = sampled(pipe)
    assert torch.equal(sampled(pipe, guidance_scale=1.0, guidance_interval=(0.2, 0.8)), plain)
    assert torch.equal(sampled(pipe, guidance_scale=5.0, guidance_interval=(0.9, 1.0)), plain)
    assert not torch.allclose(sampled(pipe, guidance_scale=5.0), plain)


def test_guidance_of_scale_zero_leaves_the_class_out():
    pipe = pipeline()
    assert torch.equal(sampled(pipe, (1, 3), guidance_scale=0.0), sampled(pipe, (0, 2), guidance_scale=0.0))


def test_steps_are_network_evaluations():
    pipe = pipeline()
    calls = []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    sampled(pipe, num_inference_steps=7)
    assert len(calls) == pipe.num_timesteps == 7
    calls.clear()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    sampled(pipe, num_inference_steps=7)
    assert len(calls) == pipe.num_timesteps == 13


def test_heun_comes_closer_to_the_limit_than_euler():
    limit = sampled(pipeline(), num_inference_steps=400)
    euler, heun = (
        (sampled(pipeline(scheduler=scheduler), num_inference_steps=20) - limit).abs().mean()
        for scheduler in (FlowMatchEulerDiscreteScheduler(), FlowMatchHeunDiscreteScheduler())
    )
    assert heun < euler / 3


def test_shift_of_the_call_equals_the_scheduler_s_own_and_none_keeps_it():
    shifted = pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=1 / 0.3))
    expected = sampled(shifted)
    torch.testing.assert_close(sampled(pipeline(), timestep_shift=0.3), expected)
    for none in (0, 1):
        assert torch.equal(sampled(shifted, timestep_shift=none), sampled(pipeline()))
    assert torch.equal(sampled(shifted), expected)
    assert not torch.allclose(expected, sampled(pipeline()))


def test_same_generator_same_image_in_any_batch():
    pipe = pipeline()

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    options = {"num_inference_steps": 3, "output_type": "pt", "guidance_scale": 2.0}
    together = pipe([0, 1, 2], generator=generators(5, 6, 7), **options).images
    alone = pipe([1], generator=generators(6), **options).images
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    pair = pipe([2, 1], generator=generators(7, 6), **options).images
    torch.testing.assert_close(pair, together[[2, 1]], rtol=0, atol=1e-5)


def test_one_generator_makes_a_batch_again():
    pipe = pipeline()
    first, second = (
        pipe([0, 1], generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="np")
        for _ in range(2)
    )
    assert np.array_equal(first.images, second.images)


def test_half_precision_transformer_samples_in_float32():
    pipe = pipeline(transformer=tiny_transformer().to(torch.bfloat16))
    latents = sampled(pipe, num_inference_steps=10)
    assert latents.dtype == torch.float32
    assert (latents - latents.bfloat16().float()).abs().max() > 0
    images = pipeline().to(torch.bfloat16)([1], num_inference_steps=2, output_type="pt").images
    assert images.dtype == torch.float32


def test_a_step_walks_over_no_parameters(monkeypatch):
    pipe = LDMAEPipeline(tiny_vmae(), tiny_transformer(), FlowMatchEulerDiscreteScheduler())
    walk, walks = pipe.transformer.named_parameters, []
    monkeypatch.setattr(
        pipe.transformer, "named_parameters", lambda *a, **k: walks.append(1) or walk(*a, **k)
    )
    counts = []
    for steps in (1, 3):
        walks.clear()
        pipe([1], num_inference_steps=steps, output_type="latent")
        counts.append(len(walks))
    assert counts[0] == counts[1] > 0


def test_oblong_latents_make_oblong_images():
    images = pipeline()([1, 3], latents=noise(2, 4, 6), num_inference_steps=2).images
    assert [image.size for image in images] == [(24, 16), (24, 16)]


# ---- what comes in and goes out


def test_output_types_show_the_same_images():
    pipe, options = pipeline(), {"latents": noise(), "num_inference_steps": 2}
    pil = pipe([1, 3], output_type="pil", **options).images
    array = pipe([1, 3], output_type="np", **options).images
    tensor = pipe([1, 3], output_type="pt", **options).images
    assert all(isinstance(image, Image.Image) and image.size == (16, 16) for image in pil)
    assert array.shape == (2, 16, 16, 3)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(pil[0]) - array[0] * 255).max() <= 0.502  # rounded to the nearest
    assert np.array_equal(pipe([1, 3], output_type="np", return_dict=False, **options)[0], array)


def test_class_labels_come_in_many_shapes():
    pipe = pipeline(id2label=NAMES)
    expected = sampled(pipe, (1, 3))
    options = {"latents": noise(), "num_inference_steps": 4, "output_type": "latent"}
    for labels in ([[1], [3]], torch.tensor([1, 3]), np.array([[1, 3]]), ["goldfish", "hen"], ("1", 3)):
        assert torch.equal(pipe(labels, **options).images, expected)
    single = pipe("goldfish", latents=noise()[:1], num_inference_steps=4, output_type="latent").images
    torch.testing.assert_close(single, expected[:1], rtol=0, atol=1e-5)


def test_names_may_be_synonyms_but_not_ambiguous():
    pipe = pipeline(id2label=NAMES)
    assert pipe.class_id("Tinca tinca") == pipe.class_id("tench, Tinca tinca") == 0
    with pytest.raises(UserError, match=r"classes \[2, 4\]"):
        pipe.class_id("crane")


def test_callback_sees_and_replaces_latents():
    pipe, seen = pipeline(), []

    def watch(pipe, i, timestep, tensors):
        seen.append((i, set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 3 else tensors

    assert sampled(pipe, callback_on_step_end=watch).abs().max() == 0
    assert seen == [(i, {"latents"}) for i in range(4)]
    bare = []
    sampled(
        pipe,
        callback_on_step_end=lambda pipe, i, timestep, tensors: bare.append(tensors) or {},
        callback_on_step_end_tensor_inputs=[],
    )
    assert bare == [{}] * 4


def test_callback_may_interrupt_and_change_guidance():
    def stop(pipe, i, timestep, tensors):
        pipe._interrupt = i == 1
        return tensors

    pipe, calls = pipeline(), []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    sampled(pipe, callback_on_step_end=stop)
    assert pipe.interrupt
    assert len(calls) == 2

    def unguide(pipe, i, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    early = sampled(pipe, guidance_scale=3.0, callback_on_step_end=unguide)
    torch.testing.assert_close(early, sampled(pipe, guidance_scale=3.0, guidance_interval=(0.0, 0.1)))
    assert pipe.guidance_scale == 3.0


# ---- normalisation


MEAN, STD = [0.1, -0.2, 0.3, 0.4], [1.5, 0.5, 2.0, 1.0]


@pytest.mark.parametrize(
    ("vae", "options", "expected"),
    [
        (tiny_vmae(), {}, lambda z, mean, std: z),
        (tiny_vmae(latents_mean=MEAN, latents_std=STD), {}, lambda z, mean, std: z * std + mean),
        (
            tiny_kl(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5, shift_factor=9.0),
            {},
            lambda z, mean, std: z * std / 0.5 + mean,
        ),
        (tiny_kl(scaling_factor=0.5, shift_factor=0.25), {}, lambda z, mean, std: z / 0.5 + 0.25),
        (tiny_kl(scaling_factor=0.5), {}, lambda z, mean, std: z / 0.5),
        (
            tiny_kl(scaling_factor=0.5, shift_factor=0.25),
            {"latents_mean": MEAN, "latents_std": STD},
            lambda z, mean, std: z * std + mean,
        ),
        (
            tiny_vmae(latents_mean=[9.0] * 4, latents_std=[9.0] * 4),
            {"latents_mean": torch.tensor(MEAN).view(1, 4, 1, 1), "latents_std": torch.tensor(STD)},
            lambda z, mean, std: z * std + mean,
        ),
    ],
)
def test_latents_are_denormalised_once_by_the_first_statistics_there_are(vae, options, expected):
    pipe = pipeline(vae, **options)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (MEAN, STD))
    decoder_input = expected(sampled(pipe, num_inference_steps=2), mean, std)
    with torch.no_grad():
        decoded = vae.decode(decoder_input).sample
    images = sampled(pipe, num_inference_steps=2, output_type="pt")
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


def test_decoder_never_sees_more_than_a_few_latents_at_once():
    pipe, sizes = pipeline(), []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z: sizes.append(len(z)) or decode(z)
    labels = [0] * 19
    images = pipe(labels, latents=noise(19), num_inference_steps=1, output_type="np").images
    assert len(images) == 19
    assert max(sizes) <= 8


# ---- saving and loading


def test_classes_keep_the_order_of_their_numbers_when_saved(tmp_path):
    named = {number: f"class {number}" for number in range(12)}  # JSON sorts 10 before 2
    pipeline(transformer=tiny_transformer(num_classes=12), id2label=named).save_pretrained(tmp_path)
    assert [*LDMAEPipeline.from_pretrained(tmp_path).config.id2label] == [*range(12)]


def test_saved_pipeline_loads_as_it_was_without_warnings(tmp_path, caplog):
    options = {"id2label": {0: "a", 1: "b"}, "latents_mean": MEAN, "latents_std": STD}
    pipe = pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0), **options)
    pipe.save_pretrained(tmp_path)
    loaded = LDMAEPipeline.from_pretrained(tmp_path)
    assert caplog.records == []
    assert loaded.config.id2label == {0: "a", 1: "b"}
    assert loaded.config.latents_mean == MEAN
    assert loaded.class_id("b") == 1
    images = [
        p([1], latents=noise(1), num_inference_steps=2, output_type="np").images for p in (pipe, loaded)
    ]
    np.testing.assert_allclose(*images, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert LDMAEPipeline.from_pretrained(tmp_path / "again").class_id("b") == 1


def test_saved_pipeline_with_two_channels_keeps_its_statistics(tmp_path):
    # lists of two are what model_index.json marks components with
    vae, transformer = tiny_vmae(latent_channels=2), tiny_transformer(in_channels=2)
    pipeline(vae, transformer, latents_mean=[0.1, 0.2], latents_std=[1.0, 2.0]).save_pretrained(tmp_path)
    assert LDMAEPipeline.from_pretrained(tmp_path).config.latents_std == [1.0, 2.0]


def test_a_pipeline_that_an_older_version_saved_still_loads(tmp_path, caplog):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {
        "_class_name": "LDMAEPipeline",
        "vae": ["ldmae.autoencoders.vmae", "AutoencoderVMAE"],
        "transformer": ["ldmae.diffusion.lightningdit", "LightningDiTTransformer2DModel"],
    }
    del index["auto_map"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for path in tmp_path.rglob("pipeline.py"):
        path.unlink()
    loaded = LDMAEPipeline.from_pretrained(tmp_path)
    assert caplog.records == []
    assert torch.equal(loaded.decode_latents(noise()), pipe.decode_latents(noise()))
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["vae"][0] == "pipeline"


def test_saved_pipeline_loads_in_a_fresh_process(tmp_path):
    pipe = pipeline(id2label=NAMES)
    pipe.save_pretrained(tmp_path)
    torch.save(noise(1), tmp_path / "noise.pt")
    code = (
        "import sys, numpy, torch\n"
        "from ldmae import LDMAEPipeline\n"
        "pipe = LDMAEPipeline.from_pretrained(sys.argv[1])\n"
        "latents = torch.load(sys.argv[1] + '/noise.pt', weights_only=True)\n"
        "images = pipe('hen', latents=latents, num_inference_steps=2, output_type='np').images\n"
        "numpy.save(sys.argv[1] + '/images.npy', images)\n"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = pipe(["hen"], latents=noise(1), num_inference_steps=2, output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-5)


def test_pipeline_with_a_foreign_autoencoder_saves_and_loads(tmp_path):
    pipe = pipeline(tiny_kl(), latents_mean=MEAN, latents_std=STD)
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = LDMAEPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.float16
    assert isinstance(loaded.vae, AutoencoderKL)


class AutoencoderRAE(ModelMixin):
    """Decodes to [0, 1], as diffusers' class of this name does."""

    config = MappingProxyType({})

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2) > 0).float()


def test_pictures_of_a_decoder_to_zero_and_one_are_not_washed_out():
    latents = noise()
    images = pipeline(AutoencoderRAE()).decode_latents(latents)
    assert torch.equal(images[..., ::4, ::4], latents[:, :3].sign())


class Own(torch.nn.Module):
    """A user's own autoencoder without weights, which knows nothing of diffusers."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_module_of_ones_own_is_taken_but_never_loaded_from_a_folder(tmp_path):
    pipe = pipeline(Own()).to("cpu")
    expected = pipe.decode_latents(noise())
    assert torch.equal(expected, Own().decode(noise()).clamp(-1, 1))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"names a custom module.*vae=OwnAutoencoder"):
        LDMAEPipeline.from_pretrained(tmp_path)
    again = LDMAEPipeline.from_pretrained(tmp_path, vae=OwnAutoencoder(Own()))
    assert torch.equal(again.decode_latents(noise()), expected)


def test_pipeline_made_from_another_shares_its_parts():
    for vae in (tiny_vmae(), tiny_kl()):
        pipe = pipeline(vae, id2label=NAMES, latents_mean=MEAN, latents_std=STD)
        other = LDMAEPipeline.from_pipe(pipe)
        assert other.vae is vae
        assert torch.equal(sampled(other, ("hen",), latents=noise(1)), sampled(pipe, (3,), latents=noise(1)))


def test_parts_of_a_pipeline_make_one_that_gives_the_same_images():
    pipe = pipeline(tiny_kl(), id2label=NAMES, latents_mean=MEAN, latents_std=STD)
    other = LDMAEPipeline(**pipe.components)
    assert other.class_id("hen") == 3
    assert torch.equal(other.decode_latents(noise()), pipe.decode_latents(noise()))


def test_pipeline_made_from_another_keeps_any_autoencoder():
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    for vae in (tiny, Own()):
        pipe = pipeline(vae, id2label=NAMES)
        assert LDMAEPipeline.from_pipe(pipe).vae is pipe.vae


def test_pipeline_with_a_compiled_autoencoder_saves_its_weights(tmp_path):
    vae = torch.compile(tiny_vmae(), backend="eager")
    pipe = LDMAEPipeline(vae, tiny_transformer(), FlowMatchEulerDiscreteScheduler(), NAMES)
    pipe.save_pretrained(tmp_path)
    loaded = LDMAEPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode_latents(noise()), pipe.decode_latents(noise()))


def test_a_decoder_that_draws_noise_draws_it_from_the_call_s_generator():
    class Drawing(Own):
        def decode(self, latents, generator=None):
            return super().decode(latents) + randn_tensor((len(latents), 3, 16, 16), generator)

    pipe = pipeline(Drawing())

    def images(labels, seeds):
        noises = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
        return pipe(labels, num_inference_steps=1, output_type="pt", generator=noises).images

    both = images([1, 2], (7, 8))
    assert torch.equal(both, images([1, 2], (7, 8)))
    torch.testing.assert_close(both[1:], images([2], (8,)))


def test_numbers_are_taken_in_the_forms_that_users_give_them():
    pipe = pipeline()
    expected = sampled(pipe, guidance_scale=2.0)
    found = sampled(pipe, num_inference_steps=4.0, guidance_scale=torch.tensor(2), guidance_interval=None)
    assert torch.equal(found, expected)


# ---- what is not finite


def test_an_autoencoder_that_overflows_raises_and_makes_no_black_image():
    vae = tiny_vmae()
    vae.from_latent.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"AutoencoderVMAE.decode returned NaN"):
        pipeline(vae)([1], num_inference_steps=1)


def test_a_transformer_that_overflows_raises_also_where_latents_are_asked_for():
    transformer = tiny_transformer()
    next(transformer.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"LightningDiTTransformer2DModel, in steps of .* returned NaN"):
        sampled(pipeline(transformer=transformer))


# ---- mistakes


@pytest.mark.parametrize("step", [lambda v, t, x, **_: x, lambda v, t, x, **_: (x[..., :2],)])
def test_a_scheduler_that_steps_to_something_else_is_named(step):
    pipe = pipeline()
    pipe.scheduler.step = step
    with pytest.raises(UserError, match=r"Scheduler.step must return .* of shape \(2, 4, 4, 4\)"):
        sampled(pipe)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["goldfisch"], {}, "did you mean 'goldfish'"),
        ([5], {}, "classes 0 to 4; for images without a class set guidance_scale=0"),
        ([-1], {}, "out of range"),
        ([1.5], {}, "number or a name"),
        ([], {}, "class_labels is empty"),
        ([1], {"latents": torch.zeros(2, 4, 4, 4)}, r"latents must have the shape \(1, 4, h, w\)"),
        ([1], {"latents": torch.zeros(1, 3, 4, 4)}, r"got \(1, 3, 4, 4\)"),
        ([1], {"guidance_interval": (0.5, 1.2)}, "guidance_interval"),
        ([1], {"guidance_interval": (0.8, 0.2)}, "guidance_interval"),
        ([1], {"guidance_channels": 5}, "guidance_channels must be a whole number from 1 to 4"),
        ([1], {"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1"),
        ([1], {"timestep_shift": -1.0}, "timestep_shift"),
        ([1], {"output_type": "pill"}, "did you mean 'pil'"),
        ([1], {"callback_on_step_end_tensor_inputs": ["velocity"]}, "callback_on_step_end_tensor_inputs"),
        ([1], {"callback_on_step_end_tensor_inputs": "velocity"}, "tensor_inputs 'velocity'"),
        ([1, 2], {"generator": [torch.Generator()]}, "one for each image, got 1 for 2"),
        ([1, 2], {"generator": (torch.Generator(),)}, "one for each image, got 1 for 2"),
        ([1], {"generator": 5}, r"got 5; make one of a seed with torch\.Generator\(\)\.manual_seed"),
        ([1], {"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ([1], {"guidance_scale": float("inf")}, "guidance_scale must be a finite number, got inf"),
        ([1], {"guidance_scale": "2"}, "guidance_scale must be a finite number, got '2'"),
        ([1], {"guidance_interval": (float("nan"), 1.0)}, "guidance_interval must be a finite number"),
        ([1], {"guidance_interval": (0.1, float("inf"))}, "guidance_interval must be a finite number"),
        ([1], {"guidance_interval": 0.5}, "guidance_interval must be two rising times"),
        ([1], {"guidance_channels": "3"}, "guidance_channels must be a finite number"),
        ([1], {"num_inference_steps": 2.5}, "num_inference_steps must be a whole number from 1"),
        ([1], {"num_inference_steps": 10**15}, "to 1,000,000, got"),
        ([1], {"timestep_shift": float("nan")}, "timestep_shift must be a finite number"),
        ([1], {"timestep_shift": float("inf")}, "timestep_shift must be a finite number"),
        ([1], {"timestep_shift": 1e-320}, "timestep_shift must be 0 or from 1e-06 to 1e\\+06"),
        ([1], {"timestep_shift": 1e9}, "timestep_shift must be 0 or from"),
        ([1], {"latents": torch.full((1, 4, 4, 4), float("nan"))}, "latents hold NaN"),
        ([1], {"latents": np.zeros((1, 4, 4, 4))}, "got ndarray"),
        (
            [1],
            {"callback_on_step_end": lambda *a: {"latents": a[3]["latents"][:, :3]}},
            r"got Tensor \(1, 3, 4",
        ),
        ([1], {"callback_on_step_end": lambda *a: a[3]["latents"]}, "must return a dictionary.* got Tensor"),
    ],
)
def test_mistakes_are_named(labels, options, message):
    with pytest.raises(UserError, match=message):
        pipeline(id2label=NAMES)(labels, **{"num_inference_steps": 1, **options})


@pytest.mark.parametrize("number", [2, 3, 99, -1])
def test_a_name_of_a_class_that_the_transformer_lacks_is_refused(number):
    transformer = tiny_transformer(num_classes=2)  # 2 is its null class
    with pytest.raises(UserError, match=f"class label {number} is out of range; this model knows classes 0"):
        pipeline(transformer=transformer, id2label={number: "cat"})("cat", num_inference_steps=1)


@pytest.mark.parametrize("names", [["cat", "dog"], {"x": "cat"}])
def test_names_of_another_form_are_refused(names):
    with pytest.raises(UserError, match="id2label must be a dictionary from class numbers to names"):
        pipeline(id2label=names)


def test_a_pipeline_without_an_autoencoder_gives_latents_alone(tmp_path):
    pipe = pipeline()
    pipe.vae, expected = None, sampled(pipe)
    bare = LDMAEPipeline(None, pipe.transformer, pipe.scheduler)
    assert torch.equal(sampled(bare), expected)
    bare.save_pretrained(tmp_path)
    assert LDMAEPipeline.from_pretrained(tmp_path).vae is None
    with pytest.raises(UserError, match=r"has no autoencoder .* set output_type='latent'"):
        bare([1], num_inference_steps=1)


@pytest.mark.parametrize("parts", [("vae", "vae"), ("transformer", "vae"), ("vae", None)])
def test_a_model_in_the_place_of_the_transformer_is_named(parts):
    pipe = pipeline()
    vae, transformer = (part and getattr(pipe, part) for part in parts)
    with pytest.raises(UserError, match=r"config of the transformer .* has no .*num_classes"):
        LDMAEPipeline(vae, transformer, pipe.scheduler)([1])


def test_what_is_no_module_is_no_autoencoder():
    with pytest.raises(UserError, match=r"an autoencoder is a torch\.nn.Module, got str"):
        LDMAEPipeline("vae", tiny_transformer(), pipeline().scheduler)


def test_latents_of_a_callback_are_computed_with_in_float32():
    made = sampled(pipeline(), callback_on_step_end=lambda *a: {"latents": a[3]["latents"].bfloat16()})
    assert made.dtype == torch.float32


def test_a_callback_may_return_nothing():
    seen = []
    pipe = pipeline()
    made = sampled(pipe, callback_on_step_end=lambda pipe, i, timestep, tensors: seen.append(i))
    assert seen
    torch.testing.assert_close(made, sampled(pipe))


def test_names_without_a_list_of_names_are_refused():
    with pytest.raises(UserError, match="no id2label"):
        pipeline()("goldfish")


@pytest.mark.parametrize("changes", [{"num_classes": 1}, {"class_dropout_prob": 0.0}])
def test_guidance_without_a_null_class_is_refused(changes):
    pipe = pipeline(transformer=tiny_transformer(**changes))
    with pytest.raises(UserError, match="needs a null class"):
        pipe([0], guidance_scale=2.0)
    assert len(pipe([0], num_inference_steps=1).images) == 1


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="got DDIMScheduler"):
        pipeline(scheduler=DDIMScheduler())([1])
    with pytest.raises(UserError, match="invert_sigmas"):
        pipeline(scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True))([1])
    with pytest.raises(UserError, match="have 2 channels"):
        pipeline(tiny_vmae(latent_channels=2))([1])
    with pytest.raises(UserError, match="belong together"):
        pipeline(latents_mean=MEAN)
    with pytest.raises(UserError, match="latents_mean has 3 numbers for 4 channels"):
        pipeline(latents_mean=MEAN[:3], latents_std=STD[:3])([1])
    with pytest.raises(UserError, match="latents_std has 3 numbers for 4 channels"):
        pipeline(latents_mean=MEAN, latents_std=STD[:3])([1])


def test_a_failed_call_leaves_the_scheduler_as_it_was():
    pipe = pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    before = copy.deepcopy(dict(pipe.scheduler.config))

    def fail(pipe, i, timestep, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampled(pipe, timestep_shift=0.3, callback_on_step_end=fail)
    assert pipe.scheduler.shift == 2.0
    assert dict(pipe.scheduler.config) == before
