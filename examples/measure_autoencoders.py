"""Measure autoencoders before a diffusion model is trained on them: your own class, and diffusers folders.

python examples/measure_autoencoders.py                                  # toy size, in seconds
python examples/measure_autoencoders.py runs/imagenet-256 OWNER/NAME --data PATH --image-size 256 \
    --perceptual lpips-vgg --features inception
"""

import argparse
import json
import re
import sys
from pathlib import Path

from ldmae.cli.output import run_app
from ldmae.run import evaluate_with

EXAMPLES = Path(__file__).resolve().parent
TOY = ["new_autoencoder:PatchComponents", "new_autoencoder:photo_components"]
"""The same class before and after it was fitted to a photograph (examples/extend/new_autoencoder.py)."""
SHOWN = (
    *("PSNR", "(ST-)?LPIPS-[a-z]+", "(ST-)?LPIPS-[a-z]+-AUC", "r(KID|FID|FD)[^()]*"),
    *(r"sigma2\(pattern\)", r"rho\(pattern\)", "parameters"),
)
"""Patterns of the names in the table: distances are called by the networks that they are taken with."""


# --8<-- [start:measure]
def measure(source: str, settings: list[str], folder: Path) -> dict[str, float]:
    """Measures one autoencoder, as `ldmae evaluate` does; returns the figures by name."""
    evaluate_with(source, settings, folder, ["reconstruction", "smoothness", "compression", "efficiency"])
    results = json.loads((folder / "results.json").read_text())["results"]
    return {result["name"]: result["value"] for result in results}


# --8<-- [end:measure]


def shown(figures: dict[str, dict[str, float]]) -> list[str]:
    """Returns the names of the table's rows, of all that any of the autoencoders has."""
    names = dict.fromkeys(name for found in figures.values() for name in found)
    return [name for pattern in SHOWN for name in names if re.fullmatch(pattern, name)]


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measures all that are named, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", help="run or diffusers folders, Hub names, package.module:Class"
    )
    parser.add_argument("--data", default="photos")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--perceptual", default="st-lpips-alex", help="network of the perceptual distance")
    parser.add_argument("--features", default="efficientnet_lite0", help="network of rFID and rKID")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    if not options.sources:
        sys.path.insert(0, str(EXAMPLES / "extend"))  # where the module `new_autoencoder` lies
    # --8<-- [start:alike]
    settings = [  # named for all, as a run would else take its own networks, and others the defaults
        f"data={options.data}",
        f"image_size={options.image_size}",
        f"evaluation.images={options.images}",
        f"evaluation.latent_images={options.images}",
        f"evaluation.perceptual={options.perceptual}",
        f"evaluation.features={options.features}",
    ]
    figures = {
        source: measure(source, settings, options.out / re.sub("[/:]+", "-", source).strip("-"))
        for source in options.sources or TOY
    }
    # --8<-- [end:alike]
    print(f"{'':24}" + "".join(f"{source[-32:]:>34}" for source in figures))
    for name in shown(figures):
        print(f"{name:24}" + "".join(f"{found.get(name, float('nan')):>34.4g}" for found in figures.values()))
    return figures


if __name__ == "__main__":
    sys.exit(run_app(main))
