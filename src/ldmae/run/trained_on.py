"""The images of a run that is there."""

from __future__ import annotations

from pathlib import Path

from ldmae.config.data import DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import at_home, read_json
from ldmae.run.opening import open_run_images
from ldmae.run.run import images_fingerprint


def open_images_of(run: str, data: DataConfig) -> tuple[ImageSource, ImageSource]:
    """Opens the training and held-out images of a run that is there.

    Raises:
        UserError: the images are not those that it was trained on.
    """
    folder = Path(at_home(run))
    _, train, held_out = open_run_images(data, folder / "data")
    path = folder / "data.json"
    known = read_json(path, dict).get("fingerprint") if path.is_file() else None
    if known not in (None, images_fingerprint(train, held_out)):
        raise UserError(
            f"{data.source} does not hold the images that {folder} was trained on: names, contents or labels "
            "have changed, or it is another folder seen from here. Put them back, start this where the run "
            "was started, or name images with data=PATH or --reference"
        )
    return train, held_out
