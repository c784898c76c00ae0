"""The models as people use them: read, call, write.

Each is called padded, ``model(input_ids, attention_mask)`` with (B, T) tensors, or packed,
``model(input_ids, packing=packing)`` with (N,) ones; what comes out has the form of what went in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.dropout import Dropout
from unbraid.model.embeddings import Embeddings, Perturbation
from unbraid.model.encoder import Encoder, Layer, Relative
from unbraid.model.folder import Pretrained
from unbraid.model.heads import MaskDecoder, Pooler, ReplacedTokenHead, VocabularyHead
from unbraid.model.inputs import Inputs, check_binary, check_ids
from unbraid.objective import IGNORED
from unbraid.packing import Packing, pad


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """What the encoder says.

    Attributes:
        last_hidden_state: (B, T, C), zeros at padding; (N, C) if the input came packed.
        hidden_states: the embeddings and every layer's output, shaped likewise, if asked for.
        attentions: every layer's weights, (B, H, T, T), zeros at padding, if asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """What a head says: its logits, and the mean loss if labels were given."""

    logits: Tensor
    loss: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class SpanOutput:
    """Where an answer starts and ends.

    Attributes:
        start_logits: (B, T), the dtype's lowest value at padding; (N,) if the input came packed.
        end_logits: likewise.
        loss: mean of both ends' cross entropy (zero if none is counted), if positions were given.
    """

    start_logits: Tensor
    end_logits: Tensor
    loss: Tensor | None = None


