"""Where the examples of a task are, and their rows: tables, files in a task's own format, data sets of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig, TaskConfig
from unbraid.tasks.formats import read_format
from unbraid.tasks.named import named_task
from unbraid.tasks.rows import Row, read_hub, read_table


def read_rows(source: str, data: DataConfig) -> Iterator[Row]:
    """Reads a file, or a split of a hub data set, row by row.

    Args:
        source: the file; or the split, when ``data.dataset`` is given. See :func:`read_format` for several files.
        data: where from, and in which format.

    Raises:
        InputError: what is wrong with the data, and where.
    """
    if data.dataset is not None:
        rows = read_hub(data.dataset, data.subset, source)
    elif data.format is not None:
        rows = read_format(source, data.format)
    else:
        rows = read_table(Path(source))
    row = None
    for row in rows:
        yield row
    if row is None:
        raise InputError(f"{source} has no examples.")


def group_of(row: Row, data: DataConfig) -> str | None:
    """What the example of a row belongs together with, where the data have such a column."""
    return None if data.group is None else row.name(data.group)


def file_of(folder: str, pattern: str) -> str:
    """Where a file of a task is, of several alternatives the first that is there.

    Args:
        folder: of the task.
        pattern: of :class:`NamedTask`.
    """
    paths = [str(Path(folder) / name) for name in pattern.split("|")]
    return next((path for path in paths if Path(path).is_file()), paths[0])


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the examples of a task are.

    Attributes:
        data: how to read them.
        train: a file, or a split.
        dev: likewise, or None.
        tests: likewise, by their names.
        labels: the classes in the order of their ids, if they are known.
    """

    data: DataConfig
    train: str
    dev: str | None
    tests: Mapping[str, str]
    labels: tuple[str, ...] | None


def sources_of(config: TaskConfig) -> Sources:
    """What a configuration says of the examples; of a named task what it leaves out is known.

    Raises:
        InputError: no such task, one that does not go with the configuration, or no place where its data are.
    """
    tests = {"test": config.test[0]} if len(config.test) == 1 else {Path(path).stem: path for path in config.test}
    if len(tests) < len(config.test):
        raise InputError("two of the files of task.test have the same name; their scores go by it: rename one.")
    if taken := {"train", "dev"} & tests.keys():
        raise InputError(f"a file of task.test is called {taken.pop()}, but its scores go by its name: rename it.")
    if config.name is None:
        if config.train is None:  # TaskConfig allows that to named tasks alone
            raise ValueError("a task without a name has examples to learn from.")
        return Sources(config.data, config.train, config.dev, tests, config.labels)
    found = _named_sources(config)
    given = {field.name: getattr(config.data, field.name) for field in dataclasses.fields(DataConfig)}
    changed = {name: value for name, value in given.items() if value != getattr(DataConfig(), name)}
    return Sources(
        dataclasses.replace(found.data, **changed),
        config.train or found.train,
        config.dev or found.dev,
        tests or found.tests,
        config.labels or found.labels,
    )


def _named_sources(config: TaskConfig) -> Sources:
    name = str(config.name)
    task = named_task(name)
    if config.kind != task.kind:
        raise InputError(f"{name} is {task.kind}, not {config.kind}; leave task.kind to unbraid finetune {name}.")
    if task.train is None or task.dev is None:
        raise InputError(f"{name} is a test set alone; predict it by unbraid submit, with a model of its classes.")
    if config.folder is not None:
        if config.data.dataset is not None:
            raise InputError("task.folder holds files, but task.data.dataset is on the hub; give one of them.")
        tests = {test: file_of(config.folder, pattern) for test, pattern in task.tests.items()}
        train, dev = (file_of(config.folder, pattern) for pattern in (task.train, task.dev))
        return Sources(task.data(), train, dev, tests, task.labels)
    if config.train is not None and config.data.dataset is None:
        return Sources(task.data(), config.train, config.dev, {}, task.labels)
    if task.hub is None or config.data.format is not None:
        raise InputError(f"{name} is read from its files; give their folder with --data.")
    data = DataConfig(dataset=task.hub.dataset, subset=task.hub.subset, **task.hub.columns)
    return Sources(data, task.hub.train, task.hub.dev, task.hub.tests, task.hub.labels or task.labels)
