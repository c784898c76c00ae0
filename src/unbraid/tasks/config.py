"""What a person says about a task: which data, which columns, which metric."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro
from pydantic import BeforeValidator, Field, model_validator

from unbraid.settings import settings

Kind = Literal[
    "classification",
    "multi-label",
    "regression",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "span-classification",
    "entity-choice",
]
Metric = Literal[
    "accuracy",
    "f1",
    "f1_macro",
    "accuracy_f1",
    "matthews",
    "precision",
    "recall",
    "exact",
    "pearson",
    "spearman",
    "pearson_spearman",
]
Format = Literal[
    "cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte",
    "boolq", "cb", "copa", "multirc", "record", "wic", "wsc", "ax-b",
    "squad", "race", "swag", "conll2003", "anli", "xnli",
]  # fmt: skip
"""How the files of the papers' tasks are distributed; several tasks may share one."""

METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "accuracy_f1", "matthews", "exact"),
    "multi-label": ("f1", "f1_macro", "accuracy"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
    "token-classification": ("f1", "precision", "recall", "accuracy"),
    "question-answering": ("f1", "exact"),
    "multiple-choice": ("accuracy",),
    "span-classification": ("accuracy", "f1", "matthews"),
    "entity-choice": ("f1", "exact"),
}
"""The metrics of each kind of task, larger is better; the first is the default."""


@settings
class DataConfig:
    """How to read examples: from files (.csv, .tsv, .jsonl, .json, .parquet; text also .gz) or from the hub."""

    dataset: str | None = None
    """Data set on the hub (owner/name); train, dev and test then name its splits instead of files."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    format: Format | None = None
    """The files are as this task of the papers is distributed; the columns then have the names that are the defaults
    below, and the second text of a pair is pair."""
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
    spans: tuple[str, str] = ("span1", "span2")
    """Columns of the two stretches that a span classification is about, each [start, end) in characters: the first of
    the text; the second of the second text of a pair, where there is one, else of the text too."""
    entities: str = "entities"
    """Column of the stretches [start, end) of the context that an entity choice chooses from, in characters; its
    question has @placeholder where the entity is missing, and its answers are a list of right texts."""
    group: str | None = None
    """Column that says which examples belong together, as the questions about one text: folds never part them. In a
    classification they are also judged together, as the answers to a question of MultiRC: the metric exact is the share
    of groups that are wholly right."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset names a configuration of a hub data set: give dataset too.")
        if self.format is not None and self.dataset is not None:
            raise ValueError("format says how files are written, but dataset is on the hub: give one of them.")
        return self


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@settings
class TaskConfig:
    """What is learned, and from which examples."""

    name: str | None = None
    """A task of the papers, such as cola, whose files are then known; unbraid finetune cola sets it and the rest."""
    folder: Annotated[str | None, tyro.conf.arg(aliases=["--data"])] = None
    """Folder with the files of a named task as they are distributed; default: its data set on the hub."""
    train: str | None = None
    """Examples to learn from: a file, or a split of data.dataset."""
    dev: str | None = None
    """Examples to choose the best checkpoint by: a file, or a split of data.dataset."""
    test: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """Examples to score the best checkpoint on, once, at the end; the scores of several files go by their names."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """How to read them."""
    kind: Kind = "classification"
    """classification (the label is one of several classes), multi-label (any number of them), regression (a number),
    token-classification (each word has one, or stretches of the text), question-answering (the answer is a stretch of
    the context), multiple-choice (it is one of several texts), span-classification (what two stretches of text have to
    do with each other), entity-choice (which entity of a text is missing in a question)."""
    labels: tuple[str, ...] | None = None
    """Classes in the order of their ids; default: those of the training data, sorted (as numbers if they all are)."""
    max_length: Annotated[int, Field(ge=3)] = 256
    """Longest row in tokens, special tokens included; longer texts are cut and counted, or read in windows where tokens
    are what is asked for."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Tokens that neighbouring windows of a longer text share; at most half of a window."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples, or windows of longer ones, in a micro-batch."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Weight of each class in the loss, by its name, 1 for those left out; balanced: all classes together weigh the
    same, however often they occur."""
    metric: Metric | None = None
    """Metric that chooses the best checkpoint; default: accuracy, the mean of Pearson and Spearman, or F1."""

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise ValueError(f"{self.kind} has no metric {self.metric}: choose one of {', '.join(METRICS[self.kind])}.")
        if self.name is None and self.folder is not None:
            raise ValueError("folder holds the files of a named task: give its name too, as in unbraid finetune cola.")
        if self.name is None and self.train is None:
            raise ValueError("there is nothing to learn from: give train, or a named task as in unbraid finetune cola.")
        if self.class_weights is not None and self.kind not in ("classification", "token-classification"):
            raise ValueError(f"class_weights are for classification and token-classification, not for {self.kind}.")
        if self.labels is not None:
            if self.kind in ("regression", "question-answering", "multiple-choice", "entity-choice"):
                raise ValueError(f"{self.kind} has no classes: leave labels out.")
            if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
                raise ValueError("labels must be at least two different classes.")
        return self

    @property
    def best_by(self) -> Metric:
        """The metric that chooses the best checkpoint, the default resolved."""
        return self.metric or METRICS[self.kind][0]


@settings
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


Projection = Literal["query", "key", "value", "pos_key", "pos_query", "output", "up", "down"]
"""The linear layers of a layer: four of its attention, two of its positions, two of its feed-forward part."""


@settings
class LoraConfig:
    """Low-rank adapters (LoRA): the encoder stands still, but for products of two thin matrices added to its weights.

    The head is trained whole. What is saved as the best model is an ordinary one, the products added to the weights.
    """

    rank: Annotated[int, Field(ge=0)] = 0
    """Width of the thin matrices; 0: no adapters (usual: 8)."""
    alpha: Annotated[int, Field(ge=1)] = 16
    """The product is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of what the adapters read."""
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = ("query", "value")
    """Linear layers of each layer that have an adapter; pos_key and pos_query are those of models with their own
    projections of positions, output is that of attention, up and down are the feed-forward part."""

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.rank == 0 and changed:
            raise ValueError(f"lora.rank is 0, so {changed[0]} does nothing: give a rank, such as 8.")
        return self
