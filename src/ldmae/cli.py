"""The command line: a thin skin over recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ldmae.core.errors import UserError

app = typer.Typer(
    name="ldmae",
    help="Latent diffusion models with masked autoencoders: train, use and measure VMAE.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train one of the two models.", no_args_is_help=True)
app.add_typer(train_app, name="train")

Preset = Annotated[str, typer.Argument(help="A preset (`ldmae presets` lists them) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as data=PATH or diffusion.training.steps=2000."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; by default runs/PRESET.")]
Restart = Annotated[
    str | None, typer.Option("--restart", metavar="STAGE", help="Begin this stage anew, with all after it.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print settings, parameters, steps and estimated memory, then stop.")
]


def run_app(application: typer.Typer) -> int:
    """Runs the command line and returns the exit code; 2, without a traceback, for a user's mistake."""
    from rich.console import Console
    from rich.markup import escape

    # Two busy programs on one machine collapse while OpenMP's idle threads spin (150 ms became 4 s a step).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        application(standalone_mode=True)
    except UserError as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True
        )
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on from the last checkpoint")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _resolve(preset: str, overrides: list[str] | None, out: Path | None) -> tuple[Any, Path]:
    from ldmae.config import load_config
    from ldmae.core.device import reuse_freed_memory

    reuse_freed_memory()

    return load_config(preset, overrides), out or Path("runs") / Path(preset).stem


@app.command()
def run(
    preset: Preset,
    overrides: Overrides = None,
    out: Out = None,
    restart: Restart = None,
    dry_run: DryRun = False,
) -> None:
    """Run every stage: images → autoencoder → latents → diffusion → samples → evaluation → report.

    The same command goes on where it was interrupted; what is done and unchanged is not redone.
    """
    config, folder = _resolve(preset, overrides, out)
    from ldmae import recipes

    if dry_run:
        from ldmae.recipes.plan import describe_plan

        typer.echo(describe_plan(config, folder))
        return
    finished = recipes.run_all(config, folder, restart)
    if finished.main:
        typer.echo(f"samples: {folder / 'samples' / 'grid.png'}\nreport:  {folder / 'report.html'}")


@train_app.command("autoencoder")
def train_autoencoder(
    preset: Preset, overrides: Overrides = None, out: Out = None, restart: Restart = None
) -> None:
    """Masked pre-training, then decoder tuning."""
    _arrow("train_autoencoder", preset, overrides, out, restart)


@train_app.command("diffusion")
def train_diffusion(
    preset: Preset, overrides: Overrides = None, out: Out = None, restart: Restart = None
) -> None:
    """Train the diffusion model on the latents of the run folder."""
    _arrow("train_diffusion", preset, overrides, out, restart)


def _arrow(
    name: str, preset: str, overrides: list[str] | None, out: Path | None, restart: str | None
) -> None:
    config, folder = _resolve(preset, overrides, out)
    from ldmae import recipes
    from ldmae.stages import locked

    with locked(folder):
        getattr(recipes, name)(recipes.open_run(config, folder, restart))


@app.command()
def presets() -> None:
    """List the presets, a line each."""
    from ldmae.config import preset_names, preset_text

    names = preset_names()
    for name in names:
        typer.echo(f"{name:<{max(map(len, names))}}  {preset_text(name).splitlines()[0].removeprefix('# ')}")
