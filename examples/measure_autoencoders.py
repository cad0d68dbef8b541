"""Measure autoencoders before a diffusion model is trained on them: your own class, and diffusers folders.

python examples/measure_autoencoders.py                                  # toy size, in seconds
python examples/measure_autoencoders.py runs/imagenet-256 OWNER/NAME --data PATH --image-size 256
"""

import argparse
import json
import sys
from pathlib import Path

from ldmae.recipes import evaluate_with

EXAMPLES = Path(__file__).resolve().parent
TOY = ["new_autoencoder:PatchComponents", "new_autoencoder:photo_components"]
"""The same class before and after it was fitted to a photograph (examples/extend/new_autoencoder.py)."""
SHOWN = ("PSNR", "ST-LPIPS-alex", "ST-LPIPS-alex-AUC", "sigma2(pattern)", "rho(pattern)", "parameters")


# --8<-- [start:measure]
def measure(source: str, data: str, size: int, images: int, folder: Path) -> dict[str, float]:
    """Measures one autoencoder, as `ldmae evaluate` does; returns the figures by name."""
    settings = [
        f"data={data}",
        f"image_size={size}",
        f"evaluation.images={images}",
        f"evaluation.latent_images={images}",
    ]
    evaluate_with(source, settings, folder, ["reconstruction", "smoothness", "compression", "efficiency"])
    results = json.loads((folder / "results.json").read_text())["results"]
    return {result["name"]: result["value"] for result in results}


# --8<-- [end:measure]


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measures all that are named, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", help="run or diffusers folders, Hub names, package.module:Class"
    )
    parser.add_argument("--data", default="photos")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    if not options.sources:
        sys.path.insert(0, str(EXAMPLES / "extend"))  # where the module `new_autoencoder` lies
    figures = {
        source: measure(
            source, options.data, options.image_size, options.images, options.out / source.replace(":", "-")
        )
        for source in options.sources or TOY
    }
    print(f"{'':24}" + "".join(f"{source[-32:]:>34}" for source in figures))
    for name in SHOWN:
        print(f"{name:24}" + "".join(f"{found.get(name, float('nan')):>34.4g}" for found in figures.values()))
    return figures


if __name__ == "__main__":
    main()
