"""How long the whole run will take, said once its first training has found its pace."""

from __future__ import annotations

import itertools
import time
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldmae.core.progress import console, duration
from ldmae.perception.lpips import PerceptualDistance, load_perceptual
from ldmae.recipes.plan import TrainingPlan, latent_shape, plan_trainings
from ldmae.recipes.run import Run
from ldmae.training.checkpoint import list_checkpoints
from ldmae.training.engine import Trainer

STEPS = 20
"""Steps after which the estimate is made, from their median: starting up and saving do not count."""

TITLES = {
    "autoencoder.pretraining": "pre-training",
    "autoencoder.tuning": "tuning",
    "autoencoder.baseline": "autoencoder",
    "diffusion": "diffusion",
}


class RunEstimate:
    """Measures the first 20 steps of a start's first training, then prints about how long the run will take.

    Every other training is scaled by its operations, the perceptual network's among them, as if a device did
    all of them at one rate: it is an estimate.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stage, self._marks, self._told = "", [], False

    def __call__(self, trainer: Trainer) -> None:
        """Takes note of a step that was just done."""
        if self._told:
            return
        if trainer.stage != self._stage:  # one that ended before 20 steps is no measure
            self._stage, self._marks = trainer.stage, []
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()  # or the time would be that of launching kernels
        self._marks.append(time.monotonic())
        if len(self._marks) == STEPS:
            self._told = True
            if self.run.main:
                seconds = median(b - a for a, b in itertools.pairwise(self._marks))
                console.print(self._text(trainer, seconds), soft_wrap=True)

    def _text(self, trainer: Trainer, seconds_a_step: float) -> str:
        run = self.run
        model: Any = trainer.objective.model
        shape = latent_shape(model.config) if trainer.stage == "diffusion" else None
        plans = plan_trainings(run.config, run.accelerator.num_processes, len(run.train.classes), shape)
        flops = {plan.stage: plan.flops / plan.steps + self._perceptual_flops(plan) for plan in plans}
        rate = seconds_a_step / flops[trainer.stage]
        times = {plan.stage: self._steps_left(plan, trainer) * flops[plan.stage] * rate for plan in plans}
        times = {stage: spent for stage, spent in times.items() if spent > 0}
        after = self._sampling_flops(plans[-1]) * rate
        parts = [f"{TITLES[stage]} {duration(spent)}" for stage, spent in times.items()]
        whole = trainer.stage == plans[0].stage and trainer.step == len(self._marks)
        what = "the whole run" if whole else "the rest of the run"
        return (
            f"about {duration(sum(times.values()) + after)} for {what}"
            f" ({', '.join([*parts, f'sampling {duration(after)}'])}; encoding and measuring not counted)"
        )

    def _steps_left(self, plan: TrainingPlan, trainer: Trainer) -> int:
        """Returns the steps of a training that this start takes, or would have left to take."""
        if plan.stage == trainer.stage:
            return plan.steps - trainer.step + len(self._marks)
        record = self.run.book.records.get(plan.stage)
        if record is not None and record.status == "done":
            return max(0, plan.steps - record.steps)
        done = list_checkpoints(self.run.folder / "checkpoints" / plan.stage)
        return plan.steps - (done[-1][0] if done else 0)

    def _perceptual_flops(self, plan: TrainingPlan) -> float:
        """Returns the perceptual network's operations in a whole step, counted on one real row."""
        config = self.run.config
        group, _, part = plan.stage.partition(".")
        if group != "autoencoder":
            return 0.0
        size = config.pretraining_size if part == "pretraining" else config.image_size
        objective = getattr(config.autoencoder, part).objective
        if objective.perceptual_weight == 0:
            return 0.0
        rows = min(objective.perceptual_rows or plan.batch_size, plan.batch_size)
        perceptual = load_perceptual(objective.perceptual, self.run.accelerator.device)
        return rows * perceptual_flops(perceptual, size, self.run.accelerator.device)

    def _sampling_flops(self, diffusion: TrainingPlan) -> float:
        """Returns the operations of the samples and of the images that are generated to be measured."""
        config = self.run.config
        sampling, measured = config.sampling, config.evaluation
        forward = diffusion.flops / diffusion.steps / diffusion.batch_size / 3  # of one image
        evaluations = sampling.num_inference_steps * (2 if sampling.solver == "heun" else 1)
        start, end = sampling.guidance_interval
        total = 0.0
        for images, scale in (
            (min(len(self.run.train.classes), sampling.max_classes) * sampling.per_class, None),
            (measured.samples, measured.guidance_scale),
        ):
            guided = (sampling.guidance_scale if scale is None else scale) != 1
            total += images * evaluations * forward * (1 + guided * (end - start))
        return total


def perceptual_flops(perceptual: PerceptualDistance, size: int, device: torch.device | str) -> float:
    """Returns a perceptual distance's operations, forward and backward, for one image of `size` pixels."""
    decoded = torch.zeros(1, 3, size, size, device=device, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        perceptual(decoded, torch.zeros_like(decoded)).sum().backward()
    return float(counter.get_total_flops())
