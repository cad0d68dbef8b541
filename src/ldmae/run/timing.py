"""Times a piece of everything that a run will do, on models with random weights."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from ldmae.core.autoencoding import encode_moments
from ldmae.diffusion.backbones import patch_size
from ldmae.diffusion.flow import set_sampling_times
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.diffusion.solvers import evaluations
from ldmae.evaluation.efficiency import seconds_of
from ldmae.images.dataset import ImageDataset
from ldmae.run.run import Run, latent_channels, run_autoencoder
from ldmae.run.sampling import generated_batches, measured_sampling
from ldmae.run.trainings import adversary_start, trainings, untrained_objective
from ldmae.run.trials import measuring_seconds, seconds_of_an_image, seconds_of_steps
from ldmae.training.engine import Trainer


class Timing:
    """Times pieces of a run just before one of its trainings starts, which they leave as it is."""

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self.run, self.config, self.device = run, run.config, run.accelerator.device
        with torch.random.fork_rng(devices=[]):
            if trainer.stage == "diffusion":
                self.autoencoder: Any = run_autoencoder(run)
            else:
                model: Any = trainer.objective.model
                self.autoencoder = type(model).from_config(model.config, sample_size=self.config.image_size)
        self.autoencoder = self.autoencoder.to(self.device).eval().requires_grad_(False)
        self.latent_shape = latent_channels(self.autoencoder, self.config.image_size)

    def step_seconds(self, stage: str) -> float:
        """Returns the mean seconds of a training's steps."""
        first, last, start = self._step_seconds(stage)
        return last + (first - last) * start / trainings(self.config)[stage].steps

    def growth(self, trainer: Trainer) -> float:
        """Returns the ratio of a training's mean step to its next: an adversary may join in later."""
        left = trainer.config.steps - trainer.step
        start = adversary_start(self.config, trainer.stage) - trainer.step
        if start <= 0:
            return 1.0
        first, last, _ = self._step_seconds(trainer.stage)
        return 1 + (last / first - 1) * max(0, left - start) / left

    def latents(self) -> float:
        """Returns the seconds of encoding the training images."""
        config, images = self.config.latents, len(self.run.train)
        size = self.config.image_size
        rows = torch.zeros(config.batch_size, 3, size, size)

        @torch.no_grad()
        def encode(count: int) -> None:
            encode_moments(self.autoencoder, rows[:count])

        seconds = self._of_an_image(encode, config.batch_size) * (1 + config.flip)
        loading = self._reading
        together = max(seconds, loading / config.num_workers) if config.num_workers else seconds + loading
        return images * together / self.run.accelerator.num_processes

    def samples(self) -> float:
        """Returns the seconds of the class grid."""
        sampling = self.config.sampling
        images = min(len(self.run.train.classes), sampling.max_classes) * sampling.per_class
        return images * self._generating(sampling.guidance_scale)

    def evaluation(self) -> float:
        """Returns the seconds of generating images, of measuring them, and of measuring reconstructions."""
        features, _, distances = self._measuring
        generating = self._generating(measured_sampling(self.config).guidance_scale)
        shared = self.config.evaluation.samples * (generating + features)
        shared += self._real * (features + self._reading)
        return shared / self.run.accelerator.num_processes + self.comparing(self._held_out) + distances

    def comparing(self, images: int) -> float:
        """Returns the seconds of reconstructing images and of comparing them with the originals."""
        return images * (self._measuring[1] + self._reading)

    def _step_seconds(self, stage: str) -> tuple[float, float, int]:
        """Returns the seconds of a training's first and last step, and the step from which it is the last."""
        # what no loading process does beside the steps
        alone = trainings(self.config)[stage].num_workers == 0 and stage != "diffusion"
        loading, classes = self._reading if alone else 0.0, len(self.run.train.classes)
        return seconds_of_steps(
            self.config, stage, self.run.accelerator, self.autoencoder, self.latent_shape, classes, loading
        )

    def _generating(self, scale: float) -> float:
        """Returns the seconds of an image that is generated at a scale of guidance."""
        config = self.config.sampling
        scheduler = self._pipeline.scheduler
        tokens = (self.latent_shape[1] // patch_size(self.config.diffusion)) ** 2
        set_sampling_times(scheduler, config.num_inference_steps, config.timestep_shift, tokens)
        times = 1 - scheduler.timesteps.double() / scheduler.config["num_train_timesteps"]
        start, end = config.guidance_interval
        null = len(self.run.train.classes) > 1 and scale != 1
        guided = int(((times >= start) & (times <= end)).sum()) if null else 0
        count = evaluations(config.solver, config.num_inference_steps)
        double = count * guided / len(times)
        return self._decoding + self._evaluating * (count + double)

    @property
    def _real(self) -> int:
        return min(len(self.run.train), self.config.evaluation.real_images or len(self.run.train))

    @property
    def _held_out(self) -> int:
        return min(len(self.run.held_out), self.config.evaluation.images or len(self.run.held_out))

    @cached_property
    def _measuring(self) -> tuple[float, float, float]:
        return measuring_seconds(self.run, self.autoencoder, self._held_out, self._real)

    @cached_property
    def _pipeline(self) -> LDMAEPipeline:
        with torch.random.fork_rng(devices=[]):
            classes = len(self.run.train.classes)
            flow: Any = untrained_objective(self.config, "diffusion", self.latent_shape, classes)
        channels = self.latent_shape[0]
        pipeline = LDMAEPipeline(
            vae=self.autoencoder,
            transformer=flow.model.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
        ).to(self.device)
        return pipeline

    @cached_property
    def _decoding(self) -> float:
        channels, side = self.latent_shape
        latents = torch.zeros(self.config.sampling.batch_size, channels, side, side, device=self.device)
        return self._of_an_image(lambda n: self._pipeline.decode_latents(latents[:n]), len(latents))

    @cached_property
    def _evaluating(self) -> float:
        """Seconds of an image in an evaluation of the diffusion model, without guidance."""
        steps = 2
        config = self.config.sampling.replace(num_inference_steps=steps, solver="euler", guidance_scale=1.0)

        def generate(count: int) -> None:
            batch = config.replace(batch_size=count)
            list(generated_batches(self._pipeline, [0] * count, batch, "", show=False))

        seconds = self._of_an_image(generate, self.config.sampling.batch_size)
        return max(0.0, seconds - self._decoding) / steps

    @cached_property
    def _reading(self) -> float:
        """Seconds of reading and preparing an image."""
        source = self.run.train
        dataset = ImageDataset(source, self.config.image_size, 0, None)
        some = np.linspace(0, len(source) - 1, 8).astype(int).tolist()
        return seconds_of(lambda: [dataset[(0, index)] for index in some]) / len(some)

    def _of_an_image(self, work: Callable[[int], object], count: int) -> float:
        return seconds_of_an_image(work, count, self.device)
