"""Opens what a user names: a run, a diffusers folder or Hub name, a checkpoint, their class, what ships."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import nn

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config.registry import DIFFUSION
from ldmae.config.yaml import read_yaml
from ldmae.conversion import load_official_vmae
from ldmae.core.errors import UserError, check_known, nearest, reason_of
from ldmae.core.files import at_home, read_json, weights_variant
from ldmae.core.imports import code_fingerprint, import_object, is_import_path, require
from ldmae.core.progress import tell
from ldmae.core.provenance import Records
from ldmae.diffusion.own_autoencoder import OwnAutoencoder
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline

SHIPPED = {"emoji": "emoji-long", "emoji-three": "emoji-three"}
"""The pipelines in the package by name, each with the preset that it was trained with."""
SHIPPED_FOLDER = Path(__file__).parent / "shipped"
_FORMS = (
    "a run folder, a diffusers folder or Hub name, official:FILE, pretrained:NAME, or package.module:Name (a "
    "class or function of your own)"
)
_SHIPPED_PREFIX = "pretrained:"
_LIBRARIES = (
    "diffusers",
    AutoencoderVMAE.__module__,
    *(path.partition(":")[0] for path in DIFFUSION.values()),
    OwnAutoencoder.__module__,
)
"""Where the classes of a pipeline's parts come from."""
_PIPELINE_FORMS = "a run folder, the folder or Hub name of a saved LDMAEPipeline, or pretrained:NAME"


def pretrained(name: str = "emoji") -> Path:
    """Returns the folder of a trained pipeline that ships in the package.

    Args:
        name: `emoji` or `emoji-three`. Its folder holds a model card, README.md.

    Returns:
        What `LDMAEPipeline.from_pretrained` loads, and any verb of the command line as `pretrained:NAME`.

    Raises:
        UserError: nothing of that name ships, or this copy of the package came without it.
    """
    check_known("pretrained model", name, SHIPPED, "ldmae")
    folder = SHIPPED_FOLDER / name
    if not folder.is_dir():
        raise UserError(
            f"this copy of ldmae has no trained {name} ({folder} is missing); train one with `ldmae run "
            f"{SHIPPED[name]}`, and name its run folder"
        )
    return folder


def is_shipped(source: str) -> bool:
    """Says whether a source names what ships in the package."""
    return source.startswith(_SHIPPED_PREFIX)


def settings_of(source: str) -> str | None:
    """Returns the preset or YAML file of the settings that a source was made with; None where not known."""
    source = at_home(source)
    if is_shipped(source):
        return SHIPPED[pretrained(source.removeprefix(_SHIPPED_PREFIX)).name]
    return str(Path(source) / "config.yaml") if is_run_folder(source) else None


def is_run_folder(source: str) -> bool:
    """Says whether a source is the folder of a run."""
    folder = Path(at_home(source))
    saved = (folder / "config.json").is_file() or (folder / "model_index.json").is_file()  # by diffusers
    return (folder / "config.yaml").is_file() and not saved


def check_run_folder(folder: Path) -> None:
    """Raises a UserError for what is not the folder of a run."""
    if not is_run_folder(str(folder)):
        units = [f", or {path.parent}, of a comparison" for path in folder.glob("*/seed-*/config.yaml")]
        raise UserError(
            f"{folder} is not a run folder (it has no config.yaml); name one that `ldmae run` made"
            + "".join(units[:1])
        )


