"""What is known of files from an earlier look, kept beside a run, and made again where it is damaged."""

import logging
import os
from pathlib import Path

import numpy as np

from ldmae.core.files import atomic_path

logger = logging.getLogger(__name__)


def numbered(stamps: np.ndarray | int, numbers: np.ndarray) -> np.ndarray:
    """Returns 64 bits for each image in a file: SplitMix64 of the file's stamp and its number (N,)."""
    return _mixed(np.asarray(stamps, np.uint64) ^ _mixed(numbers.astype(np.uint64)))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns another 64 bits for each 64, one to one: SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def load_arrays(path: Path | None, *names: str) -> dict[str, np.ndarray] | None:
    """Returns arrays of a kept file by name, or None where it is not there, damaged or of another kind."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except Exception as error:  # zip files and array headers fail in a dozen ways
        logger.warning("%s cannot be read (%s) and is made again", path, error or type(error).__name__)
        return None


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays in a file.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    if path.is_dir():  # not ours: what is known is found again at each start
        logger.warning("%s is a folder, so nothing can be cached there; remove it", path)
        return
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK):  # of a run that is only read
        logger.warning("%s can't be written, so nothing is cached there", path.parent)
        return
    with atomic_path(path) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)
