"""Entity choice, as in ReCoRD: which entity of a text is missing in a question, in windows over the text.

Every mention is learned and scored by itself; the entity with the best mention is the answer.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.inference.entities import (
    Cloze,
    EntityWindow,
    by_window,
    choose_entity,
    entity_windows,
    pack_windows,
)
from unbraid.metrics import squad_metrics, squad_scores
from unbraid.model.span_heads import DebertaForEntityChoice
from unbraid.objective import Loss
from unbraid.tasks.config import DataConfig
from unbraid.tasks.objective import Outputs, StretchObjective, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # questions tokenised at once; the character offsets of their contexts are dropped before the next


@dataclasses.dataclass(frozen=True, slots=True)
class EntityExample:
    """A question with an entity missing, and what is right.

    Attributes:
        cloze: the question, and the mentions in its context.
        context: the text, untouched.
        answers: the right texts, at least one.
        place: where the example stands, for messages.
        group: what it belongs together with in folds, or None.
    """

    cloze: Cloze
    context: str
    answers: tuple[str, ...]
    place: str
    group: str | None = None

    @property
    def right(self) -> np.ndarray:
        """(mentions,) float32: 1 for those whose text SQuAD's scripts hold for an answer, else 0."""
        texts = [self.context[start:end] for start, end in self.cloze.entities]
        scores = {text: squad_scores(text, self.answers)[0] for text in set(texts)}
        return np.array([scores[text] for text in texts], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class EntityRows:
    """Windows over the contexts of questions, those that show a mention.

    Attributes:
        examples: the questions.
        windows: of each question.
    """

    examples: Sequence[EntityExample]
    windows: list[list[EntityWindow]]

    @functools.cached_property
    def rows(self) -> list[tuple[EntityWindow, np.ndarray]]:
        """Every window, and which of its mentions are right."""
        return [
            (window, right[window.mentions])
            for right, windows in zip((each.right for each in self.examples), self.windows, strict=True)
            for window in windows
        ]

    @property
    def num_truncated(self) -> int:
        """How many questions lost text; of contexts nothing is lost."""
        return sum(windows[0].truncated for windows in self.windows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(window.ids) for window, _ in self.rows])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some windows; labels (S,) float32, 1 for each mention that is right."""
        chosen = [self.rows[row] for row in rows]
        labels = torch.from_numpy(np.concatenate([right for _, right in chosen]))
        return pack_windows([window for window, _ in chosen], labels)


class EntityObjective(StretchObjective):
    """Binary cross entropy of every mention."""

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The sum over the mentions; also of how many is told rightly what they are.

        Raises:
            InputError: a batch without labels.
        """
        (logits,), labels = outputs, labels_of(batch)
        total = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return Loss(total, {"correct": ((logits.detach() > 0) == (labels > 0)).sum().float()}, len(labels))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002, every mention counts
        """The symmetric KL of yes and no."""
        yes_or_no = (torch.stack([logits, torch.zeros_like(logits)], -1) for (logits,) in (clean, perturbed))
        return symmetric_kl(*yes_or_no).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntityChoice(Task[EntityExample, EntityRows]):
    """The entity of a text that is missing in a question."""

    head = DebertaForEntityChoice
    new = ("projection", "classifier")

    def read(self, source: str) -> list[EntityExample]:
        """See :meth:`Task.read`.

        Questions whose answers are none of their entities are kept, and counted in a warning: the scores are over all
        questions, and that an entity is not the missing one is learned from them too.

        Raises:
            InputError: what is wrong with the data, and where; or no question has an answer among its entities.
        """
        examples = [self._example(row) for row in read_rows(source, self.data)]
        if strange := sum(not example.right.any() for example in examples):
            if strange == len(examples):
                raise InputError(
                    f"{source}: of no question an answer is among the entities; see to the columns "
                    f"{self.data.answers} (a list of texts) and {self.data.entities} (stretches of the context)."
                )
            log.warning("%s: %d of %d questions have no answer among their entities.", source, strange, len(examples))
        return examples

    def encode(self, examples: Sequence[EntityExample], tokenizer: Tokenizer) -> EntityRows:
        """See :meth:`Task.encode`; contexts are read whole, only long questions are cut."""
        windows: list[list[EntityWindow]] = []
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            windows += entity_windows(
                tokenizer,
                [each.cloze for each in chunk],
                [each.context for each in chunk],
                self.max_length,
                self.overlap,
                [each.place for each in chunk],
            )
        data = EntityRows(examples, windows)
        if data.num_truncated:
            log.warning(
                "%d of %d questions fill more than half a window and were cut around their placeholder.",
                data.num_truncated,
                len(windows),
            )
        return data

    def objective(self, model: DebertaForEntityChoice) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return EntityObjective(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[Tensor]:
        """The logits of the mentions of each window, (mentions,)."""
        return by_window(outputs[0].cpu(), batch)

    def score(self, data: EntityRows, answers: list[Tensor]) -> dict[str, float]:
        """Exact match and F1 as ReCoRD's official script has them, which are those of SQuAD 1.1."""
        logits = iter(answers)
        scores = []
        for example, windows in zip(data.examples, data.windows, strict=True):
            said = [next(logits).numpy() for _ in windows]
            chosen = choose_entity(example.cloze, example.context, windows, said)
            scores.append(squad_scores(chosen["entity"], example.answers))
        return squad_metrics(scores)

    def _example(self, row: Row) -> EntityExample:
        cloze, context = cloze_of(row, self.data)
        answers = tuple(row.texts(self.data.answers))
        if not answers:
            raise InputError(f"{row.place}: the question has no answer; give the text of its entity or drop it.")
        return EntityExample(cloze, context, answers, row.place, group_of(row, self.data))


def cloze_of(row: Row, data: DataConfig) -> tuple[Cloze, str]:
    """The question of a row with the mentions of entities, each once, and its context.

    Raises:
        InputError: no such columns, or a mention that is not within the context.
    """
    context = row.text(data.context or "context")
    entities = tuple(dict.fromkeys(row.spans(data.entities, context)))
    return Cloze(row.text(data.question), entities), context
