"""The verbs that measure: any autoencoder, generated images, and the paper's comparison."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ldmae.cli.options import (
    AllowCode,
    AutoencoderSource,
    DataOverrides,
    Overrides,
    Preset,
    Restart,
    examples,
    name_of,
    open_runs,
    refuse,
    resolve,
    run_config,
)
from ldmae.cli.output import main_process, say

app = typer.Typer()


@app.command(
    "evaluate",
    epilog=examples(
        "ldmae evaluate runs/emoji",
        "ldmae evaluate pretrained:emoji",
        "ldmae evaluate runs/emoji evaluation.images=500 --only smoothness",
        "ldmae evaluate official:vmaef8d16.pth data=PATH",
        "ldmae evaluate OWNER/NAME data=PATH image_size=256 evaluation.perceptual=lpips-vgg",
        "ldmae evaluate my_package.models:MyAutoencoder data=PATH image_size=128 --only smoothness",
        "ldmae evaluate runs/emoji --only my_metric:Sharpness",
    ),
)
def _evaluate(
    source: AutoencoderSource,
    overrides: DataOverrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="May be repeated: reconstruction, smoothness, interpolation, ifid, compression, "
            "probe, components, efficiency; for a run or a shipped model also generation; your own as "
            "package.module:Name. Default: all of the package.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: results/NAME, or the run itself.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Evaluate an autoencoder: print a table, write results.json and report.html.

    A run folder: its autoencoder on its held-out images, and its generated images. Settings of evaluation
    that you give here are kept for the run.

    pretrained:NAME: the same for a model that ships in the package.

    With data=PATH: any autoencoder on all images of PATH.
    """
    runs = open_runs(overrides)
    own = all(item.startswith("evaluation.") for item in overrides or [])
    if runs.is_run_folder(source) and own:
        refuse(out, "--out", "a run's own results go into its results/; for other images add data=PATH")
        folder = Path(source)
        runs.evaluate_run(run_config(folder, overrides, allow_code), folder, only)
    else:
        folder = out or Path("results") / name_of(source)
        runs.evaluate_with(source, overrides or [], folder, only, allow_code)
    _say_results(folder)


@app.command(
    "evaluate-samples",
    epilog=examples(
        "ldmae evaluate-samples runs/emoji evaluation.samples=5000",
        "ldmae evaluate-samples FOLDER data=PATH image_size=256 evaluation.features=inception",
        "ldmae evaluate-samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz",
        "ldmae evaluate-samples runs/emoji --npz samples.npz",
    ),
)
def _evaluate_samples(
    source: Annotated[
        str,
        typer.Argument(
            help="A run folder, a pipeline's diffusers folder or Hub name, pretrained:NAME; or images: a "
            "folder, or an .npz."
        ),
    ],
    overrides: DataOverrides = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Real images, used as they are, instead of data: a folder or an .npz file of ADM."),
    ] = None,
    npz: Annotated[
        Path | None, typer.Option(help="Also write the generated images to this file, for ADM's evaluator.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: results/NAME-samples.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Evaluate generated images: FID, sFID, IS, precision and recall as in ADM's evaluator, KID and MIND.

    The default features are EfficientNet-Lite0's, which need no download; the metrics carry its name.
    evaluation.features=inception gives the published metrics. The floor compares one half of the real images
    with the other.
    """
    folder = out or Path("results") / f"{name_of(source)}-samples"
    runs = open_runs(overrides)
    runs.evaluate_samples(source, overrides or [], folder, reference, npz, allow_code=allow_code)
    _say_results(folder)


@app.command(
    "compare",
    epilog=examples(
        "ldmae compare compare-photos --dry-run",
        "ldmae compare compare-photos",
        "ldmae compare compare-photos --only vmae --only sd-vae --seed 0",
        "ldmae compare compare-photos data=PATH --out runs/mine",
    ),
)
def _compare(
    preset: Preset,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to compare; may be repeated: ae, dae, vae, sd-vae, vmae, or a name of "
            "comparison.ablation. Default: all that the preset names.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed of the preset; may be repeated. Default: all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: runs/PRESET.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of metrics, images and the report. Default: OUT/results.")
    ] = None,
    restart: Restart = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be trained and what it costs; train nothing.",
        ),
    ] = False,
) -> None:
    """Compare AE, DAE, VAE, SD-VAE and VMAE: train each, train a diffusion model on each, evaluate, report.

    The same command resumes, also on another machine that has the results so far.
    """
    _, folder = resolve(preset, overrides, out)
    runs = open_runs()
    results = results or folder / "results"
    if dry_run:
        say(runs.describe_comparison(preset, overrides or [], results, only, seed, restart))
        return
    runs.compare(preset, overrides or [], folder, results, only, seed, ["ldmae", *sys.argv[1:]], restart)
    say(f"report: {results / 'comparison.html'}\ntables: {results / 'tables.md'}")


def _say_results(folder: Path) -> None:
    from ldmae.run import describe_results

    if main_process():
        path = folder / "results.json"
        say(f"{describe_results(path)}\nresults: {path}\nreport:  {folder / 'report.html'}")
