"""One function an arrow: images → autoencoder → latents → diffusion → samples → evaluation → report.

Stages hand each other artefacts on disk, in the run folder; only here are they joined.
"""

from pathlib import Path

from ldmae.config import Config
from ldmae.recipes.evaluation import evaluate, report
from ldmae.recipes.generation import sample, save_pipeline
from ldmae.recipes.latents import encode
from ldmae.recipes.run import Run, open_run
from ldmae.recipes.training import train_autoencoder, train_diffusion
from ldmae.stages import locked

__all__ = [
    "Run",
    "encode",
    "evaluate",
    "open_run",
    "report",
    "run_all",
    "sample",
    "save_pipeline",
    "train_autoencoder",
    "train_diffusion",
]


def run_all(config: Config, folder: Path, restart: str | None = None) -> Run:
    """Runs every stage that is not done; the same call goes on where it was interrupted.

    Args:
        config: the settings.
        folder: the run folder.
        restart: a stage to begin anew, with all after it.

    Raises:
        UserError: a mistake that the user can mend.
    """
    with locked(folder):
        run = open_run(config, folder, restart)
        for arrow in (train_autoencoder, encode, train_diffusion, save_pipeline, sample, evaluate, report):
            arrow(run)
        run.accelerator.end_training()
    return run
