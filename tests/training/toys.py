"""A tiny objective and stream, and a run that can be struck at every write; a script for processes of their own."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from unbraid import files
from unbraid.objective import Loss, Objective
from unbraid.text.batch import pack
from unbraid.training import state
from unbraid.training.config import OptimizerConfig, TrainingConfig
from unbraid.training.loop import train

WORDS = 17


class Toy(Objective):
    """Learns to name each token's double, with dropout, a norm, a tied table and a frozen weight."""

    def __init__(self, dropout=0.2):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, 8)
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, WORDS)
        self.head.weight = self.table.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def loss(self, batch):
        logits = self.head(self.norm(self.inner(self.dropout(self.table(batch.input_ids)))))
        labels = batch.input_ids * 2 % WORDS
        total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        return Loss(total, {"accuracy": (logits.argmax(-1) == labels).float().sum()}, len(labels))


class Stream:
    """Ragged micro-batches, 5 an epoch."""

    per_epoch = 5

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lengths = torch.randint(1, 9, (3,), generator=generator).tolist()
        return pack([torch.randint(0, WORDS, (length,), generator=generator).tolist() for length in lengths])


class Scores:
    """Evaluation that gets better, then worse, and draws from the generators as evaluations may."""

    def __init__(self, toy):
        self.toy = toy

    def __call__(self):
        torch.rand(3)
        assert not self.toy.training
        assert not torch.is_grad_enabled()
        loss = self.toy.loss(Stream()[999])
        return {"loss": loss.total / loss.count, "inner": float(self.toy.inner.weight.abs().sum())}


def run(folder, toy=None, batches=None, direction="min", **fields):
    """Trains a toy in a folder with evaluation and a best folder."""
    toy = toy or Toy()
    fields = {
        "steps": 4,
        "log_every": 3,
        "micro_batches": 2,
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "evaluate_every": 2,
        **fields,
    }
    fields = {"optimizer": OptimizerConfig(learning_rate=1e-2), **fields}
    return train(
        toy,
        batches or Stream(),
        TrainingConfig(**fields),
        folder,
        evaluate=Scores(toy),
        best=("loss", direction),
        save_best=lambda best: state.save_model(toy, str(best / "weights.safetensors")),
    )


def outcome(folder):
    """All that a run left, but times: names of files, weights and optimizer by hash, rows of metrics."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in ("progress.json", "manifest.json", "metrics.jsonl") and path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [{k: v for k, v in row.items() if k not in ("elapsed_s", "tokens_per_s")} for row in rows]
    return found


@contextlib.contextmanager
def struck(at, strike):
    """Calls ``strike(path)`` at the at-th event of writing: a write or removal (a file in it), sync, rename."""
    events = itertools.count()
    rmtree = shutil.rmtree

    def before(original):
        def call(*arguments, **keywords):
            if next(events) == at:
                strike(next(Path(arguments[0]).glob("*.safetensors"), None) if original is rmtree else None)
            return original(*arguments, **keywords)

        return call

    def after(original, position):
        def call(*arguments, **keywords):
            result = original(*arguments, **keywords)
            if next(events) == at:
                strike(Path(arguments[position]))
            return result

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in ((files, "sync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")):
            stack.enter_context(mock.patch.object(owner, name, before(getattr(owner, name))))
        for owner, name, position in (
            (state, "save_model", 1),
            (state, "save_file", 1),
            (Path, "write_text", 0),
            (Path, "write_bytes", 0),
        ):
            stack.enter_context(mock.patch.object(owner, name, after(getattr(owner, name), position)))
        yield


def halve(path):
    """Leaves the first half of a file."""
    if path is not None:
        os.truncate(path, path.stat().st_size // 2)


def _kill(path):
    halve(path)
    os._exit(9)


def _forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(root):
    """Kills a run at every event in turn, continues it, and compares all that it left with a run left alone."""
    sys.stderr = (root / "log").open("w")
    run(root / "whole")
    whole = outcome(root / "whole")
    for at in itertools.count():
        folder = root / f"killed-{at}"

        def first(at=at, folder=folder):
            with struck(at, _kill):
                run(folder)

        killed = _forked(first) == 9
        if _forked(lambda folder=folder: run(folder)) != 0:
            raise SystemExit(f"the run killed at event {at} did not continue")
        if outcome(folder) != whole:
            raise SystemExit(f"the run killed at event {at} left {outcome(folder)} instead of {whole}")
        if not killed:
            print(at)
            return


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a kill does not need it, and it is slow
    {"kill": kill_everywhere, "run": run}[sys.argv[1]](Path(sys.argv[2]))
