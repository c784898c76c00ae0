"""Windows cover a text, share what they shall, and read every token where most stands around it."""

import itertools

import pytest

from unbraid.inference.windows import stretches


@pytest.mark.parametrize("overlap", [0, 1, 3, 100])
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 6, 7, 8, 40])
def test_windows(length, size, overlap):
    windows = stretches(length, size, overlap)
    shared = min(overlap, size // 2)
    assert windows[0].tokens.start == 0
    assert windows[-1].tokens.stop == length
    assert all(len(window.tokens) == size for window in windows[:-1])
    assert len(windows[-1].tokens) <= size
    for left, right in itertools.pairwise(windows):
        assert left.tokens.stop - right.tokens.start == shared
        assert right.tokens.stop > left.tokens.stop  # none that shows nothing new
    assert [token for window in windows for token in window.own] == list(range(length))

    def around(token, tokens):
        return min(token - tokens.start, tokens.stop - 1 - token) if token in tokens else -1

    inner = {0, length}  # the ends of a text are no loss
    for window in windows:
        for token in window.own:
            best = max(around(token, other.tokens) for other in windows)
            at_end = any(
                token in other.tokens and (other.tokens.start in inner or other.tokens.stop in inner)
                for other in windows
            )
            assert at_end or around(token, window.tokens) == best
