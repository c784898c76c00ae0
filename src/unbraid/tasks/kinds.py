"""The kinds of tasks by their names, and their data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.folder import architecture_of, model_folder, read_config
from unbraid.tasks.classification import Classification, MultiLabel, Regression
from unbraid.tasks.config import Kind, TaskConfig
from unbraid.tasks.entity_choice import EntityChoice
from unbraid.tasks.multiple_choice import MultipleChoice
from unbraid.tasks.question_answering import QuestionAnswering
from unbraid.tasks.sources import sources_of
from unbraid.tasks.span_classification import SpanClassification
from unbraid.tasks.task import Task
from unbraid.tasks.token_classification import TokenClassification

KINDS: Mapping[Kind, type[Task[Any, Any]]] = {
    "classification": Classification,
    "multi-label": MultiLabel,
    "regression": Regression,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "span-classification": SpanClassification,
    "entity-choice": EntityChoice,
}
"""What does each kind of task."""

ExampleT = TypeVar("ExampleT")


@dataclasses.dataclass(frozen=True)
class Splits(Generic[ExampleT]):
    """A task and its data.

    Attributes:
        task: with the classes of the training data.
        train: to learn from.
        dev: to choose the best checkpoint by; None where there are none.
        tests: to score it on, by their names.
    """

    task: Task[ExampleT, Any]
    train: list[ExampleT]
    dev: list[ExampleT] | None
    tests: dict[str, list[ExampleT]]


def read_splits(config: TaskConfig) -> Splits[Any]:
    """Reads all data of a task; the classes are the configured ones or else those of the training data.

    Raises:
        InputError: what is wrong with the data, and where; or the metric is of groups and there are none.
    """
    sources = sources_of(config)
    if config.kind == "classification" and config.best_by == "exact" and sources.data.group is None:
        raise InputError("exact is the share of groups that are wholly right: give data.group, or another metric.")
    task = KINDS[config.kind](
        data=sources.data,
        labels=sources.labels,
        max_length=config.max_length,
        overlap=config.overlap,
        batch_size=config.batch_size,
    )
    train = task.read(sources.train)
    task = task.labelled(train, sources.train)
    dev = None if sources.dev is None else task.read(sources.dev)
    return Splits(task, train, dev, {name: task.read(source) for name, source in sources.tests.items()})


def task_of(source: str, **fields: Any) -> Task[Any, Any]:
    """The task that a fine-tuned model does.

    Args:
        source: the folder or hub name of the model.
        fields: of the task: columns, lengths.

    Raises:
        InputError: the model was fine-tuned for none of the kinds of tasks.
    """
    model_config = read_config(model_folder(source), v1=False)
    kind = KINDS[kind_of(architecture_of(source), model_config)]
    labels = tuple(model_config.id2label[index] for index in range(model_config.num_labels))
    return kind(labels=labels if kind.has_classes else None, **kind.settings_of(source), **fields)


def kind_of(architecture: str, model_config: DebertaConfig) -> Kind:
    """The kind of task that a model was fine-tuned for.

    Args:
        architecture: see :func:`architecture_of`.
        model_config: its configuration.

    Raises:
        InputError: for none.
    """
    for kind, task in KINDS.items():
        if task.head.architecture == architecture and task.fits(model_config):
            return kind
    raise InputError(
        f"a model of the architecture {architecture or 'unknown'} does none of the tasks {', '.join(KINDS)}; "
        "give the folder of a fine-tuned model, such as runs/task/best."
    )
