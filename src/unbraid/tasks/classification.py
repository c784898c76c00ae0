"""Classification and regression of texts and pairs of texts.

Examples are encoded once, streamed in shuffled micro-batches for training, and scored in one pass for evaluation.
A model with one label is a regression, as everywhere in the field.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.metrics import classification_metrics, regression_metrics
from unbraid.model.pretrained import DebertaForSequenceClassification
from unbraid.objective import Loss, Objective
from unbraid.tasks.examples import Example
from unbraid.text.batch import Batch, pack
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # examples tokenised at once; their character offsets are dropped before the next
_WINDOW = 32  # micro-batches among which examples of like length are grouped


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids.

    Attributes:
        ids: one (length,) int32 array an example, special tokens included.
        segments: one (length,) int8 array an example: 1 for the tokens of the second text.
        labels: (n,) int64 class ids, or (n,) float32 scores.
        num_truncated: how many examples were longer than allowed and lost their end.
    """

    ids: list[np.ndarray]
    segments: list[np.ndarray]
    labels: Tensor
    num_truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(ids) for ids in self.ids])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some examples, (B,) int indices, in their order."""
        return pack(
            [self.ids[row].tolist() for row in rows],
            self.labels[torch.from_numpy(rows)],
            [self.segments[row].tolist() for row in rows],
        )


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
        targets = torch.tensor([ids_of[str(example.label)] for example in examples], dtype=torch.int64)
    return EncodedExamples(ids, segments, targets, num_truncated)


class TaskBatches:
    """The endless stream of training micro-batches; each is a pure function of its index and the seed.

    Every epoch shuffles anew. Within windows of the shuffled examples those of like length share a micro-batch,
    because backends that pad do so to its longest; the micro-batches are then shuffled again.

    Attributes:
        per_epoch: micro-batches in an epoch, among them one smaller than the others if they do not come out even.
    """

    def __init__(self, data: EncodedExamples, batch_size: int, seed: int):
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.per_epoch = -(-len(data) // batch_size)
        self._lengths = data.lengths
        self._epoch = (-1, self._batches(0))

    def _batches(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.data))
        window = self.batch_size * _WINDOW
        batches = []
        for start in range(0, len(order), window):
            near = order[start : start + window]
            near = near[np.argsort(self._lengths[near], kind="stable")]
            batches += [near[at : at + self.batch_size] for at in range(0, len(near), self.batch_size)]
        return [batches[index] for index in generator.permutation(len(batches))]

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch ``index``, counted from the beginning of training."""
        epoch, step = divmod(index, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self.data.batch(self._epoch[1][step])


class SequenceClassification(Objective):
    """Cross entropy of the classes, or the squared error of the scores of a model with one label."""

    def __init__(self, model: DebertaForSequenceClassification):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch) -> Loss:
        """The loss of one batch, labels (B,) int64 or float32; for classes also how many are right.

        Raises:
            InputError: a batch without labels.
        """
        labels = batch.labels
        if labels is None:
            raise InputError("the batch has no labels to learn from; give it one an example.")
        logits = _logits(self.model, batch)
        parts = {}
        if not labels.is_floating_point():
            parts["correct"] = (logits.detach().argmax(-1) == labels).sum().float()
        return Loss(_sum_of_losses(logits, labels), parts, len(labels))


@torch.no_grad()
def evaluate(
    model: DebertaForSequenceClassification, data: EncodedExamples, *, batch_size: int = 32
) -> dict[str, float]:
    """The mean loss and the metrics of a model over a data set.

    The model runs in evaluation mode, and is then put back into the mode it was in.

    Args:
        model: of as many labels as the data has, or of one for scores.
        data: the examples.
        batch_size: examples at a time, grouped by length.

    Returns:
        ``loss``, and what :mod:`unbraid.metrics` has for the kind of task.
    """
    device = next(model.parameters()).device
    order = np.argsort(data.lengths, kind="stable")
    training = model.training
    model.eval()
    try:
        logits = torch.cat(
            [
                _logits(model, data.batch(order[start : start + batch_size]).to(device)).cpu()
                for start in range(0, len(order), batch_size)
            ]
        )  # (n, num_labels)
    finally:
        model.train(training)
    labels = data.labels[torch.from_numpy(order)]
    loss = float(_sum_of_losses(logits.double(), labels)) / len(labels)
    if labels.is_floating_point():
        return {"loss": loss, **regression_metrics(logits.squeeze(-1).numpy(), labels.numpy())}
    return {"loss": loss, **classification_metrics(logits.argmax(-1).numpy(), labels.numpy(), logits.shape[-1])}


def _logits(model: DebertaForSequenceClassification, batch: Batch) -> Tensor:
    """(B, num_labels) float32."""
    return model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids).logits.float()


def _sum_of_losses(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return functional.mse_loss(logits.view_as(labels), labels.to(logits.dtype), reduction="sum")
    return functional.cross_entropy(logits, labels, reduction="sum")
