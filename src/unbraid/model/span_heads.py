"""Models whose task is about marked stretches of the text: two that are classified, or many to choose from.

A stretch is given by its first token and one past its last, as indices into ``input_ids.flatten()``, so that padded and
packed input are marked alike.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.activations import ACTIVATIONS
from unbraid.model.config import DebertaConfig
from unbraid.model.dropout import Dropout
from unbraid.model.embeddings import Perturbation
from unbraid.model.heads import Pooler
from unbraid.model.inputs import Inputs, check_binary, check_ids
from unbraid.model.pretrained import Head, HeadOutput, classifier_dropout
from unbraid.packing import Packing


@dataclasses.dataclass(frozen=True)
class Stretches:
    """Some stretches of a batch, their tokens laid end to end.

    Attributes:
        rows: (R,) int64, the packed row of each of their tokens.
        owners: (R,) int64, the stretch that each of these belongs to.
        lengths: (S,) int64, the tokens of each stretch, at least one.
        sequences: (S,) int64, the sequence that each stretch belongs to.
    """

    rows: Tensor
    owners: Tensor
    lengths: Tensor
    sequences: Tensor

    @classmethod
    def enter(cls, spans: Tensor, inputs: Inputs) -> Stretches:
        """Checks stretches and finds their tokens.

        Args:
            spans: (S, 2) int64, first token and one past the last of each, in ``input_ids.flatten()``.
            inputs: the batch; tokens that are padding belong to no stretch.

        Raises:
            InputError: another shape or type, a stretch outside the batch, one without a token, or one that goes on
                in another sequence.
        """
        if spans.dim() != 2 or spans.shape[1] != 2:
            raise InputError(f"spans has shape {tuple(spans.shape)}; give (stretches, 2), each its first and its end.")
        cells = len(inputs.ids) if inputs.mask is None else inputs.mask.numel()
        check_ids(spans, cells + 1, "spans")
        if inputs.mask is not None:
            spans = functional.pad(inputs.mask.flatten().cumsum(0), (1, 0))[spans]  # the real tokens before each
        first, end = spans.unbind(1)
        if bool((first >= end).any()):
            raise InputError("spans holds a stretch without a token; end each after its first token.")
        sequences = inputs.packing.sequence_ids
        if bool((sequences[first] != sequences[end - 1]).any()):
            raise InputError("spans holds a stretch over two sequences; end each in the one that it begins in.")
        lengths = end - first
        owners = torch.arange(len(spans), device=spans.device).repeat_interleave(lengths)
        begins = lengths.cumsum(0) - lengths  # where each stretch's tokens begin among all R
        rows = torch.arange(len(owners), device=spans.device) + (first - begins)[owners]
        return cls(rows, owners, lengths, sequences[first])

    def mean(self, states: Tensor) -> Tensor:
        """(N, C) states to the mean of those of each stretch, (S, C)."""
        return self._sum((1 / self.lengths)[self.owners], states)

    def attended(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, C) states to those of each stretch, weighed by how [CLS] attends to them, (S, C)."""
        context = states[packing.offsets[self.sequences[self.owners]]]  # (R, C), the state of each token's [CLS]
        scores = (context.float() * states[self.rows].float()).sum(-1) / math.sqrt(states.shape[-1])  # (R,)
        highest = scores.new_zeros(len(self.lengths)).scatter_reduce(
            0, self.owners, scores.detach(), "amax", include_self=False
        )
        weights = (scores - highest[self.owners]).exp()
        totals = weights.new_zeros(len(self.lengths)).index_add(0, self.owners, weights)
        return self._sum(weights / totals[self.owners], states)

    def _sum(self, weights: Tensor, states: Tensor) -> Tensor:
        weighed = weights[:, None] * states[self.rows].float()  # (R, C)
        pooled = weighed.new_zeros(len(self.lengths), states.shape[-1]).index_add(0, self.owners, weighed)
        return pooled.to(states.dtype)


class DebertaForSpanClassification(Head):
    """Tells what two marked stretches have to do with each other: do they corefer, is a word meant alike in both.

    Read are the pooled [CLS] and the mean state of each stretch, side by side. The mean has no parameters of its own,
    which the few hundred examples of such tasks could not teach, and does not depend on how many pieces a word has.

    Source: the baselines of SuperGLUE (Wang et al. 2019, section 4), which classify [CLS] beside a vector a stretch.
    """

    architecture = "ForSpanClassification"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.pooler = Pooler(config)
        self.joint = nn.Linear(3 * config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.pooler_hidden_act]
        self.dropout = Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._initialise(iter((self.pooler.dense, self.joint, self.classifier)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        spans: Tensor,
        labels: Tensor | None = None,
        packing: Packing | None = None,
        perturbation: Perturbation | None = None,
    ) -> HeadOutput:
        """Classifies the two stretches of each sequence.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            spans: (2 B, 2) int64, first token and one past the last of both stretches of the first sequence, then of
                the second and so on; in ``input_ids.flatten()``.
            labels: (B,) ids.
            packing: of packed input_ids.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Returns:
            logits (B, labels); the mean cross entropy if labels were given.

        Raises:
            InputError: see :meth:`Deberta.forward` and :meth:`Stretches.enter`; a sequence that has not two stretches,
                or a label out of range.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        stretches = Stretches.enter(spans, inputs)
        wanted = torch.arange(inputs.packing.batch_size, device=spans.device).repeat_interleave(2)
        if not torch.equal(stretches.sequences, wanted):
            raise InputError("spans has not two stretches of each sequence, one sequence after the other; give these.")
        states, _ = self.deberta.encode(inputs, perturbation=perturbation)
        marked = stretches.mean(states).view(inputs.packing.batch_size, -1)  # (B, 2 C)
        joint = self.joint(torch.cat([self.pooler(states, inputs.packing), marked], -1))
        logits = self.classifier(self.dropout(self.activation(joint)))
        if labels is None:
            return HeadOutput(logits)
        check_ids(labels, self.config.num_labels, "labels")
        return HeadOutput(logits, functional.cross_entropy(logits.float(), labels.long()))


class DebertaForEntityChoice(Head):
    """Tells of each marked mention of an entity whether it is what a question asks for.

    Source: microsoft/DeBERTa apps/models/record_qa.py: ReCoRDQAModel at 4d7fe0b.
    """

    architecture = "ForEntityChoice"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self._initialise(iter((self.projection, self.classifier)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        spans: Tensor,
        labels: Tensor | None = None,
        packing: Packing | None = None,
        perturbation: Perturbation | None = None,
    ) -> HeadOutput:
        """Scores each mention.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            spans: (S, 2) int64, first token and one past the last of each mention, of any sequences, in
                ``input_ids.flatten()``.
            labels: (S,) 1 = this is what is asked for, 0 = it is not.
            packing: of packed input_ids.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Returns:
            logits (S,), positive where the mention looks right; the mean binary cross entropy if labels were given.

        Raises:
            InputError: see :meth:`Deberta.forward` and :meth:`Stretches.enter`; or a label that is not 0 or 1.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        stretches = Stretches.enter(spans, inputs)
        states, _ = self.deberta.encode(inputs, perturbation=perturbation)
        mentions = self.projection(stretches.attended(states, inputs.packing))
        logits = self.classifier(self.dropout(functional.gelu(mentions))).squeeze(-1)
        if labels is None:
            return HeadOutput(logits)
        check_binary(labels, "labels")
        return HeadOutput(logits, functional.binary_cross_entropy_with_logits(logits.float(), labels.float()))
