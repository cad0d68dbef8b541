"""The paper's comparison: autoencoders trained alike, the same diffusion model on each one's latents."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmae.autoencoders.baselines import build_baseline, fit_width
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, as_dict, load_config
from ldmae.config.autoencoder import AutoencoderConfig, BaselineConfig, VMAEConfig
from ldmae.config.schema import ABLATION
from ldmae.contracts import RESULTS_SCHEMA
from ldmae.core.errors import UserError, nearest
from ldmae.core.files import atomic_folder, read_json, write_json
from ldmae.core.flops import count_autoencoder_flops
from ldmae.core.locks import locked
from ldmae.core.progress import console
from ldmae.core.provenance import changed
from ldmae.images.base import shortened
from ldmae.report.comparison import render_comparison
from ldmae.report.data import mapping, read_arrays, read_samples
from ldmae.run.estimate import RunEstimate
from ldmae.run.evaluate import check_measurable, measure_autoencoder
from ldmae.run.evaluate_images import evaluate_samples
from ldmae.run.flatness import check_checkpoints, describe_flatness, train_diffusion_with_curve
from ldmae.run.opening import open_accelerator, open_run_images
from ldmae.run.recorded import plain, training_settings, training_steps
from ldmae.run.results import read_results
from ldmae.run.run import Run, images_fingerprint
from ldmae.run.schedule import execute_stages, open_run
from ldmae.run.variants import VARIANTS, Variant, variant


@dataclass(frozen=True)
class Matching:
    """What encode + decode of one image cost, and how the baselines were brought to that."""

    vmae_flops: int
    width: float | None
    """The baselines' multiplier of 128, 256, 512, 512 channels; None where there is none."""
    baseline_flops: int | None
    fitted: bool
    """Whether the width was fitted to VMAE's cost."""
    full_size: dict[str, int]
    """Parameters and operations of a baseline at the paper's width, which is not trained."""


@dataclass(frozen=True)
class Unit:
    """One autoencoder with its diffusion model at one seed."""

    name: str
    seed: int
    config: Config

    @property
    def variant(self) -> Variant:
        """What sets it apart."""
        return variant(self.name)

    @property
    def place(self) -> Path:
        """Where it lies in a folder of units."""
        return Path(self.name.replace(":", ".")) / f"seed-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its figures follow from, as JSON holds it."""
        config = self.config
        rest = ("data", "image_size", "latents", "sampling", "evaluation")
        others = {name: value for name, value in plain(config).items() if name in rest}
        del others["latents"]["num_workers"]  # changes no figure
        return {
            **training_settings(config, config.mixed_precision),
            "steps": training_steps(config),
            **others,
        }


def plan_comparison(preset: str, overrides: list[str]) -> tuple[list[Unit], Matching]:
    """Resolves the settings of every unit of a comparison, in the order in which they are made.

    The baselines get the VMAE's latent shape, its images a step and the steps of both its trainings; where
    `comparison.match_flops` says so, a width at which they cost what it costs.

    Args:
        preset: a preset or a YAML file.
        overrides: settings as key=value, for all units.

    Raises:
        UserError: a setting that is unknown or impossible, for any of the units.
    """
    base = load_config(preset, overrides)
    if base.autoencoder.source is not None or base.autoencoder.kind != "vmae":
        raise UserError(
            "a comparison trains its autoencoders itself: leave autoencoder.source and autoencoder.kind out; "
            "measure another with `ldmae evaluate`"
        )
    auto, wanted = base.autoencoder, base.comparison
    alike: dict[str, object] = {
        "model.factor": auto.model.patch_size,
        "model.latent_channels": auto.model.latent_channels,
        "training.batch_size": auto.pretraining.training.batch_size,
        "training.steps": sum(
            steps for name, steps in training_steps(base).items() if name.startswith("autoencoder.")
        ),
    }
    any_conv = any(variant(name).is_conv for name in (*wanted.autoencoders, *wanted.ablation))
    shape = auto.baseline.model.replace(
        factor=auto.model.patch_size, latent_channels=auto.model.latent_channels
    )
    fitted = shape if any_conv else None
    matching = _match(auto.model, fitted, base.image_size, wanted.match_flops)  # pyright: ignore
    if any_conv:
        alike["model.width"] = matching.width
    shared = [f"autoencoder.baseline.{key}={value}" for key, value in alike.items()]
    asked = [(seed, name) for seed in wanted.seeds for name in wanted.autoencoders]
    asked += [(seed, name) for seed in wanted.ablation_seeds for name in wanted.ablation]
    units = []
    for seed, name in asked:
        of = variant(name)
        own = [*(shared if of.is_baseline else ()), *of.settings, *wanted.settings.get(name, ())]
        units.append(Unit(name, seed, load_config(preset, [*overrides, *own, f"seed={seed}"])))
        check_checkpoints(units[-1].config)
        if units[-1].config.data != base.data:
            raise UserError(f"comparison.settings.{name} changes the images; set data for all units")
    return units, matching