class Deberta(Pretrained):
    """The encoder."""

    architecture = "Model"

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self._initialise(self.modules())

    def _checkpoint_tensors(self) -> dict[str, Tensor]:
        return {f"deberta.{name}": tensor for name, tensor in super()._checkpoint_tensors().items()}

    def _assign(self, tensors: dict[str, Tensor]) -> None:
        super()._assign({name.removeprefix("deberta."): tensor for name, tensor in tensors.items()})

    def enter(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        packing: Packing | None,
    ) -> Inputs:
        """Checks a batch and packs it; see :meth:`Inputs.enter`."""
        inputs = Inputs.enter(input_ids, attention_mask, token_type_ids, packing, self.config.vocab_size)
        if inputs.token_type_ids is not None and self.config.type_vocab_size:
            check_ids(inputs.token_type_ids, self.config.type_vocab_size, "token_type_ids")
        return inputs

    def encode(
        self,
        inputs: Inputs,
        *,
        num_layers: int | None = None,
        causal: bool = False,
        perturbation: Perturbation | None = None,
        visit: Callable[[Layer, Tensor, Relative], None] | None = None,
    ) -> tuple[Tensor, Relative]:
        """Packed states (N, C) after ``num_layers`` layers (all by default), and the relative positions.

        Raises:
            InputError: ``causal`` with a convolution, or a sequence longer than an absolute position table.
        """
        if causal and self.encoder.convolution is not None:
            raise InputError("a convolution sees the next tokens: predict them with conv_kernel_size 0.")
        relative = self.encoder.relative(inputs.packing.max_length, causal)
        embedded = self.embeddings(inputs.ids, inputs.packing, inputs.token_type_ids, perturbation)
        return self.encoder(embedded, inputs.packing, relative, num_layers, visit), relative

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        packing: Packing | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encodes tokens.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids; None: all of type 0. Unread by models without token types.
            packing: of packed input_ids.
            output_hidden_states: also give the embeddings and every layer's output.
            output_attentions: also give the attention weights, which takes memory for all of them.

        Raises:
            InputError: ids out of range or of a wrong type, a mask of another shape, an empty batch, a sequence longer
                than an absolute position table.
        """
        inputs = self.enter(input_ids, attention_mask, token_type_ids, packing)
        hidden: list[Tensor] = []
        attentions: list[Tensor] = []

        def visit(layer: Layer, states: Tensor, relative: Relative) -> None:
            if output_hidden_states:
                hidden.append(inputs.leave(states))
            if output_attentions:
                attentions.append(layer.attention.weights(states, relative, inputs.packing))

        states, _ = self.encode(inputs, visit=visit)
        output = inputs.leave(states)
        return EncoderOutput(
            output,
            (*hidden, output) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


class Head(Pretrained):
    """A model of an encoder and something on it."""

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.config = config
        self.deberta = Deberta(config)

    def depths(self) -> dict[nn.Parameter, int]:
        """How far above the input each parameter acts.

        0: the embeddings and the relative table with its norm; l: layer l, from 1, the convolution with the first;
        ``num_hidden_layers + 1``: the head.
        """
        depths = dict.fromkeys(self.parameters(), self.config.num_hidden_layers + 1)
        depths |= dict.fromkeys(self.deberta.parameters(), 0)
        encoder = self.deberta.encoder
        if encoder.convolution is not None:
            depths |= dict.fromkeys(encoder.convolution.parameters(), 1)
        for depth, layer in enumerate(encoder.layers, 1):
            depths |= dict.fromkeys(layer.parameters(), depth)
        return depths


class DebertaForMaskedLM(Head):
    """Predicts masked tokens, through the Enhanced Mask Decoder.

    From the last layer instead where absolute positions enter at the input or ``mask_decoder_passes`` is 0.
    """

    architecture = "ForMaskedLM"

    def __init__(self, config: DebertaConfig):
        if config.enhanced_mask_decoder and config.num_hidden_layers < 2:
            raise InputError("the mask decoder lends the last layer and reads the one before: num_hidden_layers >= 2.")
        super().__init__(config)
        self.decoder = MaskDecoder(config) if config.enhanced_mask_decoder else None
        self.vocabulary = VocabularyHead(config)
        heads = nn.ModuleList(head for head in (self.decoder, self.vocabulary) if head is not None)
        self._initialise(heads.modules())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        predict: Tensor | None = None,
        hide: Tensor | None = None,
        causal: bool = False,
        packing: Packing | None = None,
    ) -> HeadOutput:
        """Scores the vocabulary at some tokens; only these are computed.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            labels: the shape of input_ids, int; -100 = not predicted. Labels at padding are not read.
            predict: bool, the shape of input_ids, instead of labels. Without either every real token is predicted.
            hide: bool, the shape of input_ids; tokens whose state is replaced by their absolute position before the
                decoder reads it, so that a token shown as it is does not tell its own prediction.
            causal: no token sees a later one; then the logits are those of the next token.
            packing: of packed input_ids.

        Returns:
            logits (M, V) of the predicted tokens in row-major order; the mean loss if labels were given (zero if none
            is predicted).

        Raises:
            InputError: see :meth:`Deberta.forward`; ``hide`` without a mask decoder; ``causal`` with a convolution.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        if labels is not None:
            labels = inputs.rows(labels, "labels")
            rows = (labels != IGNORED).nonzero().squeeze(-1)
            labels = labels[rows]
            check_ids(labels, self.config.vocab_size, "labels")
        elif predict is not None:
            rows = inputs.rows(predict, "predict").nonzero().squeeze(-1)
        else:
            rows = torch.arange(len(inputs.ids), device=inputs.ids.device)
        if self.decoder is not None:
            below = self.config.num_hidden_layers - 1
            states, relative = self.deberta.encode(inputs, num_layers=below, causal=causal)
            if hide is not None:
                states = self.decoder.hide(states, inputs.packing, inputs.rows(hide, "hide"))
            decoded = self.decoder(self.deberta.encoder, states, relative, inputs.packing, rows)
        elif hide is not None:
            raise InputError("only a mask decoder can hide tokens behind their position, and this model has none.")
        else:
            decoded = self.deberta.encode(inputs, causal=causal)[0][rows]
        logits = self.vocabulary(decoded, self.deberta.embeddings.word.weight)
        if labels is None:
            return HeadOutput(logits)
        return HeadOutput(logits, _mean_cross_entropy(logits, labels))


