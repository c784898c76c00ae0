"""What training reads of a large text, and the reader of protocol buffers."""

from __future__ import annotations

import numpy as np
import pytest

from unbraid.errors import InputError
from unbraid.text.spm import _BLOCK, SpmEngine, _blocks, _fields, _sample


def test_blocks_hold_the_whole_text_in_bounded_pieces() -> None:
    rng = np.random.default_rng(0)
    lines = ["x" * int(size) for size in [*rng.integers(1, 300, 200), 50_000, 3, _BLOCK, 1]]
    blocks = list(_blocks(lines))
    assert "".join(blocks).replace(" ", "") == "".join(lines)
    assert all(_BLOCK <= len(block) <= 3 * _BLOCK for block in blocks[:-1])
    assert list(_blocks([])) == [""]


def test_a_sample_is_even_and_repeatable() -> None:
    assert _sample(iter("abc"), 5) == ["a", "b", "c"]
    numbers = [str(number) for number in range(4000)]
    chosen = _sample(iter(numbers), 1000)
    assert chosen == _sample(iter(numbers), 1000)
    assert len(set(chosen)) == 1000
    quarters = np.histogram([int(number) for number in chosen], bins=4, range=(0, 4000))[0]
    # Hypergeometric with mean 250 and standard deviation 11.9.
    assert np.all(np.abs(quarters - 250) < 60)


def test_fields_of_every_wire_type() -> None:
    message = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + b"\x01" * 8 + b"\x08\x02"
    assert _fields(message) == {1: 2, 2: b"abc", 3: b"\x00\x00\x80\x3f", 4: b"\x01" * 8}


@pytest.mark.parametrize("model", [b"", b"no model", b"\x0a\x03"])
def test_what_is_no_model_is_told(model: bytes) -> None:
    with pytest.raises(InputError, match="not a SentencePiece model"):
        SpmEngine(model)
