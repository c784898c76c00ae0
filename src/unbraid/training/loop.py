"""The loop: an objective, a stream of batches and a folder; killed at any moment, the same call continues exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from unbraid.errors import InputError
from unbraid.files import replace_text, write_atomically
from unbraid.objective import Objective
from unbraid.processes import add_up, num_processes
from unbraid.training.config import TrainingConfig, span_steps
from unbraid.training.monitor import Monitor
from unbraid.training.optimizer import Depths, make_optimizer
from unbraid.training.parallel import callable_in_parts, whole
from unbraid.training.precision import autocast, check_precision
from unbraid.training.state import Checkpoints, Progress, restore
from unbraid.training.update import Phase, Stream, Update, prepare, updates

FREE_FIELDS = frozenset(
    {
        *("max_minutes", "log_every", "workers", "tensorboard", "wandb"),
        *("keep_checkpoints", "checkpoint_every", "sharding"),
    }
)
"""The fields of a recipe, at any depth, that may differ when a run continues: they do not touch its result."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        step: updates made.
        steps: of the whole run.
        elapsed_s: seconds of all its pieces.
        before: metrics before the first step, if they were asked for.
        evaluation: the latest metrics.
        best: the best value of the metric that chooses.
        best_step: its step.
        gave_up: whether the metric that chooses had not improved for ``patience`` evaluations.
    """

    step: int
    steps: int
    elapsed_s: float
    before: dict[str, float]
    evaluation: dict[str, float]
    best: float | None
    best_step: int | None
    gave_up: bool

    @property
    def finished(self) -> bool:
        """False: stopped by a signal or by max_minutes; the same call continues."""
        return self.step == self.steps or self.gave_up


def train(
    objective: Objective,
    batches: Stream,
    config: TrainingConfig,
    folder: Path | str,
    *,
    recipe: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_first: bool = False,
    best: tuple[str, Literal["max", "min"]] | None = None,
    depths: Callable[[], Depths] | None = None,
    save_best: Callable[[Path], object] | None = None,
    save_last: Callable[[Path], object] | None = None,
) -> Result:
    """Trains an objective in place, from where the last complete checkpoint in the folder stands, if there is one.

    On the CPU a continued run has bit for bit the weights of an uninterrupted one: nothing depends on what went
    before but the checkpoint. A batch is a function of its index, and so is its randomness (dropout, and all else
    that draws from the generators of torch, numpy and random: they are seeded for each batch). The number of processes
    may change between pieces of a run, and so may their sharding: then the weights are the same to rounding.
    SIGINT or SIGTERM ends the run after the current step, with a checkpoint; a second one ends it at once.

    The folder receives ``checkpoints/``, ``metrics.jsonl``, ``recipe.json``, ``data.json``, ``best/`` and ``model/``. A
    row of training has the means since the last row, ``loss`` (of all phases together) and the parts, each over the
    items of its phase; ``grad_norm`` of the first phase, ``grad_norm_2`` of the second and so on; and in float16
    ``skipped``, the updates of the run that were passed over because their gradient overflowed.

    Args:
        objective: in float32; afterwards on the device of the run, with the weights of its last step, sharded if they
            were: :func:`unbraid.training.parallel.whole` gathers them.
        batches: the a-th micro-batch of a step is ``batches[step * micro_batches + a]``, for process a % processes.
        config: length, optimizer, precision and so on.
        folder: of the run; made if there is none.
        recipe: all else that decides the result, as JSON can hold it; a run continues only with the same.
        data: what the recipe's data were found to be, likewise; the number of steps is noted beside it.
        evaluate: metrics on other data; called in all processes, in evaluation mode, without gradients, in the
            precision of the run. It must tell every process the same; with sharding every process must call the same
            modules as often as the others, as :mod:`unbraid.processes` helps to do.
        evaluate_first: evaluate before the first step too, and say whenever the metric that chooses is worse than then.
        best: the metric that chooses the best weights, and whether more or less of it is better; with
            ``config.patience`` it also ends the run, which is then finished.
        depths: how far above the input each parameter of the objective acts, where ``layer_decay`` asks for it; called
            when the weights are where they will be trained, sharded if they are.
        save_best: writes the best weights into the folder it is given; whole, they move to ``best/``. Called in the
            first process alone, with whole weights even if they are sharded.
        save_last: the same of the weights of the last step, for ``model/``.

    Raises:
        InputError: the folder holds another run, one on other data, or only damaged checkpoints, the disk is full, the
            loss or its gradient is not finite, the precision does not suit the model, the processes cannot share the
            micro-batches, there is nothing to train, evaluation lacks the metric that chooses, or there is none for
            ``patience``.
    """
    began = time.monotonic()
    PartialState._reset_state()  # else the device of a former run stands
    processes = PartialState(cpu=config.device == "cpu" or not torch.accelerator.is_available())
    device, speaks = cast(torch.device, processes.device), processes.is_main_process
    folder = Path(folder)
    steps = config.num_steps(batches.per_epoch)
    found = {"steps": steps, **(data or {})}
    if config.patience is not None and (evaluate is None or best is None):
        raise InputError("training.patience waits for a better evaluation, and this run has none: leave it out.")
    settled = {"training": dataclasses.asdict(config), **(recipe or {})}

    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
    latest, faults = checkpoints.latest()
    if latest is not None:
        _check_recipe(folder / "recipe.json", settled)
        _check_data(folder / "data.json", found)
    objective.to(device).train()
    phases = prepare(objective, config, device, _scales(objective, batches, config, device, latest))
    optimizer = make_optimizer(objective, config.optimizer, depths() if depths is not None else None)
    progress = Progress() if latest is None else restore(latest, objective, optimizer)
    if progress.step > steps:
        raise _other_data(folder, f"it has come to step {progress.step}, and they make {steps} steps")
    for phase, state in zip(phases, progress.scalers, strict=False):  # none before the first checkpoint
        phase.scaler.load_state_dict(state)
    earlier_s = progress.elapsed_s
    processes.wait_for_everyone()
    with checkpoints.guard():
        if speaks:
            folder.mkdir(parents=True, exist_ok=True)
            if latest is not None:
                checkpoints.tidy(latest)
            replace_text(folder / "recipe.json", json.dumps(settled, indent=1, default=str))
            replace_text(folder / "data.json", json.dumps(found, indent=1))
        monitor = Monitor(
            folder, progress.step, steps, tensorboard=config.tensorboard, wandb=config.wandb, active=speaks
        )

    def gave_up() -> bool:
        return config.patience is not None and progress.stale >= config.patience

    def finished() -> bool:
        return progress.step == steps or gave_up()

    def due(every: float | None) -> bool:
        return progress.step == steps or (every is not None and progress.step % max(1, span_steps(every, steps)) == 0)

    def save(name: str, write: Callable[[Path], object]) -> None:
        with whole(objective, here=speaks):
            if speaks:
                with checkpoints.guard():
                    write_atomically(folder / name, write)
        processes.wait_for_everyone()

    def evaluate_now(measure: Callable[[], Mapping[str, float]]) -> None:
        progress.evaluation = _evaluate(objective, phases, measure, config, device)
        with checkpoints.guard():
            monitor.write(progress.step, "evaluation", progress.evaluation)
        if progress.step == 0:
            progress.before = progress.evaluation
        if best is not None and _improves(progress, *best) and save_best is not None:
            save("best", save_best)
        if best is not None and (worse := _setback(progress, *best)):
            monitor.say(worse)

    with monitor, _Signals() as signals:

        def stopping() -> bool:
            late = config.max_minutes is not None and time.monotonic() - began >= 60 * config.max_minutes
            return late or signals.received

        for fault in faults:
            monitor.say(f"{fault}; an earlier one is used.")
        if progress.step == steps:
            monitor.say(f"{folder}: this run is finished, all {steps} steps of it.")
        elif gave_up():
            monitor.say(f"{folder}: this run is finished; it stopped early, after step {progress.step} of {steps}.")
        elif progress.step:
            monitor.say(f"{folder}: continuing after step {progress.step} of {steps}.")
        elif evaluate_first and evaluate is not None:
            evaluate_now(evaluate)
        coming = updates(phases, batches, config, optimizer, device, progress.step, steps, stopping)
        for update in () if finished() else coming:
            if update.skipped and not progress.skipped:
                monitor.say(
                    f"step {update.step}: the gradient overflows float16, so this update is passed over and the loss "
                    "is scaled less; now and then this is as it should be, and metrics.jsonl counts it as skipped."
                )
            _count(progress, update)
            progress.elapsed_s = earlier_s + time.monotonic() - began
            monitor.advance(update.step, update.loss, update.lr, _speed(progress))
            if due(config.log_every):
                row = _row(progress, update)
                if config.precision == "float16":
                    row["skipped"] = progress.skipped
                with checkpoints.guard():
                    monitor.write(update.step, "train", row)
                progress.window = []
            if evaluate is not None and due(config.evaluate_every):
                evaluate_now(evaluate)
            if due(config.checkpoint_every) or update.stop or gave_up():
                progress.scalers = [phase.scaler.state_dict() for phase in phases]
                with checkpoints.guard():
                    monitor.sync()
                    checkpoints.save(progress, objective, optimizer)
                processes.wait_for_everyone()
            if gave_up() and update.step < steps:
                monitor.say(
                    f"{folder}: stopped early after step {update.step} of {steps}, "
                    f"after {progress.stale} evaluations without a new best."
                )
                break
            if update.stop and update.step < steps:
                monitor.say(f"{folder}: stopped after step {update.step} of {steps}; run the same again to continue.")
                break
        if finished() and save_last is not None:
            save("model", save_last)
    return Result(
        progress.step,
        steps,
        progress.elapsed_s,
        progress.before,
        progress.evaluation,
        progress.best,
        progress.best_step,
        gave_up(),
    )


def _scales(
    objective: Objective, batches: Stream, config: TrainingConfig, device: torch.device, latest: Path | None
) -> list[float]:
    """The scale of each phase's loss at the beginning, where the precision is checked; a checkpoint has its own."""
    if latest is not None or config.precision == "float32":
        return [1.0 for _ in objective.phases]
    scales = check_precision(objective, batches[0].to(device), config.precision, device)
    sums = add_up({str(number): scale for number, scale in enumerate(scales)}, device)
    return [total / num_processes() for total in sums.values()]  # the same in all processes, whatever rounding did


