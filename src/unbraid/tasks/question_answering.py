"""Extractive question answering: the first and the last token of the answer, in windows over the context.

A window that does not show the whole answer is trained to say so, by the span of [CLS].
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.inference.answers import (
    Finding,
    QuestionWindow,
    best_span,
    question_windows,
    read_threshold,
    write_threshold,
)
from unbraid.metrics import best_threshold, squad_metrics, squad_scores
from unbraid.model.embeddings import Perturbation
from unbraid.model.pretrained import DebertaForQuestionAnswering
from unbraid.objective import Loss
from unbraid.packing import Packing, pad
from unbraid.tasks.objective import Outputs, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.squad import Question, read_questions
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch, pack
from unbraid.text.encoding import Span
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QuestionRows:
    """Windows over the contexts of questions.

    Attributes:
        questions: as they were read.
        windows: of each question.
    """

    questions: Sequence[Question]
    windows: list[list[QuestionWindow]]

    @functools.cached_property
    def rows(self) -> list[tuple[QuestionWindow, Span]]:
        """Every window, with the rows of the answer in it; see :func:`answer_rows`."""
        return [
            row
            for question, windows in zip(self.questions, self.windows, strict=True)
            for row in zip(windows, answer_rows(windows, question), strict=True)
        ]

    @property
    def num_truncated(self) -> int:
        """How many questions lost their end; of contexts nothing is lost."""
        return sum(windows[0].truncated for windows in self.windows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(window.ids) for window, _ in self.rows])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some windows; labels (B, 2) int64, the rows of the first and the last token of the answer."""
        chosen = [self.rows[row] for row in rows]
        return pack(
            [window.ids for window, _ in chosen],
            torch.tensor([rows for _, rows in chosen]),
            [window.segments for window, _ in chosen],
        )


def answer_rows(windows: Sequence[QuestionWindow], question: Question) -> list[Span]:
    """The rows of the first and the last token of the first answer, in each window of a question.

    Its tokens are all that share a character with it. A window that lacks one of them has (0, 0), the rows of [CLS].
    """
    if not question.answers:
        return [(0, 0)] * len(windows)
    text, start = question.answers[0]
    end = start + len(text)
    inside = [
        {span: row for row, span in enumerate(window.offsets, window.first) if max(span[0], start) < min(span[1], end)}
        for window in windows
    ]
    answer = set().union(*inside)
    return [(min(rows.values()), max(rows.values())) if rows and rows.keys() == answer else (0, 0) for rows in inside]


class QuestionObjective(TaskObjective):
    """Cross entropy of the first and of the last token of the answer, half of each."""

    def __init__(self, model: DebertaForQuestionAnswering):
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """Logits of the first and of the last token, each (B, T), the lowest number at padding."""
        output = self.model(
            batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, perturbation=perturbation
        )
        return _spread(output.start_logits, batch.packing), _spread(output.end_logits, batch.packing)

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The sum over the windows; also how many have both ends right.

        Raises:
            InputError: a batch without labels.
        """
        labels = labels_of(batch)
        ends = labels.unbind(-1)
        losses = [functional.cross_entropy(*both, reduction="sum") for both in zip(outputs, ends, strict=True)]
        right = [logits.detach().argmax(-1) == end for logits, end in zip(outputs, ends, strict=True)]
        return Loss((losses[0] + losses[1]) / 2, {"correct": (right[0] & right[1]).sum().float()}, len(labels))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002, every window counts
        """The mean of the symmetric KL of either end."""
        ends = [symmetric_kl(*both).sum() for both in zip(clean, perturbed, strict=True)]
        return (ends[0] + ends[1]) / 2


def _spread(logits: Tensor, packing: Packing) -> Tensor:
    """(N,) to (B, T) float32."""
    width = packing.longest
    lengths = packing.offsets.diff()
    padded = pad(logits.float(), packing, packing.ranks, width)
    absent = torch.arange(width, device=logits.device) >= lengths[:, None]
    return padded.masked_fill(absent, torch.finfo(torch.float32).min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task[Question, QuestionRows]):
    """The stretch of a text that answers a question.

    Attributes:
        threshold: by how much "no answer" has to beat the best span, in logits; read where ``data.unanswerable``.
    """

    threshold: float = 0.0

    head = DebertaForQuestionAnswering
    new = ("spans",)

    def read(self, source: str) -> list[Question]:
        """See :func:`read_questions`."""
        return read_questions(source, self.data)

    def encode(self, examples: Sequence[Question], tokenizer: Tokenizer) -> QuestionRows:
        """See :meth:`Task.encode`; contexts are read whole, only long questions are cut."""
        questions, contexts = [each.question for each in examples], [each.context for each in examples]
        windows = question_windows(tokenizer, questions, contexts, self.max_length, self.overlap)
        data = QuestionRows(examples, windows)
        if data.num_truncated:
            log.warning(
                "%d of %d questions fill more than half a window and were cut.", data.num_truncated, len(windows)
            )
        return data

    def objective(self, model: DebertaForQuestionAnswering) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return QuestionObjective(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[np.ndarray]:
        """The logits of each window, (2, T)."""
        both = torch.stack(outputs, dim=1).cpu().numpy()  # (B, 2, T)
        return [rows[:, :length] for rows, length in zip(both, batch.packing.offsets.diff().tolist(), strict=True)]

    def score(self, data: QuestionRows, answers: list[np.ndarray]) -> dict[str, float]:
        """The official metrics of SQuAD 1.1, or of 2.0 where ``data.unanswerable``."""
        flexible = self.data.unanswerable
        scores = []
        for question, found in zip(data.questions, _findings(data, answers), strict=True):
            silent = flexible and found.margin > self.threshold
            text = "" if silent else question.context[found.start : found.end]
            scores.append(squad_scores(text, [text for text, _ in question.answers], flexible))
        if not flexible:
            return squad_metrics(scores)
        answerable = [bool(question.answers) for question in data.questions]
        return {**squad_metrics(scores, answerable), "no_answer_threshold": self.threshold}

    def tuned(self, data: QuestionRows, answers: list[np.ndarray]) -> Self:
        """With the threshold of the best F1, where ``data.unanswerable``."""
        if not self.data.unanswerable:
            return self
        margins, gains = [], []
        for question, found in zip(data.questions, _findings(data, answers), strict=True):
            right = [text for text, _ in question.answers]
            text = question.context[found.start : found.end]
            margins.append(found.margin)
            gains.append(squad_scores(text, right, True)[1] - squad_scores("", right, True)[1])
        return dataclasses.replace(self, threshold=best_threshold(margins, gains))

    def save_settings(self, folder: Path) -> None:
        """The threshold, where ``data.unanswerable``."""
        if self.data.unanswerable:
            write_threshold(folder, self.threshold)

    @classmethod
    def settings_of(cls, source: str) -> dict[str, Any]:
        """See :meth:`Task.settings_of`."""
        threshold = read_threshold(source)
        return {} if threshold is None else {"threshold": threshold}


def _findings(data: QuestionRows, answers: list[np.ndarray]) -> list[Finding]:
    logits = iter(answers)
    return [best_span(windows, [next(logits) for _ in windows]) for windows in data.windows]
