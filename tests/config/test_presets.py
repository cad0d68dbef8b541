import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ldmae import AutoencoderVMAE, LightningDiTTransformer2DModel
from ldmae.autoencoders.baselines import build_baseline
from ldmae.config import Config, as_dict, load_config, preset_names, preset_text
from ldmae.core.flops import count_autoencoder_flops
from ldmae.run import run_stages
from ldmae.run.initial import with_initial_autoencoder
from ldmae.run.plan import plan_trainings

from ..tiny import vmae_sizes

IMAGENET, CELEBAHQ = 1_281_167, 30_000
LARGE = [f"{images}-256{kind}" for images in ("imagenet", "celebahq") for kind in ("", "-plus", "-official")]


@pytest.mark.parametrize("name", preset_names())
def test_preset_begins_with_what_it_is_how_to_run_it_and_what_it_costs(name):
    header = []
    for line in preset_text(name).splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    assert 20 < len(header[0]) <= 110
    assert not header[0].startswith(("Reproduces:", "Command:"))
    for part in ("Reproduces: ", "Command: ", "Cost: "):
        assert any(line.startswith(part) for line in header), f"{name} lacks {part}"
    assert any("Expect: " in line for line in header)
    command = next(line for line in header if line.startswith("Command: "))
    assert re.search(rf"ldmae (run|compare) {name}\b", command)


def trained_by(config: Config) -> list[str]:
    """Returns the trainings that a preset's settings ask for."""
    if config.autoencoder.source is not None:
        return ["diffusion"]
    decoder = config.autoencoder.kind == "decoder"
    whole = ["autoencoder.decoder"] if decoder else ["autoencoder.pretraining", "autoencoder.tuning"]
    return [*whole, "diffusion"]


@pytest.mark.parametrize("name", preset_names())
def test_preset_builds_at_full_size(name, tmp_path):
    config, initial = with_initial_autoencoder(load_config(name), tmp_path)
    plans = {plan.stage: plan for plan in plan_trainings(config, initial=initial)}
    assert [*plans] == [*trained_by(config)]
    for plan in plans.values():
        assert plan.parameters >= plan.trainable > 0
        assert plan.flops > 0


def test_smallest_presets_have_every_stage_and_no_download():
    for name in ("smoke", "emoji", "digits", "quick"):
        config = load_config(name)
        for objective in (config.autoencoder.pretraining.objective, config.autoencoder.tuning.objective):
            assert objective.perceptual.startswith("st-lpips")
        assert config.evaluation.features == "efficientnet_lite0"
        assert config.evaluation.perceptual.startswith("st-lpips")


def test_quick_has_the_cost_of_emoji_and_asks_for_images():
    quick, emoji = load_config("quick"), load_config("emoji")
    assert quick.image_size == 64
    assert quick.image_size // quick.autoencoder.model.patch_size == (
        emoji.image_size // emoji.autoencoder.model.patch_size
    )
    assert quick.diffusion == emoji.diffusion
    assert load_config("quick", ["data=some/folder"]).data.source == "some/folder"


@pytest.mark.parametrize("name", ["quick", "emoji", "emoji-long"])
def test_baselines_train_as_in_the_comparison(name):
    own, compared = (load_config(preset).autoencoder.baseline for preset in (name, "compare-photos"))
    assert own.training.optimizer == compared.training.optimizer.replace(
        warmup_steps=own.training.optimizer.warmup_steps
    )
    for part in ("initial_logvar", "augment", "objective", "discriminator_layers", "discriminator_channels"):
        assert getattr(own, part) == getattr(compared, part), part
    assert (compared.training.optimizer.schedule, compared.training.optimizer.gradient_clip) == (
        "cosine",
        1.0,
    )


@pytest.mark.parametrize("name", ["quick", "emoji-long"])
def test_a_baseline_gets_the_images_and_steps_of_both_of_vmaes_trainings(name):
    auto = load_config(name).autoencoder
    first, second, baseline = auto.pretraining.training, auto.tuning.training, auto.baseline.training
    assert baseline.steps == first.steps + second.steps
    assert baseline.batch_size == first.batch_size == second.batch_size


