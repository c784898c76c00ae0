"""Checkpoints: all that a run needs to continue bit for bit, whole or not there.

There is no random state in them: the loop seeds every micro-batch by its index.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim import Optimizer

from unbraid.errors import InputError
from unbraid.files import write_atomically

_WEIGHTS, _OPTIMIZER, _PROGRESS, _MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "manifest.json",
)


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: updates made.
        tokens: seen.
        items: counted by the loss (predicted tokens, or examples).
        elapsed_s: seconds of all pieces of the run.
        evaluation: the latest metrics.
        best: the best value so far of the metric that chooses.
        best_step: its step.
        window: sums since the last row of metrics.
    """

    step: int = 0
    tokens: int = 0
    items: int = 0
    elapsed_s: float = 0.0
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    window: dict[str, float] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run: ``step-00000500/`` and so on, the latest few.

    Each has a manifest with the size and BLAKE2 hash of its files, by which one that is damaged is recognised.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def latest(self) -> tuple[Path | None, list[str]]:
        """The latest complete checkpoint, and what is wrong with each later one.

        Raises:
            InputError: there are checkpoints and none is complete.
        """
        faults = []
        for path in reversed(self._all()):
            fault = _fault(path)
            if fault is None:
                return path, faults
            faults.append(f"{path} is damaged: {fault}")
        if faults:
            raise InputError(f"{faults[0]}, and no other checkpoint is complete; remove {self.folder} to start anew.")
        return None, faults

    def save(self, progress: Progress, objective: nn.Module, optimizer: Optimizer) -> None:
        """Writes a checkpoint, then tidies.

        Raises:
            OSError: it cannot be written; the earlier ones are untouched.
            SafetensorError: the same.
        """
        target = self.folder / f"step-{progress.step:08}"
        write_atomically(target, lambda folder: _write(folder, progress, objective, optimizer))
        self.tidy(target)

    def tidy(self, latest: Path) -> None:
        """Keeps the latest complete checkpoint and those before it, as many as to keep, and nothing else."""
        for stale in self.folder.glob(".*.partial"):
            shutil.rmtree(stale)
        kept = [path for path in self._all() if path <= latest][-self.keep :]
        for path in self._all():
            if path not in kept:
                shutil.rmtree(path)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around whatever writes into the folder of the run: tells a failure in one sentence.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        try:
            yield
        except (OSError, SafetensorError) as error:
            complete = self._all()
            kept = f"the last complete checkpoint is {complete[-1].name}" if complete else "there is no checkpoint yet"
            raise InputError(
                f"cannot write to {self.folder.parent} ({error}); {kept}: "
                "free space there and run the same command again to continue."
            ) from error

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def restore(folder: Path, objective: nn.Module, optimizer: Optimizer) -> Progress:
    """Loads a checkpoint into an objective and its optimizer, in place."""
    load_model(objective, folder / _WEIGHTS)
    numbers = {name: number for number, name in enumerate(_names(objective, optimizer))}
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_file(folder / _OPTIMIZER).items():
        name, _, part = key.rpartition("/")
        state[numbers[name]][part] = tensor
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads((folder / _PROGRESS).read_text()))


def _write(folder: Path, progress: Progress, objective: nn.Module, optimizer: Optimizer) -> None:
    save_model(objective, str(folder / _WEIGHTS))
    state = optimizer.state_dict()["state"]
    names = _names(objective, optimizer)
    tensors = {
        f"{names[number]}/{part}": value.contiguous()
        for number, parts in state.items()
        for part, value in parts.items()
    }
    save_file(tensors, folder / _OPTIMIZER)
    (folder / _PROGRESS).write_text(json.dumps(dataclasses.asdict(progress)))
    manifest = {path.name: {"bytes": path.stat().st_size, "blake2b": _hash(path)} for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _names(objective: nn.Module, optimizer: Optimizer) -> list[str]:
    """The name of each parameter of the optimizer, in its order."""
    names = {parameter: name for name, parameter in objective.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _fault(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or unreadable"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _hash(path) != expected["blake2b"]:
            return f"the content of {name} has changed"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
