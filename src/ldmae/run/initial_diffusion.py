"""The diffusion model that training starts from, `diffusion.init`: the copy that a run keeps, its classes."""

# K classes of the run, D width, h w latent grid

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmae.config import Config
from ldmae.config.diffusion import LightningDiTConfig
from ldmae.conversion import load_official_lightningdit
from ldmae.core.errors import UserError
from ldmae.core.files import at_home, atomic_folder, fingerprint_tensors, read_json, write_json
from ldmae.core.progress import tell
from ldmae.core.provenance import Records
from ldmae.diffusion.backbones import build_backbone
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.diffusion.lora import add_adapter, merged, require_peft, save_adapter
from ldmae.loading import is_run_folder, load_autoencoder, load_model, load_pipeline
from ldmae.run import initial as autoencoder
from ldmae.run.initial import (
    is_copied,
    refuse_contradictions,
    refuse_own,
    with_initial_autoencoder,
    with_teachers,
)
from ldmae.run.run import (
    Run,
    kept_model,
    latent_channels,
    latents_fingerprint,
    run_autoencoder,
    save_model,
)
from ldmae.run.sampling import pipeline_classes

INITIAL = "diffusion.init"
"""The stage that copies it, and the artefact that this makes."""
CLASSES = f"checkpoints/{INITIAL}/classes.json"
"""The names of its classes."""
ADAPTER = "lora"
"""Where a run's adapter goes, for `LDMAEPipeline.load_lora_weights`."""
_OFFICIAL = "official:"


def _load_initial(source: str) -> tuple[LightningDiTTransformer2DModel, list[str]]:
    """Loads a diffusion model and the names of its classes, where it has any.

    Args:
        source: a run folder, a pipeline's folder or Hub name, `pretrained:NAME`, or `official:FILE`, a
            LightningDiT checkpoint.

    Raises:
        UserError: it holds no LightningDiT.
    """
    if source.startswith(_OFFICIAL):
        return load_official_lightningdit(source.removeprefix(_OFFICIAL)), []
    pipeline = load_pipeline(source)
    model = pipeline.transformer
    if not isinstance(model, LightningDiTTransformer2DModel):
        raise UserError(
            f"diffusion.init={source} holds a {type(model).__name__}; name a pipeline with a LightningDiT"
        )
    return model.float(), pipeline_classes(pipeline) if pipeline.config["id2label"] else []


def keep_initial_diffusion(run: Run) -> dict[str, str]:
    """Copies the diffusion model that training starts from into the run folder."""
    assert run.config.diffusion.init is not None
    model, names = _load_initial(run.config.diffusion.init)
    if run.main:
        write_json(run.folder / CLASSES, names)
    return {INITIAL: save_model(run, model, run.folder / kept_model(INITIAL))}


def _open_initial(
    config: Config, folder: Path, restart: str | None = None
) -> tuple[LightningDiTTransformer2DModel, list[str]]:
    """Loads what training starts from: the run's copy where it has one of this source."""
    source = config.diffusion.init
    assert source is not None
    kept = is_copied(Records(folder), INITIAL, source, restart)
    copy, classes = folder / kept_model(INITIAL), folder / CLASSES
    if kept and copy.exists() and classes.exists():
        return load_model(LightningDiTTransformer2DModel, copy), read_json(classes, list)
    refuse_own(INITIAL, source, folder)
    return _load_initial(source)


