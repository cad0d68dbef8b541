"""The pipeline: images → autoencoder → latents → diffusion → pipeline → samples → evaluation → report.

Every stage in order, with what it reads, what it makes and which settings decide it. What is fresh, what is
refused, what a restart forgets and what a run does next follow from this list and from what is recorded on
disk (`schedule.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ldmae.config import Config, plain
from ldmae.core.imports import code_fingerprint
from ldmae.run import initial_diffusion
from ldmae.run.decoder_change import CHANGE, TABLE, check_change, measure_change
from ldmae.run.evaluate import check_evaluation, evaluate, evaluation_settings
from ldmae.run.initial import INITIAL, copying, keep_initial
from ldmae.run.latents import adopt_latents, all_encoded, encode
from ldmae.run.pipeline import save_pipeline
from ldmae.run.preflight import check_guidance
from ldmae.run.reporting import report
from ldmae.run.run import Stage, kept_model
from ldmae.run.sampling import sample
from ldmae.run.training import load_networks, train_autoencoder, train_diffusion
from ldmae.run.trainings import autoencoder_trainings, latents_settings, training_settings


def stages(config: Config, precision: str = "no") -> tuple[Stage, ...]:
    """Returns the stages of a run, in order; the precision, `no`, `bf16` or `fp16`, is that of the device."""
    trained = training_settings(config, precision)
    return (*_autoencoder(config, trained), *_diffusion(config, trained), *_results(config))


def _autoencoder(config: Config, trained: dict[str, dict[str, Any]]) -> Iterator[Stage]:
    """Images → autoencoder, by the trainings that its kind declares; the last one makes it."""
    listed, init = autoencoder_trainings(config), config.autoencoder.init
    if listed and init is not None:
        yield copying(INITIAL, init, keep_initial)
    first = ("images",) if init is None else ("images", INITIAL)
    befores = [first, *((name,) for name in listed)]
    for reads, (name, training) in zip(befores, listed.items(), strict=False):
        last = name == [*listed][-1]
        yield Stage(
            name=name,
            title=training.title,
            reads=reads,
            outputs=("autoencoder", "encoder") if last else (name,),
            makes=("autoencoder",) if last else (kept_model(name),),
            settings=trained[name],
            execute=partial(train_autoencoder, name),
            steps=training.config.steps if training.config is not None else 0,
            costly=True,
            any_precision=config.mixed_precision == "auto",
            keeps=("encoder",) if training.keeps_encoder else (),
            code=code_fingerprint(config.autoencoder.own_kind),
            command="ldmae train autoencoder",
            prepare=partial(load_networks, training) if training.prepare is not None else None,
        )
    if listed and config.autoencoder.kind == "decoder":
        yield Stage(
            name=CHANGE,
            title="before and after",
            makes=(TABLE,),
            execute=measure_change,
            prepare=check_change,
            always=True,
        )


def _diffusion(config: Config, trained: dict[str, dict[str, Any]]) -> Iterator[Stage]:
    """Autoencoder → latents → diffusion → pipeline."""
    init = config.diffusion.init
    yield Stage(
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
    )
    if init is not None:
        yield copying(
            initial_diffusion.INITIAL,
            init,
            initial_diffusion.keep_initial_diffusion,
            initial_diffusion.CLASSES,
        )
    yield Stage(
        name="diffusion",
        title="diffusion",
        reads=("latents",) if init is None else ("latents", initial_diffusion.INITIAL),
        outputs=("diffusion",),
        makes=("diffusion", initial_diffusion.ADAPTER) if config.diffusion.lora.rank else ("diffusion",),
        settings=trained["diffusion"],
        execute=train_diffusion,
        prepare=None if init is None else initial_diffusion.check_initial_diffusion,
        steps=config.diffusion.training.steps,
        costly=True,
        any_precision=config.mixed_precision == "auto",
        code=code_fingerprint(config.diffusion.other_kind),
        command="ldmae train diffusion",
    )
    yield Stage(
        name="pipeline",
        title="joining",
        reads=("autoencoder", "latents", "diffusion"),
        outputs=("pipeline",),
        makes=("pipeline",),
        settings={"timestep_shift": config.sampling.timestep_shift, "solver": config.sampling.solver},
        execute=save_pipeline,
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
            prepare=check_guidance,
            code=code_fingerprint(config.sampling.own_solver),
        ),
        Stage(
            name="evaluation",
            title="evaluation",
            reads=("images", "pipeline"),
            makes=("results.json", "results"),
            settings=evaluation_settings(config),
            execute=evaluate,
            prepare=check_evaluation,
        ),
        Stage(
            name="report",
            title="report",
            makes=("report.html", "overview.png"),
            execute=report,
            always=True,
        ),
    )
