"""Lines and rows of a stream, such as standard input, as they come."""

from __future__ import annotations

import io
from collections.abc import Iterator

from unbraid.tasks.rows import Row, decode_line, json_row

_BLOCK = 1 << 16  # bytes, as many as a pipe holds


def arriving_lines(stream: io.BufferedIOBase, name: str) -> Iterator[list[tuple[str, str]]]:
    """The lines of a UTF-8 stream without their ends, those that are there at a time: nobody waits for more.

    Args:
        stream: to read; it may have no end.
        name: what messages call it.

    Yields:
        The place, "standard input, line 7", and the text of each of some lines, at least one.

    Raises:
        InputError: a line that is not UTF-8.
    """
    number, rest = 0, bytearray()

    def taken(line: bytearray) -> tuple[str, str]:
        nonlocal number
        number += 1
        place = f"{name}, line {number}"
        return place, decode_line(line, place, first=number == 1).removesuffix("\r")

    while block := stream.read1(_BLOCK):
        rest += block
        if b"\n" in block:
            *lines, rest = rest.split(b"\n")
            yield [taken(line) for line in lines]
    if rest:
        yield [taken(rest)]


def arriving_rows(stream: io.BufferedIOBase, name: str) -> Iterator[list[Row]]:
    """The rows of a stream of JSON Lines; arguments as of :func:`arriving_lines`.

    Raises:
        InputError: a line that is not UTF-8, or no JSON object.
    """
    for lines in arriving_lines(stream, name):
        if rows := [json_row(text, place) for place, text in lines if text.strip()]:
            yield rows
