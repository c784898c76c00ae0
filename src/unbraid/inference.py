"""Predictions on plain text: encode, sort by length, pack, run, restore the order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForSequenceClassification, Pretrained
from unbraid.text.batch import Batch, pack
from unbraid.text.tokenizer import Encoding, Tokenizer


class Prediction(TypedDict):
    """What a classifier says of one text or pair.

    A regression model has the score alone.
    """

    label: NotRequired[str]
    """The most probable class."""
    score: float
    """Its probability; of a regression model the score itself."""
    scores: NotRequired[dict[str, float]]
    """The probability of every class."""
    truncated: bool
    """Whether the text was longer than the model reads, and lost its end."""


class Candidate(TypedDict):
    """A token that may stand at a mask."""

    token: str
    """The token as the vocabulary spells it."""
    probability: float
    """How probable it is."""


class Filled(TypedDict):
    """A text with its masks filled."""

    text: str
    """The text with the most probable token at every mask, each chosen on its own."""
    masks: list[list[Candidate]]
    """For every mask, in order, its most probable tokens."""
    truncated: bool
    """Whether the text was longer than the model reads, and lost its end."""


class _Predictor:
    """A model, its tokenizer, and how much text to give it at a time."""

    head: type[Pretrained]

    def __init__(
        self, model: Pretrained, tokenizer: Tokenizer, *, max_length: int | None = None, tokens_per_batch: int = 8192
    ):
        """Joins a model and its tokenizer.

        Args:
            model: of the class ``head``; each prediction puts it into evaluation mode.
            tokenizer: the one that the model was trained with.
            max_length: the longest text in tokens, special tokens included; None: max_position_embeddings.
            tokens_per_batch: the most tokens at a time, counting padding; one longer text still runs alone.

        Raises:
            InputError: the tokenizer has more tokens than the model.
        """
        if len(tokenizer) > model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens but the model only {model.config.vocab_size}; "
                "load both from the same folder."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length or model.config.max_position_embeddings
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, max_length: int | None = None, tokens_per_batch: int = 8192
    ) -> Self:
        """Reads a model and its tokenizer, from a folder or by a name on the hub.

        Raises:
            InputError: see :meth:`Pretrained.from_pretrained` and :meth:`Tokenizer.from_pretrained`.
        """
        tokenizer = Tokenizer.from_pretrained(source)
        model = cls.head.from_pretrained(source)
        return cls(model, tokenizer, max_length=max_length, tokens_per_batch=tokens_per_batch)

    def _encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoding]:
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("a single text came where several are read; give a list of texts.")
        return self.tokenizer.encode_batch(texts, pairs, max_length=self.max_length)

    def _batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], Batch]]:
        """The encodings in packed batches on the model's device, with the index of each."""
        device = next(self.model.parameters()).device
        for rows in group_by_length([len(encoding.ids) for encoding in encodings], self.tokens_per_batch):
            ids = [encodings[row].ids for row in rows]
            segments = [encodings[row].segments for row in rows]
            yield rows, pack(ids, token_types=segments).to(device)


def group_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Groups sequences of like length, the shortest first.

    Args:
        lengths: in tokens.
        tokens_per_batch: the most tokens in a group, each sequence padded to the longest; at least one sequence each.

    Yields:
        The indices of a group.

    >>> list(group_by_length([9, 2, 3, 2], tokens_per_batch=6))
    [[1, 3], [2], [0]]
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > tokens_per_batch:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class Classifier(_Predictor):
    """A fine-tuned sequence classifier, or regression model, on plain text."""

    head = DebertaForSequenceClassification

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Classifies texts, or pairs of texts, in their order.

        Raises:
            InputError: not a list of texts, not as many second texts as first ones, or lone surrogates; or a model
                that gives a text several labels at once.
        """
        if self.model.config.problem_type == "multi_label_classification":
            raise InputError("this model gives a text several labels at once; Classifier serves models that give one.")
        encodings = self._encode(texts, pairs)
        self.model.eval()
        predictions: dict[int, Prediction] = {}
        for rows, batch in self._batches(encodings):
            output = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids)
            for row, logits in zip(rows, output.logits.float().cpu(), strict=True):
                predictions[row] = self._prediction(logits, encodings[row].truncated)
        return [predictions[row] for row in range(len(texts))]

    def _prediction(self, logits: Tensor, truncated: bool) -> Prediction:
        if len(logits) == 1:
            return {"score": logits.item(), "truncated": truncated}
        names = self.model.config.id2label
        scores = {names[index]: probability for index, probability in enumerate(logits.softmax(-1).tolist())}
        label, score = max(scores.items(), key=itemgetter(1))
        return {"label": label, "score": score, "scores": scores, "truncated": truncated}


class FillMask(_Predictor):
    """A masked language model that fills the blanks of plain text."""

    head = DebertaForMaskedLM

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], *, top_k: int = 5) -> list[Filled]:
        """Fills every ``[MASK]`` of some texts, in their order.

        Args:
            texts: each with one or several ``[MASK]``.
            top_k: how many tokens to give for each mask.

        Raises:
            InputError: not a list of texts, a text without a mask, a mask beyond the longest length,
                or a ``top_k`` that the vocabulary does not have.
        """
        if not 1 <= top_k <= len(self.tokenizer):
            raise InputError(f"top_k is {top_k}; choose between 1 and the {len(self.tokenizer)} tokens there are.")
        encodings = self._encode(texts)
        self._check_masks(texts, encodings)
        self.model.eval()
        filled: dict[int, Filled] = {}
        for rows, batch in self._batches(encodings):
            masked = batch.input_ids == self.tokenizer.mask_id  # (N,)
            output = self.model(
                batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, predict=masked
            )
            probabilities = output.logits.float().softmax(-1)[:, : len(self.tokenizer)]  # (M, V), less spare rows
            best = probabilities.topk(top_k)
            candidates = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            for row in rows:
                count = encodings[row].ids.count(self.tokenizer.mask_id)
                filled[row] = self._filled(encodings[row], [next(candidates) for _ in range(count)])
        return [filled[row] for row in range(len(texts))]

    def _check_masks(self, texts: Sequence[str], encodings: Sequence[Encoding]) -> None:
        mask = self.tokenizer.token(self.tokenizer.mask_id)
        for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if mask not in text:
                raise InputError(f"Text {index} has no {mask} to fill; put one where a word is missing.")
            if encoding.ids.count(self.tokenizer.mask_id) < text.count(mask):
                raise InputError(
                    f"Text {index} has a {mask} beyond the {self.max_length} tokens that the model reads; shorten it."
                )

    def _filled(self, encoding: Encoding, candidates: list[tuple[list[int], list[float]]]) -> Filled:
        """Puts the best of the candidates, (ids, probabilities) of each mask, into the text."""
        best = iter(candidates)
        ids = [next(best)[0][0] if token == self.tokenizer.mask_id else token for token in encoding.ids]
        masks: list[list[Candidate]] = [
            [
                {"token": self.tokenizer.token(token), "probability": probability}
                for token, probability in zip(tokens, probabilities, strict=True)
            ]
            for tokens, probabilities in candidates
        ]
        return {"text": self.tokenizer.decode(ids), "masks": masks, "truncated": encoding.truncated}
