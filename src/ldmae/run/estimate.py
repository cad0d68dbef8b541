"""How long a run will take, said once its first training has found its pace."""

from __future__ import annotations

import itertools
import time
from statistics import median

import torch

from ldmae.core.progress import duration, tell
from ldmae.run.decoder_change import CHANGE, images_to_compare
from ldmae.run.run import Run
from ldmae.run.timing import Timing
from ldmae.run.trainings import trainings
from ldmae.training.checkpoint import list_checkpoints
from ldmae.training.engine import Trainer

_STEPS = 20
"""Steps after which the estimate is made, from their median: starting up and saving do not count."""


class RunEstimate:
    """Prints how long a run will take, once, after 20 steps of the first training long enough.

    This training is measured as it goes. What comes after it is timed just before it starts, in a few
    seconds: a step of each other training, with its own model, batch and networks but without loading; a step
    of the sampler, a batch of the encoder and of each network that measures. `uncounted` names what the run
    does besides.
    """

    def __init__(self, run: Run, uncounted: str = "") -> None:
        self.run, self.uncounted = run, uncounted
        self._began, self._stage, self._marks = time.monotonic(), "", []
        self._ahead: dict[str, float] = {}
        self._growth = 1.0

    @classmethod
    def watch(cls, run: Run, uncounted: str = "") -> None:
        """Has the estimate of a run printed."""
        estimate = cls(run, uncounted)
        run.on_start.append(estimate.start)
        run.on_step.append(estimate)

    def start(self, trainer: Trainer) -> None:
        """Times what comes after a training that is about to start."""
        if self._stage or trainer.config.steps - trainer.step < _STEPS:
            return
        self._stage = trainer.stage
        timing, todo = Timing(self.run, trainer), self._steps_left()
        self._growth = timing.growth(trainer)
        for stage, steps in todo.items():
            if stage != trainer.stage and steps:
                self._ahead[stage] = steps * timing.step_seconds(stage)
        record = self.run.records.stages.get("latents")
        if self.run.stream is not None:
            self.uncounted = self.uncounted or "encoding the stream"
        elif trainer.stage != "diffusion" and (record is None or record.status != "done"):
            self._ahead["latents"] = timing.latents()
        if trainer.stage != "diffusion" and any(stage.name == CHANGE for stage in self.run.stages):
            self._ahead[CHANGE] = 2 * timing.comparing(images_to_compare(self.run))
        self._ahead |= {"samples": timing.samples(), "evaluation": timing.evaluation()}

    def __call__(self, trainer: Trainer) -> None:
        """Takes note of a step that was just done."""
        if trainer.stage != self._stage or len(self._marks) == _STEPS:
            return
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()  # or the time would be that of launching kernels
        self._marks.append(time.monotonic())
        if len(self._marks) == _STEPS and self.run.main:
            seconds = median(b - a for a, b in itertools.pairwise(self._marks))
            tell(self._text(trainer, seconds * self._growth))

    def _text(self, trainer: Trainer, seconds_a_step: float) -> str:
        first = next(iter(trainings(self.run.config)))
        whole = trainer.stage == first and trainer.step == _STEPS
        spent = time.monotonic() - self._began if whole else 0.0
        steps = trainer.config.steps - (0 if whole else trainer.step)
        times = {trainer.stage: steps * seconds_a_step} | self._ahead
        total = sum(times.values()) + max(0.0, spent - _STEPS * seconds_a_step)
        parts = [f"{s.title} {duration(times[s.name])}" for s in self.run.stages if s.name in times]
        return (
            f"about {duration(total)} for {'the whole run' if whole else 'the rest of the run'} "
            f"({', '.join(parts)}{'; not counted: ' if self.uncounted else ''}{self.uncounted})"
        )

    def _steps_left(self) -> dict[str, int]:
        """Returns the steps that this start takes of each training."""
        left = {}
        for stage, training in trainings(self.run.config).items():
            record = self.run.records.stages.get(stage)
            if record is not None and record.status == "done":
                left[stage] = max(0, training.steps - record.steps)
            else:
                done = list_checkpoints(self.run.folder / "checkpoints" / stage)
                left[stage] = training.steps - (done[-1][0] if done else 0)
        return left