def _check_recipe(path: Path, settled: Mapping[str, Any]) -> None:
    """Compares the recipe of a run with the one that it began with."""
    former, now = _flat(_read(path)), _flat(json.loads(json.dumps(settled, default=str)))
    if changed := _changed(now, former, former.keys() | now.keys()):
        raise InputError(
            f"{path.parent} holds a run with another recipe ({changed}): "
            "give another folder, or the same values to continue."
        )


def _check_data(path: Path, found: Mapping[str, Any]) -> None:
    """Compares what a run has noted of its data, nothing if it began before that was noted."""
    former = _read(path) if path.exists() else {}
    if changed := _changed(json.loads(json.dumps(found)), former, former.keys()):
        raise _other_data(path.parent, changed)


def _other_data(folder: Path, changed: str) -> InputError:
    return InputError(
        f"the data have changed since the run in {folder} began ({changed}): "
        "give another folder, or the same data to continue."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or unreadable; give another folder, or remove {path.parent}.") from error


def _changed(now: Mapping[str, Any], former: Mapping[str, Any], names: Iterable[str]) -> str:
    """Which of some fields differ, and how."""
    return "; ".join(
        f"{name} is {now.get(name)!r} and was {former.get(name)!r}"
        for name in sorted(names)
        if former.get(name) != now.get(name)
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
    progress.tokens += update.tokens
    progress.items += int(update.sums[0]["items"])
    progress.skipped += update.skipped
    progress.window = progress.window or [{} for _ in update.sums]
    totals = {"tokens": update.tokens, "seconds": update.seconds}
    for window, sums in zip(progress.window, update.sums, strict=True):
        for name, value in {**sums, **totals}.items():
            window[name] = window.get(name, 0.0) + value


def _speed(progress: Progress) -> float:
    return progress.window[0]["tokens"] / progress.window[0]["seconds"]


def _row(progress: Progress, update: Update) -> dict[str, float]:
    """The means since the last row, and the latest of the rest."""
    row = {"loss": 0.0}
    for window in progress.window:
        for name, value in window.items():
            if name not in ("items", "tokens", "seconds"):
                mean = value / max(window["items"], 1)
                row[name] = row["loss"] + mean if name == "loss" else mean
    for number, grad_norm in enumerate(update.grad_norms, start=1):
        row["grad_norm" if number == 1 else f"grad_norm_{number}"] = grad_norm
    return {
        **row,
        "lr": update.lr,
        "tokens": progress.tokens,
        "tokens_per_s": _speed(progress),
        "elapsed_s": progress.elapsed_s,
    }


def _evaluate(
    objective: Objective,
    phases: Sequence[Phase],
    evaluate: Callable[[], Mapping[str, float]],
    config: TrainingConfig,
    device: torch.device,
) -> dict[str, float]:
    set_seed(config.seed)
    objective.eval()
    with torch.no_grad(), autocast(config.precision, device), callable_in_parts(phase.model for phase in phases):
        metrics = {name: float(value) for name, value in evaluate().items()}
    objective.train()
    return metrics


def _improves(progress: Progress, name: str, direction: Literal["max", "min"]) -> bool:
    """Whether the latest evaluation is the best so far; it is noted, or that it is not."""
    if name not in progress.evaluation:
        raise InputError(
            f"the best weights cannot be chosen by {name}: evaluation tells {', '.join(progress.evaluation)}."
        )
    value = progress.evaluation[name]
    sign = 1 if direction == "max" else -1
    if math.isnan(value) or (progress.best is not None and sign * value <= sign * progress.best):
        progress.stale += 1
        return False
    progress.best, progress.best_step, progress.stale = value, progress.step, 0
    return True


def _setback(progress: Progress, name: str, direction: Literal["max", "min"]) -> str:
    """A sentence if the metric that chooses is worse than before the first step, else ""."""
    now, before = progress.evaluation[name], progress.before.get(name, math.nan)
    worse = now < before if direction == "max" else now > before
    return f"{name} is worse than before the first step: {now:.4g}, and was {before:.4g}." if worse else ""


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
