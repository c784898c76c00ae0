"""Next-token prediction, alone or in turn with masked tokens: the streams of the paper's generation study."""

from __future__ import annotations

import dataclasses

import torch

from unbraid.objective import IGNORED
from unbraid.pretraining.evaluation import Batches
from unbraid.text.batch import Batch


class CausalBatches:
    """The rows of a masked stream with nothing hidden; each token is to predict the next one of its row.

    Attributes:
        per_epoch: micro-batches in an epoch.

    Source: DeBERTa (He et al. 2021), appendix A.5.
    """

    def __init__(self, masked: Batches) -> None:
        """Takes the stream whose rows and order it has; its labels name what is hidden."""
        self._masked = masked
        self.per_epoch = masked.per_epoch

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch ``index``, from 0 without end; labels (N,) int64, -100 at the last token of each row."""
        masked = self._masked[index]
        ids = torch.where(masked.labels == IGNORED, masked.input_ids, masked.labels)
        labels = ids.roll(-1)
        labels[masked.packing.offsets[1:] - 1] = IGNORED
        return dataclasses.replace(masked, input_ids=ids, labels=labels, causal=True)


class JointBatches:
    """The joint objective: micro-batches of masked and of next tokens in turn, through one model.

    As in UniLM, what a micro-batch is for decides which tokens a token may see: all of its row, or none after it.
    Where several micro-batches make a step, every predicted token of either kind weighs alike in it.

    Attributes:
        per_epoch: micro-batches in which both streams go through an epoch.

    Source: DeBERTa (He et al. 2021), appendix A.5 (DeBERTa-MT); UniLM (Dong et al. 2019).
    """

    def __init__(self, masked: Batches, causal: Batches) -> None:
        """Takes the two streams."""
        self._streams = masked, causal
        self.per_epoch = 2 * max(masked.per_epoch, causal.per_epoch)

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch ``index``, from 0 without end: even ones masked, odd ones causal."""
        return self._streams[index % 2][index // 2]
