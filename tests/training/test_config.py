import math
import subprocess
import sys

import pytest

from unbraid.errors import InputError
from unbraid.training.config import OptimizerConfig, TrainingConfig


@pytest.mark.parametrize("fields", [{}, {"steps": 3, "epochs": 1.0}])
def test_a_run_has_exactly_one_length(fields):
    with pytest.raises(InputError, match="either as steps or as epochs"):
        TrainingConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"epochs": 0.0},
        {"steps": 5, "micro_batches": 0},
        {"steps": 5, "keep_checkpoints": 0},
        {"steps": 5, "precision": "float8"},
        {"steps": 5, "max_minutes": 0},
        {"steps": 5, "optimizer": {"learning_rate": 0}},
        {"steps": 5, "optimizer": {"learning_rate": float("nan")}},
        {"steps": 5, "optimizer": {"beta2": 1.0}},
        {"steps": 5, "optimizer": {"warmup": -1}},
        {"steps": 5, "optimizer": {"layer_decay": 1.1}},
        {"steps": 5, "patience": 0},
        {"steps": 5, "patience": 1, "evaluate_every": None},
        {"steps": 5, "sleep": 1},
    ],
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(InputError):
        TrainingConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": math.inf},
        {"steps": 5, "evaluate_every": math.inf},
        {"steps": 5, "checkpoint_every": math.inf},
        *({"steps": 5, "optimizer": {name: math.inf}} for name in ("learning_rate", "warmup", "weight_decay", "eps")),
    ],
)
def test_numbers_without_end_are_refused_but_for_the_clipping(fields):
    with pytest.raises(InputError, match="should be a finite number"):
        TrainingConfig(**fields)
    assert OptimizerConfig(clip_norm=math.inf).clip_norm == math.inf


@pytest.mark.parametrize(
    ("fields", "per_epoch", "steps"),
    [
        ({"steps": 7}, 100, 7),
        ({"epochs": 3.0}, 10, 30),
        ({"epochs": 0.1}, 30, 3),
        ({"epochs": 2.0, "micro_batches": 4}, 10, 5),
        ({"epochs": 2.0, "micro_batches": 10}, 10, 2),
        ({"epochs": 0.001}, 10, 1),
    ],
)
def test_epochs_become_steps(fields, per_epoch, steps):
    assert TrainingConfig(**fields).num_steps(per_epoch) == steps


def test_no_data_and_a_warmup_longer_than_the_run():
    with pytest.raises(InputError, match="no training data"):
        TrainingConfig(steps=5).num_steps(0)
    with pytest.raises(InputError, match=r"warmup \(6 steps\) is longer than the run \(5 steps\)"):
        TrainingConfig(steps=5, optimizer=OptimizerConfig(warmup=6)).num_steps(10)


def test_nothing_slow_is_imported():
    slow = "{'torch', 'accelerate', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, unbraid.training.config; sys.exit(bool({slow}))"], check=True)
