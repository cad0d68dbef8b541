"""A folder that others can use: a run's pipeline or autoencoder in diffusers' format, with a model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from torch import nn

from ldmae.autoencoders.onnx import export_onnx, require_onnx
from ldmae.config import Config, load_config, to_yaml
from ldmae.core.errors import UserError, reason_of
from ldmae.core.files import (
    atomic_folder,
    check_new_folder,
    fingerprint_model,
    read_json,
    write_json,
    write_text,
)
from ldmae.core.provenance import Records
from ldmae.diffusion.own_autoencoder import OwnAutoencoder
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.evaluation.results import read_results, results_record
from ldmae.latents.statistics import latents_config
from ldmae.loading import check_run_folder, load_autoencoder, load_pipeline, may_be_hub_name
from ldmae.report.card import Card, write_card, write_pictures
from ldmae.run.decoder_change import AFTER
from ldmae.run.initial_diffusion import ADAPTER

_PLAIN = ("ldmae", "diffusers")
"""Packages of the classes that a published folder can be loaded with."""

_OF_SAMPLES = ("generation", "samples", "copies")
"""Measurements of generated images."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What whoever publishes decides."""

    licence: str
    """Of the weights, as the Hub names licences: `apache-2.0`, `cc-by-4.0`, `other`, …"""
    data: str | None = None
    """What the card calls the training data; None: what the run calls it."""
    limits: Path | None = None
    """A text file of further limits, a sentence a line."""
    autoencoder: bool = False
    """Publish the autoencoder alone."""
    half: bool = False
    """Save the weights in half precision."""
    onnx: bool = False
    """Add encoder and decoder as ONNX files."""
    push: str | None = None
    """Upload to this repository of the Hub, OWNER/NAME."""
    private: bool = False
    """Make that repository a private one."""
    allow_code: bool = False
    """Whether the run folder may name code to run."""


def publish(run: Path, folder: Path, how: Publication) -> str | None:
    """Writes a run's pipeline, or its autoencoder, into a folder with a model card, and uploads it.

    Args:
        run: a finished run folder.
        folder: where it goes; it must be empty or not exist.
        how: licence, names, extras.

    Returns:
        The address on the Hub, where it was uploaded.

    Raises:
        UserError: the run is not finished, something lacks, the folder holds something, or there is no login.
    """
    config, whole = _checked(run, folder, how)
    limits = read_limits(how.limits)
    if whole and (solver := config.sampling.own_solver):
        limits.append(f"Its samples and their metrics are by the solver {solver}, which it does not contain.")
    if how.push is not None:
        _check_login(how.push)
    if how.onnx:
        require_onnx()
    model: Any = (
        load_pipeline(str(run), how.allow_code) if whole else load_autoencoder(str(run), how.allow_code)
    )
    _check_classes(run, model)
    measured = run if whole or (run / "results.json").is_file() else run / AFTER
    if not whole:
        _check_measured(run, measured / "results", fingerprint_model(model))
        _add_statistics(run, model, config)
    path = measured / "results.json"
    results = read_results(path) if path.is_file() else []
    data = how.data or read_json(run / "data.json", dict)["name"]
    with atomic_folder(folder) as temporary:
        save_model_files(model, temporary, how.half)
        told = summary(model, config, data)  # before what exports makes its weights fp32
        write_pictures(measured, temporary, whole)
        write_text(temporary / "settings.yaml", to_yaml(_without_paths(config, data)))
        if results:
            shutil.copy(path, temporary / "results.json")
        if whole and config.diffusion.lora.rank and (run / ADAPTER).is_dir():
            shutil.copytree(run / ADAPTER, temporary / ADAPTER)
        autoencoder = model.vae if whole else model
        shapes = export_onnx(autoencoder, temporary / "onnx", config.image_size) if how.onnx else None
        name, (started, base) = how.push or folder.resolve().name, _started(config, whole)
        card = Card(
            title=name.split("/")[-1],
            summary=told,
            licence=how.licence,
            example=_example(model, name, config),
            seeds=seeds(config),
            data=data,
            limits=limits,
            made=started,
            base_model=base,
            command=f"ldmae evaluate {run.name}",
            onnx=shapes,
        )
        shown = [entry for entry in results if whole or entry["measurement"] not in _OF_SAMPLES]
        write_card(temporary, card, run, shown)
    return None if how.push is None else _upload(folder, how.push, how.private)


def _add_statistics(run: Path, model: Any, config: Config) -> None:
    """Adds the statistics of a run's latents, if it has any, to the config of an encoder that it trained."""
    records = Records(run, writes=False)
    encoded = "latents" in records.stages and not records.outdated("latents")
    known = {"latents_mean", "latents_std"} <= {*getattr(model, "config", ())}
    if encoded and known and config.autoencoder.kind != "decoder" and (run / "latents").is_dir():
        model.register_to_config(**latents_config(run / "latents"))


