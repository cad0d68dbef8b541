"""What another decoder on the same latents changes in samples: a pipeline's own against one trained alone.

The decoder is trained from the pipeline's autoencoder (`ldmae finetune decoder`), the same latents are
decoded by both, and both are compared with the training images. The diffusion model is not touched.

Usage: python benchmarks/decoder_swap.py SOURCE data=PATH [KEY=VALUE ...] --out FOLDER [--samples 500]

SOURCE is a run folder or `pretrained:NAME`. In FOLDER: the decoder's run, samples.json, and samples.png.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import machine
from torch import Tensor

from ldmae.config import Config, load_config
from ldmae.core.files import write_json
from ldmae.core.random import generator
from ldmae.evaluation.distances import kernel_distance, mind
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.subject import read_batches
from ldmae.loading import load_autoencoder, load_pipeline, settings_of
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.report.grids import image_rows, save_png
from ldmae.run import Run, decoder_config, run_stages

BATCH = 50
SHOWN = 12


def latents_of(pipeline: Any, config: Config, samples: int) -> list[Tensor]:
    """Returns batches of latents, as many of each class, by the settings that the pipeline was made with."""
    sampling, classes, batches = config.sampling, pipeline.transformer.config["num_classes"], []
    for start in range(0, samples, BATCH):
        numbers = range(start, min(start + BATCH, samples))
        batches.append(
            pipeline(
                [number % classes for number in numbers],
                guidance_scale=sampling.guidance_scale,
                guidance_interval=tuple(sampling.guidance_interval),
                num_inference_steps=sampling.num_inference_steps,
                timestep_shift=sampling.timestep_shift,
                generator=[generator(0, "swap", number) for number in numbers],
                output_type="latent",
            ).images
        )
        print(f"{numbers.stop} of {samples} latents generated", flush=True)
    return batches


@torch.no_grad()
def decoded(pipeline: Any, autoencoder: Any, latents: list[Tensor]) -> Tensor:
    """Returns latents decoded by an autoencoder: (N, 3, H, W) uint8."""
    pipeline.vae = autoencoder.eval()
    return torch.cat([to_uint8(pipeline.decode_latents(batch)) for batch in latents])


def real_features(run: Run, extractor: FeatureExtractor) -> Tensor:
    """Returns the features of a run's training images, (N, D)."""
    size, indices = run.config.image_size, np.arange(len(run.train))
    batches = read_batches(run.train, indices, size, BATCH, torch.device("cpu"))
    return torch.cat([extractor(to_uint8(batch)) for _, batch in batches])


def main() -> None:
    """Trains the decoder where it is not trained, prints a table, and saves samples of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a run folder or pretrained:NAME")
    parser.add_argument("settings", nargs="+", help="data=PATH and other settings of the decoder's training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=500)
    given = parser.parse_args()
    folder = given.out / "decoder"
    run = run_stages(decoder_config(given.source, given.settings, folder), folder, "autoencoder")
    pipeline: Any = load_pipeline(given.source)
    pipeline.set_progress_bar_config(disable=True)
    before = pipeline.vae
    latents = latents_of(pipeline, load_config(settings_of(given.source) or {}), given.samples)
    images = {
        "before": decoded(pipeline, before, latents),
        "after": decoded(pipeline, load_autoencoder(str(folder)), latents),
    }
    found: dict[str, dict[str, float]] = {}
    for name in ("efficientnet_lite0", "efficientnet_lite2"):
        extractor = load_features(name)
        real = real_features(run, extractor)
        for side, pictures in images.items():
            features = extractor(pictures)
            values = found.setdefault(side, {})
            values[extractor.labels.kid] = kernel_distance(features, real)[0]
            drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(real))[: len(features)])
            values[f"MIND-{name}"] = mind(features, real[drawn])[0]
    rows = {side: pictures[:SHOWN].movedim(1, -1).numpy() for side, pictures in images.items()}
    save_png(image_rows(rows, columns=SHOWN), given.out / "samples.png")
    record = {"machine": machine(), "source": given.source, "samples": given.samples, "metrics": found}
    write_json(given.out / "samples.json", record)
    print(f"{given.source}, {given.samples} samples against {len(real)} training images\n")
    print("| metric | before | after |\n| --- | ---: | ---: |")
    for label in found["before"]:
        print(f"| {label} | {found['before'][label]:.4f} | {found['after'][label]:.4f} |")


if __name__ == "__main__":
    main()
