"""The command line: thin layers over `ldmae.run`.

What takes long to import is imported when a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from ldmae import __version__
from ldmae.cli import evaluate, finetune, prepare, publish
from ldmae.cli.options import (
    AllowCode,
    AutoencoderSource,
    DataOverrides,
    DryRun,
    Overrides,
    Preset,
    Restart,
    examples,
    next_folder,
    open_runs,
    refuse,
    resolve,
    run_config,
)
from ldmae.cli.output import main_process, say
from ldmae.core.errors import UserError

app = typer.Typer(
    name="ldmae",
    help="Train, use and evaluate autoencoders for latent diffusion.",
    epilog=examples("ldmae run emoji", "ldmae run quick data=PATH", "ldmae run --help"),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PipelineSource = Annotated[
    str, typer.Argument(help="A run folder, a pipeline's diffusers folder or Hub name, or pretrained:NAME.")
]
_RunOut = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/PRESET.")]
_train_app = typer.Typer(
    help="Train the autoencoder or the diffusion model in a run folder.", no_args_is_help=True
)
app.add_typer(_train_app, name="train")
app.add_typer(prepare.app, name="prepare")
app.add_typer(finetune.app, name="finetune")
for verbs in (evaluate.app, publish.app):
    app.add_typer(verbs)  # without a name: its verbs stand beside the others


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ldmae {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, use and evaluate autoencoders for latent diffusion."""


@app.command(
    "run",
    epilog=examples(
        "ldmae run emoji",
        "ldmae run quick data=PATH",
        "ldmae run imagenet-256 data=TRAIN data.val=VAL --dry-run",
        "ldmae run emoji diffusion.training.steps=5000 --out runs/longer",
    ),
)
def _run(
    preset: Preset,
    overrides: Overrides = None,
    out: _RunOut = None,
    restart: Restart = None,
    dry_run: DryRun = False,
) -> None:
    """Run every stage: images → autoencoder → latents → diffusion → samples → evaluation → report.

    The same command resumes an interrupted run and skips finished stages.
    """
    config, folder = resolve(preset, overrides, out)
    runs = open_runs()
    if dry_run:
        there = runs.describe_standings(config, folder, restart)
        say("\n".join([runs.describe_plan(config, folder), *(f"# {line}" for line in there)]))
        return
    runs.run_all(config, folder, restart)
    say(f"samples: {folder / 'samples' / 'grid.png'}\nreport:  {folder / 'report.html'}")


@_train_app.command("autoencoder", epilog=examples("ldmae train autoencoder emoji"))
def _train_autoencoder(
    preset: Preset, overrides: Overrides = None, out: _RunOut = None, restart: Restart = None
) -> None:
    """Train the autoencoder: masked pre-training, then decoder tuning."""
    config, folder = resolve(preset, overrides, out)
    runs = open_runs()
    runs.run_stages(config, folder, "autoencoder", restart=restart)
    say(f"autoencoder: {folder / 'autoencoder'}" if config.autoencoder.source is None else "nothing to train")


@_train_app.command(
    "diffusion",
    epilog=examples("ldmae train diffusion emoji diffusion.training.steps=5000 --restart diffusion"),
)
def _train_diffusion(
    preset: Preset, overrides: Overrides = None, out: _RunOut = None, restart: Restart = None
) -> None:
    """Train the diffusion model on the latents of the run folder."""
    config, folder = resolve(preset, overrides, out)
    runs = open_runs()
    runs.run_stages(config, folder, "diffusion", restart=restart)
    say(f"diffusion model: {folder / 'diffusion'}")


