"""Tiny objectives and a stream, and a run that can be struck at every write; a script for processes of their own."""

import contextlib
import dataclasses
import errno
import faulthandler
import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.tensor import DTensor

from unbraid.model.config import preset
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from unbraid.objective import Loss, Objective
from unbraid.pretraining.config import MaskingConfig, RtdConfig
from unbraid.pretraining.mlm import MaskedLanguageModeling
from unbraid.pretraining.rtd import ReplacedTokenDetection
from unbraid.processes import add_up, deal
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


class Reader(Objective):
    """Names each token's double, reading blocks of layers; hands on what it took the tokens for."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.dropout = nn.Dropout(0.2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9)) for _ in range(2))
        self.head = nn.Linear(9, WORDS)

    def loss(self, batch):
        states = self.dropout(self.table(batch.input_ids))
        for block in self.blocks:
            states = states + block(states)
        logits = self.head(states)
        labels = batch.input_ids * 2 % WORDS
        total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        return Loss(
            total, {"named": (logits.argmax(-1) == labels).float().sum()}, len(labels), (batch, logits.detach())
        )


class Sum(nn.Module):
    """A table that reads another one out of reach of its gradient, and trains its difference to it."""

    def __init__(self, table):
        super().__init__()
        self.read = (table,)
        self.delta = nn.Parameter(torch.zeros_like(table.weight))

    def forward(self, ids):
        weight = self.read[0].weight.detach()
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        return nn.functional.embedding(ids, weight + self.delta)


class Judge(Reader):
    """Reads the tokens and what the phase before made of them; counts only the first half of its batch."""

    def loss(self, batch):
        batch, logits = batch
        states = self.dropout(self.table(batch.input_ids)) + logits[:, :9]
        for block in self.blocks:
            states = states + block(states)
        count = (len(states) + 1) // 2
        labels = batch.input_ids[:count] % 3
        total = 50 * nn.functional.cross_entropy(self.head(states)[:count].float(), labels, reduction="sum")
        return Loss(total, {"judged": (logits[:count].argmax(-1) > 3).float().sum()}, count)


class Pair(Objective):
    """Two phases, the second of which reads the table that the first has just updated."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.reader = Reader(nn.Embedding(WORDS, 9))
        self.judge = Judge(Sum(self.reader.table))

    @property
    def phases(self):
        return self.reader, self.judge


class Stream:
    """Ragged micro-batches, 5 an epoch."""

    per_epoch = 5

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lengths = torch.randint(1, 9, (3,), generator=generator).tolist()
        return pack([torch.randint(0, WORDS, (length,), generator=generator).tolist() for length in lengths])


class Scores:
    """Evaluation that gets better, then worse, and draws from the generators as evaluations may."""

    def __init__(self, objective, batches):
        self.objective, self.batches = objective, batches

    def __call__(self):
        torch.rand(3)
        assert not self.objective.training
        assert not torch.is_grad_enabled()
        sums = dict.fromkeys(("loss", "items"), 0.0)
        for index, counts in deal(3):
            batch = self.batches[999 + index]
            torch.manual_seed(index)
            for phase in self.objective.phases:
                loss = phase.loss(batch)  # past the hooks of the phase itself
                sums["loss"] += counts * loss.total.item()
                sums["items"] += counts * loss.count
                batch = loss.handed
        sums = add_up(sums)
        return {"loss": sums["loss"] / sums["items"]}


def save_plainly(objective, folder):
    """All weights of an objective into a file; they must be ordinary ones."""
    weights = {name: weight.detach() for name, weight in objective.named_parameters()}
    assert not any(isinstance(weight, DTensor) for weight in weights.values())
    save_file(weights, folder / "weights.safetensors")


def depths(objective):
    """Tables at the bottom, then blocks in their order, then all else."""
    found = {}
    for name, parameter in objective.named_parameters():
        found[parameter] = 0 if "table" in name else int(name.split(".")[2]) + 1 if "blocks" in name else 3
    return found


def run(folder, objective=None, batches=None, direction="min", evaluate_first=True, **fields):
    """Trains an objective in a folder with evaluation and a best folder."""
    objective, batches = objective or Toy(), batches or Stream()
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
        objective,
        batches,
        TrainingConfig(**fields),
        folder,
        evaluate=Scores(objective, batches),
        evaluate_first=evaluate_first,
        best=("loss", direction),
        depths=lambda: depths(objective),
        save_best=lambda best: save_plainly(objective, best),
        save_last=lambda last: save_plainly(objective, last),
    )