@cache  # counting takes seconds
def _match(vmae: VMAEConfig, shape: BaselineConfig | None, size: int, match_flops: bool) -> Matching:
    with torch.device("meta"):
        flops = count_autoencoder_flops(AutoencoderVMAE(sample_size=size, **as_dict(vmae)), size).total
        if shape is None:
            return Matching(flops, None, None, False, {})
        full = build_baseline(shape.replace(width=1.0), size)
        full_size = {
            "parameters": sum(parameter.numel() for parameter in full.parameters()),
            "flops": count_autoencoder_flops(full, size).total,
        }
        if match_flops:
            fitted = fit_width(shape, size, flops)
            return Matching(flops, fitted.width, fitted.flops, True, full_size)
        own = count_autoencoder_flops(build_baseline(shape, size), size).total
        return Matching(flops, shape.width, own, False, full_size)


def describe_comparison(units: list[Unit], matching: Matching) -> str:
    """Returns the text of `--dry-run`: each unit with its steps, and what the autoencoders cost."""
    lines = []
    for unit in units:
        steps = ", ".join(f"{name} {count:,}" for name, count in training_steps(unit.config).items())
        lines.append(f"{unit.name}, seed {unit.seed}: {unit.variant.title} ({steps} steps)")
    lines.append(f"{len(units)} units, each an autoencoder with its diffusion model at a seed")
    return "\n".join([*lines, *_cost_lines(matching, units[0].config.image_size)])


def _cost_lines(matching: Matching, size: int) -> list[str]:
    def giga(flops: int) -> str:
        return f"{flops / 1e9:.3g} GFLOPs"

    lines = [
        f"encode + decode of one {size} px image (a multiply-add counts 2): VMAE {giga(matching.vmae_flops)}"
    ]
    if matching.width is not None and matching.baseline_flops is not None:
        full = matching.full_size
        lines += [
            f"the baselines, at {matching.width:.4g} of the paper's width: {giga(matching.baseline_flops)}",
            f"the baselines at the paper's width, not trained here: {giga(full['flops'])}, "
            f"{full['parameters'] / 1e6:.1f} M parameters",
        ]
    return lines


def compare(
    preset: str,
    overrides: list[str],
    folder: Path,
    results: Path,
    only: list[str] | None = None,
    seeds: list[int] | None = None,
    command: list[str] | None = None,
) -> None:
    """Trains and measures every unit that is not done, then writes the comparison's report.

    Each unit is a run folder of its own, `folder/NAME/seed-N`, resumable as any; when it is done, its figures
    and pictures go to `results/units/NAME/seed-N`, and from those alone the report is made: they may come
    from several machines and days.

    Args:
        preset: a preset or a YAML file.
        overrides: settings as key=value, for all units.
        folder: where the runs lie.
        results: where figures, pictures and the report lie.
        only: names in `VARIANTS` to take of those that the settings name; None: all.
        seeds: seeds to take of those that the settings name; None: all.
        command: the words that were typed, for the report.

    Raises:
        UserError: a setting is wrong, or a unit in `results` was made with other settings.
    """
    units, matching = plan_comparison(preset, overrides)
    chosen = _chosen(units, only, seeds)
    for unit in chosen:
        _refuse_changes(unit, results)
    accelerator = open_accelerator(units[0].config, folder)
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        _refuse_other_images(units[0], folder, results, main)
    words = shlex.join(command or [])

    def publish() -> None:
        description = {
            "schema": 1,
            "preset": Path(preset).stem,
            "command": words,
            "matching": asdict(matching),
            "units": [{"variant": unit.name, "seed": unit.seed} for unit in units],
        }
        write_json(results / "comparison.json", description)
        render_comparison(results)

    if main:
        console.print("\n".join(_cost_lines(matching, units[0].config.image_size)), soft_wrap=True)
    for number, unit in enumerate(chosen, 1):
        made = results / "units" / unit.place
        if not (made / "unit.json").exists():
            if main:
                console.rule(f"{unit.variant.title}, seed {unit.seed} ({number} of {len(chosen)})")
            _make_unit(unit, folder / unit.place, made, Path(preset).stem, words, matching)
            if main:
                publish()
    if main:
        publish()
    accelerator.end_training()


def _chosen(units: list[Unit], only: list[str] | None, seeds: list[int] | None) -> list[Unit]:
    names = list(dict.fromkeys(unit.name for unit in units))
    known_seeds = sorted({unit.seed for unit in units})
    for name in only or []:
        if name not in names:
            hint = nearest(name, names)
            more = "; the ablation is named by comparison.ablation" if name in ABLATION else ""
            raise UserError(f"nothing called {name!r} is compared{hint}; there are: {', '.join(names)}{more}")
    for seed in seeds or []:
        if seed not in known_seeds:
            raise UserError(
                f"seed {seed} is not among comparison.seeds: {', '.join(map(str, known_seeds))}; add it there"
            )
    return [u for u in units if (not only or u.name in only) and (seeds is None or u.seed in seeds)]


