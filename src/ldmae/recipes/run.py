"""A run folder at work: settings, device, images, and what each stage makes."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from torch import nn

from ldmae.autoencoders.baselines import build_baseline
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, as_dict, load_config, save_config
from ldmae.config.data import AugmentConfig, DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.autoencoding import encode_moments, placement
from ldmae.core.device import device_name, resolve_precision
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_folder, fingerprint, fingerprint_tensors, write_json
from ldmae.core.progress import console
from ldmae.diffusion.backbones import build_backbone, patch_size
from ldmae.images.dataset import ImageDataset, StreamDataset
from ldmae.images.index import open_images
from ldmae.images.sources import is_stream
from ldmae.images.streams import StreamSource
from ldmae.images.transforms import preprocessing_fingerprint
from ldmae.loading import load_autoencoder
from ldmae.recipes.settings import (
    autoencoder_output,
    latents_settings,
    training_settings,
    training_steps,
    trainings,
)
from ldmae.recipes.streams import open_streamed
from ldmae.stages import StageBook, changed_settings, stages_from
from ldmae.training.engine import Trainer, check_share


@dataclasses.dataclass
class Run:
    """A run folder at work: settings, device, images, and the book of finished stages."""

    config: Config
    folder: Path
    accelerator: Accelerator
    book: StageBook
    train: ImageSource
    held_out: ImageSource
    stream: StreamSource | None = None
    """What training reads where the images are streamed; `train` is then what is kept of it."""
    on_start: list[Callable[[Trainer], None]] = dataclasses.field(default_factory=list)
    """Called before the first step of each training that this start does."""
    on_step: list[Callable[[Trainer], None]] = dataclasses.field(default_factory=list)
    """Called after each step of each training."""

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.accelerator.is_main_process

    @property
    def images(self) -> dict[str, str]:
        """The training images, as an input that stages compare."""
        return {"images": images_fingerprint(self.train, self.held_out)}

    def needed(
        self, name: str, settings: dict[str, Any], inputs: dict[str, str], made: Path, steps: int = 0
    ) -> bool:
        """Says whether a stage must run, as `StageBook.needed` does.

        What the main process sees holds for all: a network disk may show others an older state.
        """
        (wanted,) = broadcast_object_list([self.book.needed(name, settings, inputs, made, steps)])
        return wanted


def open_run(
    config: Config, folder: Path, restart: str | None = None, check: Callable[[Run], object] | None = None
) -> Run:
    """Opens a run folder: device, seeds, images, the record of what is done.

    Args:
        config: the settings.
        folder: the run folder; made where it is not there.
        restart: a stage to forget, with all after it that hangs on it.
        check: raises where the run would fail later on.

    Raises:
        UserError: a model cannot be built, or what was trained was begun with other settings or images;
            nothing is changed then.
    """
    stages_from(restart)  # its name is looked at before anything is opened
    _check_restart(config, restart)
    _check_models(config)
    accelerator = open_accelerator(config, folder)
    for name, training in trainings(config).items():
        check_share(name, training, accelerator)
    book = StageBook(folder, accelerator.is_main_process, accelerator.num_processes)
    (book.records,) = broadcast_object_list([book.records])
    threads = book.threads() if config.threads == "auto" else int(config.threads)
    if threads and accelerator.device.type == "cpu":
        torch.set_num_threads(threads)
    book.device = device_name(accelerator.device)
    with accelerator.main_process_first():
        stream, train, held_out = open_run_images(config.data, folder / "data", accelerator.is_main_process)
    run = Run(config, folder, accelerator, book, train, held_out, stream)
    anew = stages_from(restart, _encoder_stays(run))
    steps = training_steps(config)
    first = next(iter(steps))
    for name, settings in training_settings(config, accelerator.mixed_precision).items():
        if name not in anew:
            images = run.images if name == first and name != "diffusion" else None
            book.refuse_changes(name, settings, images, steps[name])
    _refuse_renewed_inputs(run, anew)
    if check is not None:
        check(run)
    accelerator.wait_for_everyone()  # all have read the book before anybody writes it
    if anew:
        book.restart(anew, stage_paths(folder))
    if run.main:
        save_config(config, folder / "config.yaml")
        _describe_images(run)
    if config.tracker != "none":
        accelerator.init_trackers("ldmae")
    accelerator.wait_for_everyone()
    return run


def open_run_images(
    data: DataConfig, cache_dir: Path, progress: bool
) -> tuple[StreamSource | None, ImageSource, ImageSource]:
    """Opens a run's images: the stream that training reads, if it is one; training and held-out images."""
    if is_stream(data):
        return open_streamed(data, cache_dir)
    return None, *open_images(data, cache_dir, progress)