def load_autoencoder(
    source: str | Path, allow_code: bool = False, *, use_safetensors: bool | None = None
) -> Any:
    """Loads any autoencoder on the CPU, in fp32 whatever it was saved in, in evaluation mode.

    Args:
        source: a run folder, a diffusers folder (of a model or of a pipeline with a `vae`) or Hub name, or
            `official:FILE` for an official VMAE checkpoint, `pretrained:NAME` for what ships in the package,
            or `package.module:Name` for a class or function of your own, called without arguments, which
            gives an `nn.Module` with `encode` and `decode` (images in [-1, 1]; see `core.autoencoding`). Its
            module is looked for in the current directory first, as by `python -m`; importing it runs code.
        allow_code: whether a folder, too, may name code to run, as the settings of a run do whose autoencoder
            was a class of its user's own.
        use_safetensors: True takes weights of a diffusers folder or Hub name as safetensors only; None takes
            pickled tensors where there are no others.

    Raises:
        UserError: there is no such thing, it holds no autoencoder, or it is a folder that names code.
    """
    source = at_home(source)
    if source.startswith("official:"):
        return load_official_vmae(source.removeprefix("official:")).eval()
    source = _unshipped(source)
    folder = Path(source)
    if is_run_folder(source):
        own = _own_class(folder, "autoencoder", "source", allow_code)
        if own is not None:
            return _import(own)
        trained = _own_class(folder, "autoencoder", "kind", allow_code)
        if trained is not None and (folder / "autoencoder").exists():
            return load_model(import_object(trained), folder / "autoencoder")
        inside, trained = folder / "pipeline" / "vae", folder / "autoencoder"
        taken = _setting(folder, "autoencoder", "source") is not None  # from elsewhere
        folder = inside if inside.exists() and (taken or not trained.exists()) else trained
        if not folder.exists():
            raise UserError(
                f"the run {source} has no autoencoder yet; train it with `ldmae train autoencoder`"
            )
    elif (folder / "model_index.json").is_file():
        folder = folder / "vae"
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        name = config.get("_class_name") if isinstance(config, dict) else None
        return _load_class(name, str(folder), use_safetensors=use_safetensors)
    if Path(source).exists():
        raise UserError(
            f"{source} holds no diffusers autoencoder (no {folder / 'config.json'}); expected {_FORMS}"
        )
    if is_import_path(source):
        return _import(source)
    check_source(source)
    return _from_hub(source, use_safetensors=use_safetensors)


def load_pipeline(source: str | Path, allow_code: bool = False) -> LDMAEPipeline:
    """Loads a pipeline from a run folder, a folder saved with `save_pretrained`, the Hub, or the package.

    Args:
        source: as in the message of the error.
        allow_code: whether the folder may name code to run; see `load_autoencoder`.

    Raises:
        UserError: there is no such thing, it is of another kind, names code to run, or is a run's, of parts
            that were trained again since.
    """
    source = _unshipped(at_home(source))
    folder = Path(source) / "pipeline" if is_run_folder(source) else Path(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise UserError(f"{source} holds no pipeline (no model_index.json); expected {_PIPELINE_FORMS}")
    if not folder.exists() and is_run_folder(source):
        raise UserError(f"there is no pipeline {folder}; make it with `ldmae run`, or name {_PIPELINE_FORMS}")
    check_source(source, _PIPELINE_FORMS)
    own = None
    if is_run_folder(source):
        if outdated := outdated_parts(source):
            raise UserError(
                f"the pipeline of {source} is older than its {' and '.join(outdated)}; join them again with "
                f"`ldmae sample {source}`"
            )
        own = _own_class(Path(source), "autoencoder", "source", allow_code)
        for group in ("autoencoder", "diffusion"):
            trained = _own_class(Path(source), group, "kind", allow_code)
            if trained is not None:
                import_object(trained)  # the current directory is searched, too; diffusers finds its module
    where, expected = folder if folder.exists() else source, f"Expected {_PIPELINE_FORMS}, whole"
    if not allow_code:
        with _explained(f"the pipeline {source}", expected):
            index = LDMAEPipeline.load_config(where)
        _refuse_foreign_parts(index, source)
    with _explained(f"the pipeline {source}", expected):
        parts: dict[str, Any] = {} if own is None else {"vae": OwnAutoencoder(_import(own))}
        parts |= weights_variant(folder / "transformer") or weights_variant(folder / "vae")
        pipeline = LDMAEPipeline.from_pretrained(where, local_files_only=folder.exists(), **parts)
    for part in (pipeline.transformer, pipeline.vae):
        _check_weights(part, source)
    if not isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler):
        raise UserError(
            f"the pipeline {source} has a {type(pipeline.scheduler).__name__}, which it cannot sample "
            "with; give it a FlowMatchEulerDiscreteScheduler or FlowMatchHeunDiscreteScheduler"
        )
    return pipeline


