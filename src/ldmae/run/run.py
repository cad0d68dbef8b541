"""A run folder at work: settings, device, images, and what each stage makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, load_config
from ldmae.config.data import AugmentConfig
from ldmae.contracts import ImageSource
from ldmae.core.autoencoding import DECODER, encode_moments, placement
from ldmae.core.errors import UserError, shortened
from ldmae.core.files import at_home, atomic_folder, fingerprint, fingerprint_tensors, read_json
from ldmae.core.imports import import_object, is_import_path
from ldmae.core.provenance import Records
from ldmae.images.dataset import ImageDataset, StreamDataset
from ldmae.images.streams import StreamSource
from ldmae.images.transforms import preprocessing_fingerprint
from ldmae.loading import load_autoencoder, load_model
from ldmae.training.engine import Trainer

_WEIGHTS = re.compile("(latents: )?(auto)?encoder: '\\w+' -> '\\w+'")
_COUNTS = {"train": int, "held_out": int, "classes": [{"name": str, "train": int, "held_out": int}]}


@dataclass
class Run:
    """A run folder at work: settings, device, images, stages, and the record of what was made of what."""

    config: Config
    folder: Path
    accelerator: Accelerator
    records: Records
    stages: tuple[Stage, ...]
    train: ImageSource
    held_out: ImageSource
    stream: StreamSource | None = None
    """What training reads where the images are streamed; `train` is then what is kept of it."""
    initial: Any = None
    """What the autoencoder's training starts from, without memory; None where it is drawn."""
    restart: str | None = None
    """The stage that this start forgets, and what it copied with it."""
    source_is_gone: bool = False
    """Whether the autoencoder that it takes is the copy in its pipeline, for want of the source."""
    on_start: list[Callable[[Trainer], None]] = field(default_factory=list)
    """Called before the first step of each training that this start does."""
    on_step: list[Callable[[Trainer], None]] = field(default_factory=list)
    """Called after each step of each training."""

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.accelerator.is_main_process

    @cached_property
    def images(self) -> str:
        """Fingerprint of the images and their labels, in their order."""
        return images_fingerprint(self.train, self.held_out)

    def counts(self) -> dict[str, Any]:
        """Returns how many images there are to train on and held out, of each class, too."""
        train, held_out = np.asarray(self.train.labels), np.asarray(self.held_out.labels)
        classes = [
            {"name": name, "train": int((train == i).sum()), "held_out": int((held_out == i).sum())}
            for i, name in enumerate(self.train.classes)
        ]
        return {"train": len(train), "held_out": len(held_out), "classes": classes}

    def told(self, changes: Sequence[str]) -> list[str]:
        """Returns what has changed since a stage, in words where it is the images or the autoencoder."""
        if _took_before(self):
            other = f"the weights in autoencoder.source={self.config.autoencoder.source} are others than then"
            changes = [*dict.fromkeys(_WEIGHTS.sub(lambda _: other, each) for each in changes)]
        try:
            then, now = read_json(self.folder / "data.json", _COUNTS), self.counts()
        except UserError:
            return [*changes]
        named, names = ([each["name"] for each in at["classes"]] for at in (then, now))
        sums = [[each["train"] + each["held_out"] for each in at["classes"]] for at in (then, now)]
        counts = "{train:,} training and {held_out:,} held-out images".format
        if named != names:
            words = f"classes {shortened(named)} then, {shortened(names)} now"
        elif counts(**then) != counts(**now):
            words = f"{counts(**then)} then, {counts(**now)} now"
        elif sums[0] != sums[1]:
            rows = zip(names, *sums, strict=True)
            differ = [f"{name} {old:,} then, {new:,} now" for name, old, new in rows if old != new]
            words = shortened(differ, 3)
        else:
            words = f"some of the {counts(**now)} are others than before"
        split = (each.partition("images: '") for each in changes)
        return [f"{before}images: {words}" if found else before for before, found, _ in split]

    @property
    def takes_autoencoder(self) -> bool:
        """Whether it trains no autoencoder: it takes another's, or one that was put into its folder."""
        if self.config.autoencoder.source is not None:
            return True
        trained = any(name.startswith("autoencoder.") for name in self.records.stages)
        return not trained and (self.folder / "autoencoder").exists()

    @cached_property
    def taken_autoencoder(self) -> dict[str, str]:
        """Fingerprints of the autoencoder that it takes."""
        return autoencoder_fingerprints(run_autoencoder(self), self.config.image_size)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the pipeline: artefacts in, artefacts out. An artefact is known by its fingerprint."""

    name: str
    title: str
    reads: tuple[str, ...] = ()
    """Artefacts that it is made of: `images`, or outputs of the stages before it."""
    outputs: tuple[str, ...] = ()
    """Artefacts that it makes, each with a fingerprint of its own."""
    makes: tuple[str, ...] = ()
    """Where they are in the run folder; gone, they are made again."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All that decides what it makes, besides what it reads."""
    execute: Callable[[Run], dict[str, str] | None]
    """Makes it, or takes it up where it was interrupted, and returns the fingerprints of its outputs, if any.
    The processes wait for each other afterwards."""
    steps: int = 0
    """Of a training; more of them extend one that is done."""
    costly: bool = False
    """A training: stale, it is refused, and made again only where `--restart` says so."""
    any_precision: bool = False
    """Whether it stays done where another precision would be chosen now, as on another machine."""
    keeps: tuple[str, ...] = ()
    """Outputs that more steps leave as they are."""
    code: str = ""
    """Fingerprint of the file with the user's own class that makes it."""
    command: str = "ldmae run"
    """What makes it alone."""
    prepare: Callable[[Run], object] | None = None
    """Raises, before the first stage of a start, where this one would fail."""
    adopt: Callable[[Run], bool] | None = None
    """Takes what was put in place of its outputs by hand; returns whether it did."""
    complete: Callable[[Run], bool] | None = None
    """Says whether all that it made is there."""
    always: bool = False
    """Made at every start, and not recorded: it shows whatever is there."""


