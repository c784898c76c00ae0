"""Which entity of a text is missing in a question, on plain text; texts may have any length."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference import Predictor
from unbraid.inference.spans import around, marked_tokens
from unbraid.inference.windows import stretches
from unbraid.metrics import squad_words
from unbraid.model.span_heads import DebertaForEntityChoice
from unbraid.text.batch import Batch, pack
from unbraid.text.encoding import Encoding, Span
from unbraid.text.tokenizer import Tokenizer

PLACEHOLDER = "@placeholder"
"""What stands in a question where the entity is missing."""


class Cloze(NamedTuple):
    """A question, and what may be missing in it."""

    question: str
    """With @placeholder where an entity is missing, perhaps several times."""
    entities: Sequence[Span]
    """Characters [start, end) of every mention of an entity in the context."""


class ChosenEntity(TypedDict):
    """The entity that is missing in one question."""

    entity: str
    """As its most probable mention has it."""
    start: int
    """First character of that mention in the context."""
    end: int
    """One past its last character."""
    score: float
    """Its probability."""
    scores: dict[str, float]
    """The probability of every entity, in the order of their first mentions."""
    truncated: bool
    """Whether the question lost what is far from its placeholder; of the context everything is read."""


@dataclasses.dataclass(frozen=True, slots=True)
class EntityWindow:
    """A stretch of a context with its question, ``[CLS] context [SEP] question [SEP]``, the placeholder masked.

    Attributes:
        ids: T token ids.
        asked: the row where the question begins.
        mentions: the mentions that are read here, by their numbers.
        spans: of each of these its first row and one past its last.
        truncated: whether the question lost tokens.
    """

    ids: list[int]
    asked: int
    mentions: list[int]
    spans: list[Span]
    truncated: bool

    @property
    def segments(self) -> list[int]:
        """T numbers: 0 for the context, 1 for the question."""
        return [0] * self.asked + [1] * (len(self.ids) - self.asked)


def entity_windows(
    tokenizer: Tokenizer,
    questions: Sequence[Cloze],
    contexts: Sequence[str],
    max_length: int,
    overlap: int,
    places: Sequence[str] | None = None,
) -> list[list[EntityWindow]]:
    """Cuts the context of each question into windows, and leaves out those that show no mention.

    A mention is read from every window that shows it whole; from those that show a part of it, if it is longer than
    they overlap and none shows it whole. A question may fill half of a window; a longer one keeps what is around its
    first placeholder.

    Args:
        tokenizer: text to ids.
        questions: B questions with their mentions.
        contexts: as many.
        max_length: of a window in tokens, special tokens included.
        overlap: tokens of the context that neighbouring windows share, at most half of what fits.
        places: what to call each question in messages; default: its number.

    Raises:
        InputError: a question without a placeholder or without a mention, a mention outside its context or without a
            token, no room for text, or see :meth:`Tokenizer.encode_batch`.

    Source: microsoft/DeBERTa apps/tasks/superglue_tasks.py: ReCoRDTask at 4d7fe0b.
    """
    room = max_length - 3
    if room < 2:
        raise InputError(f"max_length {max_length} leaves no room for a question and its context; give at least 5.")
    places = places or [f"question {number}" for number in range(len(questions))]
    for cloze, place in zip(questions, places, strict=True):
        if PLACEHOLDER not in cloze.question:
            raise InputError(f"{place}: there is no {PLACEHOLDER} in it; write one where an entity is missing.")
        if not cloze.entities:
            raise InputError(f"{place}: its context has no entity to choose; mark one or drop the question.")
    mask = tokenizer.token(tokenizer.mask_id)
    asked = tokenizer.encode_batch([cloze.question.replace(PLACEHOLDER, mask) for cloze in questions])
    different = list(dict.fromkeys(contexts))
    encoded = dict(zip(different, tokenizer.encode_batch(different), strict=True))
    found = []
    for cloze, question, context, place in zip(questions, asked, contexts, places, strict=True):
        ids = question.ids[1:-1]
        first = ids.index(tokenizer.mask_id)
        kept = around(range(first, first + 1), range(len(ids)), min(len(ids), room // 2))
        tail = [tokenizer.sep_id, *ids[kept.start : kept.stop], tokenizer.sep_id]
        offsets = encoded[context].offsets[1:-1]
        mentions = [marked_tokens(offsets, span, len(context), place) for span in cloze.entities]
        shown = [stretch.tokens for stretch in stretches(len(offsets), room - len(kept), overlap)]
        found.append(list(_windows(encoded[context], shown, mentions, tail, len(kept) < len(ids))))
    return found


def _windows(
    context: Encoding, shown: Sequence[range], mentions: Sequence[range], tail: list[int], truncated: bool
) -> Iterator[EntityWindow]:
    """Those of some windows that show a mention, each with what comes after the context."""
    readers: list[dict[int, Span]] = [{} for _ in shown]
    for number, mention in enumerate(mentions):
        first = bisect.bisect_right(shown, mention.start, key=attrgetter("stop"))
        near = range(first, bisect.bisect_left(shown, mention.stop, key=attrgetter("start")))
        whole = [each for each in near if shown[each].start <= mention.start and mention.stop <= shown[each].stop]
        for window in whole or near:
            tokens = shown[window]
            start, end = max(mention.start, tokens.start), min(mention.stop, tokens.stop)
            readers[window][number] = (start - tokens.start + 1, end - tokens.start + 1)  # [CLS] stands before
    for tokens, spans in zip(shown, readers, strict=True):
        if spans:
            ids = [context.ids[0], *context.ids[tokens.start + 1 : tokens.stop + 1], *tail]
            yield EntityWindow(ids, len(tokens) + 2, list(spans), list(spans.values()), truncated)


def choose_entity(
    cloze: Cloze, context: str, windows: Sequence[EntityWindow], logits: Sequence[np.ndarray]
) -> ChosenEntity:
    """The entity with the most probable mention; mentions whose texts SQuAD's scripts hold alike are one entity.

    What several windows say of a mention is the mean of their log-probabilities.

    Args:
        cloze: the question.
        context: its text.
        windows: of the question.
        logits: for each of them those of its mentions, (mentions,).
    """
    sums, counts = np.zeros(len(cloze.entities)), np.zeros(len(cloze.entities))
    for window, said in zip(windows, logits, strict=True):
        sums[window.mentions] -= np.logaddexp(0, -said.astype(np.float64))  # of the sigmoid
        counts[window.mentions] += 1
    probabilities = np.exp(sums / counts)
    best: dict[str, int] = {}  # the most probable mention of each entity
    for number, (start, end) in enumerate(cloze.entities):
        name = " ".join(squad_words(context[start:end])) or context[start:end]
        if name not in best or probabilities[number] > probabilities[best[name]]:
            best[name] = number
    chosen = max(best.values(), key=probabilities.__getitem__)
    start, end = cloze.entities[chosen]
    scores = {context[slice(*cloze.entities[number])]: float(probabilities[number]) for number in best.values()}
    return {
        "entity": context[start:end],
        "start": start,
        "end": end,
        "score": float(probabilities[chosen]),
        "scores": scores,
        "truncated": windows[0].truncated,
    }


class EntityChooser(Predictor):
    """A fine-tuned model that fills a question's placeholder with an entity of its context."""

    head = DebertaForEntityChoice
    columns = ("question", "context")

    def predict(self, texts: Sequence[Cloze], pairs: Sequence[str] | None = None) -> list[ChosenEntity]:
        """Fills questions from their contexts, in their order.

        Args:
            texts: the questions, each with the mentions in its context.
            pairs: the context of each.

        Raises:
            InputError: a question without mentions, not as many contexts as questions, or see :func:`entity_windows`.
        """
        contexts, windows = self._windows(texts, pairs)
        logits = iter(self.map(self.read, [window for cut in windows for window in cut]))
        return [
            choose_entity(cloze, context, cut, [next(logits).numpy() for _ in cut])
            for cloze, context, cut in zip(texts, contexts, windows, strict=True)
        ]

    def outputs(self, texts: Sequence[Cloze], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """The probability of every entity of each question, (entities,), in the order of their first mentions.

        Raises:
            InputError: see :meth:`predict`.
        """
        return [torch.tensor(list(each["scores"].values())) for each in self.predict(texts, pairs)]

    def pack(self, encodings: Sequence[EntityWindow]) -> Batch:
        """See :meth:`Predictor.pack`."""
        return pack_windows(encodings)

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The logits of the mentions, (mentions,) a window."""
        output = self.model(
            batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, spans=batch.spans
        )
        return by_window(output.logits.float().cpu(), batch)

    def _windows(
        self, texts: Sequence[Cloze], pairs: Sequence[str] | None
    ) -> tuple[Sequence[str], list[list[EntityWindow]]]:
        if not all(isinstance(each, Cloze) for each in texts):
            raise InputError(
                "this model chooses from the entities of a context, and here are questions without any; "
                "read them from a table with a column of entities, or give unbraid.Cloze(question, entities)."
            )
        contexts = [] if pairs is None else pairs
        if len(contexts) != len(texts):
            raise InputError(f"there are {len(texts)} questions but {len(contexts)} contexts; give one each.")
        return contexts, entity_windows(self.tokenizer, texts, contexts, self.max_length, self.overlap)


def pack_windows(windows: Sequence[EntityWindow], labels: Tensor | None = None) -> Batch:
    """Packs windows with the mentions that are read from them, in their order."""
    return pack(
        [window.ids for window in windows],
        labels,
        [window.segments for window in windows],
        [window.spans for window in windows],
    )


def by_window(mentions: Tensor, batch: Batch) -> Sequence[Tensor]:
    """What was said of the mentions of a batch, (S,) on the CPU, for each of its windows.

    Raises:
        InputError: a batch without mentions.
    """
    if batch.spans is None:
        raise InputError("the batch has no mentions to choose from; give it some.")
    owners = batch.packing.sequence_ids[batch.spans[:, 0]]
    return mentions.split(owners.bincount(minlength=batch.packing.batch_size).tolist())
