"""Truncation against its definition, spans against their promises."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from unbraid.text.encoding import disjoint, shares


def _popped(lengths: list[int], room: int) -> list[int]:
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(lengths)
        last = max(place for place, length in enumerate(lengths) if length == longest)
        lengths[last] -= 1
    return lengths


def test_shares_are_what_popping_from_the_longest_leaves() -> None:
    for first, second, room in itertools.product(range(12), range(12), range(2, 26)):
        assert shares([first, second], room) == _popped([first, second], room), (first, second, room)
    for length, room in itertools.product(range(12), range(1, 14)):
        assert shares([length], room) == _popped([length], room)


@given(
    st.text(alphabet="ab \n\té😀", max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=8),
)
def test_disjoint_spans_never_overlap_and_have_no_white_space_at_their_ends(
    text: str, raw: list[tuple[int, int]]
) -> None:
    spans = sorted((min(start, len(text)), min(start + width, len(text))) for start, width in raw)
    tidy = disjoint(text, spans)
    assert len(tidy) == len(spans)
    for (start, end), (first, last) in zip(tidy, spans, strict=True):
        assert first <= start <= end <= max(last, first)
        assert text[start:end] == text[start:end].strip()
    for (_, end), (start, _) in itertools.pairwise(tidy):
        assert end <= start


def test_disjoint_spans_lose_no_character() -> None:
    text = "a 😀b  c"
    assert disjoint(text, [(0, 1), (1, 3), (2, 3), (2, 4), (4, 7)]) == [(0, 1), (2, 2), (2, 2), (2, 4), (6, 7)]
