"""``unbraid submit``: the prediction files of a task of the papers."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from unbraid.errors import InputError
from unbraid.settings import settings


@settings
class Config:
    """Predicts the test files of one of the papers' tasks, and writes the files that its server takes.

    GLUE and SuperGLUE want all tasks in one archive: give every task the same output. SQuAD's test sets are not public:
    its dev set is predicted.
    """

    task: tyro.conf.Positional[str]
    """The task, such as mnli; a test set alone (ax, ax-b, ax-g) takes the model of mnli or rte."""
    model: str
    """Folder or hub name of a model that was fine-tuned on it."""
    data: str
    """Folder with the task's files as they are distributed."""
    output: str
    """Folder for the prediction files."""
    max_length: Annotated[int, Field(ge=3)] | None = None
    """Longest row in tokens; default: as published for the task. Longer texts are read as unbraid predict does."""


def run(config: Config) -> None:
    """Predicts, and prints what was written."""
    from unbraid.commands import predict
    from unbraid.tasks.kinds import task_of
    from unbraid.tasks.named import named_task
    from unbraid.tasks.published import length_of
    from unbraid.tasks.submissions import write_submission

    task = named_task(config.task)
    learned = task_of(config.model)
    max_length = config.max_length or length_of(config.task)
    predictor = predict.load(predict.Config(model=config.model, max_length=max_length))
    try:
        written = write_submission(task, predictor, learned, config.data, config.output)
    except OSError as error:
        raise InputError(f"{config.output} cannot be written ({error}); name another folder.") from None
    for path in written:
        print(path)
