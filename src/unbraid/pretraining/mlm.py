"""Masked language modelling: its batches, its loss, its evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.objective import IGNORED, Loss, Objective
from unbraid.packing import Packing
from unbraid.pretraining.config import MaskingConfig
from unbraid.pretraining.corpus import Documents
from unbraid.pretraining.masking import Masker, example_rng
from unbraid.pretraining.rows import Order, Rows
from unbraid.text.batch import Batch

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer


class MaskedBatches:
    """An endless, seekable stream of masked micro-batches.

    Micro-batch ``index`` is a pure function of the index and the seed, so that resuming needs no state. A row is
    masked anew each epoch, and alike in whatever batch or process it is.

    Attributes:
        per_epoch: micro-batches in an epoch.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        masking: MaskingConfig,
        *,
        sequence_length: int,
        batch_tokens: int,
        seed: int,
    ) -> None:
        """Cuts the documents to rows.

        Args:
            documents: ``corpus.train`` or ``corpus.held_out``.
            tokenizer: the one that the corpus was made with.
            masking: what to hide.
            sequence_length: most tokens of a row, [CLS] and [SEP] included.
            batch_tokens: tokens of a micro-batch, on average.
            seed: of the order and the masking. For evaluation fix it: the first ``n`` micro-batches are then always
                the same rows with the same tokens hidden.

        Raises:
            InputError: there is no document.
        """
        self._rows = Rows(documents, sequence_length)
        self._order = Order(self._rows.lengths, batch_tokens, seed)
        self._masker = Masker(masking, tokenizer)
        self._cls_id, self._sep_id = tokenizer.cls_id, tokenizer.sep_id
        self._seed = seed
        self.per_epoch = self._order.per_epoch

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch ``index``, from 0 without end; labels (N,) int64, -100 where nothing is predicted."""
        epoch, rows = self._order[index]
        examples = [self._example(epoch, row) for row in rows.tolist()]
        ids, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*examples, strict=True))
        return Batch(ids, Packing.from_lengths(self._rows.lengths[rows].tolist()), labels)

    def _example(self, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([[self._cls_id], self._rows[row], [self._sep_id]])
        return self._masker(ids, example_rng(self._seed, epoch, row))


class MaskedLanguageModeling(Objective):
    """Cross entropy of the predicted tokens."""

    def __init__(self, model: nn.Module) -> None:
        """Takes the model to train.

        Args:
            model: called as :class:`unbraid.model.pretrained.DebertaForMaskedLM`, packed, with ``predict``.
        """
        super().__init__()
        self.model = model

    def loss(self, batch: Batch) -> Loss:
        """The loss over the tokens whose label is not -100; the part ``correct`` counts those predicted right."""
        if batch.labels is None:
            raise TypeError("a batch without labels has no masked language modelling loss")
        predict = batch.labels != IGNORED
        targets = batch.labels[predict]  # (M,)
        output = self.model(
            batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, predict=predict
        )
        logits = output.logits.float()  # (M, V)
        total = nn.functional.cross_entropy(logits, targets, reduction="sum")
        correct = (logits.detach().argmax(-1) == targets).sum().float()
        return Loss(total, {"correct": correct}, len(targets))


@torch.no_grad()
def evaluate_mlm(objective: Objective, batches: MaskedBatches, max_batches: int | None = None) -> dict[str, float]:
    """Measures the model on the first epoch of some batches, always the same tokens hidden.

    Args:
        objective: a :class:`MaskedLanguageModeling`, bare or wrapped by torch; put in evaluation mode meanwhile.
        batches: of held-out documents, with a fixed seed.
        max_batches: stop after so many; default: all of the epoch.

    Returns:
        ``loss`` (nats per predicted token), ``accuracy`` (0 to 1) and ``perplexity`` (the exponential of the loss).

    Raises:
        InputError: ``max_batches`` is below 1, or all tokens are special ones such as [UNK].
    """
    if max_batches is not None and max_batches < 1:
        raise InputError(f"max_batches is {max_batches}; evaluate at least one batch.")
    count = min(batches.per_epoch, max_batches or batches.per_epoch)
    device = next(objective.parameters()).device
    total, correct, tokens = 0.0, 0.0, 0
    training = objective.training
    objective.eval()
    try:
        for index in range(count):
            loss = objective(batches[index].to(device))
            total += loss.total.item()
            correct += loss.parts["correct"].item()
            tokens += loss.count
    finally:
        objective.train(training)
    if not tokens:
        raise InputError("the batches hold no token to predict; check that the tokenizer covers their text.")
    mean = total / tokens
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return {"loss": mean, "accuracy": correct / tokens, "perplexity": perplexity}


def frequency_loss(
    documents: Documents, batches: MaskedBatches, vocab_size: int, max_batches: int | None = None
) -> float:
    """The loss of guessing every token by its frequency alone, whatever the text around it.

    Args:
        documents: whose tokens are counted, each once more than it occurs.
        batches: to measure on, as :func:`evaluate_mlm` does.
        vocab_size: V.
        max_batches: as there.

    Returns:
        Nats per predicted token.
    """
    counts = np.ones(vocab_size)
    for index in range(len(documents)):
        counts += np.bincount(documents[index], minlength=vocab_size)
    surprise = torch.from_numpy(-np.log(counts / counts.sum()))  # (V,)
    count = min(batches.per_epoch, max_batches or batches.per_epoch)
    labels = [labels for index in range(count) if (labels := batches[index].labels) is not None]
    hidden = torch.cat(labels)
    return surprise[hidden[hidden != IGNORED]].mean().item()
