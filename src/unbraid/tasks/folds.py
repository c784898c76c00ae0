"""Folds: every training example is a dev example once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from unbraid.errors import InputError


def split(examples: Sequence[Any], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits examples into parts of like size, shuffled.

    Where every example has one class, a text as its ``label``, each part has about the same share of every class. Where
    they have a ``group``, all of a group are in the same part.

    Args:
        examples: of any kind of task.
        folds: how many parts.
        seed: of the shuffling.

    Returns:
        For each part the indices, increasing, of all other examples and of its own.

    Raises:
        InputError: there are fewer examples, or groups, than parts, or fewer of every class.
    """
    labels = [getattr(example, "label", None) for example in examples]
    groups = [getattr(example, "group", None) for example in examples]
    classes = labels if all(isinstance(label, str) for label in labels) else None
    grouped = None not in groups
    if classes is None:
        splitter = (GroupKFold if grouped else KFold)(folds, shuffle=True, random_state=seed)
    else:
        splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # then it is missing in some parts
        try:
            return list(splitter.split(np.zeros(len(examples)), classes, groups if grouped else None))
        except ValueError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(f"the training examples cannot be split into {folds} folds: {reason}.") from None
