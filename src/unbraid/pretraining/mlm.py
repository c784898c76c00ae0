"""Masked language modelling: its batches, its loss, its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.objective import IGNORED, Loss, Objective
from unbraid.packing import Packing
from unbraid.pretraining.config import MaskingConfig
from unbraid.pretraining.corpus import Documents
from unbraid.pretraining.evaluation import Batches, perplexity, phase_means
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
    """Cross entropy of the predicted tokens: hidden ones, or in a causal batch the next one of each."""

    def __init__(self, model: DebertaForMaskedLM, hide_kept_tokens: bool = False) -> None:
        """Takes the model to train.

        Args:
            model: called packed, with ``predict``.
            hide_kept_tokens: a predicted token that is shown as it is may not be read by the decoder: it would tell
                its own prediction. Its state becomes its absolute position; its neighbours have read it already.
        """
        super().__init__()
        self.model = model
        self.hide_kept_tokens = hide_kept_tokens

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model; see :meth:`unbraid.model.folder.Pretrained.save_pretrained`."""
        self.model.save_pretrained(folder)

    def loss(self, batch: Batch) -> Loss:
        """The loss over the tokens whose label is not -100; the part ``correct`` counts those predicted right."""
        return self.scored(batch)[0]

    def scored(self, batch: Batch) -> tuple[Loss, Tensor]:
        """The loss, and the logits (M, V) float32 that it was taken from, without gradient."""
        if batch.labels is None:
            raise TypeError("a batch without labels has no masked language modelling loss")
        predict = batch.labels != IGNORED
        targets = batch.labels[predict]  # (M,)
        hide = batch.labels == batch.input_ids if self.hide_kept_tokens and not batch.causal else None
        output = self.model(
            batch.input_ids,
            packing=batch.packing,
            token_type_ids=batch.token_type_ids,
            predict=predict,
            hide=hide,
            causal=batch.causal,
        )
        logits = output.logits.float()
        total = nn.functional.cross_entropy(logits, targets, reduction="sum")
        logits = logits.detach()
        correct = (logits.argmax(-1) == targets).sum().float()
        return Loss(total, {"correct": correct}, len(targets)), logits


def evaluate_mlm(
    objective: MaskedLanguageModeling, batches: Batches, max_batches: int | None = None
) -> dict[str, float]:
    """Measures the model on the first epoch of some batches, always the same tokens hidden.

    Args:
        objective: put in evaluation mode meanwhile.
        batches: of held-out documents, with a fixed seed.
        max_batches: stop after so many; default: all of the epoch.

    Returns:
        ``loss`` (nats per predicted token), ``accuracy`` (0 to 1) and ``perplexity`` (the exponential of the loss): of
        causal batches, which predict every token but the first of a row, the perplexity per token.

    Raises:
        InputError: ``max_batches`` is below 1, or all tokens are special ones such as [UNK].
    """
    (means,) = phase_means((objective,), batches, max_batches)
    return {"loss": means["loss"], "accuracy": means["correct"], "perplexity": perplexity(means["loss"])}


def frequency_loss(documents: Documents, batches: Batches, vocab_size: int, max_batches: int | None = None) -> float:
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
    for ids in documents:
        counts += np.bincount(ids, minlength=vocab_size)
    surprise = torch.from_numpy(-np.log(counts / counts.sum()))  # (V,)
    count = min(batches.per_epoch, max_batches or batches.per_epoch)
    labels = [labels for index in range(count) if (labels := batches[index].labels) is not None]
    hidden = torch.cat(labels)
    return surprise[hidden[hidden != IGNORED]].mean().item()
