"""The verb that publishes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldmae.cli.options import AllowCode, examples, open_runs
from ldmae.cli.output import main_process, say
from ldmae.core.errors import UserError

app = typer.Typer()


@app.command(
    "publish",
    epilog=examples(
        'ldmae publish runs/emoji my-emoji --licence apache-2.0 --data "Twemoji, CC-BY 4.0"',
        "ldmae publish runs/emoji my-vmae --licence apache-2.0 --autoencoder --onnx",
        "ldmae publish runs/emoji my-emoji --licence apache-2.0 --push OWNER/NAME",
    ),
)
def _publish(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    folder: Annotated[Path, typer.Argument(help="A new folder, in diffusers' format.")],
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the weights, as the Hub names it: apache-2.0, cc-by-4.0, other, …"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="What the card calls the training data. Default: the run's name for it."),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="A text file with limits of the model for the card, a sentence a line."),
    ] = None,
    autoencoder: Annotated[
        bool, typer.Option("--autoencoder", help="Publish the autoencoder without the diffusion model.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Save the weights in half precision.")] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Add encoder and decoder as ONNX files. Needs the extra `onnx`."),
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the Hub. Needs a login.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a private repository.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Publish a run's model: weights as safetensors, and a model card with metrics, images and limits.

    The folder loads with DiffusionPipeline.from_pretrained(…, trust_remote_code=True), where ldmae is
    installed.
    """
    if licence is None:
        raise UserError(
            "--licence is missing; name that of the weights, such as --licence apache-2.0. Consider "
            "the licence of the training images, too"
        )
    if private and push is None:
        raise UserError("--private goes with --push OWNER/NAME; omit it")
    open_runs()
    from ldmae.run.publish import Publication, publish

    if main_process():
        how = Publication(
            licence=licence,
            data=data,
            limits=limits,
            autoencoder=autoencoder,
            half=half,
            onnx=onnx,
            push=push,
            private=private,
            allow_code=allow_code,
        )
        address = publish(run, folder, how)
        say(f"model card: {folder / 'README.md'}" + (f"\nuploaded:   {address}" if address else ""))
