"""Class weights: rare classes that count for more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.embeddings import Perturbation
from unbraid.objective import IGNORED, Loss
from unbraid.tasks.batches import Rows
from unbraid.tasks.objective import Outputs, TaskObjective, labels_of
from unbraid.text.batch import Batch

_CHUNK = 1024  # rows packed at a time to count their labels


class Weighted(TaskObjective):
    """A classification of texts or tokens whose cross entropies are weighted by their right class.

    The loss is the sum of weighted cross entropies, and what counts is the items themselves, not their weights: so
    each item has the same share in the gradient whatever it shares a batch with, and the parts remain plain means.
    The mean loss is the weighted mean where the weights have a mean of 1 over the data, as balanced ones do.
    """

    def __init__(self, objective: TaskObjective, weights: Tensor):
        """Wraps an objective.

        Args:
            objective: of one class a text, or a token.
            weights: (num_labels,) float32, by class id.
        """
        super().__init__()
        self.objective = objective
        self.weights: Tensor
        self.register_buffer("weights", weights, persistent=False)

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """See :meth:`TaskObjective.outputs`."""
        return self.objective.outputs(batch, perturbation)

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """See :meth:`TaskObjective.loss_from`."""
        (logits,) = outputs
        total = functional.cross_entropy(logits, labels_of(batch), self.weights, ignore_index=IGNORED, reduction="sum")
        return dataclasses.replace(self.objective.loss_from(outputs, batch), total=total)

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:
        """That of the objective, without weights: how far outputs are apart has no right class."""
        return self.objective.divergence(clean, perturbed, batch)


def weights_of(classes: Literal["balanced"] | Mapping[str, float], labels: Sequence[str], data: Rows) -> Tensor:
    """The weight of each class, (num_labels,) float32.

    Args:
        classes: weights by name, 1 where there is none; or "balanced": the less often a class occurs, the more it
            weighs, so that all together weigh the same and the mean over the data is 1.
        labels: the names in the order of their ids.
        data: of training.

    Raises:
        InputError: a name that is none of the classes.
    """
    if classes == "balanced":
        counts = _counts(data, len(labels))
        return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)
    if unknown := classes.keys() - set(labels):
        raise InputError(
            f"task.class_weights names {min(unknown)!r}, which is none of the classes {', '.join(labels)}."
        )
    return torch.tensor([classes.get(label, 1.0) for label in labels])


def _counts(data: Rows, num_labels: int) -> Tensor:
    """How often each class is counted in the loss, (num_labels,) int64."""
    counts = torch.zeros(num_labels, dtype=torch.int64)
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // _CHUNK)):
        labels = labels_of(data.batch(rows))
        counts += torch.bincount(labels[labels != IGNORED], minlength=num_labels)
    return counts
