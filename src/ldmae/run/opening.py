"""What a run needs before its first stage: a device, images, models that can be built."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from ldmae.config import Config
from ldmae.config.data import DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.device import check_processes, resolve_precision
from ldmae.core.files import write_json
from ldmae.core.progress import tell
from ldmae.images.index import open_images
from ldmae.images.sources import is_stream
from ldmae.images.streams import StreamSource
from ldmae.run.run import Run
from ldmae.run.stream_cache import open_streamed


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
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=resolve_precision(config.mixed_precision, config.device),
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(folder),
        # one process looks at the images while the others wait, longer than the usual ten minutes
        kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(days=2))],
    )
    check_processes(accelerator.num_processes)
    return accelerator


def open_run_images(
    data: DataConfig, cache_dir: Path, progress: bool = True
) -> tuple[StreamSource | None, ImageSource, ImageSource]:
    """Opens a run's images: the stream that training reads, if it is one; training and held-out images.

    Of a stream these are what is kept of it.
    """
    if is_stream(data):
        return open_streamed(data, cache_dir)
    return None, *open_images(data, cache_dir, progress)


def describe_images(run: Run) -> None:
    """Writes `data.json`: what was trained on, and what was held out."""
    counts = run.counts()
    description = {
        "name": run.train.name,
        "licence": run.train.licence,
        "fingerprint": run.images,
        "unreadable": getattr(run.train, "unreadable", 0),
        "facts": getattr(run.train, "facts", []),
        **counts,
    }
    write_json(run.folder / "data.json", description)
    if run.config.data.against is not None and run.config.autoencoder.kind != "decoder":
        tell("data.against is not used: only a decoder's training (autoencoder.kind=decoder) measures it")
    if run.config.autoencoder.options and run.config.autoencoder.own_kind is None:
        tell("autoencoder.options are not used: no autoencoder of a class of your own is trained")
    if run.stream is not None:
        kept = "{train:,} training and {held_out:,} held-out images of it are kept for evaluation"
        facts = "".join(f"; {fact}" for fact in getattr(run.train, "facts", []))
        kept = f"{len(counts['classes']):,} classes; {kept.format(**counts)}{facts}"
        tell(f"{run.train.name}: a stream in {kept}")
