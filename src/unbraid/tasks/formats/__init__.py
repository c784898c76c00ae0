"""The original files of the papers' tasks, as rows whose columns have one set of names.

These are text, pair, label, span1, span2, question, context, answers, choices, entities and words, as the kinds of
tasks read them; sentences, the numbers of words that words fall into; id, which prediction files call an example by;
and group, which joins the answers to one question.
Rows of test files without labels have no label. A reader knows one format, and nothing of kinds, models or tokenizers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.config import Format
from unbraid.tasks.formats.choices import read_race, read_swag
from unbraid.tasks.formats.conll import read_conll
from unbraid.tasks.formats.glue import read_cola, read_glue
from unbraid.tasks.formats.nli import read_anli, read_xnli
from unbraid.tasks.formats.squad import read_squad
from unbraid.tasks.formats.superglue import (
    read_copa,
    read_multirc,
    read_record,
    read_superglue,
    read_wic,
    read_wsc,
)
from unbraid.tasks.rows import Row

READERS: Mapping[Format, Callable[[Path], Iterator[Row]]] = {
    "cola": read_cola,
    "sst-2": partial(read_glue, "sst-2"),
    "mrpc": partial(read_glue, "mrpc"),
    "sts-b": partial(read_glue, "sts-b"),
    "qqp": partial(read_glue, "qqp"),
    "mnli": partial(read_glue, "mnli"),
    "qnli": partial(read_glue, "qnli"),
    "rte": partial(read_glue, "rte"),
    "boolq": partial(read_superglue, "boolq"),
    "cb": partial(read_superglue, "cb"),
    "copa": read_copa,
    "multirc": read_multirc,
    "record": read_record,
    "wic": read_wic,
    "wsc": read_wsc,
    "ax-b": partial(read_superglue, "ax-b"),
    "squad": read_squad,
    "race": read_race,
    "swag": read_swag,
    "conll2003": read_conll,
    "anli": read_anli,
    "xnli": read_xnli,
}
"""What reads one file of each format."""


def read_format(source: str, form: Format) -> Iterator[Row]:
    """Reads a file of one of the papers' tasks as it is distributed, or several.

    Args:
        source: the file, or a pattern of several, such as ``RACE/dev/*/*.txt``. Of xnli it may end in ``#`` and a
            language, such as ``xnli.dev.tsv#de``.
        form: the format.

    Raises:
        InputError: no such file, or what is wrong with it, and where.
    """
    pattern, language = source, ""
    if form == "xnli" and (named := re.fullmatch("(.+)#([a-z]+)", source)):
        pattern, language = named.groups()
    paths = _files(Path(pattern))
    if not paths:
        raise InputError(f"there is no file {pattern}; give the folder that the files of {form} were unpacked to.")
    for path in paths:
        for row in READERS[form](path):
            if not language or row.cells["language"] == language:
                yield row


def _files(pattern: Path) -> list[Path]:
    """The files that a path with stars in it stands for, in order; a folder or a file may hold other marks."""
    if pattern.is_file():
        return [pattern]
    plain = Path(*itertools.takewhile(lambda part: "*" not in part, pattern.parts))
    within = pattern.relative_to(plain)
    return sorted(plain.glob(str(within))) if within.parts else []
