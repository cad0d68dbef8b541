"""One function an arrow: images → autoencoder → latents → diffusion → samples → evaluation → report.

Stages hand each other artefacts on disk, in the run folder; only here are they joined.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from ldmae.config import Config
from ldmae.core.errors import UserError
from ldmae.core.files import write_json
from ldmae.core.progress import console
from ldmae.loading import is_run_folder, refuse_code
from ldmae.recipes.compare import compare, describe_comparison, plan_comparison
from ldmae.recipes.convert import convert_official, convert_to_official
from ldmae.recipes.estimate import RunEstimate
from ldmae.recipes.evaluate import (
    check_measurable,
    evaluate,
    measure_autoencoder,
    named_measurements,
    report,
)
from ldmae.recipes.foreign import encode_with, evaluate_with
from ldmae.recipes.generation import sample, sample_from, save_pipeline
from ldmae.recipes.latents import encode
from ldmae.recipes.plan import describe_plan, describe_stages
from ldmae.recipes.run import Run, open_run
from ldmae.recipes.samples import evaluate_samples
from ldmae.recipes.training import train_autoencoder, train_diffusion
from ldmae.report.run import render_report
from ldmae.stages import STAGES, locked, stages_from

__all__ = [
    "Run",
    "compare",
    "convert_official",
    "convert_to_official",
    "describe_comparison",
    "describe_plan",
    "encode",
    "encode_with",
    "evaluate",
    "evaluate_run",
    "evaluate_samples",
    "evaluate_with",
    "is_run_folder",
    "open_run",
    "plan_comparison",
    "refuse_code",
    "render_report",
    "report",
    "run_all",
    "run_arrows",
    "sample",
    "sample_from",
    "save_pipeline",
    "train_autoencoder",
    "train_diffusion",
]


ARROWS = (train_autoencoder, encode, train_diffusion, save_pipeline, sample, evaluate, report)

MADE_BY: dict[Callable[[Run], object], tuple[str, ...]] = {
    train_autoencoder: tuple(stage for stage in STAGES if stage.startswith("autoencoder.")),
    train_diffusion: ("diffusion",),
}
"""The stages that can be begun anew by a command of their own."""


def run_all(config: Config, folder: Path, restart: str | None = None) -> Run:
    """Runs every stage that is not done; the same call goes on where it was interrupted.

    Args:
        config: the settings.
        folder: the run folder.
        restart: a stage to begin anew, with all after it that hangs on it.

    Raises:
        UserError: a mistake that the user can mend.
    """
    with locked(folder):
        run = open_run(config, folder, restart, check_measurable)
        if run.main:
            if Path(sys.argv[0]).name in ("ldmae", "__main__.py"):
                write_json(folder / "run.json", {"command": ["ldmae", *sys.argv[1:]]})
            console.print(describe_stages(config, folder), soft_wrap=True)
        RunEstimate.watch(run)
        return _finish(run, ARROWS)


def run_arrows(
    config: Config, folder: Path, *arrows: Callable[[Run], object], restart: str | None = None
) -> Run:
    """Runs some stages, whose inputs must be there; like `run_all` otherwise.

    Raises:
        UserError: as `run_all`; or `restart` names a stage that none of these makes.
    """
    stages_from(restart)  # its name is looked at
    made = [stage for arrow in arrows for stage in MADE_BY.get(arrow, ())]
    if restart is not None and restart not in made:
        raise UserError(
            f"this command makes {', '.join(made)} and not {restart}; start that again with "
            f"`ldmae run PRESET --restart {restart}`"
        )
    with locked(folder):
        return _finish(open_run(config, folder, restart), arrows)


def evaluate_run(config: Config, folder: Path, only: list[str] | None = None) -> Run:
    """Measures a run: its autoencoder in every way, and its generated images where there is a pipeline.

    Args:
        config: the run's settings.
        folder: the run folder.
        only: names of measurements, of the package's, of one's own, and `generation`; None: all.

    Raises:
        UserError: there is no such measurement.
    """
    autoencoder = named_measurements(only, ("generation",))
    arrows: list[Callable[[Run], object]] = []
    if only is None and not (folder / "diffusion").exists():
        console.print(
            f"{folder} has no diffusion model yet: only its autoencoder is measured", soft_wrap=True
        )
    elif only is None or "generation" in only:
        arrows += [save_pipeline, evaluate]
    run = run_arrows(config, folder, *arrows, measure_autoencoder(autoencoder))
    if run.main:
        render_report(folder)
    return run


def _finish(run: Run, arrows: tuple[Callable[[Run], object], ...]) -> Run:
    for arrow in arrows:
        arrow(run)
    run.accelerator.end_training()
    return run