def outcome(folder):
    """All that a run left, but times: names of files, weights and optimizer by hash, rows of metrics."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in ("progress.json", "manifest.json", "metrics.jsonl") and path.is_file():
            content = path.read_bytes()
            if path.suffix == ".safetensors":  # the order within its header is not settled
                content = b"".join(
                    name.encode() + weight.numpy().tobytes() for name, weight in sorted(load_file(path).items())
                )
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [{k: v for k, v in row.items() if k not in ("elapsed_s", "tokens_per_s")} for row in rows]
    return found


@contextlib.contextmanager
def struck(at, strike, *more):
    """Calls ``strike(file)`` at an event: before a removal (with a file in it), sync or rename, or after a write.

    Args:
        at: the number of the event; None: never.
        strike: called with the file if there is one, by path or descriptor.
        more: (owner, name) of functions before which there is an event too.
    """
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

    def synced(descriptor):
        if next(events) == at:
            strike(descriptor)

    with contextlib.ExitStack() as stack:
        for owner, name in (
            *((Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")),
            *more,
        ):
            stack.enter_context(mock.patch.object(owner, name, before(getattr(owner, name))))
        for owner, name, position in (
            (state, "save_file", 1),
            (sys.modules[__name__], "save_file", 1),
            (Path, "write_text", 0),
            (Path, "write_bytes", 0),
        ):
            stack.enter_context(mock.patch.object(owner, name, after(getattr(owner, name), position)))
        stack.enter_context(mock.patch.object(os, "fsync", synced))
        yield


def halve(file):
    """Leaves the first half of a file, if it may be written."""
    with contextlib.suppress(OSError):  # a folder, or a descriptor that only reads
        os.truncate(file, os.stat(file).st_size // 2)  # noqa: PTH116, it may be a descriptor


def _kill(file):
    if file is not None:
        halve(file)
    os.kill(os.getpid(), signal.SIGKILL)


def together(processes, work):
    """Runs ``work(rank)`` in processes that were launched together; kills the others when one dies, as torchrun does.

    Returns:
        Whether all ended well.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in names.items()})
                os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            try:
                work(rank)
            except BaseException:  # whatever it is, the child must not run the parent's tests
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children[child] = rank
    well = True
    while children:
        child, status = os.wait()
        del children[child]
        if status:
            well = False
            for other in children:
                os.kill(other, signal.SIGKILL)
    return well


def kill_everywhere(root):
    """Kills runs at many events, continues each, and compares all that it left with a run left alone.

    One process at every event; two at some, the first or the other one; four once. Counts them on stdout.
    """
    for processes, sharding, victim, events in (
        (1, "none", 0, itertools.count()),
        (2, "none", 0, [9, 29, 49]),
        (2, "none", 1, [1]),  # between its phases
        (2, "full", 0, [19, 39]),
        (2, "full", 1, [1, 3]),  # between its phases; when it has written its shard
        (4, "full", 2, [3]),
    ):
        folder = root / f"{processes}-{sharding}-{victim}"
        print(_kill_at(folder, processes, sharding, victim, events))


def _kill_at(root, processes, sharding, victim, events):
    """Kills a process of a run at each event, as long as there are events; returns how many there were."""

    def start(folder):
        run(folder, Pair(), sharding=sharding, micro_batches=processes, steps=2, checkpoint_every=1)

    def killed(rank, at, folder):
        with struck(at if rank == victim else None, _kill, (torch.optim.AdamW, "step")):
            start(folder)

    together(processes, lambda _: start(root / "whole"))
    whole = outcome(root / "whole")
    kills = 0
    for at in events:
        folder = root / f"killed-{at}"
        if together(processes, lambda rank, at=at, folder=folder: killed(rank, at, folder)):
            break
        kills += 1
        if not together(processes, lambda _, folder=folder: start(folder)):
            raise SystemExit(f"{folder} did not continue")
        if outcome(folder) != whole:
            raise SystemExit(f"{folder} has {outcome(folder)} instead of {whole}")
    return kills


class Masked:
    """Ragged micro-batches with a few tokens to predict, in some none, 5 an epoch."""

    per_epoch = 5

    def __getitem__(self, index):
        batch = Stream()[index]
        generator = torch.Generator().manual_seed(index)
        hidden = torch.rand(len(batch.input_ids), generator=generator) < 0.4 * (index % 3)
        return dataclasses.replace(batch, labels=torch.where(hidden, batch.input_ids, -100))


SMALL = preset(
    "deberta-v3-xsmall",
    **{"vocab_size": WORDS, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3},
    **{"intermediate_size": 17, "position_buckets": 4, "max_position_embeddings": 16},
)
"""A DeBERTa v3 with its mask decoder, which lends a layer, and dropout."""


def masked_language_model():
    """A small one at weights that are not small."""
    torch.manual_seed(0)
    return drawn(MaskedLanguageModeling(DebertaForMaskedLM(SMALL)))


