"""What a person says about a task: which data, which columns, which metric."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

Kind = Literal[
    "classification", "multi-label", "regression", "token-classification", "question-answering", "multiple-choice"
]
Metric = Literal[
    "accuracy", "f1", "f1_macro", "matthews", "precision", "recall", "exact", "pearson", "spearman", "pearson_spearman"
]

METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "multi-label": ("f1", "f1_macro", "accuracy"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
    "token-classification": ("f1", "precision", "recall", "accuracy"),
    "question-answering": ("f1", "exact"),
    "multiple-choice": ("accuracy",),
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
    words: str | None = None
    """Column of the list of words that a token classification labels; default: it labels stretches of the text."""
    label: str = "label"
    """Column of the class; of the list of classes, if there are several at once; of the score for regression; of the
    list of the words' labels (or of the labelled stretches of the text, each with start, end and label) for token
    classification; of the right choice's place, from 0."""
    question: str = "question"
    """Column of the question."""
    context: str | None = None
    """Column of the text that it is about; default: context, which a multiple choice may lack."""
    answers: str = "answers"
    """Column of the answers, each with its text and answer_start, as in SQuAD."""
    choices: tuple[str, ...] | None = None
    """Column of the list of choices, or the columns of the choices; default: choices, or choice1, choice2 and so on."""
    unanswerable: bool = False
    """Questions may have no answer in their context, as in SQuAD 2.0; else one without is an error."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset names a configuration of a hub data set: give dataset too.")
        return self


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TaskConfig:
    """What is learned, and from which examples."""

    train: str
    """Examples to learn from: a file, or a split of data.dataset."""
    dev: str
    """Examples to choose the best checkpoint by: a file, or a split of data.dataset."""
    test: str | None = None
    """Examples to score the best checkpoint on, once, at the end."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """How to read them."""
    kind: Kind = "classification"
    """classification (the label is one of several classes), multi-label (any number of them), regression (a number),
    token-classification (each word has one, or stretches of the text), question-answering (the answer is a stretch of
    the context), multiple-choice (it is one of several texts)."""
    labels: tuple[str, ...] | None = None
    """Classes in the order of their ids; default: those of the training data, sorted (as numbers if they all are)."""
    max_length: Annotated[int, Field(ge=3)] = 256
    """Longest row in tokens, special tokens included; longer texts are cut and counted, or read in windows where tokens
    are what is asked for."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Tokens that neighbouring windows of a longer text share; at most half of a window."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples, or windows of longer ones, in a micro-batch."""
    metric: Metric | None = None
    """Metric that chooses the best checkpoint; default: accuracy, the mean of Pearson and Spearman, or F1."""

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise ValueError(f"{self.kind} has no metric {self.metric}: choose one of {', '.join(METRICS[self.kind])}.")
        if self.labels is not None:
            if self.kind in ("regression", "question-answering", "multiple-choice"):
                raise ValueError(f"{self.kind} has no classes: leave labels out.")
            if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
                raise ValueError("labels must be at least two different classes.")
        return self

    @property
    def best_by(self) -> Metric:
        """The metric that chooses the best checkpoint, the default resolved."""
        return self.metric or METRICS[self.kind][0]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SiftConfig:
    """Consistency of the outputs when the embeddings are perturbed where that hurts most (SiFT); off unless weighted.

    Source: the defaults are those of microsoft/DeBERTa apps/run.py and sift/sift.py at 4d7fe0b.
    """

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the consistency beside the loss; 0: no SiFT (published: 5, and 3 for v3-xsmall)."""
    steps: Annotated[int, Field(ge=0)] = 1
    """Ascent steps, each a forward and a backward pass; 0: only the noise."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Length of a step at every token, in the norm below."""
    start: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    """Standard deviation of the normal noise that the perturbation starts as, clipped at two of them."""
    norm: Literal["inf", "l2"] = "inf"
    """Norm of a token's step and radius: its largest component (inf) or its length (l2)."""
    radius: Annotated[float, Field(gt=0)] | None = None
    """Largest perturbation of a token, kept to after every step; None: any."""
    normalise: bool = True
    """Normalise the embeddings before they are perturbed, in the clean pass too; SMART and VAT do not."""
    clean_gradient: bool = True
    """Whether the consistency also moves the clean output; else only the perturbed output is drawn to it."""
    embedding_gradient: bool = False
    """Whether the consistency also trains the embeddings through the perturbed pass; SMART does."""
    share_dropout: bool = False
    """The same dropout in all passes over a batch, so that outputs differ by the perturbation alone."""

    @model_validator(mode="after")
    def _check(self) -> SiftConfig:
        if self.start == 0 and self.share_dropout:
            raise ValueError("start 0 with share_dropout makes all passes the same: give one of them up.")
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.weight == 0 and changed:
            raise ValueError(f"sift.weight is 0, so {changed[0]} does nothing: give a weight, such as 5.")
        return self