def outdated_parts(run: str) -> list[str]:
    """Returns the parts of a run's pipeline that were trained again since it was joined."""
    with contextlib.suppress(UserError):  # a record that can't be read says nothing
        parts = Records(Path(run), writes=False).outdated("pipeline")
        taken = _setting(Path(run), "autoencoder", "source") is not None  # what it once trained plays no part
        return [part for part in parts if not (taken and part == "autoencoder")]
    return []


def _own_class(run: Path, group: str, key: str, allow_code: bool) -> str | None:
    """Returns `package.module:Name` where one of a run's settings names a class of the user's own."""
    source = _setting(run, group, key)
    if not isinstance(source, str) or not is_import_path(source):
        return None
    refuse_code(run / "config.yaml", [source], allow_code)
    with contextlib.suppress(UserError):  # a record that can't be read says nothing
        stages = Records(run, writes=False).stages.items()
        began = {record.code for name, record in stages if name.split(".")[0] == group} - {""}
        if key == "kind" and began and code_fingerprint(source) not in began:
            tell(f"{source} has other code than when {run} was trained; its weights are used with this one")
    return source


def _setting(run: Path, group: str, key: str) -> Any:
    """Returns one of a run's settings as it is written; None where it is not."""
    path = run / "config.yaml"
    try:
        settings = read_yaml(path.read_text(encoding="utf-8"), "it")
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {reason_of(error)}; put back the run's own") from error
    part = settings.get(group) if isinstance(settings, dict) else None
    return part.get(key) if isinstance(part, dict) else None


def refuse_code(path: Path | str, names: Iterable[str], allow_code: bool) -> None:
    """Checks what a file in a folder names: it may come from anybody, and importing it would run its code.

    Raises:
        UserError: one of the names is code, which is not allowed.
    """
    code = ", ".join(dict.fromkeys(filter(is_import_path, names)))
    if code and not allow_code:
        raise UserError(
            f"{path} names code to run, {code}, which is imported only if you name it yourself. If you "
            f"trust it, add --allow-code (in Python allow_code=True; `ldmae app` has none), or name "
            f"{code} itself"
        )


def _refuse_foreign_parts(index: Any, source: str) -> None:
    """Raises for a model_index.json from which diffusers would import modules, or Python files beside it."""
    parts = index if isinstance(index, dict) else {}
    foreign = [
        f"{name}: {value[0]}"
        for name, value in parts.items()
        if isinstance(value, list | tuple)
        and isinstance(value[0] if value else None, str)
        and value[0] not in _LIBRARIES
    ]
    if foreign:
        raise UserError(
            f"the model_index.json of {source} names code to run ({', '.join(map(repr, foreign))}); expected "
            f"classes of {', '.join(_LIBRARIES)}. If you trust it, add --allow-code (in Python "
            "allow_code=True)"
        )


def may_be_hub_name(source: str) -> bool:
    """Says whether a source is of the form OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) is not None


def check_source(source: str, expected: str = _FORMS) -> None:
    """Refuses what is not there and can't be on the Hub: a folder is meant where its parent is one here.

    Raises:
        UserError: there is no such thing; `expected` names what may be given.
    """
    path = Path(at_home(source))
    here = path.parent.is_dir()
    code = expected is _FORMS and (source.startswith("official:") or is_import_path(source))
    if not (code or is_shipped(source) or path.exists()) and (here or not may_be_hub_name(source)):
        beside: list[str] = []
        with contextlib.suppress(OSError):  # it may not be listed
            beside = [each.name for each in path.parent.iterdir()]
        why = f" in the folder {path.parent} here" if may_be_hub_name(source) else ""
        raise UserError(f"there is no {source}{why}{nearest(path.name, beside)}; expected {expected}")


def _unshipped(source: str) -> str:
    """Returns a source with the path of what ships in place of its name."""
    return str(pretrained(source.removeprefix(_SHIPPED_PREFIX))) if is_shipped(source) else source


def _import(source: str) -> Any:
    """Builds a user's own autoencoder from `package.module:Name`."""
    made = found = import_object(source)
    module_name, _, name = source.partition(":")
    if not isinstance(found, nn.Module):  # one that is built already is taken as it is
        if not callable(found):
            raise UserError(
                f"{source} is of type {type(found).__name__}; expected a class, or a function that builds "
                "the autoencoder"
            )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # without trained weights it is the same each time
                made = found()
        except Exception as error:
            raise UserError(
                f"calling {name}() of {module_name} failed ({type(error).__name__}: {error}). It is called "
                "without arguments: name a function that builds your autoencoder and loads its weights. To "
                f'see the error alone: python -c "import {module_name}; {module_name}.{name}()"'
            ) from error
    lacks = [method for method in ("encode", "decode") if not callable(getattr(made, method, None))]
    if not isinstance(made, nn.Module) or lacks:
        what = f"without {' and '.join(lacks)}" if lacks else "which is not a torch.nn.Module"
        raise UserError(
            f"{source} gave {type(made).__name__}, {what}; expected a torch.nn.Module with encode (images to "
            "latents) and decode (latents to images)"
        )
    if isinstance(found, type) and hasattr(found, "trainings"):
        tell(f"{source} is measured or used untrained; for trained weights name the run folder")
    return made.cpu().float().eval()


