"""The tasks of the papers: their files, columns, classes, metrics and prediction files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig, Format, Kind, Metric

Submission = Literal["glue", "superglue", "multirc", "squad", "conll", "table"]
"""The shapes of prediction files, see :mod:`unbraid.tasks.submissions`."""

_NLI = ("contradiction", "neutral", "entailment")
_ENTAILED = ("not_entailment", "entailment")
_YES = ("false", "true")
_BIO = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub:
    """A task's data set on the Hugging Face hub, where its columns suffice.

    Attributes:
        dataset: owner/name.
        subset: its configuration.
        columns: fields of :class:`DataConfig`.
        labels: what it calls the classes, in the order of their ids, where other than the files do.
        train: split.
        dev: split.
        tests: further labelled splits, by their names.
    """

    dataset: str
    subset: str | None = None
    columns: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    train: str = "train"
    dev: str = "validation"
    tests: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedTask:
    """A task of the papers.

    Files are patterns within the task's folder, see :func:`unbraid.tasks.formats.read_format`; where copies differ in
    names, the alternatives stand between bars.

    Attributes:
        kind: of task.
        format: of its files.
        train: to learn from; None for a test set alone.
        dev: to choose the best checkpoint by; None for a test set alone.
        tests: further labelled sets, by their names.
        columns: fields of :class:`DataConfig` beside the format.
        labels: the classes in the order of their ids.
        metric: the official one that chooses the best checkpoint; None: the first of its kind.
        hub: where the same data are, if its columns suffice.
        from_mnli: whether the paper starts from a model that was fine-tuned on MNLI.
        submission: the shape of its prediction files.
        predicted: prediction file -> the file of the examples to predict.
        spelling: label -> how the prediction file spells it, where otherwise.
    """

    kind: Kind = "classification"
    format: Format
    train: str | None
    dev: str | None
    tests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    metric: Metric | None = None
    hub: Hub | None = None
    from_mnli: bool = False
    submission: Submission
    predicted: Mapping[str, str]
    spelling: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def data(self) -> DataConfig:
        """How to read its files."""
        return DataConfig(format=self.format, **self.columns)


def _glue(
    title: str, form: Format, *columns: str, subset: str, names: tuple[str, ...] | None = None, **fields: Any
) -> NamedTask:
    """A task of GLUE.

    Args:
        title: of its prediction file.
        form: of its files.
        columns: of the hub's text, or of its two.
        subset: of the hub's data set.
        names: of the hub's classes.
        fields: of :class:`NamedTask`.
    """
    hub = Hub(
        dataset="nyu-mll/glue", subset=subset, columns=dict(zip(("text", "pair"), columns, strict=False)), labels=names
    )
    pair = {"pair": "pair"} if len(columns) == 2 else {}
    return NamedTask(
        **{
            "format": form,
            "train": "train.tsv",
            "dev": "dev.tsv",
            "columns": pair,
            "hub": hub,
            "submission": "glue",
            "predicted": {f"{title}.tsv": "test.tsv"},
        }
        | fields
    )


def _superglue(title: str, form: Format, labels: tuple[str, ...] | None = None, **fields: Any) -> NamedTask:
    """A task of SuperGLUE; arguments as of :func:`_glue`."""
    return NamedTask(
        **{
            "format": form,
            "train": "train.jsonl",
            "dev": "val.jsonl",
            "columns": {"pair": "pair"},
            "labels": labels,
            "submission": "superglue",
            "predicted": {f"{title}.jsonl": "test.jsonl"},
        }
        | fields
    )


def _squad(version: str, hub: str, **columns: Any) -> NamedTask:
    """A version of SQuAD, whose test sets are not public: the dev set is what is predicted."""
    return NamedTask(
        kind="question-answering",
        format="squad",
        train=f"train-v{version}.json",
        dev=f"dev-v{version}.json",
        columns=columns,
        hub=Hub(dataset=hub, columns=columns),
        submission="squad",
        predicted={"predictions.json": f"dev-v{version}.json"},
    )


_LANGUAGES = ("en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur")
_XNLI_TEST = "XNLI-1.0/xnli.test.tsv"

TASKS: Mapping[str, NamedTask] = {
    "cola": _glue(
        "CoLA",
        "cola",
        "sentence",
        subset="cola",
        labels=("0", "1"),
        metric="matthews",
        names=("unacceptable", "acceptable"),
    ),
    "sst-2": _glue("SST-2", "sst-2", "sentence", subset="sst2", labels=("0", "1"), names=("negative", "positive")),
    "mrpc": _glue(
        "MRPC",
        "mrpc",
        "sentence1",
        "sentence2",
        subset="mrpc",
        labels=("0", "1"),
        metric="accuracy_f1",
        names=("not_equivalent", "equivalent"),
        from_mnli=True,
    ),
    "sts-b": _glue("STS-B", "sts-b", "sentence1", "sentence2", subset="stsb", kind="regression", from_mnli=True),
    "qqp": _glue(
        "QQP",
        "qqp",
        "question1",
        "question2",
        subset="qqp",
        labels=("0", "1"),
        metric="accuracy_f1",
        names=("not_duplicate", "duplicate"),
    ),
    "mnli": NamedTask(
        format="mnli",
        train="train.tsv",
        dev="dev_matched.tsv",
        tests={"dev_mismatched": "dev_mismatched.tsv"},
        columns={"pair": "pair"},
        labels=_NLI,
        hub=Hub(
            dataset="nyu-mll/glue",
            subset="mnli",
            columns={"text": "premise", "pair": "hypothesis"},
            dev="validation_matched",
            tests={"dev_mismatched": "validation_mismatched"},
        ),
        submission="glue",
        predicted={"MNLI-m.tsv": "test_matched.tsv", "MNLI-mm.tsv": "test_mismatched.tsv"},
    ),
    "qnli": _glue("QNLI", "qnli", "sentence", "question", subset="qnli", labels=_ENTAILED),
    "rte": _glue("RTE", "rte", "sentence1", "sentence2", subset="rte", labels=_ENTAILED, from_mnli=True),
    "wnli": _glue(
        "WNLI",
        "rte",
        "sentence1",
        "sentence2",
        subset="wnli",
        labels=("0", "1"),
        names=_ENTAILED,
    ),
    "ax": NamedTask(
        format="rte",
        train=None,
        dev=None,
        columns={"pair": "pair"},
        labels=_NLI,
        submission="glue",
        predicted={"AX.tsv": "diagnostic.tsv|AX.tsv"},
    ),
    "boolq": _superglue("BoolQ", "boolq", _YES),
    "cb": _superglue("CB", "cb", _NLI, metric="f1"),
    "copa": _superglue("COPA", "copa", kind="multiple-choice", columns={}, from_mnli=True),
    "multirc": _superglue(
        "MultiRC", "multirc", ("0", "1"), metric="f1", columns={"pair": "pair", "group": "group"}, submission="multirc"
    ),
    "record": _superglue("ReCoRD", "record", kind="entity-choice", columns={}),
    "superglue-rte": _superglue("RTE", "cb", _ENTAILED, from_mnli=True),
    "wic": _superglue("WiC", "wic", _YES, kind="span-classification"),
    "wsc": _superglue(
        "WSC", "wsc", _YES, kind="span-classification", columns={}, spelling={"false": "False", "true": "True"}
    ),
    "ax-b": _superglue("AX-b", "ax-b", _ENTAILED, train=None, dev=None, predicted={"AX-b.jsonl": "AX-b.jsonl"}),
    "ax-g": _superglue("AX-g", "cb", _ENTAILED, train=None, dev=None, predicted={"AX-g.jsonl": "AX-g.jsonl"}),
    "squad1.1": _squad("1.1", "rajpurkar/squad"),
    "squad2.0": _squad("2.0", "rajpurkar/squad_v2", unanswerable=True),
    "race": NamedTask(
        kind="multiple-choice",
        format="race",
        train="train/*/*.txt",
        dev="dev/*/*.txt",
        tests={"middle": "test/middle/*.txt", "high": "test/high/*.txt"},
        from_mnli=True,
        submission="table",
        predicted={"RACE.tsv": "test/*/*.txt"},
    ),
    "swag": NamedTask(
        kind="multiple-choice",
        format="swag",
        train="train.csv",
        dev="val.csv",
        hub=Hub(
            dataset="allenai/swag",
            subset="regular",
            columns={
                "context": "sent1",
                "question": "sent2",
                "choices": tuple(f"ending{number}" for number in range(4)),
            },
        ),
        submission="table",
        predicted={"SWAG.tsv": "test.csv"},
    ),
    "conll2003": NamedTask(
        kind="token-classification",
        format="conll2003",
        train="eng.train|train.txt",
        dev="eng.testa|valid.txt",
        tests={"test": "eng.testb|test.txt"},
        columns={"words": "words"},
        labels=_BIO,
        submission="conll",
        predicted={"CoNLL-2003.txt": "eng.testb|test.txt"},
    ),
    "anli": NamedTask(
        format="anli",
        train="R*/train.jsonl",
        dev="R*/dev.jsonl",
        tests={f"R{number}": f"R{number}/test.jsonl" for number in (1, 2, 3)},
        columns={"pair": "pair"},
        labels=_NLI,
        hub=Hub(
            dataset="facebook/anli",
            columns={"text": "premise", "pair": "hypothesis"},
            train="train_r1+train_r2+train_r3",
            dev="dev_r1+dev_r2+dev_r3",
            tests={f"R{number}": f"test_r{number}" for number in (1, 2, 3)},
        ),
        submission="table",
        predicted={"ANLI.tsv": "R*/test.jsonl"},
    ),
    "xnli": NamedTask(
        format="xnli",
        train="XNLI-MT-1.0/multinli/multinli.train.en.tsv",
        dev="XNLI-1.0/xnli.dev.tsv#en",
        tests={language: f"{_XNLI_TEST}#{language}" for language in _LANGUAGES},
        columns={"pair": "pair"},
        labels=_NLI,
        hub=Hub(
            dataset="facebook/xnli",
            subset="en",
            columns={"text": "premise", "pair": "hypothesis"},
            tests={"en": "test"},
        ),
        submission="table",
        predicted={"XNLI.tsv": _XNLI_TEST},
    ),
}
"""The tasks by their names. Source: microsoft/DeBERTa apps/tasks at 4d7fe0b, and the READMEs of the data."""


def task_name(name: str) -> str:
    """A task's name in :data:`TASKS`; case and hyphens do not count.

    >>> task_name("SST2"), task_name("MNLI")
    ('sst-2', 'mnli')

    Raises:
        InputError: there is none.
    """
    plain = name.lower().replace("-", "")
    for known in TASKS:
        if known.replace("-", "") == plain:
            return known
    raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}.")


def named_task(name: str) -> NamedTask:
    """A task by its name; see :func:`task_name`."""
    return TASKS[task_name(name)]
