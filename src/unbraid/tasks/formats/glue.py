"""GLUE's TSV files, as they are zipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.config import Format
from unbraid.tasks.formats.columns import renamed
from unbraid.tasks.rows import Row, read_cells, table_row

log = logging.getLogger(__name__)

_COLUMNS: Mapping[Format, Mapping[str, str]] = {
    "sst-2": {"text": "sentence", "label": "label", "id": "index"},
    "mrpc": {"text": "#1 String", "pair": "#2 String", "label": "Quality", "id": "index"},
    "sts-b": {"text": "sentence1", "pair": "sentence2", "label": "score", "id": "index"},
    "qqp": {"text": "question1", "pair": "question2", "label": "is_duplicate", "id": "id"},
    "mnli": {"text": "sentence1", "pair": "sentence2", "label": "gold_label", "id": "index"},
    "qnli": {"text": "sentence", "pair": "question", "label": "label", "id": "index"},
    "rte": {"text": "sentence1", "pair": "sentence2", "label": "label", "id": "index"},
}


def read_glue(form: Format, path: Path) -> Iterator[Row]:
    """Reads a file with a header; columns go by their names.

    Of QQP's labelled files, rows with missing or surplus cells are left out, as the original does, and their number is
    told; every row of its test file is to be predicted.

    Args:
        form: sst-2, mrpc, sts-b, qqp, mnli, qnli or rte (and wnli and the diagnostic set, whose columns are the same).
        path: of the file.

    Raises:
        InputError: a row with missing or surplus cells, a column that is not there, or see :func:`read_lines`.
    """
    rows = read_cells(path)
    _, header = next(rows, ("", []))
    lenient = form == "qqp" and _COLUMNS[form]["label"] in header
    dropped = 0
    for place, cells in rows:
        if lenient and len(cells) != len(header):
            dropped += 1
        else:
            yield renamed(table_row(place, header, cells), _COLUMNS[form])
    if dropped:
        log.warning("%s: %d rows have missing or surplus cells and were left out.", path, dropped)


def read_cola(path: Path) -> Iterator[Row]:
    """Reads CoLA: four columns without a header (source, label, mark, sentence); the test file has index and sentence.

    Raises:
        InputError: another number of cells, or see :func:`read_lines`.
    """
    rows = read_cells(path)
    first = next(rows, None)
    if first is None:
        return
    if first[1] == ["index", "sentence"]:
        for place, cells in rows:
            yield renamed(table_row(place, first[1], cells), {"text": "sentence", "id": "index"})
        return
    for place, cells in (first, *rows):
        if len(cells) != 4:
            raise InputError(
                f"{place}: there are {len(cells)} cells, but CoLA has source, label, mark and sentence, and no header."
            )
        yield Row(place, {"text": cells[3], "label": cells[1]})
