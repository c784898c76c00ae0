"""What a person says about a task: which data, which columns, which metric."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman"]

METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
}
"""The metrics of each kind of task, larger is better; the first is the default."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DataConfig:
    """How to read examples: from files (.csv, .tsv, .jsonl, .json, .parquet; text also .gz) or from the hub."""

    dataset: str | None = None
    """Data set on the hub (owner/name); train, dev and test then name its splits instead of files."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    text: str = "text"
    """Column of the text."""
    pair: str | None = None
    """Column of the second text of a pair."""
    label: str = "label"
    """Column of the class, or of the score for regression."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset names a configuration of a hub data set: give dataset too.")
        return self


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TaskConfig:
    """Classification or regression of texts and pairs of texts."""

    train: str
    """Examples to learn from: a file, or a split of data.dataset."""
    dev: str
    """Examples to choose the best checkpoint by: a file, or a split of data.dataset."""
    test: str | None = None
    """Examples to score the best checkpoint on, once, at the end."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """How to read them."""
    kind: Kind = "classification"
    """classification (the label is one of several classes) or regression (the label is a number)."""
    labels: tuple[str, ...] | None = None
    """Classes in the order of their ids; default: those of the training data, sorted (as numbers if they all are)."""
    max_length: Annotated[int, Field(ge=3)] = 256
    """Longest example in tokens, special tokens included; longer ones are cut and counted."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples in a micro-batch."""
    metric: Metric | None = None
    """Metric that chooses the best checkpoint; default: accuracy, or the mean of Pearson and Spearman."""

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise ValueError(f"{self.kind} has no metric {self.metric}: choose one of {', '.join(METRICS[self.kind])}.")
        if self.labels is not None:
            if self.kind == "regression":
                raise ValueError("regression has no classes: leave labels out.")
            if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
                raise ValueError("labels must be at least two different classes.")
        return self

    @property
    def best_by(self) -> Metric:
        """The metric that chooses the best checkpoint, the default resolved."""
        return self.metric or METRICS[self.kind][0]
