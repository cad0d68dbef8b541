"""The paper's models and training steps on a GPU, and whether runs resume, scale gradients and share a batch.

Prints three Markdown tables in under 10 minutes; on a CPU, in seconds, of tiny models.

Usage: python benchmarks/gpu.py [steps|cost|checks] [--device cuda|cpu] [--batch 128] [--no-compile]
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import machine, side_by_side
from models import training_step
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ldmae import AutoencoderVMAE, LightningDiTTransformer2DModel
from ldmae.autoencoders.baselines import build_baseline
from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.config import Config, as_dict, load_config, save_config
from ldmae.core.device import device_name, pick_device
from ldmae.core.flops import count_flops
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.evaluation.efficiency import measure_speed, peak_memory, seconds_of
from ldmae.perception.lpips import load_perceptual
from ldmae.run import execute_stages, open_run

STOP_AT = 5
"""The step after which each training is interrupted; the last training state is of step 3."""
SMALL = [
    "image_size=32",
    "latents.num_workers=0",
    "mixed_precision=bf16",
    "data.val=0.2",
    "autoencoder.tuning.enabled=false",
] + [
    f"{stage}.training.{setting}"
    for stage in ("autoencoder.pretraining", "diffusion")
    for setting in ("steps=7", "batch_size=8", "checkpoint.every_steps=3", "num_workers=0")
]
WEIGHTS = ("autoencoder", "diffusion")


# ---- training steps


def measured_peak(device: torch.device, side: int) -> float:
    """Returns the bf16 FLOP/s of a large square matrix product, the best of 20: what the card can do."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = math.inf
    for _ in range(20):
        began = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * side**3 / seconds


