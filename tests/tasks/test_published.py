"""The published settings of the papers' tasks."""

from __future__ import annotations

import pytest

from unbraid.cli import read_config
from unbraid.commands import finetune
from unbraid.errors import InputError
from unbraid.tasks.named import TASKS
from unbraid.tasks.published import length_of, recipe

SIZES = ["base", "large", "xlarge", "v2-xlarge", "v2-xxlarge", "v3-xsmall", "v3-small", "v3-base", "v3-large"]
TRAINED = [name for name, task in TASKS.items() if task.train is not None]


def configuration(*words: str) -> finetune.Config:
    return read_config(finetune.Config, "finetune", [*words, "--model", "m", "--output", "o", "--data", "d"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_task_and_size_is_a_whole_recipe(name, size):
    config = recipe(f"{name}/{size}")
    assert config["task"]["kind"] == TASKS[name].kind
    assert 0 < config["training"]["optimizer"]["learning_rate"] < 1e-4
    assert 1 < config["training"]["epochs"] <= 15
    assert 0 <= config["cls_dropout"] <= 0.3


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_is_read_as_a_configuration(name):
    config = configuration(name)
    assert (config.task.name, config.task.folder, config.task.kind) == (name, "d", TASKS[name].kind)
    assert config.task.best_by == (TASKS[name].metric or config.task.best_by)


@pytest.mark.parametrize(
    ("word", "length", "epochs", "warmup", "rate", "batch", "dropout"),
    [
        ("cola/large", 64, 6, 100, 7e-6, 32, 0.15),
        ("CoLA/v3-large", 64, 10, 50, 5.5e-6, 32, 0.1),
        ("mnli", 256, 3, 1000, 3e-5, 64, 0.1),
        ("mnli/v3-small", 256, 3, 1500, 4.5e-5, 64, 0.2),
        ("rte/xlarge", 320, 6, 50, 5e-6, 48, 0.2),
        ("conll2003/v2-xxlarge", 512, 15, 0.1, 2.5e-6, 16, 0.0),
        ("copa/v2-xlarge", 136, 4, 30, 2e-6, 24, 0.1),
    ],
)
def test_known_settings(word, length, epochs, warmup, rate, batch, dropout):
    config = configuration(word)
    found = config.task.max_length, config.training.epochs, config.training.optimizer.warmup
    assert found == (length, epochs, warmup)
    assert (config.training.optimizer.learning_rate, config.task.batch_size, config.cls_dropout) == (
        rate,
        batch,
        dropout,
    )
    assert config.sift.weight == 0


def test_a_batch_in_two_parts():
    config = configuration("record/v2-xxlarge")
    assert (config.task.batch_size, config.training.micro_batches) == (32, 2)


@pytest.mark.parametrize(
    ("size", "epochs", "rate", "weight"),
    [("base", 6, 1.5e-5, 5), ("v3-xsmall", 10, 5e-5, 3), ("v3-small", 6, 3.5e-5, 5)],
)
def test_settings_with_sift(size, epochs, rate, weight):
    config = configuration(f"mnli/{size}/sift")
    assert (config.training.epochs, config.training.optimizer.learning_rate, config.sift.weight) == (
        epochs,
        rate,
        weight,
    )


def test_options_override_the_settings():
    config = configuration("cola", "--training.optimizer.learning-rate", "1e-3", "--task.metric", "accuracy")
    assert (config.training.optimizer.learning_rate, config.task.best_by) == (1e-3, "accuracy")


def test_what_was_not_published_is_said(caplog):
    recipe("cola/large")
    assert not caplog.messages
    recipe("boolq/large")
    (message,) = caplog.messages
    assert message == (
        "For boolq with large no settings were published; these are among those that the papers searched "
        "(learning rate 5e-6 to 1e-5, dropout 0 to 0.15)."
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("glue", "there is no task 'glue'; the tasks are cola"),
        ("cola/tiny", "there is no size 'tiny'; the sizes are base, large, xlarge, v2-xlarge, v2-xxlarge, v3-xsmall"),
        ("cola/base/sift", "for cola/base/sift no SiFT was published: there is one for mnli with base, v2-xxlarge, "),
        (
            "mnli/large/sift",
            "for mnli/large/sift no SiFT was published: there is one for mnli with base, v2-xxlarge, v3-xsmall, "
            "v3-small, v3-base.",
        ),
        ("mnli/base/smart", "mnli/base/smart ends in smart; only sift may stand after the size"),
        ("mnli/base/length", "mnli/base/length ends in length; only sift"),
    ],
)
def test_what_there_is_not(word, message):
    with pytest.raises(InputError, match=message):
        recipe(word)


def test_lengths():
    assert [length_of(name) for name in ("MNLI", "ax", "squad2.0")] == [256, 256, 384]
    assert all(length_of(name) >= 64 for name in TASKS)
