"""What a run tells while it goes: a progress bar or plain lines, metrics.jsonl, and trackers on request."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unbraid.errors import InputError
from unbraid.files import replace_text, sync

_SMOOTHING = 0.95


class Monitor(contextlib.ExitStack):
    """The voice of a run; only one process of several has one that is active.

    metrics.jsonl has one JSON object per line: ``step``, ``kind`` ("train" or "evaluation") and numbers,
    null where a number is not finite. Rows after the step that the run continues from are cut, so that none is double.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        steps: int,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        active: bool = True,
    ):
        """Opens what is written to.

        Args:
            folder: of the run; exists.
            step: updates made already.
            steps: of the whole run.
            tensorboard: write for it too, to ``folder/tensorboard``.
            wandb: write for Weights & Biases too, to ``folder/wandb``, from where ``wandb sync`` uploads it; at once if
                WANDB_MODE is online.
            active: False: say and write nothing.

        Raises:
            InputError: a tracker is asked for and not installed.
        """
        super().__init__()
        self.active = active
        self.console = Console(stderr=True, highlight=False, markup=False, quiet=not active)
        self.first, self.steps = step, steps
        self.began = time.monotonic()
        self.loss: float | None = None
        columns = TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")
        self.bar = Progress(*columns, console=self.console, disable=not (active and self.console.is_terminal))
        self.task = self.bar.add_task("", total=steps, completed=step, state="")
        if not active:
            return
        self.trackers: list[_Tracker] = []
        if tensorboard:
            self.trackers.append(_tensorboard(folder / "tensorboard", step, self))
        if wandb:
            self.trackers.append(_weights_and_biases(folder, self))
        self.metrics = folder / "metrics.jsonl"
        _cut(self.metrics, step)
        self.enter_context(self.bar)

    def advance(self, step: int, loss: float, lr: float, tokens_per_s: float) -> None:
        """Shows a step on the bar."""
        self.loss = loss if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self.bar.update(self.task, completed=step, state=self._state(step, self.loss, lr, tokens_per_s))

    def write(self, step: int, kind: Literal["train", "evaluation"], values: dict[str, float]) -> None:
        """Writes a row of metrics, and a line if there is no bar that shows it.

        Raises:
            OSError: the disk is full or cannot be written; leaving this monitor does not raise it again.
        """
        if not self.active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.metrics.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
        for track in self.trackers:
            track(step, {f"{kind}/{name}": value for name, value in values.items()})
        if kind == "evaluation":
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"step {step}/{self.steps}  evaluation: {shown}")
        elif self.bar.disable:
            state = self._state(step, values["loss"], values["lr"], values["tokens_per_s"])
            self.say(f"step {step}/{self.steps}  {state}")

    def sync(self) -> None:
        """Waits until the rows are on the disk."""
        if self.active:
            sync(self.metrics)

    def say(self, sentence: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(sentence, soft_wrap=True)

    def _state(self, step: int, loss: float, lr: float, tokens_per_s: float) -> str:
        seconds = (time.monotonic() - self.began) * (self.steps - step) / max(step - self.first, 1)
        left = datetime.timedelta(seconds=round(seconds))
        return f"loss {loss:.4f}  lr {lr:.2e}  {tokens_per_s:,.0f} tokens/s  {left} left"


def _cut(path: Path, step: int) -> None:
    """Keeps the rows up to a step, none at step 0; what a kill left of a row goes too."""
    kept = []
    for row in path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []:
        with contextlib.suppress(ValueError):  # half a row, from a kill
            if json.loads(row)["step"] <= step:
                kept.append(row + "\n")
    replace_text(path, "".join(kept))


_Tracker = Callable[[int, dict[str, float]], object]
"""Takes note of some numbers at a step."""


def _tensorboard(folder: Path, step: int, closing: contextlib.ExitStack) -> _Tracker:
    with _needed("tensorboard"):
        from torch.utils.tensorboard.writer import SummaryWriter
    writer = SummaryWriter(folder, purge_step=step + 1)
    closing.callback(writer.close)

    def track(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return track


def _weights_and_biases(folder: Path, closing: contextlib.ExitStack) -> _Tracker:
    with _needed("wandb"):
        wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project="unbraid",
        name=folder.resolve().name,
        group=folder.resolve().name,  # the pieces of a run that was continued
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(silent=True, console="off"),
    )
    closing.callback(run.finish)
    return lambda step, values: run.log(values, step=step)


@contextlib.contextmanager
def _needed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{name} is not installed: run `pip install {name}`, or leave it out; metrics.jsonl has the same numbers."
        ) from error
