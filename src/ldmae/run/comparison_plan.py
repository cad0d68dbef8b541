"""What a comparison makes: its units, their settings, and how their cost is matched."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ldmae.autoencoders.baselines import build_baseline, fit_width
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, as_dict, load_config, plain
from ldmae.config.autoencoder import AutoencoderConfig, BaselineConfig, VMAEConfig
from ldmae.config.schema import ABLATION
from ldmae.config.variants import Variant, variant
from ldmae.core.errors import UserError, counted, nearest, shortened
from ldmae.core.files import read_json
from ldmae.core.flops import count_autoencoder_flops
from ldmae.core.provenance import changed
from ldmae.run.flatness import check_checkpoints
from ldmae.run.schedule import find
from ldmae.run.stages import stages
from ldmae.run.trainings import training_settings, training_steps


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

    def is_finished(self, results: Path) -> bool:
        """Says whether it lies in a folder of results."""
        return (results / "units" / self.place / "unit.json").exists()

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
        if (units[-1].config.data, units[-1].config.image_size) != (base.data, base.image_size):
            raise UserError(
                f"comparison.settings.{name} changes the images; set data or image_size for all units"
            )
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
            return Matching(flops, *fit_width(shape, size, flops), True, full_size)
        own = count_autoencoder_flops(build_baseline(shape, size), size).total
        return Matching(flops, shape.width, own, False, full_size)


def describe_comparison(
    preset: str,
    overrides: list[str],
    results: Path,
    only: list[str] | None = None,
    seeds: list[int] | None = None,
    restart: str | None = None,
) -> str:
    """Returns the text of `--dry-run`: each unit with its steps, and what the autoencoders cost.

    Raises:
        UserError: a setting is wrong, or a unit in `results` was made with other settings.
    """
    units, matching = plan_comparison(preset, overrides)
    units, lines = chosen_units(units, only, seeds), list[str]()
    refuse_run(results)
    if restart is not None:
        check_restart(units, results, restart)
    for unit in units:
        steps = ", ".join(f"{name} {count:,}" for name, count in training_steps(unit.config).items())
        refuse_changes(unit, results)
        done = ", finished" if unit.is_finished(results) else ""
        lines.append(f"{unit.name}, seed {unit.seed}: {unit.variant.title} ({steps} steps){done}")
    lines.append(f"{counted(len(units), 'unit')}, each an autoencoder with its diffusion model at a seed")
    return "\n".join([*lines, *cost_lines(matching, units[0].config.image_size)])


def cost_lines(matching: Matching, size: int) -> list[str]:
    """Returns what encode + decode of an image of `size` pixels a side cost, in lines."""

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


_ELSEWHERE = {
    "data": ("source", "val", "max_unreadable"),
    **dict.fromkeys(("latents", "evaluation", "sampling"), ("batch_size",)),
}
"""Settings by group that differ between machines; images are known by their fingerprint."""


def _unit_changes(unit: Unit, made: dict[str, Any]) -> list[str]:
    """Returns a line for each setting that differs from those of a finished unit (its `unit.json`)."""
    default = Config(autoencoder=AutoencoderConfig(kind=unit.config.autoencoder.kind))
    every = made["settings"], unit.settings, replace(unit, config=default).settings
    if (made.get("data") or {}).get("fingerprint") is not None:
        for settings, (name, keys) in itertools.product(every, _ELSEWHERE.items()):
            settings[name] = {k: v for k, v in settings.get(name, {}).items() if k not in keys}
    return changed(*every)


def chosen_units(units: list[Unit], only: list[str] | None, seeds: list[int] | None) -> list[Unit]:
    """Returns the units of some names and seeds; None: of all.

    Raises:
        UserError: there is no such name or seed, or a name has none of the seeds.
    """
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
    chosen = [u for u in units if (not only or u.name in only) and (seeds is None or u.seed in seeds)]
    for name in only or []:
        if name not in {unit.name for unit in chosen}:
            own = ", ".join(str(unit.seed) for unit in units if unit.name == name)
            raise UserError(
                f"{name} is compared at seed {own} alone, got --seed {', '.join(map(str, seeds or []))}; add "
                f"it to comparison.{'ablation_seeds' if name in ABLATION else 'seeds'}"
            )
    return chosen


def refuse_run(results: Path) -> None:
    """Raises a UserError where a comparison would begin in the results of a run, which replaces them."""
    begun = any((results / name).exists() for name in ("units", "comparison.json"))
    if not begun and results.name == "results" and (results.parent / "stages.json").is_file():
        raise UserError(
            f"{results} belongs to the run in {results.parent}; name another folder with --results, or with "
            "--out for all of the comparison"
        )


def check_restart(units: list[Unit], results: Path, stage: str) -> None:
    """Raises a UserError where a unit to be made, or a finished one where all are, has no such stage."""
    for unit in [unit for unit in units if not unit.is_finished(results)] or units:
        try:
            find(stages(unit.config), stage)
        except UserError as error:
            raise UserError(f"{unit.name}: {error}; choose the units that have it with --only") from error


def refuse_other_images(unit: Unit, images: str, results: Path) -> None:
    """Raises a UserError where finished units are not of the images with this fingerprint."""
    known = finished_images(results)
    if others := [place for place, fingerprint in known.items() if fingerprint not in (None, images)]:
        raise UserError(
            f"{shortened(others)}: made of other images than {unit.config.data.source} holds now. Put those "
            "back, name another folder with --results (and --out), or delete these to make them again"
        )


def finished_images(results: Path) -> dict[str, str | None]:
    """Returns the fingerprint of each finished unit's images, where it records one, by its folder."""
    paths = sorted((results / "units").glob("*/seed-*/unit.json"))
    data = {str(path.parent): read_json(path, dict).get("data") for path in paths}
    return {place: of.get("fingerprint") if isinstance(of, dict) else None for place, of in data.items()}


def refuse_changes(unit: Unit, results: Path) -> None:
    """Raises a UserError for a finished unit that other settings made."""
    path = results / "units" / unit.place / "unit.json"
    if not unit.is_finished(results):
        return
    if changes := _unit_changes(unit, read_json(path, {"settings": dict})):
        raise UserError(
            f"{path.parent} was made with other settings: {'; '.join(changes)}. Run the command with the "
            "old ones, name another folder with --results (and --out), or delete that one to make it again"
        )