def _refuse_changes(unit: Unit, results: Path) -> None:
    """Raises a UserError for a finished unit that other settings made."""
    path = results / "units" / unit.place / "unit.json"
    if not path.exists():
        return
    if changes := unit_changes(unit, read_json(path, {"settings": dict})["settings"]):
        raise UserError(
            f"{path.parent} was made with other settings: {'; '.join(changes)}. Run the command with the "
            "old ones, name another folder with --results (and --out), or delete that one to make it again"
        )


def unit_changes(unit: Unit, settings: dict[str, Any]) -> list[str]:
    """Returns a line for each setting that differs from those that a finished unit was made with."""
    default = Config(autoencoder=AutoencoderConfig(kind=unit.config.autoencoder.kind))
    return changed(settings, unit.settings, replace(unit, config=default).settings)


def _refuse_other_images(unit: Unit, folder: Path, results: Path, say: bool) -> None:
    """Raises a UserError where finished units are of other images than the settings name now."""
    paths = sorted((results / "units").glob("*/*/unit.json"))
    known = {str(p.parent): mapping(read_json(p, dict).get("data")).get("fingerprint") for p in paths}
    opened = any(known.values()) and open_run_images(unit.config.data, folder / unit.place / "data", say)
    images = images_fingerprint(*opened[1:]) if opened else None
    others = [place for place, fingerprint in known.items() if fingerprint not in (None, images)]
    if others:
        raise UserError(
            f"{shortened(others)}: made of other images than {unit.config.data.source} holds now. Put those "
            "back, name another folder with --results (and --out), or delete these to make them again"
        )
    if say and (silent := [place for place, fingerprint in known.items() if fingerprint is None]):
        console.print(f"units that record no fingerprint of their images: {shortened(silent)}", markup=False)


def _make_unit(unit: Unit, folder: Path, made: Path, preset: str, command: str, matching: Matching) -> None:
    """Trains, samples and measures in a run folder, and keeps what the report needs."""
    with locked(folder):
        run = open_run(unit.config, folder)
        check_measurable(run)
        RunEstimate.watch(run, uncounted="the measurements of a comparison alone")
        execute_stages(run, "autoencoder", "latents")
        train_diffusion_with_curve(run)
        execute_stages(run, "pipeline", "samples")
        began = time.monotonic()
        measure_autoencoder(run)
        execute_stages(run, "report")
        for tracker in run.accelerator.trackers:  # the processes go on together: this was no end of training
            tracker.finish()
    references = folder.parents[1] / "references"
    evaluate_samples(str(folder), [], folder, references=references, allow_code=True)  # which was typed
    if run.main:
        seconds = time.monotonic() - began
        made_by = {"preset": preset, "command": command}
        with atomic_folder(made) as temporary:
            np.savez_compressed(temporary / "images.npz", **_images(folder))
            write_json(temporary / "unit.json", made_by | _document(unit, run, seconds, matching))
    run.accelerator.wait_for_everyone()


def _document(unit: Unit, run: Run, measuring: float, matching: Matching) -> dict[str, Any]:
    """Returns what a finished unit's `unit.json` holds (docs/reference/results-format.md).

    Args:
        unit: what it is.
        run: its run, with all measured.
        measuring: seconds that it took to measure.
        matching: how the baselines' cost was fitted.
    """
    spent = {name: record.seconds for name, record in run.records.stages.items() if record.seconds}
    parameters = read_json(run.folder / "parameters.json", dict)
    steps, small = training_steps(unit.config), unit.name == "sd-vae" and (matching.width or 1) < 1
    return {
        "schema": RESULTS_SCHEMA,
        "variant": unit.name,
        "title": unit.variant.title + ("-style (small)" if small else ""),
        "group": unit.variant.group,
        "order": [*VARIANTS, unit.name].index(unit.name),
        "seed": unit.seed,
        "image_size": unit.config.image_size,
        "steps": {
            "autoencoder": sum(steps.values()) - steps["diffusion"],
            "diffusion": steps["diffusion"],
        },
        "width": matching.width if unit.variant.is_conv else None,
        "parameters": {name: entry["total"] for name, entry in parameters.items()},
        "seconds": {
            name: round(seconds, 3) for name, seconds in {**spent, "measurements": measuring}.items()
        },
        "curves": describe_flatness(run.folder, steps),
        "device": run.records.device,
        "data": read_json(run.folder / "data.json"),
        "finished": run.records.stages["samples"].finished,
        "settings": unit.settings,
        "results": read_results(run.folder / "results.json"),
    }


def _images(folder: Path) -> dict[str, Any]:
    """Returns the images of a run that a comparison shows, by name (docs/reference/results-format.md)."""
    of = {
        name: read_arrays(folder / "results" / f"{name}.npz", [])
        for name in ("reconstruction", "components", "interpolation")
    }
    interpolation, samples = of["interpolation"], read_samples(folder / "samples", [])
    found = {
        **{name: of["reconstruction"].get(name) for name in ("originals", "reconstructions")},
        "components": of["components"].get("components"),
        "interpolation": interpolation.get("rows"),
        "fractions": interpolation.get("fractions"),
        "samples": samples.get("images"),
        "labels": samples.get("labels"),
    }
    return {name: array for name, array in found.items() if array is not None}
