"""Extractive question answering over plain text: windows over the context, the best span of all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.hub import local_folder
from unbraid.inference import Predictor
from unbraid.inference.windows import stretches
from unbraid.model.pretrained import DebertaForQuestionAnswering, Pretrained
from unbraid.text.batch import Batch
from unbraid.text.encoding import Span
from unbraid.text.tokenizer import Tokenizer

_LONGEST = 30
"""Tokens of the longest answer, as in BERT's SQuAD recipe."""
_CHUNK = 1024
"""Texts tokenised at once."""


class Answer(TypedDict):
    """The answer to one question."""

    answer: str
    """A stretch of the untouched context; empty if there is no answer."""
    start: NotRequired[int]
    """Its first character in the context."""
    end: NotRequired[int]
    """One past its last character."""
    score: float
    """The probability of its first token times that of its last, in the window that it was read from."""
    no_answer: float
    """By how much "no answer" scores more than the answer, in logits; above the model's threshold there is none."""
    truncated: bool
    """Whether the question lost its end; of the context everything is read."""


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionWindow:
    """A question with a stretch of its context, ``[CLS] question [SEP] context [SEP]``.

    Attributes:
        ids: T token ids.
        first: the row of the context's first token.
        offsets: of each token of the context here, its characters in the whole context.
        truncated: whether the question lost its end.
    """

    ids: list[int]
    first: int
    offsets: list[Span]
    truncated: bool

    @property
    def segments(self) -> list[int]:
        """T numbers: 0 for the question, 1 for the context."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The best span of all windows of a question.

    Attributes:
        start: its first character in the context.
        end: one past its last character; ``start`` if the context has nothing to answer with.
        score: the probability of its ends in its window.
        margin: logits of "no answer" less those of the span, the former where it is least probable; 0 without a span.
    """

    start: int
    end: int
    score: float
    margin: float


def question_windows(
    tokenizer: Tokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, overlap: int
) -> list[list[QuestionWindow]]:
    """Cuts the context of each question into windows; a question may fill half of a window.

    Args:
        tokenizer: text to ids.
        questions: B texts.
        contexts: as many; the same one several times is encoded once.
        max_length: of a window in tokens, special tokens included.
        overlap: tokens of the context that neighbouring windows share, at most half of what fits.

    Raises:
        InputError: see :meth:`Tokenizer.encode_batch`, or no room for text.
    """
    room = max_length - 3
    if room < 2:
        raise InputError(f"max_length {max_length} leaves no room for a question and its context; give at least 5.")
    encoded: dict[str, tuple[list[int], list[Span]]] = {}
    different = list(dict.fromkeys(contexts))
    for start in range(0, len(different), _CHUNK):
        chunk = different[start : start + _CHUNK]
        for context, encoding in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
            encoded[context] = encoding.ids[1:-1], encoding.offsets[1:-1]
    found = []
    for question, context in zip(tokenizer.encode_batch(questions), contexts, strict=True):
        cls, *asked, sep = question.ids
        kept = asked[: room // 2]
        head = [cls, *kept, sep]
        ids, offsets = encoded[context]
        found.append(
            [
                QuestionWindow(
                    [*head, *ids[tokens.start : tokens.stop], sep],
                    len(head),
                    offsets[tokens.start : tokens.stop],
                    len(kept) < len(asked),
                )
                for tokens in (stretch.tokens for stretch in stretches(len(ids), room - len(kept), overlap))
            ]
        )
    return found


def best_span(windows: Sequence[QuestionWindow], logits: Sequence[np.ndarray]) -> Finding:
    """The span of the context with the largest sum of the logits of its ends, of all windows.

    Args:
        windows: of one question.
        logits: for each of them (2, T), of the first and of the last token of the answer.
    """
    best, found = -np.inf, Finding(0, 0, 0.0, 0.0)
    empty = min(float(start[0] + end[0]) for start, end in logits)
    for window, (start, end) in zip(windows, logits, strict=True):
        context = slice(window.first, window.first + len(window.offsets))
        readable = np.array([first < last for first, last in window.offsets], dtype=bool)
        if not readable.any():
            continue
        starts, ends = (np.where(readable, each[context], -np.inf) for each in (start, end))
        later = np.lib.stride_tricks.sliding_window_view(
            np.pad(ends, (0, _LONGEST - 1), constant_values=-np.inf), _LONGEST
        )
        sums = starts[:, None] + later  # (tokens of the context, length of the answer - 1)
        first, more = np.unravel_index(sums.argmax(), sums.shape)
        if sums[first, more] > best:
            best, last = float(sums[first, more]), first + more
            score = float(np.exp(starts[first] - _log_sum(start) + ends[last] - _log_sum(end)))
            found = Finding(window.offsets[first][0], window.offsets[last][1], score, empty - best)
    return found


def _log_sum(logits: np.ndarray) -> float:
    highest = logits.max()
    return highest + np.log(np.exp(logits - highest).sum())


_THRESHOLD = "no_answer.json"


def write_threshold(folder: Path, threshold: float) -> None:
    """Writes into a model's folder from which margin on its questions have no answer."""
    (folder / _THRESHOLD).write_text(json.dumps({"threshold": threshold}) + "\n", encoding="utf-8")


def read_threshold(source: str | Path) -> float | None:
    """What :func:`write_threshold` wrote; None for a model whose questions all have an answer.

    Raises:
        InputError: no such model, or a damaged file.
    """
    path = local_folder(source, [_THRESHOLD]) / _THRESHOLD
    if not path.is_file():
        return None
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}); fetch it again, or write it anew.") from None


