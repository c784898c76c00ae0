"""The published settings of the papers' tasks, of which published.toml has the numbers."""

from __future__ import annotations

import functools
import logging
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from unbraid.errors import InputError
from unbraid.tasks.named import TASKS, NamedTask, task_name

log = logging.getLogger(__name__)


def recipe(word: str) -> dict[str, Any]:
    """The published settings of a task, as fields of the configuration of ``unbraid finetune``.

    Logs a warning where nothing was published for the size and settings within the paper's ranges stand in.

    Args:
        word: the task, perhaps with the size of the model (base, unless said) and with sift:
            "cola", "mnli/v3-base", "mnli/base/sift".

    Raises:
        InputError: no such task, no such size, or SiFT where no settings for it were published.
    """
    name, _, rest = word.partition("/")
    size, _, variant = (rest or "base").partition("/")
    name = task_name(name)
    task = TASKS[name]
    ranges, table = _published()["ranges"], _published()[name]
    if size not in ranges:
        raise InputError(f"there is no size {size!r}; the sizes are {', '.join(ranges)}.")
    if variant not in ("", "sift"):
        raise InputError(f"{word} ends in {variant}; only sift may stand after the size, as in mnli/base/sift.")
    row = table.get("sift", {}).get(size) if variant else table.get(size)
    if row is None and variant:
        known = [f"{other} with {', '.join(each['sift'])}" for other, each in _published().items() if "sift" in each]
        raise InputError(f"for {word} no SiFT was published: there is one for {'; '.join(known)}.")
    if row is None:
        row = ranges[size]
        log.warning(
            "For %s with %s no settings were published; these are among those that the papers searched (%s).",
            name,
            size,
            row["searched"],
        )
    return _fields(name, task, {"length": table["length"], **row})


def length_of(name: str) -> int:
    """The longest row of a task in tokens, as published, or as its texts need where nothing was.

    Raises:
        InputError: there is no such task.
    """
    return _published()[task_name(name)]["length"]


@functools.cache
def _published() -> dict[str, Any]:
    return tomllib.loads((files("unbraid.tasks") / "published.toml").read_text(encoding="utf-8"))


def _fields(name: str, task: NamedTask, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of published.toml as fields of the configuration."""
    steps = row.get("micro_batches", 1)
    fields: dict[str, Any] = {
        "cls_dropout": row["cls_dropout"],
        "task": {
            "name": name,
            "kind": task.kind,
            "max_length": row["length"],
            "batch_size": row["batch"] // steps,
        },
        "training": {
            "epochs": row["epochs"],
            "micro_batches": steps,
            "optimizer": {"learning_rate": row["learning_rate"], "warmup": row["warmup"]},
        },
    }
    if task.metric is not None:
        fields["task"]["metric"] = task.metric
    if "sift" in row:
        fields["sift"] = {"weight": row["sift"]}
    return fields