def _load_class(name: str | None, source: str, **arguments: Any) -> Any:
    if name == "AutoencoderVMAE":
        kind: Any = AutoencoderVMAE
    else:
        kind = getattr(diffusers, str(name), None)
        known = getattr(kind, "__module__", "").startswith("diffusers.models.autoencoders.")
        if not known or not hasattr(kind, "encode"):
            raise UserError(
                f"{source} holds {name or 'a model without a class'}, which is no autoencoder that diffusers "
                f"{diffusers.__version__} knows; name one of those, such as an AutoencoderVMAE or an "
                "AutoencoderKL, or install a newer diffusers"
            )
    if name == "AutoencoderRAE":
        require(f"the {name} in {source}", "transformers")
    return load_model(kind, source, **arguments)


def load_model(kind: Any, source: str | Path, **arguments: Any) -> Any:
    """Loads a model of a class from its diffusers folder or Hub name, in evaluation mode.

    Raises:
        UserError: a file is missing or damaged, weights are missing, or are NaN or infinite.
    """
    with _explained(
        f"the {kind.__name__} in {source}",
        "Make or fetch it again: a file is missing, damaged, or does not belong to its config.json",
    ):
        variant = weights_variant(Path(source) / arguments.get("subfolder", ""))
        model, found = kind.from_pretrained(source, output_loading_info=True, **variant, **arguments)
    model.eval()
    _check_weights(model, source)
    if lacking := [name for name, _ in model.named_buffers() if name in found["missing_keys"]]:
        # tables and statistics, which diffusers leaves as an untrained model has them
        raise UserError(f"the {kind.__name__} in {source} lacks {', '.join(lacking)}; download it again")
    return model


@contextlib.contextmanager
def _explained(what: str, move: str) -> Iterator[None]:
    """Turns whatever loading raises, where a config is damaged, into a message that names the file."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"cannot load {what}: {str(error).rstrip('.') or type(error).__name__}. {move}"
        ) from error


def _check_weights(model: nn.Module, source: str | Path) -> None:
    """Raises for weights that are not in the file, or are no numbers."""
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.isfinite().all():
            raise UserError(
                f"the {type(model).__name__} in {source} has no valid weights for {name}: they are "
                "missing, NaN or infinite; download it again"
            )


def _from_hub(source: str, **arguments: Any) -> Any:
    try:
        config: Any = AutoencoderVMAE.load_config(source)
        return _load_class(config.get("_class_name"), source, **arguments)
    except (OSError, ValueError) as first:
        if isinstance(first, UserError):
            raise
        try:  # a whole pipeline on the Hub keeps its autoencoder in a subfolder
            config = AutoencoderVMAE.load_config(source, subfolder="vae")
        except (OSError, ValueError):
            raise UserError(
                f"{source} is neither a folder here nor an autoencoder on the Hub: {first}"
            ) from first
        return _load_class(config.get("_class_name"), source, subfolder="vae", **arguments)
