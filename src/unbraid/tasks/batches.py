"""Encoded examples, and the endless stream of training batches that is made of them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unbraid.text.batch import Batch, pack

_WINDOW = 32  # micro-batches among which rows of like length are grouped
_CHUNK = 1 << 10  # rows that are hashed together


class Rows(Protocol):
    """What a kind of task makes of its examples: rows that batches are packed of.

    A row is a text or a pair, a window of a longer one, or all the choices of a question.
    """

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        ...

    @property
    def num_truncated(self) -> int:
        """How many examples lost their end."""
        ...

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some rows, (B,) int indices, in their order; with labels that :class:`TaskObjective` reads."""
        ...


def fingerprint(data: Rows) -> str:
    """A hash of all that a model is given of some rows, and of what it shall answer."""
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(data), _CHUNK):
        batch = data.batch(np.arange(start, min(start + _CHUNK, len(data))))
        for each in (batch.packing.offsets, batch.input_ids, batch.token_type_ids, batch.spans, batch.labels):
            if each is not None:
                digest.update(each.numpy().data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids.

    Attributes:
        ids: one (length,) int32 array an example, special tokens included.
        segments: one (length,) int8 array an example: 1 for the tokens of the second text.
        labels: (n, ...), one for each: class ids, scores, the ends of a span.
        num_truncated: how many examples were longer than allowed and lost their end.
        groups: what each example is judged together with, where they are.
    """

    ids: list[np.ndarray]
    segments: list[np.ndarray]
    labels: Tensor
    num_truncated: int
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(ids) for ids in self.ids])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some examples, (B,) int indices, in their order."""
        return pack(
            [self.ids[row].tolist() for row in rows],
            self.labels[torch.from_numpy(rows)],
            [self.segments[row].tolist() for row in rows],
        )


class TaskBatches:
    """The endless stream of training micro-batches; each is a pure function of its index and the seed.

    Every epoch shuffles anew. Within windows of the shuffled rows those of like length share a micro-batch,
    because backends that pad do so to its longest; the micro-batches are then shuffled again.

    Attributes:
        per_epoch: micro-batches in an epoch, among them one smaller than the others if they do not come out even.
    """

    def __init__(self, data: Rows, batch_size: int, seed: int):
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.per_epoch = -(-len(data) // batch_size)
        self._lengths = data.lengths
        self._epoch = (-1, self._batches(0))

    def _batches(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.data))
        window = self.batch_size * _WINDOW
        batches = []
        for start in range(0, len(order), window):
            near = order[start : start + window]
            near = near[np.argsort(self._lengths[near], kind="stable")]
            batches += [near[at : at + self.batch_size] for at in range(0, len(near), self.batch_size)]
        return [batches[index] for index in generator.permutation(len(batches))]

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch ``index``, counted from the beginning of training."""
        epoch, step = divmod(index, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self.data.batch(self._epoch[1][step])