def test_sd_vae_of_the_guide_is_made_as_in_the_comparison_and_costs_what_quicks_vmae_costs():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "evaluate-autoencoders.md"
    command = (
        page.read_text(encoding="utf-8")
        .split("ldmae run quick data=PATH autoencoder.kind=sd-vae")[1]
        .split(" --out")[0]
    )
    settings = re.findall(r"autoencoder\.\S+=\S+", command)
    config = load_config("quick", ["autoencoder.kind=sd-vae", *settings])
    auto, objective = config.autoencoder, config.autoencoder.baseline.objective
    fitted = load_config("compare-photos").comparison.settings["sd-vae"]
    assert f"autoencoder.baseline.objective.perceptual_weight={objective.perceptual_weight}" in fitted
    assert objective.adversarial_start_step == auto.baseline.training.steps // 2
    with torch.device("meta"):
        costs = [
            count_autoencoder_flops(model, config.image_size).total
            for model in (
                AutoencoderVMAE(sample_size=config.image_size, **as_dict(auto.model)),
                build_baseline(auto.baseline.model, config.image_size),
            )
        ]
    assert costs[1] == pytest.approx(costs[0], rel=0.03)


# ---- the paper's settings, as METHOD states them


@pytest.mark.parametrize("name", LARGE)
def test_paper_presets_have_the_papers_models(name):
    config = load_config(name)
    with torch.device("meta"):
        vmae = AutoencoderVMAE(sample_size=config.image_size, **as_dict(config.autoencoder.model))
        dit = LightningDiTTransformer2DModel(
            sample_size=32, in_channels=16, num_classes=1000, **as_dict(config.diffusion.model)
        )
    assert config.image_size == 256
    assert config.pretraining_size == 128
    assert sum(p.numel() for p in vmae.parameters() if p.requires_grad) / 1e6 == pytest.approx(
        10.80, abs=5e-3
    )
    assert sum(t.numel() for t in vmae.state_dict().values()) / 1e6 == pytest.approx(11.19, abs=5e-3)
    shape = (dit.config["num_layers"], dit.config["num_attention_heads"], dit.config["attention_head_dim"])
    assert (dit.config["patch_size"], *shape) == (1, 12, 12, 64)  # B/1
    assert config.diffusion.model.qk_norm is name.startswith("imagenet")
    assert config.latents.moments
    assert config.latents.flip
    assert config.latents.statistics_samples == 10_000


def test_steps_and_rates_follow_from_epochs_and_batches():
    for name, images in (("imagenet-256", IMAGENET), ("celebahq-256", CELEBAHQ)):
        auto = load_config(name).autoencoder
        epoch = images / 2048
        first, second = auto.pretraining.training, auto.tuning.training
        assert (first.batch_size, second.batch_size) == (2048, 2048)
        assert (first.steps, second.steps) == (round(400 * epoch), round(10 * epoch))
        assert first.optimizer.warmup_steps == round(10 * epoch)
        assert second.optimizer.warmup_steps == 0
        assert first.optimizer.learning_rate == pytest.approx(1e-4 * 2048 / 256)
        assert second.optimizer.learning_rate == pytest.approx(1e-5 * 2048 / 256)
        for optimizer in (first.optimizer, second.optimizer):
            assert (optimizer.betas, optimizer.weight_decay) == ([0.9, 0.95], 0.05)
            assert (optimizer.schedule, optimizer.gradient_clip) == ("cosine", None)


def test_official_imagenet_preset_differs_from_the_papers_as_stated():
    paper, official = load_config("imagenet-256"), load_config("imagenet-256-official")

    def terms(config: Config) -> tuple[float, ...]:
        o = config.autoencoder.pretraining.objective
        weights = (o.visible_weight, o.masked_weight, o.perceptual_weight, o.kl_weight)
        return (o.masking.ratio, *weights, o.prior_std)

    assert terms(paper) == (0.6, 1.0, 1.0, 1.0, 1e-6, 1.0)
    assert terms(official) == (0.25, 0.5, 0.5, 0.5, 1e-6, 1e-3)
    for config, frozen in ((paper, True), (official, False)):
        tuning = config.autoencoder.tuning
        assert tuning.freeze_encoder is frozen
        assert (tuning.objective.masking.ratio, tuning.objective.sample_posterior) == (0.0, False)
        assert (tuning.objective.perceptual, tuning.objective.perceptual_weight) == ("lpips-vgg", 10.0)
    stopped = official.autoencoder.pretraining.training
    assert stopped.steps == round(90 * IMAGENET / 2048)
    assert stopped.optimizer.schedule_steps == paper.autoencoder.pretraining.training.steps
    assert (paper.sampling.guidance_channels, official.sampling.guidance_channels) == (None, 3)
    assert official.sampling.replace(guidance_channels=None) == paper.sampling
    assert official.diffusion == paper.diffusion