def trainings(config: Config, batch: int, device: torch.device) -> dict[str, Callable[[], tuple]]:
    """Returns by name what builds a training: its objective, and a batch on the device."""
    auto, size = config.autoencoder, config.image_size
    grid, channels = size // auto.patch_size, auto.latent_channels

    def autoencoder(stage: Any, side: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        model = AutoencoderVMAE(sample_size=side, use_mask_token=True, **as_dict(auto.model))
        if stage is auto.tuning and stage.freeze_encoder:
            model.freeze_encoder()
        # at full size the paper's network; its weights ship in this form, at the same cost
        name = "st-lpips-alex" if device.type == "cpu" else "st-lpips-vgg"
        perceptual = load_perceptual(name, device)
        objective = MaskedObjective(model, stage.objective, perceptual)
        return objective, {"images": torch.rand(batch, 3, side, side, device=device) * 2 - 1}

    def diffusion() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        model = LightningDiTTransformer2DModel(
            sample_size=grid, in_channels=channels, num_classes=1000, **as_dict(config.diffusion.model)
        )
        latents = torch.randn(batch, channels, grid, grid, device=device)
        labels = torch.arange(batch, device=device) % 1000
        return FlowMatchingObjective(model, config.diffusion.flow), {"latents": latents, "labels": labels}

    first = config.pretraining_size
    return {
        f"VMAE, masked pre-training, {first} px": partial(autoencoder, auto.pretraining, first),
        f"VMAE, decoder tuning, {size} px": partial(autoencoder, auto.tuning, size),
        f"LightningDiT, {grid} × {grid} × {channels} latents": diffusion,
    }


def attention_kernels(step: Callable[[], object]) -> str:
    """Returns which of torch's attention kernels a step runs: flash, efficient, cudnn, … or none of them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    prefix, suffix = "aten::_scaled_dot_product_", "_attention"
    names = {event.key for event in profiler.key_averages() if event.key.startswith(prefix)}
    kernels = {name.removeprefix(prefix).partition(suffix)[0] for name in names}
    return ", ".join(sorted(kernels)) or "written out"


def step_row(
    build: Callable[[], tuple], device: torch.device, flops: float, peak: float, compiled: bool
) -> str:
    """Times one training; `flops` are those of a row of its batch."""
    objective, batch = build()
    rows = len(next(iter(batch.values())))
    step = training_step(objective, batch, device.type, torch.bfloat16)
    if compiled:
        objective.model.compile_repeated_blocks()
    first = seconds_of(step, device)
    kernels = attention_kernels(step)
    memory, _ = peak_memory(step, device)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)  # weights and optimizer too
    turns = 3 if device.type == "cpu" else 15
    seconds = side_by_side({"step": step}, turns, warmup=1)["step"]
    speed = flops * rows / seconds
    return (
        f"{'compiled' if compiled else 'eager'} | {rows} | {1e3 * seconds:.1f} | {rows / seconds:,.0f} | "
        f"{speed / 1e12:.3g} | {speed / peak:.1%} | {memory / 2**30:.2f} | {kernels} | {first:.1f} |"
    )


def steps_table(config: Config, batch: int, device: torch.device, side: int, modes: list[bool]) -> str:
    """Returns the table of training steps; where a batch does not fit, half of it is tried."""
    peak = measured_peak(device, side)
    lines = [
        f"Peak, measured by a bf16 product of {side} × {side} matrices: {peak / 1e12:.3g} TFLOP/s.\n",
        "| bf16 training step | mode | batch | ms | images/s | TFLOP/s | of the peak | GiB | attention | "
        "first step, s |",
        f"|{' --- |' * 10}",
    ]
    for name, build in trainings(config, 2, device).items():
        flops = count_flops(training_step(*build(), device.type, torch.bfloat16)) / 2
        for compiled in modes:
            rows = batch
            while rows:
                try:
                    row = step_row(trainings(config, rows, device)[name], device, flops, peak, compiled)
                except torch.OutOfMemoryError:
                    row, rows = f"{'compiled' if compiled else 'eager'} | out of memory |", rows // 2
                else:
                    rows = 0
                torch.compiler.reset()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            lines.append(f"| {name} | {row}")
    return "\n".join(lines)


# ---- encoding and decoding


def cost_table(config: Config, batch: int, device: torch.device) -> str:
    """Returns the table of encoding and decoding, beside a convolutional autoencoder of the baselines' shape.

    At full size that is the shape of Stable Diffusion 3's, 84 M parameters.
    """
    auto, size = config.autoencoder, config.image_size
    shape = auto.baseline.model.replace(factor=8, latent_channels=auto.latent_channels)
    models: dict[str, nn.Module] = {
        "VMAE": AutoencoderVMAE(sample_size=size, **as_dict(auto.model)),
        "convolutional": build_baseline(shape, size),
    }
    lines = ["| autoencoder | dtype | what | images/s | memory, MB |", f"|{' --- |' * 5}"]
    for name, model in models.items():
        model = model.to(device).eval().requires_grad_(False)
        for dtype in (torch.bfloat16, torch.float32):
            found = {m.name: m.value for m in measure_speed(model, size, batch, dtype, turns=9)}
            lines += [
                f"| {name} | {str(dtype).removeprefix('torch.')} | {what} | {found[f'{what} rate']:,.4g} | "
                f"{found[f'{what} memory'] / 1e6:,.4g} |"
                for what in ("encode", "decode")
            ]
    return "\n".join(lines)


# ---- whole trainings, small


def write_pictures(folder: Path, count: int = 48) -> Path:
    rng = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(path)
    return folder


def train(config: Config, folder: Path, stopped: set[str] | None = None) -> Any:
    """Trains both models as the command line does.

    Where `stopped` is given, a training that it does not name is interrupted, as by Ctrl+C, and then named.
    """
    run = open_run(config, folder)

    def interrupt(trainer: Any) -> None:
        if stopped is not None and trainer.step == STOP_AT and trainer.stage not in stopped:
            stopped.add(trainer.stage)
            raise KeyboardInterrupt

    run.on_step.append(interrupt)
    execute_stages(run, "autoencoder", "latents", "diffusion")
    return run


def difference(one: Path, other: Path) -> float:
    """Returns by how much the weights of two runs differ at most."""
    largest = 0.0
    for name in WEIGHTS:
        (path,) = (one / name).glob("*.safetensors")
        ours, theirs = load_file(path), load_file(other / name / path.name)
        assert ours.keys() == theirs.keys()
        largest = max([largest, *((ours[key] - theirs[key]).abs().max().item() for key in ours)])
    return largest


def check_resume(settings: list[str], folder: Path) -> str:
    config, stopped = load_config("smoke", [*settings, "deterministic=true"]), set()
    train(config, folder / "alone")
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            train(config, folder / "resumed", stopped)
    train(config, folder / "resumed")
    apart = difference(folder / "alone", folder / "resumed")
    verdict = (
        "the same weights, bit for bit" if apart == 0 else f"FAILED: weights differ by up to {apart:.2g}"
    )
    return f"{verdict}; interrupted: {', '.join(sorted(stopped))}"


def check_fp16(settings: list[str], folder: Path) -> str:
    run = train(load_config("smoke", [*settings, "mixed_precision=fp16"]), folder / "fp16")
    lines = [json.loads(line) for line in (folder / "fp16" / "metrics.jsonl").read_text().splitlines()]
    finite = all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    verdict = "finite losses" if finite else "FAILED: a loss is not finite"
    return f"{verdict}, scale {run.accelerator.scaler.get_scale():g} at the end"


def check_processes(settings: list[str], folder: Path) -> str:
    save_config(load_config("smoke", [*settings, "mixed_precision=no"]), folder / "shared.yaml")
    preset = str(folder / "shared.yaml")
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        out = str(folder / f"by-{count}")
        for verb in (
            ["train", "autoencoder", preset, "--out", out],
            ["encode", out],
            ["train", "diffusion", preset, "--out", out],
        ):
            subprocess.run([*launch, "-m", "ldmae", *verb], check=True, stdout=subprocess.DEVNULL)
    return f"weights differ by up to {difference(folder / 'by-1', folder / 'by-2'):.2g} from those of one"


def checks_table(device: torch.device) -> str:
    """Returns the table of checks; one that fails costs none of the others."""
    cuda = device.type == "cuda"
    checks = {
        "interrupted and resumed, deterministic=true": (check_resume, ""),
        "fp16 with a gradient scaler": (check_fp16, "" if cuda else "needs a GPU"),
        "two processes": (
            check_processes,
            "" if cuda and torch.cuda.device_count() > 1 else "needs two GPUs",
        ),
    }
    lines = ["| small training of both models | result |", "| --- | --- |"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [*SMALL, f"data={write_pictures(folder / 'pictures')}", f"device={device.type}"]
        for what, (check, lacking) in checks.items():
            try:
                result = f"not run: {lacking}" if lacking else check(settings, folder)
            except Exception as error:
                result = f"FAILED: {error}"
            lines.append(f"| {what} | {result} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["steps", "cost", "checks"], help="by default all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=128, help="images or latents; halved until they fit")
    parser.add_argument("--no-compile", action="store_true", help="time eager steps only")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if (
        arguments.part is None
    ):  # deterministic kernels are chosen before cuBLAS starts: a process for each part
        began = time.monotonic()
        for part in ("steps", "cost", "checks"):
            subprocess.run([sys.executable, __file__, part, *sys.argv[1:]], check=True)
        print(f"\n{time.monotonic() - began:.0f} s in all")
    elif arguments.part == "checks":
        print(f"\n{checks_table(device)}", flush=True)
    else:
        small = device.type == "cpu"
        config = load_config("smoke" if small else "imagenet-256")
        batch, side = (2, 512) if small else (arguments.batch, 8192)
        name = machine() if small else f"{device_name(device)}, CUDA {torch.version.cuda}, {machine()}"
        if arguments.part == "cost":
            print(f"{name}\n\n{cost_table(config, 2 if small else 32, device)}", flush=True)
            return
        modes = [False] if arguments.no_compile else [False, True]
        print(f"{name}\n\n{steps_table(config, batch, device, side, modes)}", flush=True)


if __name__ == "__main__":
    main()
