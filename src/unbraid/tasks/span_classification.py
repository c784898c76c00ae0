"""Span classification: one of several classes for two marked stretches of a text, or of a pair of texts.

So are coreference as in WSC (does the pronoun mean the noun phrase) and word in context as in WiC.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.inference.spans import Marked, MarkedEncoding, encode_marked, pack_marked
from unbraid.metrics import classification_metrics
from unbraid.model.span_heads import DebertaForSpanClassification
from unbraid.objective import Loss
from unbraid.tasks.config import DataConfig
from unbraid.tasks.labels import check_label, training_labels
from unbraid.tasks.objective import Outputs, StretchObjective, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # texts tokenised at once; their character offsets are dropped before the next


@dataclasses.dataclass(frozen=True, slots=True)
class SpanExample:
    """Two marked stretches and their class.

    Attributes:
        marked: the text, or the first of a pair, and the stretches.
        pair: the second text, or None.
        label: the name of the class.
        place: where the example stands, for messages.
        group: what it belongs together with in folds, or None.
    """

    marked: Marked
    pair: str | None
    label: str
    place: str
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class SpanRows:
    """Encoded texts with their stretches.

    Attributes:
        encodings: of each example.
        labels: (n,) int64, class ids.
    """

    encodings: list[MarkedEncoding]
    labels: Tensor

    @property
    def num_truncated(self) -> int:
        """How many examples lost text far from their stretches."""
        return sum(encoding.truncated for encoding in self.encodings)

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(encoding.ids) for encoding in self.encodings])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some examples, with the two stretches of each."""
        return pack_marked([self.encodings[row] for row in rows], self.labels[torch.from_numpy(rows)])


class SpanObjective(StretchObjective):
    """Cross entropy of the classes."""

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The sum over the examples; also how many are right.

        Raises:
            InputError: a batch without labels.
        """
        (logits,), labels = outputs, labels_of(batch)
        total = functional.cross_entropy(logits, labels, reduction="sum")
        return Loss(total, {"correct": (logits.detach().argmax(-1) == labels).sum().float()}, len(labels))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002, every example counts
        """The symmetric KL of the classes."""
        return symmetric_kl(clean[0], perturbed[0]).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanClassification(Task[SpanExample, SpanRows]):
    """One of several classes for two marked stretches."""

    head = DebertaForSpanClassification
    new = ("pooler", "joint", "classifier")
    has_classes = True

    def read(self, source: str) -> list[SpanExample]:
        """See :meth:`Task.read`."""
        known = None if self.labels is None else frozenset(self.labels)
        examples = []
        for row in read_rows(source, self.data):
            label = row.name(self.data.label)
            check_label(label, known, row.place)
            examples.append(SpanExample(*marked_of(row, self.data), label, row.place, group_of(row, self.data)))
        return examples

    def labelled(self, examples: Sequence[SpanExample], source: str) -> Self:
        """See :meth:`Task.labelled`."""
        labels = self.labels or training_labels((example.label for example in examples), source)
        return dataclasses.replace(self, labels=labels)

    def model_fields(self) -> dict[str, Any]:
        """See :meth:`Task.model_fields`."""
        return {"id2label": dict(enumerate(self.labels or ())), "problem_type": None}

    def encode(self, examples: Sequence[SpanExample], tokenizer: Tokenizer) -> SpanRows:
        """See :meth:`Task.encode`; of longer texts what is far from their stretches is cut."""
        encodings: list[MarkedEncoding] = []
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            pairs = [each.pair for each in chunk if each.pair is not None] or None
            marked, places = [each.marked for each in chunk], [each.place for each in chunk]
            encodings += encode_marked(tokenizer, marked, pairs, self.max_length, places)
        ids_of = {label: index for index, label in enumerate(self.labels or ())}
        data = SpanRows(encodings, torch.tensor([ids_of[each.label] for each in examples]))
        if data.num_truncated:
            log.warning(
                "%d of %d examples are longer than %d tokens and were cut around their stretches.",
                data.num_truncated,
                len(data),
                self.max_length,
            )
        return data

    def objective(self, model: DebertaForSpanClassification) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return SpanObjective(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[int]:  # noqa: ARG002, each row has one
        """The class of each example."""
        return outputs[0].argmax(-1).tolist()

    def score(self, data: SpanRows, answers: list[int]) -> dict[str, float]:
        """See :func:`classification_metrics`."""
        return classification_metrics(np.array(answers), data.labels.numpy(), len(self.labels or ()))


def marked_of(row: Row, data: DataConfig) -> tuple[Marked, str | None]:
    """The text of a row with its two stretches, and its second text, if the task has pairs.

    Raises:
        InputError: no such columns, or a stretch that is not within its text.
    """
    text = row.text(data.text)
    pair = None if data.pair is None else row.text(data.pair)
    first, second = data.spans
    return Marked(text, (row.span(first, text), row.span(second, text if pair is None else pair))), pair