@pytest.mark.parametrize("name", ["imagenet-256", "celebahq-256"])
def test_plus_presets_are_the_papers_without_the_perceptual_term_in_decoder_tuning(name):
    paper = load_config(name, ["autoencoder.tuning.objective.perceptual_weight=0"])
    assert load_config(f"{name}-plus") == paper != load_config(name)


@pytest.mark.parametrize("name", LARGE)
def test_paper_presets_train_and_sample_the_diffusion_model_as_stated(name):
    config = load_config(name)
    training, sampling = config.diffusion.training, config.sampling
    faces = name.startswith("celebahq")
    assert (training.batch_size, training.steps) == ((1024, 60_000) if faces else (256, 100_000))
    assert (training.ema_decay, training.optimizer.learning_rate) == (0.9999, 2e-4)
    assert (training.optimizer.schedule, training.optimizer.weight_decay) == ("constant", 0.0)
    assert (sampling.num_inference_steps, sampling.timestep_shift, sampling.solver) == (249, 0.3, "euler")
    assert sampling.guidance_scale == (1.0 if faces else 10.0)
    assert faces or sampling.guidance_interval == [0.1, 1.0]
    assert config.mixed_precision == "bf16"
    assert config.evaluation.samples == 50_000


# ---- one step of each


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    pixels = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(pixels.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def one_process_each():
    """Lets each run choose its precision, as a process of its own could."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def toy(name: str, images: object, source: object) -> Config:
    """Returns a preset at toy size: all that costs is made small, all else stays."""
    full = load_config(name)
    patch = full.autoencoder.model.patch_size
    cells = 8 if patch < 6 else 4  # the perceptual distance sees nothing under 21 px
    trainings = [f"{stage}.training" for stage in trained_by(full)]
    small = [f"data={images}", "data.val=0.3"]
    if full.autoencoder.init is None:  # whose shapes are the weights'
        small += [
            f"image_size={cells * patch}",
            "diffusion.model.num_layers=1",
            "diffusion.model.num_attention_heads=2",
            "diffusion.model.attention_head_dim=8",
        ]
    if full.autoencoder.source is not None:
        small.append(f"autoencoder.source={source}")
    elif full.autoencoder.init is None:
        if full.autoencoder.pretraining.image_size is not None:
            small.append(f"autoencoder.pretraining.image_size={(cells - 1) * patch}")
        for part in ("encoder", "decoder"):
            small += [f"autoencoder.model.{part}_hidden_size=16"]
            small += [f"autoencoder.model.{part}_num_hidden_layers=1"]
            small += [f"autoencoder.model.{part}_num_attention_heads=2"]
        for stage in ("pretraining", "tuning"):  # LPIPS' VGG would be a download
            small.append(f"autoencoder.{stage}.objective.perceptual=st-lpips-alex")
    for training in trainings:
        small += [f"{training}.steps=1", f"{training}.batch_size=4", f"{training}.num_workers=0"]
        small += [f"{training}.micro_batch_size=2"]
    if full.data.classes is not None:
        small.append("data.classes=null")
    return load_config(name, small)


@pytest.mark.parametrize("name", preset_names())
def test_preset_makes_one_step_of_each_training_at_toy_size(name, images, tmp_path):
    AutoencoderVMAE(sample_size=32, **vmae_sizes()).save_pretrained(tmp_path / "vmae")
    config = toy(name, images, tmp_path / "vmae")
    names = ("autoencoder", "latents", "diffusion", "pipeline")
    run = run_stages(config, tmp_path / "run", *names)
    trained = [stage for stage, record in run.records.stages.items() if record.steps == 1]
    assert trained == trained_by(config)
    assert all(record.status == "done" for record in run.records.stages.values())
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
