"""Checkpoints: all that a run needs to continue bit for bit, whole or not there.

There is no random state in them: the loop seeds every micro-batch by its index. Sharded weights are written by all
processes, each its own; any number of processes, with sharded weights or whole ones, can read either kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unbraid.errors import InputError
from unbraid.files import write_atomically
from unbraid.processes import process_index

_WEIGHTS, _OPTIMIZER, _SHARDS, _PROGRESS, _MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "shards",
    "progress.json",
    "manifest.json",
)


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: updates made.
        tokens: seen.
        items: counted by the loss of the first phase (predicted tokens, or examples).
        skipped: updates passed over, because their gradient overflowed float16.
        elapsed_s: seconds of all pieces of the run.
        before: metrics before the first step, if they were asked for.
        evaluation: the latest metrics.
        best: the best value so far of the metric that chooses.
        best_step: its step.
        stale: evaluations since then.
        window: sums since the last row of metrics, for every phase.
        scalers: the state of every phase's loss scaler.
    """

    step: int = 0
    tokens: int = 0
    items: int = 0
    skipped: int = 0
    elapsed_s: float = 0.0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    scalers: list[dict[str, Any]] = dataclasses.field(default_factory=list)


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
        """Writes a checkpoint, then tidies; all processes must call it, and the first one writes what is not sharded.

        Raises:
            OSError: it cannot be written; the earlier ones are untouched.
            SafetensorError: the same.
        """
        if process_index() == 0:
            target = self.folder / f"step-{progress.step:08}"
            write_atomically(target, lambda folder: _write(folder, progress, objective, optimizer))
            self.tidy(target)
        elif _is_sharded(objective):
            _write_shards(None, objective, optimizer)

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
    """Loads a checkpoint into an objective and its optimizer, in place; all processes must call it.

    Raises:
        InputError: its weights have other names or shapes.
    """
    shards = folder / _SHARDS
    reader = HuggingFaceStorageReader(str(shards if shards.is_dir() else folder))
    facts = cast(dict[str, TensorStorageMetadata], reader.read_metadata().state_dict_metadata)
    found = {name: tensor.size for name, tensor in facts.items()}
    weights = _weights(objective)
    differing = {name for name in found.keys() | weights.keys() if "/" not in name} - {
        name for name, weight in weights.items() if found.get(name) == weight.shape
    }
    if differing:
        raise InputError(
            f"{folder} holds the weights of another model ({min(differing)} differs): give another folder."
        )
    for name, size in found.items():
        owner, _, part = name.rpartition("/")
        if owner:
            weight = weights[owner]
            device = weight.device if optimizer.defaults.get("fused") else "cpu"
            state = torch.zeros_like(weight) if size == weight.shape else torch.zeros(size, device=device)
            optimizer.state[weight][part] = state
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no fault
        load({**weights, **_moments(weights, optimizer)}, storage_reader=reader)
    return Progress(**json.loads((folder / _PROGRESS).read_text()))


def _write(folder: Path, progress: Progress, objective: nn.Module, optimizer: Optimizer) -> None:
    if _is_sharded(objective):
        _write_shards(folder, objective, optimizer)
    else:
        weights = _weights(objective)
        save_file(_plain(weights), folder / _WEIGHTS)
        save_file(_plain(_moments(weights, optimizer)), folder / _OPTIMIZER)
    (folder / _PROGRESS).write_text(json.dumps(dataclasses.asdict(progress)))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": _hash(path)} for path in paths
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _write_shards(folder: Path | None, objective: nn.Module, optimizer: Optimizer) -> None:
    """Writes the shards of all processes into the folder that the first one names."""
    named = [folder and str(folder / _SHARDS)]
    distributed.broadcast_object_list(named)
    weights = _weights(objective)
    writer = HuggingFaceStorageWriter(str(named[0]), save_distributed=True)
    try:
        save({**weights, **_moments(weights, optimizer)}, storage_writer=writer)
    except CheckpointException as collected:
        fault, _ = next(iter(collected.failures.values()))
        raise fault from None  # in all processes, whichever it befell


def _is_sharded(objective: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in objective.parameters())


def _weights(objective: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one by its first."""
    names: dict[Tensor, str] = {}
    for name, tensor in objective.state_dict(keep_vars=True).items():
        names.setdefault(tensor, name)
    return {name: tensor for tensor, name in names.items()}


def _moments(weights: dict[str, Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps of each weight, as ``weight/part``."""
    return {
        f"{name}/{part}": value
        for name, weight in weights.items()
        if weight in optimizer.state
        for part, value in optimizer.state[weight].items()
    }


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


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