class Specials:
    """What replaced token detection asks of a tokenizer."""

    special_ids = frozenset({0})

    def __len__(self):
        return WORDS


def replaced_token_detection(**fields):
    """A small generator and discriminator that share their embeddings."""
    torch.manual_seed(0)
    generator = DebertaForMaskedLM(SMALL.replace(num_hidden_layers=2))
    discriminator = DebertaForReplacedTokenDetection(SMALL)
    return drawn(ReplacedTokenDetection(generator, discriminator, RtdConfig(**fields), MaskingConfig(), Specials()))


def drawn(objective):
    """The same with weights that are not small."""
    with torch.no_grad():
        for name, weight in objective.named_parameters():
            weight.normal_(1.0, 0.1) if "norm.weight" in name else weight.normal_(0.0, 0.3)
    return objective


class Overflowing(Toy):
    """Its gradient overflows float16 on micro-batch 3, which is in the second step and in the second process of two."""

    def loss(self, batch):
        loss = super().loss(batch)
        broken = len(batch.input_ids) == len(Stream()[3].input_ids) and torch.equal(
            batch.input_ids, Stream()[3].input_ids
        )
        return dataclasses.replace(loss, total=loss.total * 1e6 if broken and self.training else loss.total)


def spread_everywhere(root):
    """Leaves runs of one, two and four processes, with whole and sharded weights, and runs that change on the way."""

    def mlm(_, name, **fields):
        run(root / name, masked_language_model(), Masked(), micro_batches=4, log_every=1, **fields)

    def rtd(_, name, **fields):
        run(root / name, replaced_token_detection(), Masked(), micro_batches=4, log_every=1, **fields)

    def es(_, name, **fields):
        objective = replaced_token_detection(sharing="es", decoupled=False)
        run(root / name, objective, Masked(), micro_batches=4, log_every=1, **fields)

    def pair(_, name, **fields):
        run(root / name, Pair(), micro_batches=4, log_every=1, **fields)

    def layers(_, name, **fields):
        optimizer = OptimizerConfig(learning_rate=1e-2, layer_decay=0.3)
        run(root / name, Pair(), micro_batches=4, log_every=1, optimizer=optimizer, **fields)

    def overflow(_, name, **fields):
        run(root / name, Overflowing(), micro_batches=2, log_every=1, precision="float16", **fields)

    def full_disk(rank, name, **fields):
        with mock.patch.object(filesystem, "_write_files_from_queue", _no_space if rank else _write_files):
            run(root / name, Pair(), micro_batches=2, checkpoint_every=1, steps=1, **fields)

    cut = {"max_minutes": 1e-9}
    for processes, work, name, fields in (
        (1, mlm, "mlm-1", {}),
        (2, mlm, "mlm-2", {}),
        (4, mlm, "mlm-4", {}),
        (2, mlm, "mlm-2-full", {"sharding": "full"}),
        (4, mlm, "mlm-4-full", {"sharding": "full"}),
        (1, rtd, "rtd-1", {}),
        (2, rtd, "rtd-2", {}),
        (4, rtd, "rtd-4-full", {"sharding": "full"}),
        (1, es, "es-1", {}),
        (2, es, "es-2-full", {"sharding": "full"}),
        (1, pair, "pair-1", {}),
        (2, pair, "pair-2", {}),
        (4, pair, "pair-4-full", {"sharding": "full"}),
        (2, pair, "pair-changing", {"sharding": "full", **cut}),
        (1, pair, "pair-changing", cut),
        (4, pair, "pair-changing", cut),
        (4, pair, "pair-changing", {"sharding": "full"}),
        (1, layers, "layers-1", {}),
        (2, layers, "layers-2-full", {"sharding": "full"}),
        (1, overflow, "overflow-1", {}),
        (2, overflow, "overflow-2-full", {"sharding": "full"}),
    ):
        if not together(processes, functools.partial(work, name=name, **fields)):
            raise SystemExit(f"{name} failed")
    for processes, work, name in ((3, pair, "pair-3"), (2, full_disk, "full-disk")):
        if together(processes, functools.partial(work, name=name, sharding="full")):
            raise SystemExit(f"{name} did not fail")


_write_files = filesystem._write_files_from_queue


def _no_space(*_arguments, **_keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


if __name__ == "__main__":
    import torch._dynamo  # optimizers, DDP and FSDP do, which takes seconds: once, before forking

    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a kill does not need it, and it is slow
    command, folder = sys.argv[1:]
    with (Path(folder) / "log").open("a") as log, contextlib.redirect_stderr(log):
        faulthandler.enable(log)  # a process that crashes says where; its children too
        {"kill": kill_everywhere, "spread": spread_everywhere}[command](Path(folder))
