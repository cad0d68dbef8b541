"""What the commands of a run folder do."""

import sys
from pathlib import Path

from ldmae.config import Config
from ldmae.core.errors import UserError
from ldmae.core.files import write_json
from ldmae.core.progress import tell
from ldmae.evaluation.measuring import named_measurements
from ldmae.report.run import render_report
from ldmae.run.estimate import RunEstimate
from ldmae.run.evaluate import measure_autoencoder
from ldmae.run.folders import writing
from ldmae.run.run import Run
from ldmae.run.schedule import execute_stages, find, open_run, select
from ldmae.run.stages import stages
from ldmae.training.checkpoint import list_checkpoints


def run_all(config: Config, folder: Path, restart: str | None = None) -> Run:
    """Runs every stage that is not done; the same call resumes where it was interrupted.

    With `restart` a stage is begun again; what depends on it is made again where it comes out otherwise.

    Raises:
        UserError: a mistake that the user can fix.
    """
    names = [stage.name for stage in stages(config)]
    with writing(folder):
        run = open_run(config, folder, names, restart)
        if run.main:
            if Path(sys.argv[0]).name in ("ldmae", "__main__.py"):
                write_json(folder / "run.json", {"command": ["ldmae", *sys.argv[1:]]})
            tell(_describe_stages(config, folder))
        RunEstimate.watch(run)
        execute_stages(run, *names)
        run.accelerator.end_training()
    return run


def run_stages(config: Config, folder: Path, *names: str, restart: str | None = None) -> Run:
    """Runs some stages, by name, whose inputs must be there; like `run_all` otherwise.

    Raises:
        UserError: as `run_all`; or `restart` is none of these stages.
    """
    made = [stage.name for stage in select(stages(config), names)]
    if restart is not None and find(stages(config), restart).name not in made:
        raise UserError(
            f"this command makes {', '.join(made) or 'nothing'} and not {restart}; start that again with "
            f"`ldmae run PRESET --restart {restart}`"
        )
    with writing(folder):
        run = open_run(config, folder, names, restart)
        execute_stages(run, *names)
        run.accelerator.end_training()
    return run


def evaluate_run(config: Config, folder: Path, only: list[str] | None = None) -> Run:
    """Measures a run: its autoencoder in every way, and its generated images where there is a pipeline.

    `only` names measurements: the package's, one's own, and `generation`.

    Raises:
        UserError: there is no such measurement.
    """
    chosen = named_measurements(only, ("generation",))
    names: tuple[str, ...] = ()
    if only is None and not (folder / "diffusion").exists():
        tell(f"{folder} has no diffusion model yet: only its autoencoder is measured")
    elif only is None or "generation" in only:
        names = ("pipeline", "evaluation")
    with writing(folder):
        run = open_run(config, folder, names)
        execute_stages(run, *names)
        measure_autoencoder(run, chosen)
        run.accelerator.end_training()
    if run.main:
        render_report(folder)
    return run


def _describe_stages(config: Config, folder: Path) -> str:
    """Returns a line that names the stages of a run, with the steps of its trainings done and to do."""
    parts = []
    for stage in stages(config):
        states = list_checkpoints(folder / "checkpoints" / stage.name)
        done = f"{states[-1][0]:,} of " if states else ""
        parts.append(f"{stage.name} ({done}{stage.steps:,} steps)" if stage.steps else stage.name)
    return " → ".join(parts)