def save_model_files(model: Any, folder: Path, half: bool) -> None:
    """Saves a pipeline or an autoencoder as safetensors, without the paths that it was loaded from."""
    for part in (model.vae, model.transformer) if isinstance(model, LDMAEPipeline) else (model,):
        if half:
            nn.Module.half(part)  # diffusers' own warns of layers to be kept, also where there are none
    model.save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.json"):
        kept = read_json(path)
        if isinstance(kept, dict) and kept.pop("_name_or_path", None) is not None:
            write_json(path, kept)


def summary(model: Any, config: Config, data: str) -> str:
    """Returns what a published model is, in a sentence or two."""
    whole = isinstance(model, LDMAEPipeline)
    vae = model.vae if whole else model
    text = (
        f"{type(vae).__name__} ({_millions(vae)} parameters), an image autoencoder at {config.image_size} px"
    )
    if whole:
        kind, count = type(model.transformer).__name__, model.transformer.config["num_classes"]
        classes = f", in {count} classes" if count > 1 else ""
        text += f", and {kind} ({_millions(model.transformer)}), which generates its latents{classes}"
    parts = ["diffusion model"] * whole + ["decoder"] * (config.autoencoder.kind == "decoder")
    alone = parts and (config.autoencoder.source is not None or "decoder" in parts)  # the rest is as it was
    which = (
        f"Its {' and its '.join(parts)} {'were' if len(parts) > 1 else 'was'} trained" if alone else "Trained"
    )
    half = " In half precision." if next(vae.parameters()).dtype == torch.float16 else ""
    return f"{text}. {which} on {data.rstrip('.')}.{half}"


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g} M"


def seeds(config: Config) -> str:
    """Returns the seeds of a run."""
    return f"training {config.seed}, sampling {config.sampling.seed}, evaluation {config.evaluation.seed}"


def _example(model: Any, name: str, config: Config) -> str:
    if not isinstance(model, LDMAEPipeline):
        ours = type(model).__module__.startswith("ldmae.")
        kind = "AutoModel" if ours else type(model).__name__
        how = ", trust_remote_code=True)  # needs ldmae" if ours else ")"
        image = torch.zeros(1, 3, config.image_size, config.image_size, dtype=model.dtype)
        with torch.no_grad():
            encoded: Any = model.encode(image)
        parts = {"latent_dist": "latent_dist.mode()", "latents": "latents", "latent": "latent"}
        part = next(text for field, text in parts.items() if hasattr(encoded, field))
        return (
            f"import torch\nfrom diffusers import {kind}\n\n"
            f'autoencoder = {kind}.from_pretrained("{name}"{how}\n'
            f"images = torch.zeros(1, 3, {config.image_size}, {config.image_size})  # in [-1, 1]\n"
            f"latents = autoencoder.encode(images).{part}\n"
            "restored = autoencoder.decode(latents).sample"
        )
    sampling, names = config.sampling, dict(model.config["id2label"] or {})
    label = next(iter(names.values()), 0)
    scale = sampling.guidance_scale if model.transformer.config["num_classes"] > 1 else 1.0
    call = f"guidance_scale={scale}, num_inference_steps={sampling.num_inference_steps}"
    if scale != 1:
        call += f", guidance_interval={tuple(sampling.guidance_interval)}"
        call += f", guidance_channels={sampling.guidance_channels}" if sampling.guidance_channels else ""
    return (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)  # needs ldmae\n'
        f"image = pipeline([{label!r}], {call}).images[0]"
    )


def _without_paths(config: Config, data: str) -> Config:
    """Returns the settings without the paths of the machine: images are called what the card calls them."""

    def is_path(value: str | None) -> bool:
        path = Path((value or "").removeprefix("official:"))
        return path.is_absolute() or ".." in path.parts

    def named(part: Any, *keys: str) -> Any:
        given = {key: getattr(part, key) for key in keys if is_path(getattr(part, key))}
        return part.replace(**{key: Path(value).name for key, value in given.items()})

    paths = {key: data for key in ("source", "val", "against") if is_path(getattr(config.data, key))}
    return config.replace(
        data=config.data.replace(**paths),
        evaluation=named(config.evaluation, "masks"),
        autoencoder=named(config.autoencoder, "source", "init"),
        diffusion=named(config.diffusion, "init"),
    )


