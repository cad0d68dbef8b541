"""One training loop for every objective: exact resume, gradient accumulation, any number of processes."""

# b rows of a micro-batch

import contextlib
import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import Dataset, IterableDataset, default_collate

from ldmae.config.training import TrainingConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.device import finished
from ldmae.core.errors import UserError, loading_errors
from ldmae.core.progress import progress_bar, tell
from ldmae.training.averaging import AveragedWeights, report_long_average
from ldmae.training.checkpoint import (
    drop_old_checkpoints,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from ldmae.training.data import KeyedBatches, WaitingNotice, keyed_loader, split_rows, stream_batches
from ldmae.training.metrics import append_metrics, cut_back
from ldmae.training.optim import build_optimizer, learning_rate_at, report_long_warmup
from ldmae.training.sharding import check_launch, gathered, is_sharded, set_up_sharding, whole

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Not strict, for a parameter that never got a gradient has no moments; names and shapes are checked before.
_RESTORED = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
_RESTORED_FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


@dataclass(kw_only=True)
class Trainer:
    """Trains `objective.model` by an objective `forward(batch, keys) -> ObjectiveOutput`.

    Everything random is keyed by seed, step and row, so that a run that was killed and started again ends
    with the weights of one that was left alone.

    An objective may hold a second network, `adversary`, which learns from the same backward pass: each is
    clipped by its own norm, one optimizer steps both, training states hold both, and only the model is
    averaged. Where terms depend on the whole batch, and a step's batch comes in pieces, the objective's
    `look_ahead(batch, keys)` gives a piece's share, tensors by name or None; all have the sums `whole_batch`.

    Raises:
        UserError: fewer steps are asked for than done, a loss is not finite, the batch is too small for the
            number of processes, the model names no blocks to compile, or the launch shards what it cannot.
    """

    objective: nn.Module
    """Holds the trainable `model` (and an `adversary`); what accelerate prepares and steps."""
    dataset: Dataset[Any]
    """Map-style: `dataset[(epoch, index)]` is a dict of tensors. See `ldmae.core.device.finished`."""
    config: TrainingConfig
    stage: str
    """Its name in metrics.jsonl and in messages."""
    folder: Path
    """Where training states lie."""
    metrics_path: Path
    seed: int
    accelerator: Accelerator
    made_of: str = ""
    """Fingerprint of settings and inputs: a training state that bears another is refused."""
    started: bool = False
    """Whether the model was trained before: its average starts at its weights."""
    validation: Dataset[Any] | None = None
    on_start: list[Callable[["Trainer"], None]] = field(default_factory=list)
    """Called once all is ready for the first step of this start, where there is one."""
    on_step: list[Callable[["Trainer"], None]] = field(default_factory=list)
    """Called after each step."""
    step: int = 0

    def run(self) -> nn.Module:
        """Trains up to `config.steps` and returns the model (its averaged weights where there are any)."""
        self._prepare()
        self._resume()
        for callback in self.on_start if self.step < self.config.steps else []:
            callback(self)
        self._since, self._data_seconds = time.monotonic(), 0.0
        show = self.accelerator.is_main_process
        with progress_bar(self.stage, self.config.steps, "steps", self.step, show) as advance:
            for pieces in self.batches():
                self._take_step(pieces)
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    advance(self.step - self._timed, self._log())
                if self.config.validate_every and self.step % self.config.validate_every == 0:
                    self._validate()
                if self.step % self.config.checkpoint.every_steps == 0 or self.step == self.config.steps:
                    self._save()
                for callback in self.on_step:
                    callback(self)
        return self._finished_model()

    def batches(self) -> Iterator[list[tuple[dict[str, Tensor], BatchKeys]]]:
        """Yields the micro-batches of each step that is left, by a loader of its own."""
        config = self.config
        if self.step == config.steps:
            return
        loaded = self._loaded()
        for step in range(self.step, config.steps):
            waited = time.monotonic()
            keys = [BatchKeys(self.seed, step, rows, config.batch_size) for rows in self._rows]
            with loading_errors():
                pieces = [(finished(self.dataset, next(loaded), self.accelerator.device), k) for k in keys]
            self._data_seconds += time.monotonic() - waited
            yield pieces

    def _loaded(self) -> Iterator[dict[str, Tensor]]:
        """Yields the micro-batches of this process from the present step on."""
        config = self.config
        if isinstance(self.dataset, IterableDataset):
            return stream_batches(self.dataset, self._rows, self.step, config.num_workers)
        length = len(self.dataset)  # pyright: ignore[reportArgumentType]
        batches = KeyedBatches(length, config.batch_size, self._rows, self.step, config.steps, self.seed)
        return iter(keyed_loader(self.dataset, batches, config.num_workers, self.accelerator.device))

    def _take_step(self, pieces: list[tuple[dict[str, Tensor], BatchKeys]]) -> None:
        accelerator, optimizer = self.accelerator, self._optimizer
        rate = learning_rate_at(self.step, self.config.steps, self.config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("relative_rate", 1.0)
        optimizer.zero_grad()
        for i, (batch, keys) in enumerate(self.looked_ahead(pieces)):
            last = i == len(pieces) - 1
            # sharded gradients are summed as they come: kept, they would lie whole on every device
            together = last or self._unsharded is not None
            with contextlib.nullcontext() if together else accelerator.no_sync(self._wrapped):
                with accelerator.autocast():  # a sharded objective brings none of its own
                    output = checked_output(self._wrapped(batch, keys), self.stage)
                # The shares of the processes add up; averaging over processes, as DDP does, is undone by the
                # factor.
                accelerator.backward(output.loss * accelerator.num_processes)
            self._add({"loss": output.loss.detach(), **output.terms})
        self._clip()
        optimizer.step()
        if self._average is not None:
            self._average.update(self.step)
        self.step += 1

    def looked_ahead(self, pieces: list[tuple[dict[str, Any], BatchKeys]]) -> list[Any]:
        """Adds to the pieces of a batch what the objective must know of the whole of it."""
        look_ahead = getattr(self.objective, "look_ahead", None)
        whole = len(pieces[0][1].rows) == self.config.batch_size
        if look_ahead is None or whole:
            return pieces
        with self.accelerator.autocast():
            shares = [look_ahead(batch, keys) for batch, keys in pieces]
        if shares[0] is None:
            return pieces
        sums = {name: torch.stack([share[name] for share in shares]).sum(0) for name in shares[0]}
        whole_batch: Any = self.accelerator.reduce(sums, "sum")
        return [({**batch, "whole_batch": whole_batch}, keys) for batch, keys in pieces]

    def _clip(self) -> None:
        """Clips the gradients of the model and of its adversary by their norms, and notes these."""
        limit = self.config.optimizer.gradient_clip
        limit = math.inf if limit is None else limit
        self.accelerator.unscale_gradients()
        parts = {"gradient_norm": self._model, "adversary_gradient_norm": self._adversary}
        for name, part in parts.items():
            if part is None:
                continue
            norm = clip_grad_norm_(part.parameters(), limit)
            # a scaled fp16 step may be infinite and is then skipped
            if self.accelerator.scaler is None:
                self._add({name: whole(norm.detach()) / self.accelerator.num_processes})

    def _prepare(self) -> None:
        config, accelerator = self.config, self.accelerator
        check_launch(self.stage, config, accelerator, self.objective)
        rank, world = accelerator.process_index, accelerator.num_processes
        self._rows = split_rows(config.batch_size, config.micro_batch_size, rank, world)
        self._model: Any = self.objective.model
        self._adversary: Any = getattr(self.objective, "adversary", None)
        self._shapes = {name: tensor.shape for name, tensor in self.objective.state_dict().items()}
        self.objective.train()
        self._unsharded = None
        if is_sharded(accelerator):
            set_up_sharding(accelerator, self._model)
            self._unsharded = copy.deepcopy(self._model)  # in the computer's memory, filled at the end
        self.objective.to(accelerator.device)
        if config.compile:
            self._model.compile_repeated_blocks()
        optimizer = build_optimizer(self.objective, config.optimizer)
        self._wrapped, self._optimizer = accelerator.prepare(self.objective, optimizer)
        decay = config.ema_decay
        self._average = None if decay is None else AveragedWeights(self._model, decay, self.started)
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, Tensor] = {}
        self._logged, self._data_seconds = 0, 0.0
        self._waiting = WaitingNotice(self.stage, config.num_workers)

    def _resume(self) -> None:
        (found,) = broadcast_object_list([list_checkpoints(self.folder)])  # what the main process sees
        if found:
            path = found[-1][1]
            self._restore(load_checkpoint(path), path)
        if self.accelerator.is_main_process:
            cut_back(self.metrics_path, self.stage, self.step)
            drop_old_checkpoints(self.folder, self.config.checkpoint.keep_every)
            if self.step:
                tell(f"{self.stage} resumes from step {self.step}")
            report_long_average(self.stage, self.config)
            report_long_warmup(self.stage, self.config)
        self._timed = self.step

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        if state["step"] > self.config.steps:
            raise UserError(
                f"{self.stage} has done {state['step']} steps, steps={self.config.steps} asks for fewer; "
                f"ask for at least {state['step']}, or train it again with --restart {self.stage}"
            )
        if state["made_of"] != self.made_of:
            raise UserError(
                f"{path} belongs to a training with other settings or inputs; restore the earlier file, "
                f"or train it again with --restart {self.stage}"
            )
        shapes = {name: tensor.shape for name, tensor in state["objective"].items()}
        averaged = [] if self._average is None else list(self._average.averages)
        if shapes != self._shapes or list(state.get("average", [])) != averaged:
            names = {**shapes, **self._shapes}
            other = next(
                (name for name in names if self._shapes.get(name) != shapes.get(name)), "averaged weights"
            )
            raise UserError(
                f"{path} belongs to another model or other settings (see {other}); go back to those, or "
                f"train it again with --restart {self.stage}"
            )
        for name in (name for group in state["optimizer"]["param_groups"] for name in group["params"]):
            state["optimizer"]["state"].setdefault(name, {})  # older versions of torch want one of each
        set_state_dict(
            self._wrapped,
            self._optimizer.optimizer,
            model_state_dict=state["objective"],
            optim_state_dict=state["optimizer"],
            options=_RESTORED_FROM_RANK_0 if self.accelerator.num_processes > 1 else _RESTORED,
        )
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self._logged = state["step"], state.get("logged", state["step"])
        for name, total in state.get("totals", {}).items():
            self._totals[name] = total.to(self.accelerator.device)
        self._tell_of_other_plan(state.get("planned", self.config.steps))

    def _tell_of_other_plan(self, planned: int) -> None:
        """Says so where the rate, which falls over all steps, does not go on as it would have."""
        before, now = (
            learning_rate_at(self.step, steps, self.config.optimizer)
            for steps in (planned, self.config.steps)
        )
        if before != now and self.accelerator.is_main_process:
            tell(
                f"{self.stage} was planned for {planned:,} steps and is now to have {self.config.steps:,}: "
                f"its learning rate continues at {now:.2g} in place of {before:.2g}. To train it on one "
                f"schedule, add --restart {self.stage}"
            )

    def _save(self) -> None:
        self._gather_sums()
        for name, parameter in self.objective.named_parameters():
            self._require_finite(f"weight {name.removeprefix('model.')}", whole(parameter.detach()))
        objective, optimizer = get_state_dict(self._wrapped, self._optimizer.optimizer, options=_WHOLE)
        average = None if self._average is None else self._average.state_dict()
        if self.accelerator.is_main_process:
            state: dict[str, Any] = {"objective": objective, "optimizer": optimizer, "made_of": self.made_of}
            state["planned"] = self.config.steps
            state["totals"] = {name: total.cpu() for name, total in self._totals.items()}  # of the next line
            state["logged"] = self._logged
            if average is not None:
                state["average"] = average
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            save_checkpoint(self.folder, self.step, state, self.config.checkpoint.keep_every)
        self.accelerator.wait_for_everyone()

    def _add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _gather_sums(self) -> None:
        """Adds what was summed up since to the totals over all processes, in each of them.

        A checkpoint does so too, whether training then goes on or is taken up again: the order in which the
        numbers are added is the same.
        """
        for name, value in self._sums.items():
            value = cast(Tensor, self.accelerator.reduce(value, "sum"))
            self._totals[name] = self._totals[name] + value if name in self._totals else value
        self._sums = {}
        # a term is a better clue than the sum of all
        for name in sorted(self._totals, key=lambda name: name == "loss" or name.endswith("gradient_norm")):
            self._require_finite(f"term {name!r}", self._totals[name])

    def _require_finite(self, what: str, values: Tensor) -> None:
        finite = values.isfinite()
        if not finite.all():
            raise UserError(
                f"{self.stage}: the {what} became {values[~finite][0].item()} by step {self.step}; the last "
                "checkpoint is untouched. Lower the learning rate, set optimizer.gradient_clip, or train "
                f"with mixed_precision=no: other settings need --restart {self.stage}, to train it again"
            )

    def _log(self) -> str:
        """Writes the means since the last line and returns the loss for the progress bar."""
        steps, seconds = self.step - self._logged, time.monotonic() - self._since
        self._gather_sums()
        means = {name: value.item() / steps for name, value in self._totals.items()}
        line = {
            "stage": self.stage,
            "step": self.step,
            "loss": means.pop("loss"),
            "terms": {name: value for name, value in means.items() if not name.endswith("gradient_norm")},
            "gradient_norm": means.get("gradient_norm"),
            **{name: value for name, value in means.items() if name == "adversary_gradient_norm"},
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "images_per_second": (self.step - self._timed) * self.config.batch_size / seconds,
            "data_share": self._data_seconds / seconds,
            "seconds": seconds,
        }
        if self.accelerator.is_main_process:
            append_metrics(self.metrics_path, line)
            self._waiting(line["data_share"])
        flat = {"loss": line["loss"], "learning_rate": line["learning_rate"], **means}
        self.accelerator.log({f"{self.stage}/{name}": value for name, value in flat.items()}, step=self.step)
        self._totals, self._logged, self._timed = {}, self.step, self.step
        self._since, self._data_seconds = time.monotonic(), 0.0
        return f"loss {line['loss']:.4f}"

    @torch.no_grad()
    def _validate(self) -> None:
        """Writes the loss on held-out images, with the same noise and masks each time."""
        began = time.monotonic()
        length = len(self.validation) if self.validation is not None else 0  # pyright: ignore
        count = min(length, self.config.validation_images)
        if self.validation is None or not count:
            return
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = self.config.micro_batch_size or -(-self.config.batch_size // world)
        self.objective.eval()
        sums: Counter[str] = Counter()
        for piece in split_rows(count, size, rank, world):
            # a sharded forward needs every process: one that has no row does the first, unheard
            rows = piece or range(1)
            batch = default_collate([self.validation[(0, row)] for row in rows])
            batch = finished(self.validation, batch, self.accelerator.device)
            with self.accelerator.autocast():
                output = self.objective(batch, BatchKeys(self.seed, 0, rows, count))
            for name, value in {"loss": output.loss, **output.terms}.items() if piece else ():
                sums[name] += value.item()
        self.objective.train()
        means: Counter[str] = Counter()
        for share in gather_object([sums]):  # not by tensors: a process may have had no row, and so no term
            for name, value in share.items():
                means[name] += value
        if self.accelerator.is_main_process:
            loss = means.pop("loss")
            line = {"stage": self.stage, "step": self.step, "validation": {"loss": loss, "terms": means}}
            append_metrics(self.metrics_path, line)
        self._since += time.monotonic() - began  # no part of the training's rate

    def _finished_model(self) -> nn.Module:
        state = gathered(self._model.state_dict())
        if self._average is not None:
            state |= self._average.state_dict()
        model = self._model if self._unsharded is None else self._unsharded
        model.load_state_dict(state)
        del self._wrapped, self._optimizer, self._average
        self.accelerator.free_memory()  # it keeps what it prepared, and the next stage needs the room
        return model.to(self.accelerator.device).eval()


def checked_output(output: Any, stage: str) -> ObjectiveOutput:
    """Returns what an objective gave; raises a UserError where it has no loss and terms that are numbers."""
    loss, terms = getattr(output, "loss", None), getattr(output, "terms", None)
    found = {"loss": loss, **terms} if isinstance(terms, Mapping) else {}
    odd = [name for name, value in found.items() if not isinstance(value, Tensor) or value.numel() != 1]
    if odd or not found:
        what = f"with {odd[0]} {found[odd[0]]!r:.80}" if odd else "without terms"
        raise UserError(
            f"the objective of {stage} gave {type(output).__name__} {what}; expected an "
            "ldmae.contracts.ObjectiveOutput, with loss and terms, each a tensor of one number"
        )
    if torch.is_grad_enabled() and not output.loss.requires_grad:
        raise UserError(f"the loss of {stage} has no gradient; compute it from what the model gives")
    return output
