"""What generated images are measured against: statistics and features of real images, computed or read.

Read are also the .npz files of ADM's evaluator (guided-diffusion), with `mu`, `sigma` of the pooled and
`mu_s`, `sigma_s` of the spatial features of a whole data set, and `arr_0`, some of its images.
"""

# N images, M of them kept, D features, b images of a batch, H W image

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.core.errors import UserError, check_enough
from ldmae.core.files import atomic_path, fingerprint
from ldmae.core.progress import console
from ldmae.evaluation.distances import Statistics
from ldmae.evaluation.image_sets import npz_errors, npz_names, read_samples
from ldmae.images.base import content_hash
from ldmae.perception.features import FeatureExtractor, Features

_KEEP = 10_000
"""Images whose features are kept beside the statistics of all; ADM's references hold as many."""

_SCHEMA = "1"
"""Of our .npz files; to be raised when they change."""


@dataclass(frozen=True)
class Reference:
    """Real images, as far as the metrics of generation need to know them."""

    extractor: str
    """Name (in settings) of the network."""
    pooled: Statistics | None = None
    """Of the pooled features of all images, for FID."""
    spatial: Statistics | None = None
    """Of the spatial features of all images, for sFID."""
    images: Features | None = None
    """Features of all or some images, for KID, precision, recall and shrunk covariances."""
    origin: str = ""
    """Where the statistics are from, in words that follow `against`; empty where there is nothing to say."""
    size: tuple[int, int] | None = None
    """Height and width of the images; None where it is not known."""


def reference_from_images(
    batches: Iterable[Tensor],
    extractor: FeatureExtractor,
    *,
    keep: int = _KEEP,
    advance: Callable[[int, str], None] | None = None,
) -> Reference:
    """Computes the statistics of real images in one pass, and keeps the features of `keep` of them at most.

    Which are kept is drawn by a hash of the pixels: at random, and the same whatever the images' order. The
    batches are (b, 3, H, W) in uint8; a progress bar's `advance` is told of each.

    Raises:
        UserError: there are not even two images.
    """
    pooled, spatial = _Moments(extractor.dimensions), _Moments(extractor.spatial_dimensions)
    kept = _Kept(keep, extractor)
    for images in batches:
        features = extractor.measure(images).cpu()
        pooled.add(features.pooled)
        spatial.add(features.spatial)
        kept.add(images, features)
        if advance is not None:
            advance(len(images), "")
    check_enough("a reference", 2, pooled.count, "images", "check the path")
    return Reference(extractor.name, pooled.statistics(), spatial.statistics(), kept.features())


def read_reference(
    path: Path | str,
    extractor: FeatureExtractor,
    *,
    batch_size: int = 64,
    keep: int = _KEEP,
) -> Reference:
    """Reads or computes the reference that lies at a path.

    Args:
        path: a folder of images; an .npz of ADM's, with statistics, images or both; or one that
            `cached_reference` keeps. ADM's statistics are Inception's: on another network only its images
            count.
        extractor: the network that the generated images are measured by.
        batch_size: images at a time, where there are any to compute features of.
        keep: how many images' features to keep at most.

    Raises:
        UserError: the file is none of these, is broken, or belongs to another network.
    """
    path = Path(path)
    names = npz_names(path) if path.is_file() and path.suffix.lower() == ".npz" else []
    if "fingerprint" in names:
        return _read_own(path, extractor)
    foreign = _read_statistics(path, names, extractor) if {"mu", "sigma"} & set(names) else None
    if foreign is not None and "arr_0" not in names:
        return foreign
    samples = read_samples(path)
    computed = reference_from_images(samples.batches(batch_size), extractor, keep=keep)
    if foreign is None:
        return replace(computed, size=samples.size)
    return replace(foreign, images=computed.images, size=samples.size)


def cached_reference(
    folder: Path | str,
    made_of: Mapping[str, str],
    extractor: FeatureExtractor,
    compute: Callable[[], Reference],
) -> Reference:
    """Returns the reference that lies in a cache folder, or computes and keeps it.

    The file is found by a fingerprint of what it is made of (`{"data": source.fingerprint(), …}`) and of the
    extractor's weights. One that holds another fingerprint, or is broken, is computed again, with a message.
    """
    key = fingerprint(
        [_SCHEMA, extractor.fingerprint(), *(part for item in sorted(made_of.items()) for part in item)]
    )
    path = Path(folder) / f"reference-{extractor.name}-{key}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if str(arrays["fingerprint"]) == key:
                    return _from_arrays(arrays, extractor.name)
            reason = "it was made of something else"
        except Exception as error:  # zip, zlib and numpy raise whatever they like
            reason = f"it can't be read ({error})"
        console.print(f"the reference statistics in {path} are computed again: {reason}", soft_wrap=True)
    reference = compute()
    _write_reference(path, reference, extractor, key)
    return reference