@app.command(
    "encode",
    epilog=examples(
        "ldmae encode runs/emoji",
        "ldmae encode official:vmaef8d16.pth data=PATH --out latents",
        "ldmae encode OWNER/NAME data=PATH image_size=256 latents.flip=false --out latents",
    ),
)
def _encode(
    source: AutoencoderSource,
    overrides: DataOverrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder for the shards; required with data=PATH.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Encode images into latents, as shards in LightningDiT's layout with latents_stats.pt.

    A run folder without settings: its training images, into its latents/.

    With data=PATH: all images of PATH, with any autoencoder, into --out.
    """
    runs = open_runs(overrides)
    if runs.is_run_folder(source) and not overrides:
        refuse(out, "--out", "a run's own latents go into its latents/; for other images add data=PATH")
        folder = Path(source)
        runs.run_stages(run_config(folder, None, allow_code), folder, "latents")
        say(f"latents: {folder / 'latents'}")
        return
    if out is None:
        raise UserError("--out is missing; give the folder for the latents, such as --out latents")
    count = runs.encode_with(source, overrides or [], out, allow_code)
    say(f"latents of {count} images: {out}")


@app.command(
    "sample",
    epilog=examples(
        "ldmae sample runs/emoji",
        "ldmae sample pretrained:emoji-three --class animals",
        "ldmae sample runs/emoji --class clocks --class flags --count 16 --guidance 4",
        "ldmae sample FOLDER --steps 100 --solver heun --out images",
    ),
)
def _sample(
    source: _PipelineSource,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Class name or number; may be repeated. Default: all."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Images per class.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise; the same seed gives the same images.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is off, higher follows the class more closely.")
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="euler, heun (second order, about twice as slow), or package.module:Name."),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Time shift s; below 1, more steps are near the noise.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: RUN/samples-NUMBER, or ./samples.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Generate images with a trained pipeline: a class grid, PNG files, and their settings.

    For a run folder and pretrained:NAME, the defaults are the settings it was made with. For another
    pipeline they are 8 images of each class (24 classes at most), 50 steps of its solver, and no guidance.
    """
    runs = open_runs()
    named = {
        "per_class": count,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "solver": solver,
        "timestep_shift": shift,
    }
    changes = {name: value for name, value in named.items() if value is not None}
    if runs.is_run_folder(source):
        folder = Path(source)
        if not (changes or classes or out or device != "auto"):
            config = run_config(folder, None, allow_code)
            runs.run_stages(config, folder, "pipeline", "samples")
            say(f"samples: {folder / 'samples' / 'grid.png'}")
            return
        if not (folder / "pipeline").exists() or runs.outdated_parts(source):
            runs.run_stages(run_config(folder, None, allow_code), folder, "pipeline")
    if main_process():  # generating is not shared among processes
        numbered = out is None and runs.is_run_folder(source)
        place = next_folder(Path(source)) if numbered else contextlib.nullcontext(out or Path("samples"))
        with place as chosen:
            grid = runs.sample_from(source, classes or [], changes, chosen, device, allow_code)
        say(f"samples: {grid}")


@app.command("report", epilog=examples("ldmae report runs/emoji"))
def _report(run: Annotated[Path, typer.Argument(help="A run folder, finished or in progress.")]) -> None:
    """Write report.html again from the files of a run folder."""
    runs = open_runs()
    runs.check_run_folder(run)
    if main_process():
        say(f"report: {runs.render_report(run)}")


@app.command(
    "convert",
    epilog=examples(
        "ldmae convert vmaef8d16.pth vmae --latents-stats latents_stats.pt",
        "ldmae convert lightningdit.pt transformer --num-classes 1000",
        "ldmae convert runs/emoji/autoencoder vmae.pth --to-official",
    ),
)
def _convert(
    source: Annotated[
        Path, typer.Argument(help="An official .pth or .pt file, or a diffusers folder with --to-official.")
    ],
    out: Annotated[Path, typer.Argument(help="A new diffusers folder, or a new file with --to-official.")],
    to_official: Annotated[
        bool, typer.Option("--to-official", help="Convert back: a diffusers folder to an official file.")
    ] = False,
    kind: Annotated[
        str | None, typer.Option(help="vmae or lightningdit. Default: recognised by the file's keys.")
    ] = None,
    encoder_heads: Annotated[
        int | None,
        typer.Option(help="VMAE: attention heads of the encoder, if not those of the official sizes."),
    ] = None,
    decoder_heads: Annotated[
        int | None,
        typer.Option(help="VMAE: attention heads of the decoder, if not those of the official sizes."),
    ] = None,
    latents_stats: Annotated[
        Path | None, typer.Option(help="VMAE: latents_stats.pt, whose values go into the model's config.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="LightningDiT: attention heads, if the file does not contain them.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="LightningDiT: classes, if the file does not contain them.")
    ] = None,
) -> None:
    """Convert an official VMAE or LightningDiT checkpoint to a diffusers folder, or back."""
    runs = open_runs()
    if to_official:
        given = {
            "--kind": kind,
            "--encoder-heads": encoder_heads,
            "--decoder-heads": decoder_heads,
            "--latents-stats": latents_stats,
            "--heads": heads,
            "--num-classes": num_classes,
        }
        for option, value in given.items():
            refuse(value, option, "with --to-official it comes from the folder")
        model = runs.convert_to_official(source, out)
    else:
        model = runs.convert_official(
            source,
            out,
            kind,
            encoder_num_attention_heads=encoder_heads,
            decoder_num_attention_heads=decoder_heads,
            latents_stats=latents_stats,
            num_attention_heads=heads,
            num_classes=num_classes,
        )
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(f"{type(model).__name__}, {count / 1e6:.2f} M parameters: {out}")


@app.command("presets")
def _presets() -> None:
    """List the presets, cheapest first."""
    from ldmae.config import preset_names, preset_text

    names = preset_names()
    for name in names:
        typer.echo(f"{name:<{max(map(len, names))}}  {preset_text(name).splitlines()[0].removeprefix('# ')}")


@app.command("schema", epilog=examples("ldmae schema > ldmae.schema.json"))
def _schema() -> None:
    """Print the JSON schema of the settings, with which an editor completes and checks a YAML file."""
    import json

    from ldmae.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command(
    "app",
    epilog=examples(
        "ldmae app",
        "ldmae app runs/emoji",
        "ldmae app runs/emoji --compare runs/digits --compare OWNER/NAME --host 0.0.0.0",
    ),
)
def _open_page(
    source: _PipelineSource = "pretrained:emoji-three",
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: all that can reach it."
        ),
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port. Default: the first free one from 7860.")] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Also open a public address through gradio.live, for up to a week."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AUTOENCODER",
            help="An autoencoder to offer for comparison; may be repeated. Visitors from other machines can "
            "choose only among these.",
        ),
    ] = None,
    only_offered: Annotated[
        bool,
        typer.Option(
            "--only-offered",
            help="Visitors can choose only among the offered autoencoders, even on 127.0.0.1; for use "
            "behind a proxy.",
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another host name that the app answers to, such as a reverse proxy's; may be repeated.",
        ),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="Largest upload, in MiB.")] = 10,
    max_megapixels: Annotated[float, typer.Option(help="Largest upload, in million pixels.")] = 50,
    perceptual: Annotated[
        str, typer.Option(help="Perceptual distance: st-lpips-alex, st-lpips-vgg, lpips-vgg or lpips-alex.")
    ] = "st-lpips-alex",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the app in the browser.")] = False,
) -> None:
    """Open the web app: generate, explore the autoencoder, compare autoencoders, read the report.

    Default source: the shipped model, pretrained:emoji-three. The app needs Gradio, the extra `app`.
    """
    from ldmae.app.serve import serve

    serve(
        source,
        host=host,
        port=port,
        share=share,
        compare=tuple(compare or ()),
        only_offered=only_offered,
        allowed_hosts=tuple(allowed_host or ()),
        max_upload_mb=max_upload_mb,
        max_megapixels=max_megapixels,
        perceptual=perceptual,
        device=device,
        open_browser=open_browser,
        say=say,
    )