class DebertaForReplacedTokenDetection(Head):
    """Tells for every token whether it was replaced (v3's discriminator)."""

    architecture = "Model"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.replaced = ReplacedTokenHead(config)
        self._initialise(self.replaced.modules())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        packing: Packing | None = None,
    ) -> HeadOutput:
        """Scores every real token, [CLS] and [SEP] included.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            labels: the shape of input_ids; 1 = replaced, 0 = original, -100 = not counted. Labels at padding are not
                read.
            packing: of packed input_ids.

        Returns:
            logits (B, T), zeros at padding, or (N,); positive where the token looks replaced. The mean binary cross
            entropy over counted tokens if labels were given (zero if none is counted).

        Raises:
            InputError: see :meth:`Deberta.forward`; or another label.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        logits = self.replaced(self.deberta.encode(inputs)[0], inputs.packing)
        loss = None
        if labels is not None:
            rows = inputs.rows(labels, "labels")
            counted = rows != IGNORED
            check_binary(rows[counted], "labels")
            losses = functional.binary_cross_entropy_with_logits(logits.float(), rows.float(), reduction="none")
            loss = losses.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)
        return HeadOutput(inputs.leave(logits), loss)


class DebertaForSequenceClassification(Head):
    """Labels or scores a text or a pair of texts."""

    architecture = "ForSequenceClassification"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.pooler = Pooler(config)
        self.dropout = Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._initialise(iter((self.pooler.dense, self.classifier)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        packing: Packing | None = None,
        perturbation: Perturbation | None = None,
    ) -> HeadOutput:
        """Scores each sequence.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            labels: (B,) ids; (B,) float for regression; (B, labels) 0 or 1 for multi-label.
            packing: of packed input_ids.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Returns:
            logits (B, labels), zeros for a sequence of padding only; the mean loss that ``config.problem_type`` asks
            for if labels were given.

        Raises:
            InputError: see :meth:`Deberta.forward`; or a label out of range.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        states, _ = self.deberta.encode(inputs, perturbation=perturbation)
        logits = self.classifier(self.dropout(self.pooler(states, inputs.packing)))
        logits = torch.where((inputs.packing.offsets.diff() > 0)[:, None], logits, 0.0)
        return HeadOutput(logits, None if labels is None else self._loss(logits.float(), labels))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type or ("regression" if self.config.num_labels == 1 else None)
        if problem == "regression":
            return functional.mse_loss(logits, labels.view_as(logits).float())
        if problem == "multi_label_classification":
            check_binary(labels, "labels")
            return functional.binary_cross_entropy_with_logits(logits, labels.float())
        check_ids(labels, self.config.num_labels, "labels")
        return functional.cross_entropy(logits, labels.long())


