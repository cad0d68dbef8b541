"""Which images are held out: whole groups of near-duplicates, drawn by hashes of their content."""

# N images

from pathlib import Path

import numpy as np

from ldmae.config.data import DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, counted
from ldmae.images.base import Subset, with_classes
from ldmae.images.sources import FolderSource, kind_of, open_source


def split_by_group(group: np.ndarray, share: float, labels: np.ndarray | None = None) -> np.ndarray:
    """Returns which images are held out, (N,) bool: whole groups, at least one image on either side.

    Args:
        group: (N,) uint64 hashes that decide.
        share: share to hold out, in (0, 1).
        labels: (N,) int64; a class whose images would all be held out keeps a group of them for training.

    Raises:
        UserError: fewer than two groups, or no image but the only ones of their classes.
    """
    if len(group) < 2:
        raise UserError(
            f"too few usable images to hold some out: {len(group)}, expected 2 or more; add images, or name "
            "held-out ones with data.val=PATH"
        )
    if group.min() == group.max():
        raise UserError(
            f"all {len(group)} images are near-duplicates of one another, so none can be held out; add "
            f"different ones, or name held-out ones with data.val=PATH"
        )
    kept = _kept_for_classes(group, labels)
    free = group[~kept]
    if not len(free):
        raise UserError(
            "every class has one image, or near-duplicates of one, so none can be held out; add images, or "
            "name held-out ones with data.val=PATH"
        )
    held_out = (group < np.uint64(min(int(share * 2**64), 2**64 - 1))) & ~kept
    if not held_out.any():
        held_out = group == free.min()
    elif held_out.all():
        held_out = group != group.max()
    return held_out


def _kept_for_classes(group: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Returns the images that no share holds out, (N,) bool: of each class the group drawn last."""
    kept = np.zeros(len(group), bool)
    if labels is None:
        return kept
    bearing = np.flatnonzero(labels >= 0)
    order = bearing[np.lexsort((group[bearing], labels[bearing]))]
    last = np.append(labels[order][1:] != labels[order][:-1], True)[: len(order)]
    return np.isin(group, group[order[last]])


def as_others(config: DataConfig, source: str) -> DataConfig:
    """Returns settings for other images; those for a kind of source stay where both are of one kind."""
    others = config.replace(source=source, classes=None, against=None, val="0.5", stream=False)
    if kind_of(config.source) == kind_of(source):
        return others
    return others.replace(image_column=None, label_column=None, image_part=None, split=DataConfig().split)


def open_held_out(config: DataConfig, source: ImageSource, cache_dir: Path) -> ImageSource:
    """Opens the held-out images that `data.val` names, with the labels of the training images.

    Raises:
        UserError: they are the training images, or of classes that these lack.
    """
    if config.val.startswith("split:"):
        named = config.replace(split=config.val.removeprefix("split:"), val="0.5", classes=None)
        if named.split == config.split:
            raise UserError(f"data.val={config.val} is the split that training uses; name another one")
    else:
        places = {Path(name).expanduser().resolve() for name in (config.val, config.source)}
        if config.val == config.source or len(places) == 1:
            raise UserError(
                f"data.val={config.val} are the training images themselves; name others, or hold out a share "
                "of these, as with data.val=0.05"
            )
        named = as_others(config, config.val)
    other = open_source(named, cache_dir)
    bare = getattr(other, "flat", other.classes == [other.name] and other.name not in source.classes)
    if bare and len(source.classes) > 1:  # but a file may be called after its only class
        where = "not in subfolders" if isinstance(other, FolderSource) else "without labels"
        raise UserError(
            f"the held-out images of data.val={config.val} are {where}, so their classes are unknown; put "
            "them into one subfolder per class, named like those of the training images, or label them"
        )
    flat = any(getattr(each, "flat", True) for each in (source, other))  # and named after itself
    if len(source.classes) == 1 and len(other.classes) == 1 and flat:
        return Subset(other, np.arange(len(other)), classes=source.classes)
    return with_classes(other, source.classes, strict=config.classes is None)


def seen_facts(train: Subset, unseen: Subset, config: DataConfig) -> list[str]:
    """Returns how many held-out images are training images, to the byte or near-duplicates of one.

    Raises:
        UserError: most are the same to the byte, as those of files that have no splits are.
    """
    assert train.content is not None
    assert train.group is not None
    assert unseen.content is not None
    assert unseen.group is not None
    same, alike = np.isin(unseen.content, train.content), np.isin(unseen.group, train.group)
    if 2 * same.sum() > len(unseen):
        raise UserError(
            f"{same.sum()} of the {len(unseen)} images that data.val={config.val} holds out are training "
            f"images of data.source={config.source}; name others, or hold out a share of these, as with "
            "data.val=0.05"
        )
    told = ((same, "are training images"), (alike & ~same, "look like training images"))
    return [f"{of.sum():,} of {counted(len(unseen), 'image')} {what}" for of, what in told if of.any()]
