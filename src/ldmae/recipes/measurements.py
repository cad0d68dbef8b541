"""What makes an autoencoder good for diffusion, measured on any of them: one file of results each."""

# B batch, N images, C latent channels, h w latent grid, H W image

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.autoencoding import encode_moments, reconstruct
from ldmae.core.device import device_name
from ldmae.core.errors import UserError, nearest
from ldmae.core.files import (
    atomic_path,
    fingerprint,
    fingerprint_model,
    fingerprint_tensors,
    read_json,
)
from ldmae.core.progress import console, progress_bar
from ldmae.core.random import key_seed
from ldmae.evaluation.components import fit_components
from ldmae.evaluation.compression import CompressionMetrics
from ldmae.evaluation.efficiency import measure_size, measure_speed
from ldmae.evaluation.generation import FEWEST_IMAGES
from ldmae.evaluation.groupings import cell_groups
from ldmae.evaluation.interpolation import (
    InterpolationMetrics,
    choose_pairs,
    interpolated_decodings,
    interpolation_strip,
)
from ldmae.evaluation.probe import linear_probe, mean_pooled
from ldmae.evaluation.reconstruction import ReconstructionMetrics, to_uint8
from ldmae.evaluation.smoothness import SmoothnessMetrics, noisy_decodings
from ldmae.recipes.groups import masks_fingerprint
from ldmae.recipes.ifid import measure_ifid
from ldmae.recipes.results import RESULTS, merge_results, write_results
from ldmae.recipes.settings import plain
from ldmae.recipes.subject import Subject, read_batches

PICTURES = {
    "reconstruction": "reconstruction_pairs.npz",
    "interpolation": "interpolation.npz",
    "components": "components.npz",
    "copies": "copies.npz",
}
"""Files of pictures that measurements leave beside their figures."""

OF_GENERATED = ("generation", "samples", "copies")
"""Measurements of generated images; each notes the weights of the `autoencoder` that decoded them."""

STRIPS = 4
"""Pairs that are kept as pictures of an interpolation."""


def check_names(only: list[str] | None, others: tuple[str, ...] = ()) -> None:
    """Raises a UserError for a measurement that does not exist, naming the nearest that does."""
    known = (*MEASUREMENTS, *others)
    for name in only or []:
        if name not in known:
            raise UserError(f"no measurement {name!r}{nearest(name, known)}; there are: {', '.join(known)}")


def measure(subject: Subject, only: list[str] | None = None) -> None:
    """Measures an autoencoder; what was measured before with the same weights and settings is not redone.

    Writes `results/NAME.json` for each measurement and merges them into `results.json`. Figures of other
    weights, images or sizes that lie there are removed, so that none stands beside these.

    Guaranteed: with the same weights, images, settings, device and number of threads the figures are the same
    to the bit, but for the times and memory of `efficiency`; whatever the images' files are called and in
    whatever order they lie. At another `evaluation.batch_size` they are the same up to the rounding of the
    networks' float32 arithmetic.

    Args:
        subject: the autoencoder and the images.
        only: names in `MEASUREMENTS`; None: all.

    Raises:
        UserError: a network or the masks that were asked for are not there, before anything is measured; or
            one of `only` can't be measured. With None it is said, and the others are measured.
    """
    weights = fingerprint_tensors(subject.autoencoder.state_dict())
    maker = fingerprint(
        [
            fingerprint_model(subject.autoencoder),
            subject.held_out.fingerprint(),
            subject.train.fingerprint(),
            str(subject.size),
        ]
    )
    made_of = {name: _made_of(subject, maker, name) for name in (MEASUREMENTS if only is None else only)}
    paths = {name: subject.folder / "results" / f"{name}.json" for name in MEASUREMENTS}
    wanted = [name for name in made_of if _kept(paths[name]).get("made_of") != made_of[name]]
    _open_networks_and_masks(subject, wanted)
    _remove_strangers(paths, maker, weights)
    for name in wanted:
        _remove(paths[name])
        try:
            results = MEASUREMENTS[name](subject)
        except UserError as error:
            merge_results(subject.folder)
            if only is not None:
                raise
            console.print(f"not measured: {name}: {error}", markup=False, soft_wrap=True)
            continue
        write_results(subject.folder, name, results, made_of=made_of[name], maker=maker)


def _made_of(subject: Subject, maker: str, name: str) -> str:
    settings = {key: value for key, value in plain(subject.config).items() if key in _READS[name]}
    more = {"compression": masks_fingerprint(subject.config), "efficiency": device_name(subject.device)}
    return fingerprint([maker, json.dumps(settings, sort_keys=True), more.get(name, "")])


def _kept(path: Path) -> dict[str, Any]:
    """Returns what was measured before; nothing where that is damaged, so that it is measured again."""
    try:
        return read_json(path, RESULTS) if path.exists() else {}
    except UserError as error:
        console.print(f"measured again: {error}", markup=False, soft_wrap=True)
        return {}


