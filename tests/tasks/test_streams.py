"""A stream gives its lines as they come, however its bytes are cut."""

import io
import itertools
import os

import pytest

from unbraid.errors import InputError
from unbraid.tasks.streams import arriving_lines, arriving_rows

LINES = ["naïve 😀", "", "a\u2028b\rc", "x" * 50, "last"]


class Blocks(io.RawIOBase):
    """Some bytes, so many at a read."""

    def __init__(self, content: bytes, size: int):
        self.blocks = [content[at : at + size] for at in range(0, len(content), size)]

    def readable(self):
        return True

    def readinto(self, buffer):
        block = self.blocks.pop(0) if self.blocks else b""
        buffer[: len(block)] = block
        return len(block)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines(size, end, closed, mark):
    content = (mark + end.join(LINES) + end * closed).encode()
    found = list(itertools.chain(*arriving_lines(io.BufferedReader(Blocks(content, size)), "in")))
    assert found == [(f"in, line {number}", text) for number, text in enumerate(LINES, 1)]


def test_nothing_comes():
    assert list(arriving_lines(io.BytesIO(), "in")) == []
    assert list(arriving_rows(io.BytesIO(b"\n \n"), "in")) == []


def test_nobody_waits_for_more_than_is_there():
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb", buffering=0) as source:  # noqa: PTH123, these are descriptors
        lines = arriving_lines(stream, "in")
        source.write(b"one\ntwo\nthr")
        assert next(lines) == [("in, line 1", "one"), ("in, line 2", "two")]
        source.write(b"ee\n")
        assert next(lines) == [("in, line 3", "three")]
        source.close()
        assert next(lines, None) is None


def test_rows():
    rows = [row for some in arriving_rows(io.BytesIO(b'{"a": 1}\n\n{"a": [2]}'), "in") for row in some]
    assert [(row.place, row.cells) for row in rows] == [("in, line 1", {"a": 1}), ("in, line 3", {"a": [2]})]
    with pytest.raises(InputError, match="in, line 2: this is not a JSON object"):
        list(arriving_rows(io.BytesIO(b"{}\nnull\n"), "in"))


def test_what_is_not_utf_8_is_named():
    with pytest.raises(InputError, match="in, line 2: byte 3 is not UTF-8"):
        list(arriving_lines(io.BytesIO("ok\nca\xe9\n".encode("latin-1")), "in"))
