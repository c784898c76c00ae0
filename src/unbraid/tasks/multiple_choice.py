"""Multiple choice: one of several texts, as many as each question has."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.inference.choices import Choices, encode_choices
from unbraid.metrics import accuracy
from unbraid.model.embeddings import Perturbation
from unbraid.model.pretrained import DebertaForMultipleChoice
from unbraid.objective import Loss
from unbraid.tasks.config import DataConfig
from unbraid.tasks.objective import Outputs, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch, pack
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # questions tokenised at once; the character offsets of their choices are dropped before the next


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A question, its choices, and the right one.

    Attributes:
        asked: the question and its choices.
        context: the text that the question is about, or None.
        label: the place of the right choice, from 0.
        group: what it belongs together with in folds, or None.
    """

    asked: Choices
    context: str | None
    label: int
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class ChoiceRows:
    """Encoded questions; a row has all choices of one.

    Attributes:
        ids: of each question one (length,) int32 array a choice, special tokens included.
        segments: likewise int8 arrays: 1 for the tokens of the second text.
        labels: (n,) int64, the place of the right choice.
        num_truncated: how many questions have a choice that lost text.
    """

    ids: list[list[np.ndarray]]
    segments: list[list[np.ndarray]]
    labels: Tensor
    num_truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, tokens of all choices together."""
        return np.array([sum(map(len, choices)) for choices in self.ids])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some questions; all have as many sequences as the one with most choices, the missing ones empty."""
        most = max(len(self.ids[row]) for row in rows)

        def sequences(of: list[list[np.ndarray]]) -> list[list[int]]:
            return [of[row][place].tolist() if place < len(of[row]) else [] for row in rows for place in range(most)]

        return pack(sequences(self.ids), self.labels[torch.from_numpy(rows)], sequences(self.segments))


class ChoiceObjective(TaskObjective):
    """Cross entropy of the choices."""

    def __init__(self, model: DebertaForMultipleChoice):
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """Logits (B, K), the lowest number of the model's dtype where there is no choice.

        Raises:
            InputError: a batch without labels.
        """
        output = self.model(
            batch.input_ids,
            packing=batch.packing,
            token_type_ids=batch.token_type_ids,
            num_choices=batch.packing.batch_size // len(labels_of(batch)),
            perturbation=perturbation,
        )
        return (output.logits.float(),)

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The sum over the questions; also how many are right."""
        (logits,), labels = outputs, labels_of(batch)
        total = functional.cross_entropy(logits, labels, reduction="sum")
        return Loss(total, {"correct": (logits.detach().argmax(-1) == labels).sum().float()}, len(labels))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002, every question counts
        """The symmetric KL of the choices."""
        return symmetric_kl(clean[0], perturbed[0]).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task[ChoiceExample, ChoiceRows]):
    """One of several texts."""

    head = DebertaForMultipleChoice
    new = ("pooler", "classifier")

    def read(self, source: str) -> list[ChoiceExample]:
        """See :meth:`Task.read`; all questions have a context, or none."""
        examples: list[ChoiceExample] = []
        for row in read_rows(source, self.data):
            asked = Choices(row.text(self.data.question), choices_of(row, self.data.choices))
            context = context_of(row, self.data)
            if examples and (context is None) != (examples[0].context is None):
                raise InputError(
                    f"{row.place}: some questions have a context and some have none; give all one or none."
                )
            label = _place(row, self.data.label, len(asked.choices))
            examples.append(ChoiceExample(asked, context, label, group_of(row, self.data)))
        return examples

    def encode(self, examples: Sequence[ChoiceExample], tokenizer: Tokenizer) -> ChoiceRows:
        """See :meth:`Task.encode`."""
        ids: list[list[np.ndarray]] = []
        segments: list[list[np.ndarray]] = []
        num_truncated = 0
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            contexts = [each.context for each in chunk if each.context is not None] or None
            for choices in encode_choices(tokenizer, [each.asked for each in chunk], contexts, self.max_length):
                ids.append([np.array(encoding.ids, dtype=np.int32) for encoding in choices])
                segments.append([np.array(encoding.segments, dtype=np.int8) for encoding in choices])
                num_truncated += any(encoding.truncated for encoding in choices)
        labels = torch.tensor([each.label for each in examples], dtype=torch.int64)
        data = ChoiceRows(ids, segments, labels, num_truncated)
        if data.num_truncated:
            log.warning(
                "%d of %d questions are longer than %d tokens with a choice and were cut.",
                data.num_truncated,
                len(data),
                self.max_length,
            )
        return data

    def objective(self, model: DebertaForMultipleChoice) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return ChoiceObjective(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[int]:  # noqa: ARG002, each row has one
        """The choice of each question."""
        return outputs[0].argmax(-1).tolist()

    def score(self, data: ChoiceRows, answers: list[int]) -> dict[str, float]:
        """The accuracy."""
        return {"accuracy": accuracy(answers, data.labels.tolist())}


def choices_of(row: Row, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The choices of a row: a list in one column, or the texts of several.

    Args:
        row: of a table.
        columns: their names; None: choices, or else choice1, choice2 and so on.

    Raises:
        InputError: no such columns, fewer than two choices, or an empty one.
    """
    if columns is None:
        numbered = [f"choice{number}" for number in range(1, len(row.cells) + 1)]
        found = [name for name in numbered if name in row.cells]
        columns = ["choices"] if "choices" in row.cells or not found else found
    choices = row.texts(columns[0]) if len(columns) == 1 else [row.text(name) for name in columns]
    if len(choices) < 2:
        raise InputError(f"{row.place}: there are {len(choices)} choices; it takes two or more.")
    for number, choice in enumerate(choices):
        if not choice.strip():
            raise InputError(f"{row.place}: choice {number} (from 0) is empty; fill it in or drop it.")
    return tuple(choices)


def context_of(row: Row, data: DataConfig) -> str | None:
    """The text that a question is about, if there is a column of it."""
    return row.text(data.context or "context") if data.context is not None or "context" in row.cells else None


def _place(row: Row, column: str, count: int) -> int:
    place = row.number(column)
    if not place.is_integer() or not 0 <= place < count:
        raise InputError(
            f"{row.place}: the label {row.cell(column)!r} is none of the {count} choices; they are counted from 0."
        )
    return int(place)