def _open_networks_and_masks(subject: Subject, names: list[str]) -> None:
    """Opens what measurements need beside images: what is missing is said before hours of work."""
    if {"reconstruction", "smoothness", "interpolation"} & set(names):
        _ = subject.perceptual
    if {"reconstruction", "smoothness"} & set(names) and subject.features is None:
        console.print(
            f"not measured: distances between features, which need at least {FEWEST_IMAGES} images, got "
            f"{len(subject.chosen)}",
            soft_wrap=True,
        )
    if "compression" in names:
        _ = subject.groups


def _remove_strangers(paths: dict[str, Path], maker: str, weights: str) -> None:
    strangers = [name for name, path in paths.items() if path.exists() and _kept(path).get("maker") != maker]
    folder = next(iter(paths.values())).parent
    generated = [folder / f"{name}.json" for name in OF_GENERATED]
    unknown = ("", None)  # images that were given, or measured by an older version
    strangers += [p.stem for p in generated if _kept(p).get("autoencoder") not in (*unknown, weights)]
    for name in strangers:
        _remove(folder / f"{name}.json")
    if strangers:
        console.print(
            f"removed, because they are of other weights, images or sizes: {', '.join(strangers)}",
            soft_wrap=True,
        )


def _remove(path: Path) -> None:
    """Removes a measurement's figures, and its pictures, which a failed one would else leave behind."""
    for each in (path, path.with_name(PICTURES.get(path.stem, path.name))):
        if each.is_dir():
            shutil.rmtree(each)
        each.unlink(missing_ok=True)


def _reconstruction(subject: Subject) -> list[Result]:
    config, folder = subject.config, subject.folder / "results"
    metrics = ReconstructionMetrics(
        subject.perceptual, subject.trained_on, subject.features, config.seed, config.shrink_covariance
    )
    chosen = set(subject.chosen[subject.shown].tolist())
    pictures: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with progress_bar("reconstructing", len(subject.chosen), "images") as advance:
        for rows, images in subject.batches():
            decoded = reconstruct(subject.autoencoder, images)
            metrics.update(images, decoded)
            for row, original, restored in zip(rows, images, decoded, strict=True):
                if row in chosen:
                    pictures[row] = hwc(original), hwc(restored)
            advance(len(rows), "")
    if metrics.range_note:
        console.print(f"{type(subject.autoencoder).__name__}: {metrics.range_note}", soft_wrap=True)
    shown = [pictures[row] for row in subject.chosen[subject.shown].tolist()]
    originals, reconstructions = (np.stack(column) for column in zip(*shown, strict=True))
    save_pictures(
        folder / PICTURES["reconstruction"], {"originals": originals, "reconstructions": reconstructions}
    )
    return metrics.compute()


@torch.no_grad()
def _smoothness(subject: Subject) -> list[Result]:
    config, deviation = subject.config, subject.deviation
    metrics = SmoothnessMetrics(
        config.epsilons,
        subject.perceptual,
        subject.features,
        subject.trained_on,
        config.seed,
        config.shrink_covariance,
    )
    with progress_bar("smoothness", len(subject.chosen), "images") as advance:
        for rows, images in subject.batches():
            keys = [subject.keys[row] for row in rows]
            latents = encode_moments(subject.autoencoder, images)[0]
            decoded = noisy_decodings(
                subject.autoencoder, keys, latents, deviation, metrics.epsilons, config.seed
            )
            metrics.update(keys, images, decoded)
            advance(len(rows), "")
    return metrics.compute()


@torch.no_grad()
def _interpolation(subject: Subject) -> list[Result]:
    config, device = subject.config, subject.device
    metrics = InterpolationMetrics(config.fractions, subject.perceptual, subject.trained_on)
    pairs = choose_pairs([subject.keys[row] for row in subject.chosen], config.pairs, config.seed)
    strips = []
    for i in range(0, len(pairs), config.batch_size):
        numbers = list(range(i, min(i + config.batch_size, len(pairs))))
        first, second = (
            torch.cat(
                [
                    images
                    for _, images in read_batches(
                        subject.held_out,
                        subject.chosen[[pairs[number][end] for number in numbers]],
                        subject.size,
                        config.batch_size,
                        device,
                    )
                ]
            )
            for end in (0, 1)
        )
        ends = [encode_moments(subject.autoencoder, images)[0] for images in (first, second)]
        decoded = list(interpolated_decodings(subject.autoencoder, ends[0], ends[1], metrics.fractions))
        metrics.update(numbers, first, second, decoded)
        if not strips:
            shown = [(t, images[:STRIPS]) for t, images in decoded]
            strips.append(interpolation_strip(first[:STRIPS], second[:STRIPS], shown))
    save_pictures(subject.folder / "results" / PICTURES["interpolation"], {"strip": strips[0]})
    return metrics.compute()