class DebertaForTokenClassification(Head):
    """Labels every token."""

    architecture = "ForTokenClassification"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._initialise(iter((self.classifier,)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        packing: Packing | None = None,
        perturbation: Perturbation | None = None,
    ) -> HeadOutput:
        """Scores each token.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            labels: the shape of input_ids, ids; -100 = not counted. Labels at padding are not read.
            packing: of packed input_ids.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Returns:
            logits (B, T, labels), zeros at padding, or (N, labels); the mean cross entropy if labels were given.

        Raises:
            InputError: see :meth:`Deberta.forward`; or a label out of range.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        states, _ = self.deberta.encode(inputs, perturbation=perturbation)
        logits = self.classifier(self.dropout(states))
        loss = None
        if labels is not None:
            rows = inputs.rows(labels, "labels")
            check_ids(rows[rows != IGNORED], self.config.num_labels, "labels")
            loss = _mean_cross_entropy(logits, rows)
        return HeadOutput(inputs.leave(logits), loss)


class DebertaForQuestionAnswering(Head):
    """Finds the start and the end of an answer. "Not answerable" is the span of [CLS], position 0."""

    architecture = "ForQuestionAnswering"

    def __init__(self, config: DebertaConfig):
        super().__init__(config.replace(num_labels=2))  # transformers sizes this head by them
        self.spans = nn.Linear(config.hidden_size, 2)
        self._initialise(iter((self.spans,)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        packing: Packing | None = None,
        perturbation: Perturbation | None = None,
    ) -> SpanOutput:
        """Scores each token as the first and as the last of the answer.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real.
            token_type_ids: the shape of input_ids, or None.
            start_positions: (B,) position of the answer's first token in its sequence; 0 ([CLS]) = not answerable;
                -100 = not counted.
            end_positions: (B,) likewise, of its last token.
            packing: of packed input_ids.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Raises:
            InputError: see :meth:`Deberta.forward`; or a position out of range or at padding.
        """
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        logits = self.spans(self.deberta.encode(inputs, perturbation=perturbation)[0])
        lowest = torch.finfo(logits.dtype).min
        start, end = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            width = inputs.packing.max_length
            real = pad(torch.ones_like(inputs.ids), inputs.packing, inputs.packing.positions, width).bool()
            losses = []
            for scores, places in ((start, start_positions), (end, end_positions)):
                counted = places != IGNORED
                check_ids(places[counted], width, "positions")
                if not torch.compiler.is_compiling() and not bool(real[counted, places[counted]].all()):
                    raise InputError("positions holds one where there is no token; point at tokens, or give -100.")
                spread = pad(scores.float(), inputs.packing, inputs.packing.positions, width)
                losses.append(_mean_cross_entropy(spread.masked_fill(~real, torch.finfo(torch.float32).min), places))
            loss = (losses[0] + losses[1]) / 2
        return SpanOutput(inputs.leave(start, lowest), inputs.leave(end, lowest), loss)


class DebertaForMultipleChoice(Head):
    """Chooses one of several texts."""

    architecture = "ForMultipleChoice"

    def __init__(self, config: DebertaConfig):
        super().__init__(config)
        self.pooler = Pooler(config)
        self.dropout = Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self._initialise(iter((self.pooler.dense, self.classifier)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        packing: Packing | None = None,
        num_choices: int | None = None,
        perturbation: Perturbation | None = None,
    ) -> HeadOutput:
        """Scores each choice.

        Args:
            input_ids: (B, K, T) int; or (N,) with ``packing``, whose sequences are the choices one example after the
                other, and ``num_choices``.
            attention_mask: (B, K, T), 1 = real. A choice of padding only is no choice.
            token_type_ids: the shape of input_ids, or None.
            labels: (B,) the number of the right choice.
            packing: of packed input_ids.
            num_choices: K, for packed input.
            perturbation: of the packed embeddings before their LayerNorm; see :meth:`Embeddings.forward`.

        Returns:
            logits (B, K), the dtype's lowest value where there is no choice; the mean cross entropy if labels were
            given.

        Raises:
            InputError: see :meth:`Deberta.forward`; or a label out of range.
        """
        if packing is None:
            if input_ids.dim() != 3:
                raise InputError(f"input_ids has shape {tuple(input_ids.shape)}; give (examples, choices, tokens).")
            num_choices = input_ids.shape[1]
            input_ids = input_ids.flatten(0, 1)
            attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
            token_type_ids = None if token_type_ids is None else token_type_ids.flatten(0, 1)
        elif not num_choices or packing.batch_size % num_choices:
            raise InputError(f"num_choices is {num_choices}, but {packing.batch_size} sequences are packed.")
        inputs = self.deberta.enter(input_ids, attention_mask, token_type_ids, packing)
        states, _ = self.deberta.encode(inputs, perturbation=perturbation)
        logits = self.classifier(self.dropout(self.pooler(states, inputs.packing))).squeeze(-1)
        logits = torch.where(inputs.packing.offsets.diff() > 0, logits, torch.finfo(logits.dtype).min)
        logits = logits.view(-1, num_choices)
        if labels is None:
            return HeadOutput(logits)
        check_ids(labels, num_choices, "labels")
        return HeadOutput(logits, functional.cross_entropy(logits.float(), labels.long()))


def classifier_dropout(config: DebertaConfig) -> float:
    """Dropout before a classifier."""
    return config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Over the labels that count; zero if none does."""
    total = functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
