"""The verbs that train a part of a model that exists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldmae.cli.options import (
    AutoencoderSource,
    DryRun,
    Restart,
    examples,
    name_of,
    open_runs,
)
from ldmae.cli.output import main_process, say

app = typer.Typer(help="Train a part of an existing model on your images.", no_args_is_help=True)


@app.command(
    "decoder",
    epilog=examples(
        "ldmae finetune decoder pretrained:emoji data=PATH --dry-run",
        "ldmae finetune decoder pretrained:emoji data=PATH against=emoji",
        "ldmae finetune decoder OWNER/NAME data=PATH image_size=256 --out runs/decoder",
        "ldmae finetune decoder runs/quick data=PATH autoencoder.decoder.training.steps=500",
    ),
)
def _decoder(
    source: AutoencoderSource,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as key=value: data=PATH (needed), against=PATH, image_size=256, …"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-decoder.")] = None,
    restart: Restart = None,
    dry_run: DryRun = False,
) -> None:
    """Train the decoder of an autoencoder on your images; its encoder, and so its latents, stay as they are.

    The result, OUT/autoencoder, is of the same class as the source. A table compares both decoders on images
    held out of data=PATH, and on all images of against=PATH.

    The settings are under autoencoder.decoder. The same command resumes.
    """
    folder = out or Path("runs") / f"{name_of(source)}-decoder"
    runs = open_runs(overrides)
    config = runs.decoder_config(source, overrides or [], folder)
    if dry_run:
        there = runs.describe_standings(config, folder, restart)
        say("\n".join([runs.describe_decoder(config, folder), *(f"# {line}" for line in there)]))
        return
    runs.run_stages(config, folder, "autoencoder", restart=restart)
    if main_process():
        say(f"{runs.describe_change(folder)}\nautoencoder: {folder / 'autoencoder'}")
