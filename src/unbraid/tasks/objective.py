"""What every kind of task is trained for, in the parts that SiFT puts together anew."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.embeddings import Perturbation
from unbraid.model.pretrained import Head
from unbraid.objective import Loss, Objective
from unbraid.text.batch import Batch

Outputs = tuple[Tensor, ...]
"""The logits of a model, float32; one tensor for each of its answers (two for the ends of a span)."""


class TaskObjective(Objective):
    """An objective whose loss can be taken of outputs already at hand, and whose outputs can be compared."""

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """Runs the model.

        Args:
            batch: of the task.
            perturbation: for the model; see :meth:`unbraid.model.embeddings.Embeddings.forward`.
        """
        raise NotImplementedError

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The loss of what :meth:`outputs` answered for a batch."""
        raise NotImplementedError

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:
        """How far two outputs for a batch are apart, () float32: a sum over what :class:`Loss` counts."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Loss:
        """The loss of one batch."""
        return self.loss_from(self.outputs(batch), batch)


class StretchObjective(TaskObjective):
    """An objective of a model that is asked about marked stretches of the text."""

    def __init__(self, model: Head) -> None:
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """The model's logits: (B, num_labels) of the stretches of each text, or (S,), one a stretch."""
        output = self.model(
            batch.input_ids,
            packing=batch.packing,
            token_type_ids=batch.token_type_ids,
            spans=batch.spans,
            perturbation=perturbation,
        )
        return (output.logits.float(),)


def labels_of(batch: Batch) -> Tensor:
    """The labels of a batch to learn from.

    Raises:
        InputError: it has none.
    """
    if batch.labels is None:
        raise InputError("the batch has no labels to learn from; give it some.")
    return batch.labels


def symmetric_kl(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Two cross entropies between distributions, either way round, whose weights bear no gradient.

    So the gradient with respect to the logits is the difference of the probabilities, in either of the two. The value
    is that of KL(p || q) + KL(q || p) plus both entropies. Where a logit is the lowest number of its dtype, there is
    nothing to choose; infinite ones are not allowed.

    Args:
        clean: (..., K) logits.
        perturbed: likewise.

    Returns:
        (...), nats.

    Source: microsoft/DeBERTa sift/sift.py: symmetric_kl at 4d7fe0b.
    """
    p, q = functional.log_softmax(clean, -1), functional.log_softmax(perturbed, -1)
    return -(p.exp().detach() * q + q.exp().detach() * p).sum(-1)
