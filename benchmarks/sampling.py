"""Images a second of the pipeline, beside the same models in a plain Euler loop; guidance batched and split.

Usage: python benchmarks/sampling.py [--batches 1 16 64] [--steps 10] [--device cuda]
"""

# B batch, C latent channels, h w latent grid

import argparse
import itertools
from collections.abc import Callable

import torch
from _timing import print_head, print_row, side_by_side
from torch import Tensor

from ldmae.core.device import device_name, reuse_freed_memory
from ldmae.loading import load_pipeline

SOURCE, SCALE = "pretrained:emoji", 3.0


@torch.no_grad()
def plain_loop(
    pipeline, labels: Tensor, steps: int, split: bool, noise: torch.Generator | None = None
) -> list:
    """Does what the pipeline does, without any of its choices and checks."""
    transformer, vae, device = pipeline.transformer, pipeline.vae, labels.device
    size = transformer.config["sample_size"]
    shape = (len(labels), transformer.config["in_channels"], size, size)
    x = torch.randn(shape, generator=noise, device=device)
    sigmas = torch.linspace(1, 0, steps + 1)
    shift = pipeline.scheduler.config["shift"]
    times = (1 - shift * sigmas / (1 + (shift - 1) * sigmas)).tolist()
    nulls = torch.full_like(labels, transformer.null_class)
    for t, following in itertools.pairwise(times):
        now = torch.full((2 * len(labels),), t, device=device)
        if split:
            of_class, of_null = (
                transformer(x, now[: len(labels)], classes, return_dict=False)[0]
                for classes in (labels, nulls)
            )
        else:
            both = transformer(torch.cat([x, x]), now, torch.cat([labels, nulls]), return_dict=False)[0]
            of_class, of_null = both.chunk(2)
        x = x + (following - t) * (of_null + SCALE * (of_class - of_null))
    mean, std = (
        torch.tensor(vae.config[name], device=device).view(1, -1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    images = vae.decode(x * std + mean, return_dict=False)[0].cpu()
    return pipeline.numpy_to_pil((images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    reuse_freed_memory()
    pipeline = load_pipeline(SOURCE).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    print(
        f"{SOURCE}, {arguments.steps} guided Euler steps, {pipeline.transformer.dtype}, "
        f"{device_name(torch.device(arguments.device))}\n"
    )
    print_head()
    for batch in arguments.batches:
        labels = (torch.arange(batch) % pipeline.transformer.config["num_classes"]).to(arguments.device)
        rivals: dict[str, Callable[[], object]] = {
            "pipeline": lambda labels=labels: pipeline(
                labels, guidance_scale=SCALE, num_inference_steps=arguments.steps
            ),
            "plain loop": lambda labels=labels: plain_loop(pipeline, labels, arguments.steps, split=False),
            "plain loop, guidance split": lambda labels=labels: plain_loop(
                pipeline, labels, arguments.steps, split=True
            ),
        }
        seconds = side_by_side(rivals, turns=5, warmup=1)
        print_row(f"{batch} at once", seconds, "plain loop", batch, "images")


if __name__ == "__main__":
    main()
