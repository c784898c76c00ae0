"""Task: what a kind of task makes of its data, its model and its model's answers."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Pretrained
from unbraid.tasks.batches import Rows
from unbraid.tasks.config import DataConfig
from unbraid.tasks.objective import Outputs, TaskObjective
from unbraid.text.batch import Batch
from unbraid.text.tokenizer import Tokenizer

ExampleT = TypeVar("ExampleT")
RowsT = TypeVar("RowsT", bound=Rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC, Generic[ExampleT, RowsT]):
    """A kind of task over some data: read, encode, learn, answer, score, in this order.

    Attributes:
        data: the columns.
        labels: the classes in the order of their ids; None where there are none, or none are known yet.
        max_length: the most tokens of a row, special tokens included.
        overlap: tokens that neighbouring windows of a longer text share, at most half of a window.
        batch_size: rows at a time.
        head: the class of its models.
        new: the modules of the head that start fresh on a pretrained encoder.
        has_classes: whether ``labels`` are the classes of its models.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    labels: tuple[str, ...] | None = None
    max_length: int = 256
    overlap: int = 128
    batch_size: int = 32

    head: ClassVar[type[Pretrained]]
    new: ClassVar[tuple[str, ...]]
    has_classes: ClassVar[bool] = False

    @classmethod
    def fits(cls, config: DebertaConfig) -> bool:  # noqa: ARG003, for the kinds that share a class of models
        """Whether this kind of task, of all with the same ``head``, is what a model was fine-tuned for."""
        return True

    @abc.abstractmethod
    def read(self, source: str) -> list[ExampleT]:
        """The labelled examples of a file, or of a split of ``data.dataset``.

        Raises:
            InputError: what is wrong with the data, and where; among it a label that is none of ``labels``.
        """

    def labelled(self, examples: Sequence[ExampleT], source: str) -> Self:  # noqa: ARG002, for the kinds that have classes
        """The same task with the classes of its training examples, unless it has some or needs none.

        Args:
            examples: of training.
            source: where they come from, for messages.

        Raises:
            InputError: there are fewer than two classes.
        """
        return self

    def model_fields(self) -> dict[str, Any]:
        """What the configuration of a model for this task has to say."""
        return {}

    @abc.abstractmethod
    def encode(self, examples: Sequence[ExampleT], tokenizer: Tokenizer) -> RowsT:
        """Tokenises examples; logs a warning when some have to be cut."""

    @abc.abstractmethod
    def objective(self, model: Any) -> TaskObjective:
        """What a model of the class ``head`` is trained for."""

    @abc.abstractmethod
    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[Any]:
        """What :meth:`score` needs to know of the outputs for each row of a batch."""

    @abc.abstractmethod
    def score(self, data: RowsT, answers: list[Any]) -> dict[str, float]:
        """The official metrics.

        Args:
            data: what was asked.
            answers: of :meth:`answers`, one for each row.
        """

    def evaluate(self, model: Pretrained, data: RowsT) -> dict[str, float]:
        """The mean loss, as in training, and the metrics of a model.

        The model runs in evaluation mode, and is then put back into the mode it was in.
        """
        loss, answers = self.ask(model, data)
        return {"loss": loss, **self.score(data, answers)}

    def tune(self, model: Pretrained, data: RowsT) -> tuple[Self, dict[str, float]]:
        """The same task with what is best chosen by dev examples, and its scores on them; see :meth:`evaluate`."""
        loss, answers = self.ask(model, data)
        task = self.tuned(data, answers)
        return task, {"loss": loss, **task.score(data, answers)}

    def tuned(self, data: RowsT, answers: list[Any]) -> Self:  # noqa: ARG002, for the kinds that choose something
        """The same task with what is best chosen by dev examples; arguments as of :meth:`score`."""
        return self

    def save_settings(self, folder: Path) -> None:
        """Writes what a prediction needs beside the model and its tokenizer."""

    @classmethod
    def settings_of(cls, source: str) -> dict[str, Any]:  # noqa: ARG003, for the kinds that tune something
        """The attributes that :meth:`save_settings` wrote into the folder of a model.

        Raises:
            InputError: no such model, or a damaged file.
        """
        return {}

    @torch.no_grad()
    def ask(self, model: Pretrained, data: RowsT) -> tuple[float, list[Any]]:
        """The mean loss of a model, without class weights, and its answers to all rows; see :meth:`evaluate`."""
        objective = self.objective(model)
        device = next(model.parameters()).device
        order = np.argsort(data.lengths, kind="stable")
        answers: list[Any] = [None] * len(order)
        total, count, training = 0.0, 0, model.training
        model.eval()
        try:
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = data.batch(rows).to(device)
                outputs = objective.outputs(batch)
                loss = objective.loss_from(outputs, batch)
                total, count = total + loss.total.item(), count + loss.count
                for row, answer in zip(rows, self.answers(outputs, batch), strict=True):
                    answers[row] = answer
        finally:
            model.train(training)
        return total / max(count, 1), answers
