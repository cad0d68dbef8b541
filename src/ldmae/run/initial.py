"""The autoencoder that training starts from, `autoencoder.init`: shape, copy, what it was trained with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from ldmae.autoencoders.baselines import FULL_WIDTHS
from ldmae.autoencoders.decoder_training import freeze_all_but_decoder
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, load_config
from ldmae.config.autoencoder import BaselineConfig, VMAEConfig
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.files import at_home
from ldmae.core.provenance import Records
from ldmae.loading import load_autoencoder, settings_of
from ldmae.run.run import Run, Stage, kept_model, save_model

INITIAL = "autoencoder.init"
"""The stage that copies it, and the artefact that this makes."""


def keep_initial(run: Run) -> dict[str, str]:
    """Copies the autoencoder that training starts from into the run folder."""
    assert run.config.autoencoder.init is not None
    model = load_autoencoder(run.config.autoencoder.init)
    return {INITIAL: save_model(run, model, run.folder / kept_model(INITIAL))}


def load_copy(run: Run) -> Any:
    """Loads the run's copy of the autoencoder that training starts from."""
    return load_autoencoder(str(run.folder / kept_model(INITIAL)))


def copying(name: str, source: str, execute: Callable[[Run], dict[str, str]], *more: str) -> Stage:
    """Returns the stage that copies a source, so that the run resumes without it; it makes `more`, too."""
    return Stage(
        name=name,
        title="initial weights",
        outputs=(name,),
        makes=(kept_model(name), *more),
        settings=_settings(source),
        execute=execute,
        command=f"ldmae train {name.split('.')[0]}",
    )


def is_copied(records: Records, stage: str, source: str, restart: str | None) -> bool:
    """Says whether a run has a copy of a source, which no `restart` of the stage is about to forget."""
    record = records.stages.get(stage) if stage != restart else None
    return record is not None and record.status == "done" and record.settings == _settings(source)


def refuse_own(name: str, source: str, folder: Path) -> None:
    """Raises a UserError where a run would start from what it made itself, and replace it."""
    place, folder = Path(at_home(source)).resolve(), folder.resolve()
    made = {(folder / name).resolve() for name in ("autoencoder", "pipeline", "checkpoints")}
    if place.exists() and (place == folder or made & {place, *place.parents}):
        raise UserError(
            f"{name}={source} is in the folder of the run itself, which would replace it; name another "
            "folder with --out"
        )


def _settings(source: str) -> dict[str, str]:
    return {"init": str(Path(source))}


def with_initial_autoencoder(
    config: Config, folder: Path, typed: dict[str, Any] | None = None, restart: str | None = None
) -> tuple[Config, Any]:
    """Returns a run's settings with the shape of the autoencoder that training starts from, and that.

    Args:
        config: the settings.
        folder: the run folder, whose copy counts where it has one.
        typed: the settings that the user wrote, nested.
        restart: a stage that is about to be forgotten, and its copy with it.

    Returns:
        The settings; the autoencoder without memory (on the meta device), None where it is drawn.

    Raises:
        UserError: `autoencoder.init` can't be loaded, does not take the images that are trained on, or
            contradicts a setting that the user wrote.
    """
    auto, source = config.autoencoder, config.autoencoder.init
    if source is None or auto.source is not None:
        return config, None
    copy = folder / kept_model(INITIAL)
    kept = is_copied(Records(folder), INITIAL, source, restart) and copy.exists()
    if not kept:
        refuse_own(INITIAL, source, folder)
    model = load_autoencoder(str(copy) if kept else source)
    kind = type(model)
    if kind is not AutoencoderVMAE and getattr(diffusers, kind.__name__, None) is not kind:
        raise UserError(
            f"autoencoder.init={source} is of the class {kind.__name__}, of which a run can keep no copy; "
            "name an AutoencoderVMAE or an autoencoder of diffusers"
        )
    with torch.device("meta"):
        shape: Any = kind.from_config(model.config)
        shape.eval()
        if auto.kind == "decoder":
            freeze_all_but_decoder(shape)
            reconstruct(shape, torch.zeros(1, 3, config.image_size, config.image_size))
    found = _settings_of(shape)
    if found is None:
        return config, shape
    is_vit = isinstance(found, VMAEConfig)
    group = "autoencoder.model" if is_vit else "autoencoder.baseline.model"
    refuse_contradictions(typed, group, dict(found), INITIAL, source)
    changes = {"model": found} if is_vit else {"baseline": auto.baseline.replace(model=found)}
    config = config.replace(autoencoder=auto.replace(**changes))
    if is_vit == auto.is_vit:  # else it is of another kind, and refused as that
        try:
            config.check_sizes()
        except ValueError as error:
            raise UserError(str(error)) from error
    return config, shape