class QuestionAnswerer(Predictor):
    """A fine-tuned model for extractive questions on plain text; contexts may have any length."""

    head = DebertaForQuestionAnswering
    columns = ("question", "context")

    def __init__(self, model: Pretrained, tokenizer: Tokenizer, *, threshold: float | None = None, **settings: Any):
        """See :class:`Predictor`, with whose arguments the settings go.

        Args:
            model: to run.
            tokenizer: its own.
            threshold: above which ``no_answer`` means that there is none; None: every question has an answer.
            settings: max_length, overlap, tokens_per_batch.
        """
        super().__init__(model, tokenizer, **settings)
        self.threshold = threshold

    @classmethod
    def from_pretrained(cls, source: str | Path, **settings: Any) -> Self:
        """See :meth:`Predictor.from_pretrained`; the threshold is the one that was tuned, if there is one."""
        predictor = super().from_pretrained(source, **settings)
        predictor.threshold = read_threshold(source)
        return predictor

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """Answers questions from their contexts, in their order.

        Args:
            texts: the questions.
            pairs: the context of each.

        Raises:
            InputError: not a list of texts, no contexts or not as many as questions, lone surrogates in one.
        """
        contexts = self._checked(texts, pairs)
        windows = question_windows(self.tokenizer, texts, contexts, self.max_length, self.overlap)
        logits = iter(self.map(self.read, [window for cut in windows for window in cut]))
        answers = []
        for context, cut in zip(contexts, windows, strict=True):
            found = best_span(cut, [next(logits).numpy() for _ in cut])
            answers.append(self._answer(context, found, cut[0].truncated))
        return answers

    def outputs(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """For each question the probabilities of the answer's first and last token, (2, tokens of all its windows).

        Raises:
            InputError: see :meth:`predict`.
        """
        windows = question_windows(self.tokenizer, texts, self._checked(texts, pairs), self.max_length, self.overlap)
        logits = iter(self.map(self.read, [window for cut in windows for window in cut]))
        return [torch.cat([next(logits) for _ in cut], dim=-1).softmax(-1) for cut in windows]

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The logits of the answer's first and last token, (2, tokens) a window."""
        output = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids)
        ends = torch.stack([output.start_logits, output.end_logits]).float().cpu()  # (2, N)
        return ends.split(batch.packing.offsets.diff().tolist(), dim=-1)

    def _checked(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Sequence[str]:
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("a single text came where several are read; give a list of texts.")
        contexts = [] if pairs is None else pairs
        if len(contexts) != len(texts):
            raise InputError(f"there are {len(texts)} questions but {len(contexts)} contexts; give one each.")
        return contexts

    def _answer(self, context: str, found: Finding, truncated: bool) -> Answer:
        answer: Answer = {
            "answer": "",
            "score": found.score,
            "no_answer": found.margin,
            "truncated": truncated,
        }
        if found.start < found.end and (self.threshold is None or found.margin <= self.threshold):
            answer["answer"] = context[found.start : found.end]
            answer["start"], answer["end"] = found.start, found.end
        return answer