def _compression(subject: Subject) -> list[Result]:
    maps, config = subject.groups, subject.config
    metrics = CompressionMetrics(list(maps), seed=config.seed)
    places = metrics.chosen([subject.keys[row] for row in subject.chosen])
    metrics.pass_over(len(subject.chosen) - len(places))  # segmenting them is slow, and for nothing
    chosen = subject.chosen[places]
    # Encoded among the others, as the probe's are: in other batches they would differ by rounding
    latents = subject.held_out_latents[places]
    grid = latents.shape[2], latents.shape[3]
    batches = read_batches(subject.held_out, chosen, subject.size, config.batch_size, subject.device)
    done = 0
    with progress_bar("compression", len(chosen), "images") as advance:
        for rows, images in batches:
            pixels = [hwc(image) for image in images]
            groups = {
                level: np.stack(
                    [cell_groups(find(row, picture), grid) for row, picture in zip(rows, pixels, strict=True)]
                )
                for level, find in maps.items()
            }
            metrics.update([subject.keys[row] for row in rows], latents[done : done + len(rows)], groups)
            done += len(rows)
            advance(len(rows), "")
    results = metrics.compute()
    for sentence in metrics.unmeasured:
        console.print(f"not measured: {sentence}", markup=False, soft_wrap=True)
    return results


def _probe(subject: Subject) -> list[Result]:
    unseen = mean_pooled(subject.held_out_latents)
    truth = np.asarray(subject.held_out.labels)[subject.chosen]
    if subject.train is subject.held_out:  # one half teaches, the other is asked
        keys = [subject.keys[row] for row in subject.chosen]
        group = getattr(subject.held_out, "group", None)
        alike = keys if group is None else group[subject.chosen].tolist()
        halves = _halves(truth, keys, alike, subject.config.seed)
        return linear_probe(unseen[halves == 0], truth[halves == 0], unseen[halves == 1], truth[halves == 1])
    latents, labels = subject.train_latents
    return linear_probe(mean_pooled(latents), labels, unseen, truth)


def _halves(labels: np.ndarray, keys: list[str], alike: Sequence[Any], seed: int) -> np.ndarray:
    """Returns 0 or 1 for each image, drawn by its key: halves of every class, near-duplicates in one."""
    order = sorted(range(len(keys)), key=lambda k: (labels[k], key_seed(seed, "probe", keys[k])))
    members: dict[Any, list[int]] = {}
    for k in order:
        members.setdefault(alike[k], []).append(k)
    halves, held = np.empty(len(keys), np.int64), [0, 0]
    for group in members.values():
        half = int(held[1] < held[0])
        halves[group] = half
        held[half] += len(group)
    return halves


def _components(subject: Subject) -> list[Result]:
    components = fit_components(subject.train_latents[0])
    shown = subject.shown
    pictures = components.pictures(subject.held_out_latents[shown], (subject.size, subject.size))
    originals = [
        hwc(image)
        for _, images in read_batches(
            subject.held_out,
            subject.chosen[shown],
            subject.size,
            subject.config.batch_size,
            torch.device("cpu"),
        )
        for image in images
    ]
    save_pictures(
        subject.folder / "results" / PICTURES["components"],
        {"components": pictures, "originals": np.stack(originals)},
    )
    note = "share of the standardised latents' variance; the three are shown as red, green and blue"
    counts = {"images": len(subject.train_latents[0])}
    return [
        Result(name=f"component-{k + 1}-variance", value=share, counts=counts, note=note)
        for k, share in enumerate(components.shares)
    ]


def _efficiency(subject: Subject) -> list[Result]:
    config = subject.config
    dtype = getattr(torch, config.speed_dtype)
    return [
        *measure_size(subject.autoencoder, subject.size),
        *measure_speed(subject.autoencoder, subject.size, config.speed_batch_size, dtype),
    ]


MEASUREMENTS: dict[str, Callable[[Subject], list[Result]]] = {
    "reconstruction": _reconstruction,
    "smoothness": _smoothness,
    "interpolation": _interpolation,
    "ifid": measure_ifid,
    "compression": _compression,
    "probe": _probe,
    "components": _components,
    "efficiency": _efficiency,
}

_READS = {
    "reconstruction": {"perceptual", "features", "shrink_covariance", "images", "seed"},
    "smoothness": {
        "perceptual",
        "features",
        "shrink_covariance",
        "epsilons",
        "images",
        "latent_images",
        "seed",
    },
    "interpolation": {"perceptual", "fractions", "pairs", "images", "seed"},
    "ifid": {"features", "shrink_covariance", "images", "latent_images", "seed"},
    "compression": {"masks", "mask_level", "ignored_labels", "images", "seed"},
    "probe": {"images", "latent_images", "seed"},
    "components": {"images", "latent_images", "seed"},
    "efficiency": {"speed_batch_size", "speed_dtype"},
}
"""The settings that each measurement depends on."""


def hwc(image: Tensor) -> np.ndarray:
    """Returns an image (3, H, W) in [-1, 1] as (H, W, 3) uint8."""
    return to_uint8(image[None].cpu())[0].permute(1, 2, 0).numpy()


def save_pictures(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps pictures by name, uint8 (..., H, W, 3), for the report; the folder is made where it lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pictures: dict[str, Any] = arrays
        np.savez_compressed(temporary, **pictures)
