"""Windows: how a text longer than the model reads is read all the same."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol

OVERLAP = 128
"""Tokens that neighbouring windows share by default."""


class Sequential(Protocol):
    """Token ids and their segments, as a model reads them: a whole encoding or a window of one."""

    @property
    def ids(self) -> Sequence[int]:
        """T token ids."""
        ...

    @property
    def segments(self) -> Sequence[int]:
        """T numbers: 0 up to the first [SEP], 1 after it."""
        ...


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of the tokens of a text.

    Attributes:
        tokens: what the window shows.
        own: those of them that no other window shows with more tokens at either side; of all windows of a text
            together every token once.
    """

    tokens: range
    own: range


def stretches(length: int, size: int, overlap: int) -> list[Stretch]:
    """Covers a text with windows of equal size, but for the last.

    Args:
        length: of the text, in tokens; 0 has one empty window.
        size: of a window, at least 1.
        overlap: tokens that neighbours share, at most half of ``size``.

    >>> [stretch.tokens for stretch in stretches(9, size=4, overlap=2)]
    [range(0, 4), range(2, 6), range(4, 8), range(6, 9)]
    >>> [stretch.own for stretch in stretches(9, size=4, overlap=2)]
    [range(0, 3), range(3, 5), range(5, 7), range(7, 9)]
    """
    overlap = min(overlap, size // 2)
    starts = range(0, max(length - overlap, 1), size - overlap)
    shown = [range(start, min(start + size, length)) for start in starts]
    bounds = [0, *((left.stop + right.start) // 2 for left, right in itertools.pairwise(shown)), length]
    return [Stretch(tokens, range(*own)) for tokens, own in zip(shown, itertools.pairwise(bounds), strict=True)]
