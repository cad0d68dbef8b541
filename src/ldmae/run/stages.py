"""The pipeline: images → autoencoder → latents → diffusion → pipeline → samples → evaluation → report.

Every stage in order, with what it reads, what it makes and which settings decide it. What is fresh, what is
refused, what a restart forgets and what a run does next follow from this list and from what is recorded on
disk (`schedule.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ldmae.config import Config
from ldmae.run.evaluate import check_measurable, evaluate, report
from ldmae.run.sampling import sample, save_pipeline
from ldmae.run.latents import adopt_latents, all_encoded, encode
from ldmae.run.own import own_trainings
from ldmae.run.run import Stage
from ldmae.run.recorded import latents_settings, plain, training_settings
from ldmae.run.training import (
    check_networks,
    own_folder,
    pretrain,
    train_baseline,
    train_diffusion,
    train_own,
    tune,
)


def stages(config: Config, precision: str = "no") -> tuple[Stage, ...]:
    """Returns the stages of a run, in order.

    Args:
        config: the settings.
        precision: `no`, `bf16` or `fp16`, as resolved for the device.
    """
    trained = training_settings(config, precision)
    every = (
        *_own_stages(config, trained),
        *_autoencoder(config, trained),
        *_diffusion(config, trained),
        *_results(config),
    )
    return tuple(stage for stage in every if not stage.costly or stage.name in trained)


def _autoencoder(config: Config, trained: dict[str, dict[str, Any]]) -> tuple[Stage, ...]:
    """Images → autoencoder."""
    auto, tuning, train = config.autoencoder, config.autoencoder.tuning, "ldmae train autoencoder"
    return (
        Stage(
            name="autoencoder.pretraining",
            title="pre-training",
            reads=("images",),
            outputs=("pretrained",),
            makes=("checkpoints/autoencoder.pretraining/model",),
            settings=trained.get("autoencoder.pretraining", {}),
            execute=pretrain,
            steps=auto.pretraining.training.steps,
            costly=True,
            command=train,
            prepare=check_networks("pretraining"),
        ),
        Stage(
            name="autoencoder.tuning",
            title="tuning",
            reads=("pretrained",),
            outputs=("autoencoder", "encoder"),
            makes=("autoencoder",),
            settings=trained.get("autoencoder.tuning", {}),
            execute=tune,
            steps=tuning.training.steps if tuning.enabled else 0,
            costly=True,
            keeps=("encoder",) if tuning.freeze_encoder or not tuning.enabled else (),
            command=train,
            prepare=check_networks("tuning") if tuning.enabled else None,
        ),
        Stage(
            name="autoencoder.baseline",
            title="autoencoder",
            reads=("images",),
            outputs=("autoencoder", "encoder"),
            makes=("autoencoder",),
            settings=trained.get("autoencoder.baseline", {}),
            execute=train_baseline,
            steps=auto.baseline.training.steps,
            costly=True,
            command=train,
            prepare=check_networks("baseline"),
        ),
    )


def _diffusion(config: Config, trained: dict[str, dict[str, Any]]) -> tuple[Stage, ...]:
    """Autoencoder → latents → diffusion → pipeline."""
    return (
        Stage(
            name="latents",
            title="encoding",
            reads=("images", "encoder"),
            outputs=("latents",),
            makes=("latents/latents_stats.pt", "latents"),
            settings=latents_settings(config),
            execute=encode,
            command="ldmae encode",
            adopt=adopt_latents,
            complete=all_encoded,
        ),
        Stage(
            name="diffusion",
            title="diffusion",
            reads=("latents",),
            outputs=("diffusion",),
            makes=("diffusion",),
            settings=trained["diffusion"],
            execute=train_diffusion,
            steps=config.diffusion.training.steps,
            costly=True,
            command="ldmae train diffusion",
        ),
        Stage(
            name="pipeline",
            title="joining",
            reads=("autoencoder", "latents", "diffusion"),
            outputs=("pipeline",),
            makes=("pipeline",),
            settings={"timestep_shift": config.sampling.timestep_shift},
            execute=save_pipeline,
        ),
    )


def _results(config: Config) -> tuple[Stage, ...]:
    """Pipeline → samples → evaluation → report."""
    return (
        Stage(
            name="samples",
            title="sampling",
            reads=("pipeline",),
            makes=("samples/grid.png", "samples"),
            settings=plain(config.sampling),
            execute=sample,
        ),
        Stage(
            name="evaluation",
            title="evaluation",
            reads=("images", "pipeline"),
            makes=("results.json", "results"),
            settings={"evaluation": plain(config.evaluation), "sampling": plain(config.sampling)},
            execute=evaluate,
            prepare=check_measurable,
        ),
        Stage(
            name="report",
            title="report",
            makes=("report.html", "overview.png"),
            execute=report,
            always=True,
        ),
    )


def _own_stages(config: Config, trained: dict[str, Any]) -> Iterator[Stage]:
    """Yields the trainings of a user's own autoencoder; the last one makes it."""
    own = own_trainings(config)
    for before, (name, training) in zip(["images", *own], own.items(), strict=False):
        last = name == [*own][-1]
        yield Stage(
            name=name,
            title=training.title,
            reads=(before,),
            outputs=("autoencoder", "encoder") if last else (name,),
            makes=("autoencoder",) if last else (own_folder(name),),
            settings=trained[name],
            execute=train_own(name),
            steps=training.config.steps,
            costly=True,
            command="ldmae train autoencoder",
        )
