"""The stage that joins autoencoder and diffusion model: the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.core.files import atomic_folder
from ldmae.diffusion.backbones import backbone_class
from ldmae.diffusion.flow import scheduler_shift
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.diffusion.solvers import solver_class
from ldmae.latents.statistics import latents_config
from ldmae.loading import load_model
from ldmae.run.run import Run, run_autoencoder


def save_pipeline(run: Run) -> dict[str, str]:
    """Joins autoencoder, diffusion model and scheduler into `pipeline/`, a diffusers folder."""
    statistics: Any = latents_config(run.folder / "latents")
    sampling = run.config.sampling
    solver = solver_class("euler" if sampling.own_solver else sampling.solver)
    vae: Any = run_autoencoder(run)
    own = isinstance(vae, AutoencoderVMAE)
    if own:
        vae.register_to_config(**statistics, scaling_factor=1.0)  # which the statistics hold
    pipeline = LDMAEPipeline(
        vae=vae,
        transformer=load_model(backbone_class(run.config.diffusion), run.folder / "diffusion"),
        scheduler=solver(shift=scheduler_shift(sampling.timestep_shift or 0.0)),
        id2label={label: run.train.classes[label] for label in _trained_classes(run)},
        **({} if own else statistics),
    )
    if run.main:
        with atomic_folder(run.folder / "pipeline") as temporary:
            pipeline.save_pretrained(temporary)
    return {"pipeline": run.records.stages["pipeline"].made_of}


def _trained_classes(run: Run) -> list[int]:
    """Returns the classes that have a training image; all of a stream, of which only some are kept."""
    if run.stream is not None:
        return list(range(len(run.train.classes)))
    return [label for label in np.unique(run.train.labels).tolist() if label >= 0]