def kept_model(stage: str) -> str:
    """Returns where in a run folder a model is that is not its last: of a source, or between trainings."""
    return f"checkpoints/{stage}/model"


def images_fingerprint(train: ImageSource, held_out: ImageSource) -> str:
    """Returns a hash of a run's images and their labels, in their order."""
    return fingerprint([train.fingerprint(), held_out.fingerprint()])


def run_autoencoder(run: Run) -> nn.Module:
    """Loads the autoencoder that a run uses: its own, or the one named by `autoencoder.source`.

    Raises:
        UserError: there is none, or the run's own is not the one that it trained.
    """
    source = run.config.autoencoder.source
    if source is not None:
        return _taken(run, source).eval()
    folder, trained = run.folder / "autoencoder", run.records.output("autoencoder")
    if not folder.exists():  # RUN/autoencoder might else be taken for a name on the Hub
        raise UserError(
            f"the run {run.folder} has no autoencoder yet; train it with `ldmae train autoencoder`"
        )
    autoencoder = load_trained(run, folder)
    if trained and fingerprint_tensors(autoencoder.state_dict()) != trained:
        raise UserError(
            f"{folder} is not the autoencoder that this run trained; put that one back, give another run "
            "folder with --out and autoencoder.source=… to use this one, or train it again with --restart"
        )
    return autoencoder


def _took_before(run: Run) -> bool:
    """Says whether a run took the same `autoencoder.source` when it was last opened."""
    source, path = run.config.autoencoder.source, run.folder / "config.yaml"
    return source is not None and path.exists() and load_config(str(path)).autoencoder.source == source


def _taken(run: Run, source: str) -> nn.Module:
    """Loads `autoencoder.source`; where it is gone, what a run that took it before has in its pipeline."""
    copy = run.folder / "pipeline" / "vae"
    try:
        return load_autoencoder(source)
    except UserError:
        there = is_import_path(source) or Path(at_home(source)).exists()
        if there or not copy.exists() or not _took_before(run):
            raise
        run.source_is_gone = True
    return load_autoencoder(str(copy))


def load_trained(run: Run, folder: Path) -> nn.Module:
    """Loads an autoencoder that the run trained, in evaluation mode."""
    own = run.config.autoencoder.own_kind
    return load_autoencoder(str(folder)).eval() if own is None else load_model(import_object(own), folder)


@torch.no_grad()
def latent_channels(autoencoder: Any, image_size: int) -> tuple[int, int]:
    """Returns the channels and the grid side of an autoencoder's latents, by encoding a grey image."""
    device, _ = placement(autoencoder)
    grey = torch.zeros(1, 3, image_size, image_size, device=device)
    mean, _ = encode_moments(autoencoder, grey, "a grey image".format)
    channels, height, width = mean.shape[1:]
    if height != width:
        raise UserError(
            f"the autoencoder ({type(autoencoder).__name__}) makes latents of {height} x {width} cells of a "
            "square image; a diffusion model here takes square ones"
        )
    return channels, width


def latents_fingerprint(autoencoder: nn.Module, image_size: int) -> str:
    """Returns what tells latents apart: the encoder's weights and the preprocessing, not the decoder's."""
    shape: list[str] = []
    if isinstance(autoencoder, AutoencoderVMAE):
        weights = autoencoder.encoder_state()
        # which are in no tensor
        shape = [str(autoencoder.config[key]) for key in ("encoder_num_attention_heads", "hidden_act")]
    else:
        # what is called otherwise may be the encoder's
        weights = {k: v for k, v in autoencoder.state_dict().items() if not k.startswith(DECODER)}
    return fingerprint([fingerprint_tensors(weights), *shape, preprocessing_fingerprint(image_size)])


def autoencoder_fingerprints(autoencoder: nn.Module, image_size: int) -> dict[str, str]:
    """Returns what tells autoencoders apart: the whole, and what latents are made with."""
    return {
        "autoencoder": fingerprint_tensors(autoencoder.state_dict()),
        "encoder": latents_fingerprint(autoencoder, image_size),
    }


def image_dataset(run: Run, size: int, augment: AugmentConfig | None) -> ImageDataset | StreamDataset:
    """Returns the training images as tensors, cropped at random or (None) in the centre.

    Raises:
        UserError: they are to be decoded on a GPU, and the run has none, or streams them.
    """
    on_gpu = augment is not None and augment.gpu_decoding
    if on_gpu and (run.stream is not None or run.accelerator.device.type != "cuda"):
        what = "streamed images" if run.stream is not None else f"the device {run.accelerator.device.type}"
        raise UserError(
            f"augment.gpu_decoding=true needs CUDA and images with random access, got {what}; set it to false"
        )
    if run.stream is not None:
        rank, world = run.accelerator.process_index, run.accelerator.num_processes
        return StreamDataset(run.stream, size, run.config.seed, augment, rank=rank, world=world)
    return ImageDataset(run.train, size, run.config.seed, augment)


def save_model(run: Run, model: Any, folder: Path) -> str:
    """Saves a diffusers model (main process) and returns the fingerprint of its weights."""
    if run.main:
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
    return fingerprint_tensors(model.state_dict())
