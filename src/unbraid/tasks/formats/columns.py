"""From the columns of a distribution to ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from unbraid.errors import InputError
from unbraid.tasks.rows import Row

_OPTIONAL = ("label", "id")  # test files have no labels, the others often no ids


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with our columns alone; without a label or an id where the file has none.

    Args:
        row: of a file.
        columns: ours -> the file's.

    Raises:
        InputError: another column is missing.
    """
    cells = {}
    for ours, theirs in columns.items():
        if theirs in row.cells:
            cells[ours] = row.cells[theirs]
        elif ours not in _OPTIONAL:
            raise InputError(
                f"{row.place}: there is no column {theirs!r}, only {', '.join(row.cells)}; "
                "see to it that this is a file of this task, as it was distributed."
            )
    return Row(row.place, cells)


@contextlib.contextmanager
def expected(place: str, task: str) -> Iterator[None]:
    """Tells where the content of a file is not nested as it should be.

    Raises:
        InputError: in place of a missing key or a value of another type.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{place} is not as the files of {task} are ({reason}); fetch the file again.") from None