def _write_reference(
    path: Path | str, reference: Reference, extractor: FeatureExtractor, key: str = ""
) -> None:
    """Writes a reference atomically, as an .npz that `read_reference` takes.

    The statistics have ADM's names (`mu`, `sigma`, `mu_s`, `sigma_s`); `key` is a fingerprint of what it was
    made of.
    """
    assert reference.extractor == extractor.name, f"{reference.extractor} is not {extractor.name}"
    arrays: dict[str, Any] = {
        "fingerprint": key,
        "network": extractor.fingerprint(),
        "origin": reference.origin,
        "extractor": extractor.name,
    }
    for suffix, statistics in (("", reference.pooled), ("_s", reference.spatial)):
        if statistics is not None:
            arrays |= {f"mu{suffix}": statistics.mean, f"sigma{suffix}": statistics.covariance}
            arrays[f"count{suffix}"] = -1 if statistics.count is None else statistics.count
    if reference.images is not None:
        for kind in ("pooled", "spatial", "logits"):
            arrays[kind] = getattr(reference.images, kind).numpy()
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


class _Moments:
    """Mean and covariance of features that come in batches, summed in float64."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self._sum = torch.zeros(dimensions, dtype=torch.float64)
        self._products = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        x = features.double()  # (b, D)
        self.count += len(x)
        self._sum += x.sum(dim=0)
        self._products.addmm_(x.T, x)

    def statistics(self) -> Statistics:
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Statistics(mean.numpy(), covariance.numpy(), self.count)


class _Kept:
    """The features of the `most` images whose pixels have the smallest hashes, ordered by them."""

    def __init__(self, most: int, extractor: FeatureExtractor) -> None:
        self._most = most
        self._hashes = np.empty(0, np.uint64)
        self._features = extractor.none()
        self._waiting: list[tuple[np.ndarray, Features]] = []

    def add(self, images: Tensor, features: Features) -> None:
        hashes = [content_hash(image.tobytes()) for image in images.cpu().numpy()]
        self._waiting.append((np.array(hashes, np.uint64), features))
        if sum(len(hashes) for hashes, _ in self._waiting) >= max(self._most, 256):
            self._settle()

    def features(self) -> Features:
        self._settle()
        return self._features

    def _settle(self) -> None:
        hashes = np.concatenate([self._hashes, *(hashes for hashes, _ in self._waiting)])
        features = Features.join([self._features, *(features for _, features in self._waiting)])
        order = np.argsort(hashes, kind="stable")[: self._most]
        self._hashes, self._waiting = hashes[order], []
        self._features = features.select(torch.from_numpy(order))


def _read_own(path: Path, extractor: FeatureExtractor) -> Reference:
    with npz_errors(path), np.load(path, allow_pickle=False) as arrays:
        if str(arrays["network"]) != extractor.fingerprint():
            raise UserError(
                f"{path} holds features of {arrays['extractor']}, of other weights or another version "
                f"than the {extractor.name} in use; choose that network, or compute it again from images"
            )
        return _from_arrays(arrays, extractor.name)


def _from_arrays(arrays: Mapping[str, np.ndarray], extractor: str) -> Reference:
    images = None
    if "pooled" in arrays:
        kinds = (torch.from_numpy(arrays[kind]) for kind in ("pooled", "spatial", "logits"))
        images = Features(extractor, *kinds)
    pooled, spatial = _statistics(arrays, ""), _statistics(arrays, "_s")
    return Reference(extractor, pooled, spatial, images, str(arrays["origin"]))


def _statistics(arrays: Mapping[str, np.ndarray], suffix: str) -> Statistics | None:
    if f"mu{suffix}" not in arrays:
        return None
    count = int(arrays[f"count{suffix}"])
    return Statistics(arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"], count if count >= 0 else None)


def _read_statistics(path: Path, names: list[str], extractor: FeatureExtractor) -> Reference | None:
    """Reads ADM's statistics; None where only the file's images are of use to another network."""
    if extractor.name != "inception":
        if "arr_0" in names:
            return None
        raise UserError(
            f"{path} holds statistics of Inception's features, got {extractor.name} to compare with; take "
            "inception, or a reference of images"
        )
    statistics = {}
    for suffix, dimensions in (("", extractor.dimensions), ("_s", extractor.spatial_dimensions)):
        keys = f"mu{suffix}", f"sigma{suffix}"
        missing = [key for key in keys if key not in names]
        if missing == list(keys) and suffix:
            continue  # such files are for FID alone
        if missing:
            raise UserError(
                f"{path} has no {' and no '.join(missing)}, got {', '.join(names)}; expected mu and sigma, "
                "and mu_s and sigma_s for sFID, as in ADM's reference files"
            )
        with npz_errors(path), np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[key], dtype=np.float64) for key in keys)
        if mean.shape != (dimensions,) or covariance.shape != (dimensions, dimensions):
            raise UserError(
                f"{keys[0]} and {keys[1]} of {path} are {mean.shape} and {covariance.shape}; expected "
                f"({dimensions},) and ({dimensions}, {dimensions}): they are of another layer or network; "
                "take ADM's reference files, or images"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(f"{keys[0]} or {keys[1]} of {path} holds NaN or infinity; fetch the file again")
        statistics[suffix] = Statistics(mean, covariance)
    origin = f"the statistics in {path.name}, which does not say of how many images"
    return Reference(extractor.name, statistics[""], statistics.get("_s"), None, origin)