def _settings_of(model: Any) -> VMAEConfig | BaselineConfig | None:
    """Returns the settings of an autoencoder's shape; None where no settings have it."""
    if isinstance(model, AutoencoderVMAE):
        return VMAEConfig(**{name: model.config[name] for name in VMAEConfig.model_fields})
    if isinstance(model, AutoencoderKL):
        channels, widths = model.config["latent_channels"], model.config["block_out_channels"]
        width, factor = widths[0] / FULL_WIDTHS[0], 2 ** (len(widths) - 1)
        return BaselineConfig(factor=factor, latent_channels=channels, width=width)
    return None


def teachers(config: Config, known: frozenset[str] = frozenset()) -> set[str]:
    """Returns the networks that a run's autoencoder is trained with, in whatever stage.

    They give a perceptual distance, or features that latents are aligned with. Those of the autoencoder that
    it takes, or starts from, are among them where they are set or its settings are known, and not among the
    `known`.
    """
    auto = config.autoencoder
    before = auto.source or auto.init
    found = set() if before is None else {*(auto.taught_by or ())}
    if auto.taught_by is None and before not in {None, *known} and (settings := settings_of(str(before))):
        found = teachers(load_config(settings), known | {str(before)})
    parts = [part for part in auto.stages if part != "tuning" or auto.tuning.enabled]
    for objective in [getattr(auto, part).objective for part in parts]:
        taught = [term for term in ("perceptual", "alignment") if getattr(objective, f"{term}_weight", 0) > 0]
        found |= {getattr(objective, term) for term in taught}
    return found


def with_teachers(config: Config, folder: Path) -> Config:
    """Returns a run's settings with what the autoencoder before it was trained with.

    Where that one is gone, it is what the settings in the run folder say of it.
    """
    auto, path = config.autoencoder, folder / "config.yaml"
    before, taught = auto.source or auto.init, auto.taught_by
    if before is None:
        return config.replace(autoencoder=auto.replace(taught_by=None))
    with contextlib.suppress(UserError):  # settings of another version: no reason not to resume
        kept = load_config(str(path)).autoencoder if path.is_file() else auto
        taught = kept.taught_by if taught is None and before == (kept.source or kept.init) else taught
    with contextlib.suppress(UserError):
        if (settings := settings_of(before)) is not None:
            taught = sorted(teachers(load_config(settings)))
    return config.replace(autoencoder=auto.replace(taught_by=taught))


def refuse_contradictions(
    typed: dict[str, Any] | None, group: str, found: dict[str, Any], init: str, source: str
) -> None:
    """Raises a UserError where the user wrote another shape, `group`, than the weights of `init` have."""
    written: Any = typed
    for part in group.split("."):
        written = written.get(part) if isinstance(written, dict) else None
    for name, value in (written or {}).items():
        if name in found and value != found[name]:
            raise UserError(
                f"{group}.{name}={value} contradicts {init}={source}, whose {name} is {found[name]}; omit "
                f"it, or train from nothing with {init}=null"
            )
