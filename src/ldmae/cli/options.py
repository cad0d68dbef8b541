"""What the verbs of the command line share: arguments, default folders, imports that wait."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ldmae.core.errors import UserError
from ldmae.core.files import disk_errors


def examples(*lines: str) -> str:
    """Returns the lines that a verb's help ends with."""
    return "\n\n".join(("Examples:", *lines))


Preset = Annotated[str, typer.Argument(help="A preset (`ldmae presets` lists them) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as data=PATH or diffusion.training.steps=2000."),
]
Restart = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE",
        help="Run this stage again, and those that depend on it where its result changes theirs: "
        "autoencoder.pretraining, autoencoder.tuning, autoencoder.baseline, autoencoder.decoder, latents, "
        "diffusion, pipeline, samples, evaluation or report. A decoder trained again with a frozen "
        "encoder keeps the latents and the diffusion model.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print settings, costs and what is done already; train nothing."),
]
AutoencoderSource = Annotated[
    str,
    typer.Argument(
        help="A run folder, an autoencoder's diffusers folder or Hub name, official:FILE (a VMAE's), "
        "pretrained:NAME, or package.module:Class."
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow the run folder to name code to run, such as your own class."),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings as key=value: data=PATH (a run folder and pretrained:NAME have images of their own), "
        "image_size=256, …"
    ),
]


@contextlib.contextmanager
def next_folder(run: Path) -> Iterator[Path]:
    """Makes the first of RUN/samples-1, RUN/samples-2, … that does not exist; removes it if it stays empty.

    Two commands at the same time get two folders.

    Raises:
        UserError: the run folder is not writable.
    """
    number = 1
    with disk_errors(run):
        while True:
            try:
                (folder := run / f"samples-{number}").mkdir()
                break
            except FileExistsError:
                number += 1
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def name_of(source: str) -> str:
    """Returns what to call an autoencoder's results: the last part of its path or name."""
    source = source.removeprefix("official:")
    if source.startswith("pretrained:"):
        return source.replace(":", "-")
    last = Path(os.path.realpath(source)).name  # unlike Path.resolve also for links in a circle
    return re.sub(r"\.(pth|pt)$", "", last)


def open_runs(overrides: list[str] | None = None) -> Any:
    """Checks the overrides of a verb that resolves them later, imports what runs, prepares the process."""
    from ldmae.config import check_overrides

    check_overrides(overrides or [])  # before the imports, which take seconds
    from diffusers.utils.logging import disable_progress_bar

    from ldmae import run as runs
    from ldmae.core.device import reuse_freed_memory

    reuse_freed_memory()
    disable_progress_bar()  # one for each loaded part of a pipeline says nothing
    return runs


def resolve(preset: str, overrides: list[str] | None, out: Path | None) -> tuple[Any, Path]:
    """Returns the settings of a preset, and the run folder.

    Raises:
        UserError: a setting is wrong, or contradicts the weights that training starts from.
    """
    from ldmae.config import load_config, typed_settings

    config, folder = load_config(preset, overrides), out or Path("runs") / Path(preset).stem
    typed = typed_settings(preset, overrides)
    adapter = (typed.get("diffusion") or {}).get("lora") or {}
    if adapter and "rank" not in adapter and not config.diffusion.lora.rank:
        raise UserError(
            f"diffusion.lora.{next(iter(adapter))} is for an adapter; set diffusion.lora.rank=16, or omit it"
        )
    if config.autoencoder.init is not None or config.diffusion.init is not None:
        from ldmae.run.initial_diffusion import with_initial_weights

        config, _ = with_initial_weights(config, folder, typed)
    return config, folder


def run_config(folder: Path, overrides: list[str] | None = None, allow_code: bool = False) -> Any:
    """Returns the settings of a run, with changes.

    Raises:
        UserError: they name code to run, which is not allowed, or are damaged.
    """
    from ldmae.config import load_config
    from ldmae.run import refuse_code

    path = folder / "config.yaml"
    refuse_code(path, load_config(str(path)).code, allow_code)
    return load_config(str(path), overrides)


def refuse(value: object, option: str, reason: str) -> None:
    """Raises a UserError for an option that was given where it means nothing."""
    if value is not None:
        raise UserError(f"{option} cannot be used here: {reason}; omit it")
