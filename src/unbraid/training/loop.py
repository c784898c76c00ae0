"""The loop: an objective, a stream of batches and a folder; killed at any moment, the same call continues exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from unbraid.errors import InputError
from unbraid.files import replace_text, write_atomically
from unbraid.objective import Objective
from unbraid.training.config import TrainingConfig, span_steps
from unbraid.training.monitor import Monitor
from unbraid.training.optimizer import make_optimizer
from unbraid.training.state import Checkpoints, Progress, restore
from unbraid.training.update import Stream, Update, updates

FREE_FIELDS = frozenset({"max_minutes", "log_every", "workers", "tensorboard", "keep_checkpoints", "checkpoint_every"})
"""The fields of a recipe, at any depth, that may differ when a run continues: they do not touch its result."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        step: updates made.
        steps: of the whole run.
        elapsed_s: seconds of all its pieces.
        evaluation: the latest metrics.
        best: the best value of the metric that chooses.
        best_step: its step.
    """

    step: int
    steps: int
    elapsed_s: float
    evaluation: dict[str, float]
    best: float | None
    best_step: int | None

    @property
    def finished(self) -> bool:
        """False: stopped by a signal or by max_minutes; the same call continues."""
        return self.step == self.steps


def train(
    objective: Objective,
    batches: Stream,
    config: TrainingConfig,
    folder: Path | str,
    *,
    recipe: Mapping[str, Any] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    best: tuple[str, Literal["max", "min"]] | None = None,
    save_best: Callable[[Path], object] | None = None,
) -> Result:
    """Trains an objective in place, from where the last complete checkpoint in the folder stands, if there is one.

    On the CPU a continued run has bit for bit the weights of an uninterrupted one: nothing depends on what went
    before but the checkpoint. A batch is a function of its index, and so is its randomness (dropout, and all else
    that draws from the generators of torch, numpy and random: they are seeded for each batch).
    SIGINT or SIGTERM ends the run after the current step, with a checkpoint; a second one ends it at once.

    The folder receives ``checkpoints/``, ``metrics.jsonl``, ``recipe.json`` and ``best/``.

    Args:
        objective: in float32; afterwards on the device of the run, with the weights of its last step.
        batches: the a-th micro-batch of a step is ``batches[step * micro_batches + a]``, for process a % processes.
        config: length, optimizer, precision and so on.
        folder: of the run; made if there is none.
        recipe: all else that decides the result, as JSON can hold it; a run continues only with the same.
        evaluate: metrics on other data; called in evaluation mode, without gradients, in the precision of the run.
        best: the metric that chooses the best weights, and whether more or less of it is better.
        save_best: writes the best weights into the folder it is given; whole, they move to ``best/``.

    Raises:
        InputError: the folder holds another run or only damaged checkpoints, the disk is full, the loss or its
            gradient is not finite, there is nothing to train, or evaluation lacks the metric that chooses.
    """
    began = time.monotonic()
    AcceleratorState._reset_state(reset_partial_state=True)  # else the precision of a former run stands
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bfloat16" else "no",
        cpu=config.device == "cpu" or not torch.accelerator.is_available(),
    )
    speaks = accelerator.is_main_process
    folder = Path(folder)
    steps = config.num_steps(batches.per_epoch)
    settled = {"processes": accelerator.num_processes, "training": dataclasses.asdict(config), **(recipe or {})}

    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
    latest, faults = checkpoints.latest()
    if latest is not None:
        _check_same(folder / "recipe.json", settled)
    objective.to(accelerator.device).train()
    optimizer = make_optimizer(objective, config.optimizer)
    progress = Progress() if latest is None else restore(latest, objective, optimizer)
    earlier_s = progress.elapsed_s
    accelerator.wait_for_everyone()
    with checkpoints.guard():
        if speaks:
            folder.mkdir(parents=True, exist_ok=True)
            if latest is not None:
                checkpoints.tidy(latest)
            replace_text(folder / "recipe.json", json.dumps(settled, indent=1, default=str))
        monitor = Monitor(folder, progress.step, steps, tensorboard=config.tensorboard, active=speaks)

    def due(every: float | None) -> bool:
        return progress.step == steps or (every is not None and progress.step % max(1, span_steps(every, steps)) == 0)

    with monitor, _Signals() as signals:

        def stopping() -> bool:
            late = config.max_minutes is not None and time.monotonic() - began >= 60 * config.max_minutes
            return late or signals.received

        for fault in faults:
            monitor.say(f"{fault}; an earlier one is used.")
        if progress.step == steps:
            monitor.say(f"{folder}: this run is finished, all {steps} steps of it.")
        elif progress.step:
            monitor.say(f"{folder}: continuing after step {progress.step} of {steps}.")
        for update in updates(objective, batches, config, optimizer, accelerator, progress.step, steps, stopping):
            _count(progress, update)
            progress.elapsed_s = earlier_s + time.monotonic() - began
            monitor.advance(
                update.step, update.sums["loss"] / max(update.sums["items"], 1), update.lr, _speed(progress)
            )
            if due(config.log_every):
                with checkpoints.guard():
                    monitor.write(update.step, "train", _row(progress, update))
                progress.window = {}
            if evaluate is not None and due(config.evaluate_every):
                progress.evaluation = _evaluate(objective, evaluate, accelerator, config.seed)
                with checkpoints.guard():
                    monitor.write(update.step, "evaluation", progress.evaluation)
                    if best is not None and _improves(progress, *best) and save_best is not None and speaks:
                        write_atomically(folder / "best", save_best)
            if due(config.checkpoint_every) or update.stop:
                if speaks:
                    with checkpoints.guard():
                        monitor.sync()
                        checkpoints.save(progress, objective, optimizer)
                accelerator.wait_for_everyone()
            if update.stop and update.step < steps:
                monitor.say(f"{folder}: stopped after step {update.step} of {steps}; run the same again to continue.")
                break
    return Result(progress.step, steps, progress.elapsed_s, progress.evaluation, progress.best, progress.best_step)


def _check_same(path: Path, settled: Mapping[str, Any]) -> None:
    """Compares the recipe of a run with the one that it began with."""
    try:
        former = _flat(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or unreadable; give another folder, or remove {path.parent}.") from error
    now = _flat(json.loads(json.dumps(settled, default=str)))
    changed = [
        f"{name} is {now.get(name)!r} and was {former.get(name)!r}"
        for name in sorted(former.keys() | now.keys())
        if former.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(
            f"{path.parent} holds a run with another recipe ({'; '.join(changed)}): "
            "give another folder, or the same values to continue."
        )


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a recipe that decide its result, by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{prefix}{name}.")
        elif name not in FREE_FIELDS:
            fields[prefix + name] = value
    return fields


def _count(progress: Progress, update: Update) -> None:
    progress.step = update.step
    progress.tokens += int(update.sums["tokens"])
    progress.items += int(update.sums["items"])
    for name, value in {**update.sums, "seconds": update.seconds}.items():
        progress.window[name] = progress.window.get(name, 0.0) + value


def _speed(progress: Progress) -> float:
    return progress.window["tokens"] / progress.window["seconds"]


def _row(progress: Progress, update: Update) -> dict[str, float]:
    """The means since the last row, and the latest of the rest."""
    means = {
        name: value / max(progress.window["items"], 1)
        for name, value in progress.window.items()
        if name not in ("items", "tokens", "seconds")
    }
    return {
        "loss": means.pop("loss"),
        **means,
        "lr": update.lr,
        "grad_norm": update.grad_norm,
        "tokens": progress.tokens,
        "tokens_per_s": _speed(progress),
        "elapsed_s": progress.elapsed_s,
    }


def _evaluate(
    objective: Objective, evaluate: Callable[[], Mapping[str, float]], accelerator: Accelerator, seed: int
) -> dict[str, float]:
    set_seed(seed)
    objective.eval()
    with torch.no_grad(), accelerator.autocast():
        metrics = {name: float(value) for name, value in evaluate().items()}
    objective.train()
    return metrics


def _improves(progress: Progress, name: str, direction: Literal["max", "min"]) -> bool:
    """Whether the latest evaluation is the best so far; then it is noted."""
    if name not in progress.evaluation:
        raise InputError(
            f"the best weights cannot be chosen by {name}: evaluation tells {', '.join(progress.evaluation)}."
        )
    value = progress.evaluation[name]
    sign = 1 if direction == "max" else -1
    if math.isnan(value) or (progress.best is not None and sign * value <= sign * progress.best):
        return False
    progress.best, progress.best_step = value, progress.step
    return True


class _Signals(contextlib.AbstractContextManager):
    """Notes the first SIGINT or SIGTERM; after it they act as they did before."""

    def __init__(self):
        self.received = False
        self.former: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}

    def _receive(self, *_: object) -> None:
        self.received = True
        self.__exit__()