def _started(config: Config, whole: bool) -> tuple[str, str | None]:
    """Returns what the card says of weights that training started from, and their name on the Hub."""
    auto = config.autoencoder
    how = "autoencoder is that" if auto.source else "autoencoder's training started from that"
    sources = {how: auto.source or auto.init}
    sources |= {"diffusion model's training started from that": config.diffusion.init} if whole else {}
    found = {what: source for what, source in sources.items() if source}
    told = [f"The {what} of `{Path(source).name}`." for what, source in found.items()]
    told += ["Its own card says what it was trained on, and under which licence."] if found else []
    local = [s for s in found.values() if Path(s).exists() or s.startswith("runs/")]
    hub = [s for s in found.values() if may_be_hub_name(s) and s not in local]
    return " ".join(told), hub[-1] if hub else None


# ---- what is checked before anything is written


def _checked(run: Path, folder: Path, how: Publication) -> tuple[Config, bool]:
    """Returns the settings of the run, and whether its pipeline is published or the autoencoder alone."""
    check_run_folder(run)
    check_new_folder(folder)
    if not how.licence.strip():
        raise UserError("--licence is empty; name the licence of the weights, such as --licence apache-2.0")
    records, config = Records(run, writes=False), load_config(str(run / "config.yaml"))
    auto = config.autoencoder
    own = [f"autoencoder.{part}" for part in ("init", *auto.stages)]  # others are of an abandoned training
    found = {
        name: record.status
        for name, record in records.stages.items()
        if not name.startswith("autoencoder.") or name in own or auto.own_kind is not None
    }
    whole = not how.autoencoder and "diffusion" in found
    wanted = ("autoencoder.", "diffusion", "pipeline") if whole else ("autoencoder.",)
    status = {name: state for name, state in found.items() if name.startswith(wanted)}
    status |= {"pipeline": "absent"} if whole and "pipeline" not in status else {}
    if how.autoencoder and auto.source is not None and not status:
        raise UserError(
            f"{run} trains no autoencoder: it takes that of {auto.source}; publish it from where it was "
            "trained, or the whole pipeline without --autoencoder"
        )
    unfinished = [name for name, state in status.items() if state != "done"]
    if unfinished or not status:
        what = ", ".join(unfinished) or "nothing is trained yet"
        trained = whole and status and not any(name.startswith("autoencoder.") for name in unfinished)
        alone = "; or publish its autoencoder alone with --autoencoder" if trained else ""
        raise UserError(f"{run} is not finished ({what}); finish it with `ldmae run`{alone}")
    if whole and (stale := [name for name in ("samples", "evaluation") if records.outdated(name)]):
        raise UserError(
            f"the {' and '.join(stale)} of {run} are of an older pipeline than is there; make them again "
            "with `ldmae run`"
        )
    return config, whole


def _check_measured(run: Path, results: Path, autoencoder: str) -> None:
    """Raises for metrics of an autoencoder that the run has no longer; `autoencoder` is what it has."""
    for path in results.glob("*.json"):
        record = results_record(path)
        own = record is None or record.inputs.get("autoencoder", autoencoder) == autoencoder
        if not own and path.stem not in _OF_SAMPLES:
            raise UserError(
                f"the metrics of {run} are of an older autoencoder than is there; measure it again with "
                f"`ldmae evaluate {run}`"
            )


def read_limits(path: Path | None) -> list[str]:
    """Returns the limits in a text file, a sentence or two a line."""
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"--limits={path} is no file; write a sentence a line into it, or omit it")
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Windows saves it, too
    except UnicodeDecodeError as error:
        raise UserError(f"--limits={path} is not text in UTF-8; save it as that") from error
    lines = (line.strip().removeprefix("- ") for line in text.splitlines())
    return [line for line in lines if line]


def _check_classes(run: Path, model: Any) -> None:
    parts = [model.vae, model.transformer, model.scheduler] if isinstance(model, LDMAEPipeline) else [model]
    for part in parts:
        inner = type(part.module if isinstance(part, OwnAutoencoder) else part)
        if isinstance(part, OwnAutoencoder) or inner.__module__.split(".")[0] not in _PLAIN:
            raise UserError(
                f"{run} has a {inner.__name__} of {inner.__module__}, which others lack; "
                "publish your code as a package, and save the model with it yourself"
            )


# ---- the Hub


def _check_login(name: str) -> None:
    if not may_be_hub_name(name):
        raise UserError(f"--push={name} is no repository of the Hub; expected OWNER/NAME")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError("--push needs a login on the Hub; type `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise UserError(f"the Hub refuses the login: {reason_of(error)}; type `hf auth login`") from error
    except OSError as error:
        raise UserError(
            f"the Hub cannot be reached: {error}; try again, or publish without --push"
        ) from error


def _upload(folder: Path, name: str, private: bool) -> str:
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="ldmae publish")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"uploading to {name} failed: {reason_of(error)}. The folder {folder} is whole: upload it with "
            f"`hf upload {name} {folder}`"
        ) from error
    return str(address)
