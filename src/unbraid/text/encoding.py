"""What a tokenizer makes of one text or a pair: ids, segments, character offsets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One text, or a pair of texts, as ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``.

    Attributes:
        ids: T token ids.
        segments: T numbers: 0 up to the first [SEP], 1 after it.
        truncated: whether tokens were left out to keep within ``max_length``.
    """

    ids: list[int]
    segments: list[int]
    truncated: bool
    _kept: Sequence[tuple[str, int]] = dataclasses.field(repr=False, compare=False)  # each text, tokens kept of it
    _spans: Callable[[str], list[Span]] = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def offsets(self) -> list[Span]:
        """T pairs (start, end): the characters, of the text a token comes from, that the token stands for.

        They grow from left to right and never overlap. White space at either end is left out, so a token that is only
        white space has an empty span. Where several tokens share a character, the last has it and the others have
        empty spans before it. (0, 0) for [CLS] and [SEP]. Computed when first asked for.
        """
        offsets = [(0, 0)]
        for text, count in self._kept:
            offsets += [*disjoint(text, self._spans(text))[:count], (0, 0)]
        return offsets


def disjoint(text: str, spans: Sequence[Span]) -> list[Span]:
    """Ends each span where the next begins, then trims white space.

    >>> disjoint("a é", [(0, 1), (1, 3), (2, 3)])
    [(0, 1), (2, 2), (2, 3)]
    """
    trimmed, bound = [], len(text)
    for start, end in reversed(spans):
        end = min(end, bound)
        bound = start = min(start, end)
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        trimmed.append((start, end))
    return trimmed[::-1]


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens each of one or two texts keeps: the longer loses first, of equally long ones the second.

    >>> shares([3, 10], 5), shares([10, 1], 5), shares([1, 2], 5)
    ([3, 2], [4, 1], [1, 2])
    """
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    half = room // 2
    return [min(first, max(room - second, room - half)), min(second, max(room - first, half))]
