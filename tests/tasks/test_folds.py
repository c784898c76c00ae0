"""Folds: a partition, alike in classes, never through a group."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unbraid.errors import InputError
from unbraid.tasks.examples import Example
from unbraid.tasks.folds import split


def examples(count, classes=None, groups=None, seed=0):
    generator = np.random.default_rng(seed)
    labels = [1.0] * count if classes is None else generator.choice(list(classes), count).tolist()
    owners = [None] * count if groups is None else [f"g{group}" for group in generator.integers(0, groups, count)]
    return [Example(str(i), None, label, owner) for i, (label, owner) in enumerate(zip(labels, owners, strict=True))]


@pytest.mark.parametrize("classes", [None, "aaab"])
@pytest.mark.parametrize("groups", [None, 30])
@pytest.mark.parametrize(("count", "folds"), [(100, 2), (101, 5), (77, 7)])
def test_parts_are_a_partition(count, folds, classes, groups):
    rows = examples(count, classes, groups)
    parts = split(rows, folds, seed=1)
    assert len(parts) == folds
    assert sorted(index for _, dev in parts for index in dev) == list(range(count))
    for train, dev in parts:
        assert sorted([*train, *dev]) == list(range(count))
        if groups is not None:
            assert not {rows[i].group for i in train} & {rows[i].group for i in dev}
        else:
            assert count // folds <= len(dev) <= -(-count // folds) + (classes is not None)
        if classes is not None and groups is None:
            whole = Counter(row.label for row in rows)
            for name, found in Counter(rows[i].label for i in dev).items():
                assert abs(found - whole[name] / folds) < 1


def test_they_are_shuffled_by_the_seed():
    def devs(seed):
        return [dev.tolist() for _, dev in split(examples(50), 5, seed)]

    assert devs(3) == devs(3)
    assert devs(3) != devs(4)
    assert devs(3)[0] != list(range(10))


def test_several_labels_are_no_class():
    rows = [Example("a", None, ("x",)), Example("b", None, ()), Example("c", None, ("x", "y"))]
    assert sorted(dev.tolist() for _, dev in split(rows, 3, 0)) == [[0], [1], [2]]


def test_a_rare_class_is_missing_in_some_parts():
    rows = [Example(str(i), None, "rare" if i == 3 else "often") for i in range(12)]
    assert sum(3 in dev for _, dev in split(rows, 4, 0)) == 1


@pytest.mark.parametrize("rows", [examples(2), examples(2, "ab"), examples(9, None, 2), examples(9, "ab", 2)])
def test_more_folds_than_there_are_examples(rows):
    with pytest.raises(InputError, match=r"the training examples cannot be split into 3 folds: .*\d\."):
        split(rows, 3, 0)
