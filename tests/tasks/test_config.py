"""What may be said about a task, and what may not."""

import subprocess
import sys

import pytest

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig, TaskConfig


@pytest.mark.parametrize(
    ("kind", "metric", "best_by"),
    [
        ("classification", None, "accuracy"),
        ("classification", "matthews", "matthews"),
        ("regression", None, "pearson_spearman"),
        ("regression", "spearman", "spearman"),
        ("multi-label", None, "f1"),
        ("token-classification", None, "f1"),
        ("token-classification", "accuracy", "accuracy"),
        ("question-answering", "exact", "exact"),
        ("multiple-choice", None, "accuracy"),
        ("span-classification", None, "accuracy"),
        ("span-classification", "f1", "f1"),
        ("entity-choice", None, "f1"),
        ("entity-choice", "exact", "exact"),
    ],
)
def test_the_best_checkpoint_has_a_metric(kind, metric, best_by):
    assert TaskConfig(train="a.csv", dev="b.csv", kind=kind, metric=metric).best_by == best_by


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "pearson"}, "classification has no metric pearson"),
        ({"kind": "regression", "metric": "f1"}, "regression has no metric f1"),
        ({"kind": "regression", "labels": ("a", "b")}, "regression has no classes"),
        ({"kind": "multiple-choice", "metric": "f1"}, "multiple-choice has no metric f1"),
        ({"kind": "entity-choice", "metric": "accuracy"}, "entity-choice has no metric accuracy"),
        ({"kind": "entity-choice", "labels": ("a", "b")}, "entity-choice has no classes"),
        ({"kind": "question-answering", "labels": ("a", "b")}, "question-answering has no classes"),
        ({"overlap": -1}, "overlap"),
        ({"labels": ("a",)}, "at least two different"),
        ({"labels": ("a", "b", "a")}, "at least two different"),
        ({"max_length": 2}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"kind": "ranking"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"data": {"subset": "cola"}}, "give dataset too"),
        ({"data": {"texts": "sentence"}}, "texts"),
        ({"data": {"dataset": "a/b", "format": "cola"}}, "give one of them"),
        ({"data": {"format": "glue"}}, "format"),
        ({"folder": "glue/CoLA"}, "give its name too"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        TaskConfig(train="a.csv", dev="b.csv", **fields)


def test_a_task_without_a_name_has_data():
    with pytest.raises(InputError, match="give train, or a named task"):
        TaskConfig(dev="b.csv")
    assert TaskConfig(name="cola").train is None
    assert TaskConfig(train="a.csv", kind="classification", metric="exact", data={"group": "q"}).best_by == "exact"


def test_one_test_file_or_several():
    assert TaskConfig(train="a.csv", test="c.csv").test == ("c.csv",)
    assert TaskConfig(train="a.csv", test=["c.csv", "d.csv"]).test == ("c.csv", "d.csv")


def test_data_may_be_a_table_of_a_recipe():
    config = TaskConfig(train="train", dev="validation", data={"dataset": "nyu-mll/glue", "subset": "cola"})
    assert config.data == DataConfig(dataset="nyu-mll/glue", subset="cola")


def test_the_configuration_imports_nothing_slow():
    code = "import sys, unbraid.tasks.config; print({'torch', 'numpy', 'datasets', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
