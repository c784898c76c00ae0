"""Two marked stretches of plain text, classified: do they corefer, is a word meant alike in both sentences."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple, TypedDict

from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference import Predictor
from unbraid.model.span_heads import DebertaForSpanClassification
from unbraid.text.batch import Batch, pack
from unbraid.text.encoding import Encoding, Span, shares
from unbraid.text.tokenizer import Tokenizer


class Marked(NamedTuple):
    """A text, or the first of a pair, and the two stretches that are asked about."""

    text: str
    """The untouched text."""
    spans: tuple[Span, Span]
    """Characters [start, end) of each; the second is one of the second text, if there is one."""


class SpanPrediction(TypedDict):
    """What is said of two stretches."""

    label: str
    """The most probable class."""
    score: float
    """Its probability."""
    scores: dict[str, float]
    """The probability of every class."""
    truncated: bool
    """Whether a text was longer than the model reads, and lost what is far from its stretches."""


@dataclasses.dataclass(frozen=True, slots=True)
class MarkedEncoding:
    """A text or a pair as the model reads it, and where its stretches are.

    Attributes:
        ids: T token ids, special tokens included.
        segments: T numbers: 0 for the first text, 1 for the second.
        spans: the two stretches, each its first row and one past its last.
        truncated: whether tokens were left out.
    """

    ids: list[int]
    segments: list[int]
    spans: tuple[Span, Span]
    truncated: bool


def tokens_of(offsets: Sequence[Span], span: Span) -> range:
    """The tokens that stand for some characters, those that share a character with others included.

    Args:
        offsets: the characters of each token, as :attr:`Encoding.offsets` has them.
        span: the characters.

    Returns:
        Their numbers; an empty range if the characters have no token.

    >>> tokens_of([(0, 3), (4, 4), (4, 5), (5, 9)], (4, 6))
    range(1, 4)
    """
    start, end = span
    first = min(
        bisect.bisect_right(offsets, start, key=itemgetter(1)), bisect.bisect_left(offsets, start, key=itemgetter(0))
    )
    return range(first, max(first, bisect.bisect_left(offsets, end, key=itemgetter(0))))


def around(shown: range, within: range, size: int) -> range:
    """A window around some tokens, as far in their middle as its text allows.

    Args:
        shown: the tokens.
        within: those that the window may show, ``shown`` among them.
        size: of the window, at most that of ``within``.

    >>> around(range(4, 6), range(0, 9), size=4), around(range(0, 1), range(0, 9), size=4)
    (range(3, 7), range(0, 4))
    """
    start = shown.start - (size - len(shown)) // 2
    start = max(within.start, min(start, within.stop - size))
    return range(start, start + size)


def encode_marked(
    tokenizer: Tokenizer,
    texts: Sequence[Marked],
    pairs: Sequence[str] | None,
    max_length: int,
    places: Sequence[str] | None = None,
) -> list[MarkedEncoding]:
    """Encodes texts or pairs as any other, ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``, and finds their stretches.

    A text that is too long loses what is far from its stretches, never these: it keeps one window that shows them, or
    one around each where they are too far apart.

    Args:
        tokenizer: text to ids.
        texts: B texts, with their stretches.
        pairs: the second texts, or None.
        max_length: in tokens, special tokens included.
        places: what to call each text in messages; default: its number.

    Raises:
        InputError: a stretch outside its text or without a token, stretches that together have more tokens than fit,
            not as many second texts as first ones, or see :meth:`Tokenizer.encode_batch`.
    """
    columns = [[each.text for each in texts]] + ([] if pairs is None else [pairs])
    if len(columns[-1]) != len(texts):
        raise InputError(f"there are {len(texts)} texts but {len(columns[-1])} second texts; give one each, or none.")
    rows = zip(*map(tokenizer.encode_batch, columns), strict=True)
    places = places or [f"text {number}" for number in range(len(texts))]
    return [
        _encoding(parts, [len(text) for text in row], marked.spans, max_length, place)
        for parts, row, marked, place in zip(rows, zip(*columns, strict=True), texts, places, strict=True)
    ]


class _Block(NamedTuple):
    """Tokens of one text of which a window is read, around those that have to be shown."""

    text: int
    within: range
    shown: range


def _encoding(
    parts: Sequence[Encoding], characters: Sequence[int], spans: tuple[Span, Span], max_length: int, place: str
) -> MarkedEncoding:
    homes = (0, len(parts) - 1)
    marks = [
        marked_tokens(parts[home].offsets[1:-1], span, characters[home], place)
        for home, span in zip(homes, spans, strict=True)
    ]
    room = max_length - len(parts) - 1
    blocks = _blocks([len(part.ids) - 2 for part in parts], marks, room)
    lengths, needed = [len(block.within) for block in blocks], [len(block.shown) for block in blocks]
    if sum(needed) > room:
        raise InputError(
            f"{place}: its stretches have {sum(needed)} tokens, and {max(room, 0)} of {max_length} are free for them; "
            "mark shorter ones, or raise max_length."
        )
    sizes = shares(lengths, room)
    if len(blocks) == 2 and sum(lengths) > room:
        first = min(max(sizes[0], needed[0]), room - needed[1])
        sizes = [first, room - first]
    ids, segments = parts[0].ids[:1], [0]
    rows: dict[tuple[int, int], int] = {}  # where each token of each text came to stand
    for text, part in enumerate(parts):
        for block, size in zip(blocks, sizes, strict=True):
            if block.text == text:
                window = around(block.shown, block.within, size)
                rows |= {(text, token): row for row, token in enumerate(window, len(ids))}
                ids = ids + part.ids[window.start + 1 : window.stop + 1]
        ids.append(part.ids[-1])
        segments += [text] * (len(ids) - len(segments))
    first, second = (rows[home, mark.start] for home, mark in zip(homes, marks, strict=True))
    both = (first, first + len(marks[0])), (second, second + len(marks[1]))
    return MarkedEncoding(ids, segments, both, sum(sizes) < sum(lengths))


def marked_tokens(offsets: Sequence[Span], span: Span, length: int, place: str) -> range:
    """The tokens of a marked stretch of a text; see :func:`tokens_of`.

    Args:
        offsets: the characters of each token.
        span: those of the stretch.
        length: of the text, in characters.
        place: what to call the text in messages.

    Raises:
        InputError: the stretch is not within the text, or has no token.
    """
    start, end = span
    if not 0 <= start < end <= length:
        raise InputError(
            f"{place}: characters {start} to {end} are no stretch of a text of {length}; "
            "give [start, end) with start before end."
        )
    tokens = tokens_of(offsets, span)
    if not tokens:
        raise InputError(
            f"{place}: characters {start} to {end} stand for no token, as white space does; mark a word or drop it."
        )
    return tokens


def _blocks(lengths: Sequence[int], marks: Sequence[range], room: int) -> list[_Block]:
    """What has to be shown of each text; of a single one with stretches that are far apart, of both its sides."""
    if len(lengths) == 2:
        return [_Block(text, range(lengths[text]), mark) for text, mark in enumerate(marks)]
    left, right = sorted(marks, key=lambda mark: (mark.start, mark.stop))
    whole = range(left.start, max(left.stop, right.stop))
    if len(whole) <= room or left.stop > right.start:
        return [_Block(0, range(lengths[0]), whole)]
    middle = (left.stop + right.start) // 2
    return [_Block(0, range(middle), left), _Block(0, range(middle, lengths[0]), right)]


class SpanClassifier(Predictor):
    """A fine-tuned classifier of two stretches of a text or a pair of texts."""

    head = DebertaForSpanClassification

    def predict(self, texts: Sequence[Marked], pairs: Sequence[str] | None = None) -> list[SpanPrediction]:
        """Classifies the stretches of texts, in their order.

        Args:
            texts: each with its two stretches.
            pairs: the second texts, which the second stretches are then of, or None.

        Raises:
            InputError: a text without stretches, or see :func:`encode_marked`.
        """
        encodings = self._encode(texts, pairs)
        names = self.model.config.id2label
        predictions: list[SpanPrediction] = []
        for encoding, output in zip(encodings, self.map(self.read, encodings), strict=True):
            scores = {names[index]: probability for index, probability in enumerate(output.tolist())}
            label, score = max(scores.items(), key=itemgetter(1))
            predictions.append({"label": label, "score": score, "scores": scores, "truncated": encoding.truncated})
        return predictions

    def outputs(self, texts: Sequence[Marked], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """The probabilities of the classes of each text, (labels,).

        Raises:
            InputError: see :meth:`predict`.
        """
        return self.map(self.read, self._encode(texts, pairs))

    def pack(self, encodings: Sequence[MarkedEncoding]) -> Batch:
        """See :meth:`Predictor.pack`."""
        return pack_marked(encodings)

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The probabilities of the classes, (labels,) a text."""
        output = self.model(
            batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, spans=batch.spans
        )
        return output.logits.float().softmax(-1).cpu().unbind()

    def _encode(self, texts: Sequence[Marked], pairs: Sequence[str] | None) -> list[MarkedEncoding]:
        if not all(isinstance(each, Marked) for each in texts):
            raise InputError(
                "this model classifies two stretches of a text, and here are texts without any; "
                "read them from a table with their columns, or give unbraid.Marked(text, spans)."
            )
        return encode_marked(self.tokenizer, texts, pairs, self.max_length)


def pack_marked(encodings: Sequence[MarkedEncoding], labels: Tensor | None = None) -> Batch:
    """Packs texts with their stretches, two of each text, in their order."""
    return pack(
        [each.ids for each in encodings],
        labels,
        [each.segments for each in encodings],
        [each.spans for each in encodings],
    )