def _with_initial_diffusion(
    config: Config, folder: Path, typed: dict[str, Any] | None = None, restart: str | None = None
) -> Config:
    """Returns a run's settings with the shape of the diffusion model that training starts from.

    Raises:
        UserError: `diffusion.init` can't be loaded, its latents are not those of the run's autoencoder, or it
            contradicts what the user wrote, `typed`.
    """
    if config.diffusion.init is None:
        return config
    model, _ = _open_initial(config, folder, restart)
    auto = config.autoencoder
    if auto.has_shape:
        _check_latents(config, model, auto.latent_channels, config.image_size // auto.patch_size)
    shape = {name: model.config[name] for name in LightningDiTConfig.model_fields if name in model.config}
    refuse_contradictions(typed, "diffusion.model", shape, INITIAL, config.diffusion.init)
    return config.replace(diffusion=config.diffusion.replace(model=config.diffusion.model.replace(**shape)))


def with_initial_weights(
    config: Config, folder: Path, typed: dict[str, Any] | None = None, restart: str | None = None
) -> tuple[Config, Any]:
    """Returns a run's settings with the shapes of what its trainings start from, and that autoencoder.

    What that one, or the one that it takes, was trained with is in them, too.

    Raises:
        UserError: a source can't be loaded, does not fit, or contradicts what the user wrote, `typed`.
    """
    config = with_teachers(config, folder)
    config, initial = with_initial_autoencoder(config, folder, typed, restart)
    return _with_initial_diffusion(config, folder, typed, restart), initial


def report_changed_sources(run: Run, restart: str | None, standings: dict[str, Any]) -> None:
    """Says which local source, or code, has changed since the run took it, if not taken again (`restart`)."""
    _report_changed_code(run, standings)
    auto, init = run.config.autoencoder, run.config.diffusion.init
    sources = {
        autoencoder.INITIAL: (auto.init, load_autoencoder),
        INITIAL: (init, lambda source: _load_initial(source)[0]),
    }
    _report_unfinished(auto.source, "autoencoder")
    if run.source_is_gone:
        tell(f"autoencoder.source={auto.source} can't be had; the run goes on with the copy in its pipeline")
    for name, (source, load) in sources.items():
        if source is None or not is_copied(run.records, name, source, restart):
            _report_unfinished(source, name.split(".")[0])
            continue
        if not Path(source).exists():
            continue
        now = None
        with contextlib.suppress(UserError):  # it holds none any more
            now = fingerprint_tensors(load(source).state_dict())
        if now != run.records.stages[name].outputs[name]:
            tell(
                f"{name}={source} has changed since this run copied it; the run goes on from its copy. To "
                f"start from what is there now, add --restart {name}"
            )


def _report_unfinished(source: str | None, kind: str) -> None:
    """Says where a run that is taken from is training again what is taken."""
    if source is None or not is_run_folder(source):
        return
    with contextlib.suppress(UserError):  # a record that can't be read says nothing
        stages = Records(Path(at_home(source)), writes=False).stages.items()
        begun = [name for name, record in stages if record.status != "done" and name.split(".")[0] == kind]
        if begun:
            tell(f"{source} has not finished {begun[-1]}; what it had before is taken")


def _report_changed_code(run: Run, standings: dict[str, Any]) -> None:
    """Says which stages a class of the user's made, or began, before its code changed."""
    what = {"fresh": "what it made stays", "unfinished": "it goes on with the new code"}
    for stage in run.stages:
        began = getattr(run.records.stages.get(stage.name), "code", "")
        if began and stage.code and began != stage.code and standings[stage.name].state in what:
            tell(
                f"{stage.name} was begun with other code of your class than there is now; "
                f"{what[standings[stage.name].state]}. To make it again, add --restart {stage.name}"
            )


def check_initial_diffusion(run: Run) -> None:
    """Raises a UserError, before the first stage, where training could not start from `diffusion.init`."""
    model, names = _open_initial(run.config, run.folder, run.restart)
    if run.takes_autoencoder:
        channels, grid = latent_channels(run_autoencoder(run), run.config.image_size)
        _check_latents(run.config, model, channels, grid)
    if run.main:
        _tell_of_other_latents(run)
    if run.config.diffusion.lora.rank:
        require_peft()
        _refuse_new(run, model, names, _matched(list(run.train.classes), names, model.config["num_classes"]))


def _tell_of_other_latents(run: Run) -> None:
    """Says, before it is copied, that a diffusion model knows other latents than the run's autoencoder's."""
    source, auto, own = run.config.diffusion.init, run.config.autoencoder, None
    assert source is not None
    if source.startswith(_OFFICIAL) or is_copied(Records(run.folder), INITIAL, source, run.restart):
        return
    with contextlib.suppress(UserError):  # its autoencoder is code that is not allowed
        if run.takes_autoencoder:
            own = run.taken_autoencoder["encoder"]
        elif auto.kind == "decoder" and auto.init is not None:
            own = latents_fingerprint(load_autoencoder(auto.init), run.config.image_size)
        if own != latents_fingerprint(load_pipeline(source).vae, run.config.image_size):
            setting = "init" if auto.kind == "decoder" else "source"
            tell(
                f"diffusion.init={source}: its weights were trained on the latents of another autoencoder "
                f"than this run's; to take that one as it is, give autoencoder.{setting}={source}"
            )


def _check_latents(config: Config, model: LightningDiTTransformer2DModel, channels: int, grid: int) -> None:
    """Raises a UserError where a diffusion model's latents differ in more than the grid's size."""
    own, patch = model.config["in_channels"], model.config["patch_size"]
    source = config.diffusion.init
    if own != channels:
        raise UserError(
            f"diffusion.init={source} generates latents of {own} channels, the autoencoder has {channels}; "
            "take the autoencoder that it was trained with, as autoencoder.source, or train it from nothing"
        )
    if grid % patch:
        raise UserError(
            f"diffusion.init={source} has patches of {patch} x {patch} cells, which do not divide the latent "
            f"grid of {grid} x {grid}; set image_size to a multiple of {config.image_size // grid * patch}"
        )


def model_to_train(run: Run, channels: int, grid: int) -> Any:
    """Returns a run's diffusion model before its first step: with an adapter, where one is trained.

    Its latents have so many `channels`, and a `grid` of so many cells along a side.
    """
    config = run.config.diffusion
    if config.init is None:
        return build_backbone(config, grid, channels, len(run.train.classes))
    return add_adapter(_initial_model(run, channels, grid), config.lora)


def without_adapter(run: Run, model: Any) -> Any:
    """Saves what a trained model has of an adapter, and returns the model with it merged."""
    if not run.config.diffusion.lora.rank:
        if run.main:  # that of a training before
            shutil.rmtree(run.folder / ADAPTER, ignore_errors=True)
        return model
    if run.main:
        with atomic_folder(run.folder / ADAPTER) as temporary:
            save_adapter(model, temporary)
    return merged(model)


def _initial_model(run: Run, channels: int, grid: int) -> LightningDiTTransformer2DModel:
    """Returns the copy that the run keeps, for its own classes and latents, as in `model_to_train`.

    Classes are matched by name. The embedding of a new one is the mean of the old ones; the null class is
    kept. An adapter trains no embeddings: a single class, as of images without classes, then has the null
    class's. Positions are interpolated where the grid differs.

    Raises:
        UserError: the latents have other channels.
    """
    model, names = _open_initial(run.config, run.folder)
    _check_latents(run.config, model, channels, grid)
    classes, old = list(run.train.classes), model.config["num_classes"]
    rows = _matched(classes, names, old)
    as_null = rows == [None] and run.config.diffusion.lora.rank > 0 and model.null_class is not None
    _report(
        run, classes, names, rows, "trained as the null class" if as_null else "from the mean of the old ones"
    )
    with torch.random.fork_rng(devices=[]):
        made: Any = LightningDiTTransformer2DModel.from_config(
            model.config, sample_size=grid, num_classes=len(classes)
        )
    state = model.state_dict()
    key, patch = "y_embedder.embedding_table.weight", model.config["patch_size"]
    state["pos_embed"] = model._positions(grid // patch, grid // patch).clone()
    rows = [model.null_class] if as_null else rows
    state[key] = _embeddings(state[key], rows, old, made.null_class, model.null_class)
    made.load_state_dict(state)
    return made


def _matched(classes: list[str], names: list[str], old: int) -> list[int | None]:
    """Returns for each class of the run its number in the model, or None for a new one."""
    if len(classes) == old and (not names or old == 1):
        return [*range(old)]  # it does not name them, or there is nothing to tell apart: taken in their order
    number = {name: i for i, name in reversed([*enumerate(names)])}
    return [number.get(name) for name in classes]


def _embeddings(
    table: Tensor, rows: list[int | None], old: int, null: int | None, old_null: int | None
) -> Tensor:
    """Returns the class embeddings (K or K + 1, D) of a run's classes, from those of the model's."""
    mean = table[:old].mean(0)
    made = [mean if row is None else table[row] for row in rows]
    if null is not None:
        made.append(mean if old_null is None else table[old_null])
    return torch.stack(made)


def _refuse_new(
    run: Run, model: LightningDiTTransformer2DModel, names: list[str], rows: list[int | None]
) -> None:
    """Raises a UserError for new classes, which an adapter can't tell apart; one alone is the null class."""
    source = run.config.diffusion.init
    new = [name for name, row in zip(run.train.classes, rows, strict=True) if row is None]
    if new and (len(rows) > 1 or model.null_class is None):
        raise UserError(
            f"diffusion.lora.rank trains no class embeddings, and diffusion.init={source} does not have "
            f"{', '.join(new[:8])}; give the classes names that it has "
            f"({', '.join(names[:12]) or 'none'}), put all images into one folder without subfolders, or set "
            "diffusion.lora.rank=0 to train the whole model"
        )


def _report(run: Run, classes: list[str], names: list[str], rows: list[int | None], start: str) -> None:
    """Prints which classes are matched, which are new, and from where these start."""
    new = [name for name, row in zip(classes, rows, strict=True) if row is None]
    if run.main:
        kept = [name for name in classes if name not in new]
        how = "by name" if set(kept) <= set(names) else "as the only one of both"
        how = how if names else "by number, for the source does not name its classes"
        lines = [f"{len(kept)} matched {how}" + (f" ({', '.join(kept[:12])})" if kept else "")]
        lines += [f"{len(new)} new, {start} ({', '.join(new[:12])})"] if new else []
        source = run.config.diffusion.init
        tell(f"diffusion.init={source}: classes {'; '.join(lines)}")
