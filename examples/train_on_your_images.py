"""Train an autoencoder and a diffusion model on a folder of images, then generate more of them.

python examples/train_on_your_images.py                  # toy size: drawings from a package, in seconds
python examples/train_on_your_images.py --data PATH      # your folder, at the size of the preset `quick`
"""

import argparse
import json
import sys
from pathlib import Path

from ldmae import LDMAEPipeline
from ldmae.cli.output import run_app
from ldmae.config import load_config
from ldmae.images.builtin import open_builtin
from ldmae.run import run_all

# --8<-- [start:toy]
TOY = [  # what makes the preset `smoke` a little smaller still
    "image_size=32",
    "data.val=0.1",
    "sampling.per_class=2",
    "evaluation.samples=16",
    "evaluation.real_images=16",
]


def write_toy_folder(folder: Path, per_class: int = 40) -> Path:
    """Writes pictures as you would have them: a folder with a subfolder a class."""
    source = open_builtin("emoji")
    for name in ("faces", "flags"):
        (folder / name).mkdir(parents=True)
        label = source.classes.index(name)
        for index in (source.labels == label).nonzero()[0][:per_class]:
            source.read(int(index)).save(folder / name / f"{index:04d}.png")
    return folder


# --8<-- [end:toy]


def main(arguments: list[str] | None = None) -> Path:
    """Trains, generates, and returns the run folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="your folder of images; by default a toy one is made")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"), help="the run folder")
    options = parser.parse_args(arguments)

    # --8<-- [start:train]
    if options.data is None:
        images = options.out.parent / "toy-images"
        preset, data = "smoke", images if images.exists() else write_toy_folder(images)
    else:
        preset, data = "quick", options.data
    settings = load_config(preset, [f"data={data}", *(TOY if preset == "smoke" else [])])
    run_all(settings, options.out)  # what `ldmae run` does: every stage, and only what is not done yet
    # --8<-- [end:train]

    run = options.out
    # --8<-- [start:use]
    pipeline = LDMAEPipeline.from_pretrained(run / "pipeline")
    name = pipeline.config.id2label[0]
    picture = pipeline([name], num_inference_steps=20, timestep_shift=0.3).images[0]
    picture.save(run / "one.png")
    # --8<-- [end:use]

    # --8<-- [start:figures]
    results = json.loads((run / "results.json").read_text())["results"]
    for result in results:
        print(f"{result['measurement']:15} {result['name']:24} {result['value']:.4g} {result['unit']}")
    # --8<-- [end:figures]
    return run


if __name__ == "__main__":
    sys.exit(run_app(main))