def images_fingerprint(train: ImageSource, held_out: ImageSource) -> str:
    """Returns a hash of a run's images and their labels, in their order."""
    return fingerprint([train.fingerprint(), held_out.fingerprint()])


def _check_restart(config: Config, restart: str | None) -> None:
    trained = [f"autoencoder.{stage}" for stage in config.autoencoder.stages]
    if restart is not None and restart.startswith("autoencoder.") and restart not in trained:
        which = ", ".join(trained) or f"none, as it takes {config.autoencoder.source}"
        raise UserError(
            f"--restart {restart}: this run does not train that; of its autoencoder it trains: {which}"
        )


def _refuse_renewed_inputs(run: Run, anew: tuple[str, ...]) -> None:
    """Raises where a training was begun on what these settings would make anew, before that is replaced."""
    config, records, steps = run.config, run.book.records, training_steps(run.config)

    trained = any(name.startswith("autoencoder.") for name in records)
    by_hand = not trained and (run.folder / "autoencoder").exists()  # others' was put there, and is used

    def check(later: str, earlier: str) -> None:
        if later not in records or later in anew:
            return
        record = records.get(earlier)
        if record is not None and (record.status != "done" or record.steps == steps[earlier]):
            return  # what is not done is what was lost, and will come out the same
        if record is None and by_hand:
            return
        raise UserError(
            f"{later} was started on another autoencoder than {earlier} would train with these settings. Run "
            f"the command with the old ones, name another folder with --out, or add --restart {later} to "
            "train it again"
        )

    stages = config.autoencoder.stages
    if "pretraining" in stages:
        check("autoencoder.tuning", "autoencoder.pretraining")
    if stages:
        frozen = "tuning" in stages and (
            config.autoencoder.tuning.freeze_encoder or not config.autoencoder.tuning.enabled
        )
        check("diffusion", f"autoencoder.{stages[0 if frozen else -1]}")
    if "latents" in records and "diffusion" in records and "latents" not in anew:
        changed = changed_settings(records["latents"].settings, latents_settings(config))
        if config.autoencoder.source is not None:  # else images and weights are compared by the trainings
            inputs = {**records["latents"].inputs, **run.images, **_other_source(run)}
            changed += changed_settings(records["latents"].inputs, inputs)
        if changed and "diffusion" not in anew:
            raise other_latents(changed)


def _other_source(run: Run) -> dict[str, str]:
    """Returns what latents would be made of, where the settings name another autoencoder than before."""
    path, source = run.folder / "config.yaml", run.config.autoencoder.source
    if source is None or (path.is_file() and load_config(str(path)).autoencoder.source == source):
        return {}
    return {"encoder": latents_fingerprint(load_autoencoder(source), run.config.image_size)}


def other_latents(changed: list[str]) -> UserError:
    """Returns the error for latents that would be made anew under a diffusion model that was begun."""
    return UserError(
        f"diffusion was started on other latents: {'; '.join(changed)}. Run the command with the old "
        "settings, name another folder with --out, or add --restart latents to make them and train it again"
    )


def _encoder_stays(run: Run) -> bool:
    """Tells whether latents and diffusion model fit still when the decoder is tuned anew.

    They do where the encoder was frozen and will be, and nothing else changed that they hang on.
    """
    config, records, tuning = run.config, run.book.records, run.config.autoencoder.tuning
    names = ("autoencoder.pretraining", "autoencoder.tuning", "latents", "diffusion")
    if not all(name in records for name in names) or (tuning.enabled and not tuning.freeze_encoder):
        return False
    pretrained, tuned, latents, diffusion = (records[name] for name in names)
    settings = training_settings(config, run.accelerator.mixed_precision)
    return (
        tuned.settings.get("freeze_encoder", not tuned.settings.get("enabled", True))
        and tuned.settings["image_size"] == config.image_size
        and tuned.inputs == {"pretrained": run.book.output("autoencoder.pretraining")}
        and pretrained.steps == config.autoencoder.pretraining.training.steps
        and latents.settings == latents_settings(config)
        and diffusion.settings == settings["diffusion"]
    )


def _check_models(config: Config) -> None:
    """Builds the models of a run without memory, so that what they refuse is not found out after hours."""
    auto = config.autoencoder
    with torch.device("meta"):
        if auto.stages and auto.is_vit:
            AutoencoderVMAE(sample_size=config.image_size, **as_dict(auto.model))
        elif auto.stages:
            build_baseline(auto.baseline.model, config.image_size)
        # the grid of a foreign autoencoder is not known yet
        grid = config.image_size // auto.patch_size if auto.stages else patch_size(config.diffusion)
        build_backbone(config.diffusion, grid, auto.latent_channels, num_classes=2)


