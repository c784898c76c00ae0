"""Classification, multi-label classification and regression of texts and pairs of texts.

Examples are encoded once, streamed in shuffled micro-batches for training, and scored in one pass for evaluation.
A model with one label is a regression, as everywhere in the field.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.metrics import classification_metrics, exact_groups, multi_label_metrics, regression_metrics
from unbraid.model.config import DebertaConfig
from unbraid.model.embeddings import Perturbation
from unbraid.model.pretrained import DebertaForSequenceClassification
from unbraid.objective import Loss
from unbraid.tasks.batches import EncodedExamples
from unbraid.tasks.examples import Example, read_examples
from unbraid.tasks.labels import training_labels
from unbraid.tasks.objective import Outputs, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # examples tokenised at once; their character offsets are dropped before the next


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, *, labels: Sequence[str] | None, max_length: int
) -> EncodedExamples:
    """Tokenises labelled examples; logs a warning when some have to be cut.

    Args:
        examples: all with a pair, or none.
        tokenizer: text to ids.
        labels: the classes in the order of their ids; None for scores.
        max_length: in tokens, special tokens included.
    """
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    num_truncated = 0
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        pairs = [example.pair for example in chunk if example.pair is not None] or None
        for encoding in tokenizer.encode_batch([example.text for example in chunk], pairs, max_length=max_length):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            segments.append(np.array(encoding.segments, dtype=np.int8))
            num_truncated += encoding.truncated
    if num_truncated:
        log.warning("%d of %d examples are longer than %d tokens and were cut.", num_truncated, len(ids), max_length)
    if labels is None:
        targets = torch.tensor([example.label for example in examples], dtype=torch.float32)
    else:
        ids_of = {label: index for index, label in enumerate(labels)}
        targets = torch.stack([_target(example.label, ids_of) for example in examples])
    groups = [example.group for example in examples if example.group is not None] or None
    return EncodedExamples(ids, segments, targets, num_truncated, groups)


def _target(label: object, ids_of: dict[str, int]) -> Tensor:
    """A class id, () int64; of several labels at once 0 or 1 for each there is, (labels,) float32."""
    if not isinstance(label, tuple):
        return torch.tensor(ids_of[str(label)])
    target = torch.zeros(len(ids_of))
    target[[ids_of[name] for name in label]] = 1.0
    return target


class SequenceClassification(TaskObjective):
    """Cross entropy of the classes, or of each of several labels; or the squared error of the one score of a model."""

    def __init__(self, model: DebertaForSequenceClassification):
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """Logits (B, num_labels)."""
        return (_logits(self.model, batch, perturbation),)

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The loss of one batch, labels (B,) int64 or float32, or (B, labels) 0 or 1, of which the mean counts.

        For classes also how many are right.

        Raises:
            InputError: a batch without labels.
        """
        labels = labels_of(batch)
        (logits,) = outputs
        parts = {}
        if not labels.is_floating_point():
            parts["correct"] = (logits.detach().argmax(-1) == labels).sum().float()
        return Loss(_sum_of_losses(logits, labels), parts, len(labels))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:
        """The symmetric KL of the classes (the mean over several labels), or the squared difference of the scores."""
        (clean_logits,), (perturbed_logits,) = clean, perturbed
        if batch.labels is not None and batch.labels.dim() == 2:
            yes_or_no = (
                torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (clean_logits, perturbed_logits)
            )
            return symmetric_kl(*yes_or_no).mean(-1).sum()
        if clean_logits.shape[-1] == 1:
            return functional.mse_loss(clean_logits, perturbed_logits, reduction="sum")
        return symmetric_kl(clean_logits, perturbed_logits).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task[Example, EncodedExamples]):
    """One of several classes for a text or a pair of texts."""

    head = DebertaForSequenceClassification
    new = ("pooler", "classifier")
    has_classes = True

    @classmethod
    def fits(cls, config: DebertaConfig) -> bool:
        """See :meth:`Task.fits`."""
        return config.num_labels > 1 and config.problem_type != "multi_label_classification"

    def read(self, source: str) -> list[Example]:
        """See :meth:`Task.read`."""
        return read_examples(source, self.data, kind="classification", labels=self.labels)

    def labelled(self, examples: Sequence[Example], source: str) -> Self:
        """See :meth:`Task.labelled`."""
        labels = self.labels or training_labels((str(example.label) for example in examples), source)
        return dataclasses.replace(self, labels=labels)

    def model_fields(self) -> dict[str, Any]:
        """See :meth:`Task.model_fields`."""
        return {"id2label": dict(enumerate(self.labels or ())), "problem_type": "single_label_classification"}

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer) -> EncodedExamples:
        """See :meth:`Task.encode`."""
        return encode_examples(examples, tokenizer, labels=self.labels, max_length=self.max_length)

    def objective(self, model: DebertaForSequenceClassification) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return SequenceClassification(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[Tensor]:  # noqa: ARG002, each row has one
        """The logits of each text."""
        return outputs[0].cpu().unbind()

    def score(self, data: EncodedExamples, answers: list[Tensor]) -> dict[str, float]:
        """See :func:`classification_metrics`, and :func:`exact_groups` where examples have groups."""
        logits = torch.stack(answers)  # (n, num_labels)
        found, labels = logits.argmax(-1).numpy(), data.labels.numpy()
        scores = classification_metrics(found, labels, logits.shape[-1])
        if data.groups is not None:
            scores["exact"] = exact_groups((found == labels).tolist(), data.groups)
        return scores


class MultiLabel(Classification):
    """Any number of labels for a text or a pair of texts."""

    @classmethod
    def fits(cls, config: DebertaConfig) -> bool:
        """See :meth:`Task.fits`."""
        return config.problem_type == "multi_label_classification"

    def read(self, source: str) -> list[Example]:
        """See :meth:`Task.read`."""
        return read_examples(source, self.data, kind="multi-label", labels=self.labels)

    def labelled(self, examples: Sequence[Example], source: str) -> Self:
        """See :meth:`Task.labelled`."""
        found = {name for example in examples if isinstance(example.label, tuple) for name in example.label}
        return dataclasses.replace(self, labels=self.labels or training_labels(found, source))

    def model_fields(self) -> dict[str, Any]:
        """See :meth:`Task.model_fields`."""
        return {**super().model_fields(), "problem_type": "multi_label_classification"}

    def score(self, data: EncodedExamples, answers: list[Tensor]) -> dict[str, float]:
        """See :func:`multi_label_metrics`; a label is predicted from a probability of one half on."""
        return multi_label_metrics((torch.stack(answers) >= 0).numpy(), data.labels.numpy() > 0)


class Regression(Classification):
    """A number for a text or a pair of texts."""

    has_classes = False

    @classmethod
    def fits(cls, config: DebertaConfig) -> bool:
        """See :meth:`Task.fits`."""
        return config.num_labels == 1

    def read(self, source: str) -> list[Example]:
        """See :meth:`Task.read`."""
        return read_examples(source, self.data, kind="regression")

    def labelled(self, examples: Sequence[Example], source: str) -> Self:  # noqa: ARG002, there are no classes
        """See :meth:`Task.labelled`."""
        return self

    def model_fields(self) -> dict[str, Any]:
        """See :meth:`Task.model_fields`."""
        return {"id2label": {0: "score"}, "problem_type": "regression"}

    def score(self, data: EncodedExamples, answers: list[Tensor]) -> dict[str, float]:
        """See :func:`regression_metrics`."""
        return regression_metrics(torch.cat(answers).numpy(), data.labels.numpy())


def _logits(model: DebertaForSequenceClassification, batch: Batch, perturbation: Perturbation | None = None) -> Tensor:
    """(B, num_labels) float32."""
    output = model(
        batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, perturbation=perturbation
    )
    return output.logits.float()


def _sum_of_losses(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:
        losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return losses.mean(-1).sum()
    if labels.is_floating_point():
        return functional.mse_loss(logits.view_as(labels), labels.to(logits.dtype), reduction="sum")
    return functional.cross_entropy(logits, labels, reduction="sum")