def open_accelerator(config: Config, folder: Path) -> Accelerator:
    """Opens the device, or this process's among several, in the precision that the settings ask for."""
    if config.deterministic:
        # without it cuBLAS refuses to multiply; it is read when cuBLAS starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # accelerate keeps the precision of a process's first run; a second run may ask for another
    AcceleratorState._reset_state(reset_partial_state=False)
    if PartialState._shared_state.get("distributed_type") == DistributedType.FSDP:
        # and where it sharded, it would take the second for one that it need not set up
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=resolve_precision(config.mixed_precision, config.device),
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(folder),
        # one process looks at the images while the others wait, longer than the usual ten minutes
        kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(days=2))],
    )


def stage_paths(folder: Path) -> dict[str, list[Path]]:
    """Returns what each stage makes in a run folder."""
    states = folder / "checkpoints"
    return {
        "autoencoder.pretraining": [states / "autoencoder.pretraining"],
        "autoencoder.tuning": [folder / "autoencoder", states / "autoencoder.tuning"],
        "autoencoder.baseline": [folder / "autoencoder", states / "autoencoder.baseline"],
        "latents": [folder / "latents"],
        "diffusion": [folder / "diffusion", states / "diffusion"],
        "pipeline": [folder / "pipeline"],
        "samples": [folder / "samples"],
        "evaluation": [folder / "results", folder / "results.json"],
        "report": [folder / "report.html", folder / "overview.png"],
    }


def run_autoencoder(run: Run) -> nn.Module:
    """Loads the autoencoder that a run uses: its own, or the one named by `autoencoder.source`.

    Raises:
        UserError: there is none, or the run's own is not the one that it trained.
    """
    source = run.config.autoencoder.source
    if source is not None:
        return load_autoencoder(source).eval()
    stage = autoencoder_output(run.config)
    folder, trained = run.folder / "autoencoder", run.book.output(stage)
    if not folder.exists():  # RUN/autoencoder might else be taken for a name on the Hub
        raise UserError(
            f"the run {run.folder} has no autoencoder yet; train it with `ldmae train autoencoder`"
        )
    autoencoder = load_autoencoder(str(folder)).eval()
    if trained and fingerprint_tensors(autoencoder.state_dict()) != trained:
        raise UserError(
            f"{folder} is not the autoencoder that this run trained; put that one back, give another run "
            "folder with --out and autoencoder.source=… to use this one, or train it again with --restart "
            f"{stage}"
        )
    return autoencoder


@torch.no_grad()
def latent_channels(autoencoder: Any, image_size: int) -> tuple[int, int]:
    """Returns the channels and the grid side of an autoencoder's latents, by encoding a grey image."""
    device, _ = placement(autoencoder)
    grey = torch.zeros(1, 3, image_size, image_size, device=device)
    mean, _ = encode_moments(autoencoder, grey, "a grey image".format)
    return mean.shape[1], mean.shape[-1]


def latents_fingerprint(autoencoder: nn.Module, image_size: int) -> str:
    """Returns what tells latents apart: the encoder's weights and the preprocessing, not the decoder's."""
    shape: list[str] = []
    if isinstance(autoencoder, AutoencoderVMAE):
        weights = autoencoder.encoder_state()
        # which are in no tensor
        shape = [str(autoencoder.config[key]) for key in ("encoder_num_attention_heads", "hidden_act")]
    else:
        decoder = ("decoder", "post_quant_conv")  # what is called otherwise may be the encoder's
        weights = {k: v for k, v in autoencoder.state_dict().items() if not k.startswith(decoder)}
    return fingerprint([fingerprint_tensors(weights), *shape, preprocessing_fingerprint(image_size)])


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
    output = fingerprint_tensors(model.state_dict())
    run.accelerator.wait_for_everyone()
    return output


def _describe_images(run: Run) -> None:
    """Writes `data.json`: what was trained on, and what was held out."""
    train, held_out = np.asarray(run.train.labels), np.asarray(run.held_out.labels)
    classes = [
        {"name": name, "train": int((train == i).sum()), "held_out": int((held_out == i).sum())}
        for i, name in enumerate(run.train.classes)
    ]
    description = {
        "name": run.train.name,
        "licence": run.train.licence,
        "train": len(run.train),
        "held_out": len(run.held_out),
        "fingerprint": run.images["images"],
        "unreadable": getattr(run.train, "unreadable", 0),
        "facts": getattr(run.train, "facts", []),
        "classes": classes,
    }
    write_json(run.folder / "data.json", description)
    if run.stream is not None:
        kept = f"{len(train):,} training and {len(held_out):,} held-out images of it are kept for evaluation"
        console.print(f"{run.train.name}: a stream in {len(classes):,} classes; {kept}", markup=False)


def pretrained_folder(folder: Path) -> Path:
    """Returns where the autoencoder lies between its two trainings."""
    return folder / "checkpoints" / "autoencoder.pretraining" / "model"
