"""Predictions on plain text: encode, sort by length, pack, run, restore the order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference.progress import progress_bar
from unbraid.inference.windows import OVERLAP, Sequential
from unbraid.model.precision import Precision, set_precision
from unbraid.model.pretrained import Deberta, DebertaForMaskedLM, Pretrained
from unbraid.text.batch import Batch, pack
from unbraid.text.tokenizer import Encoding, Tokenizer

Answer = TypeVar("Answer")


class Candidate(TypedDict):
    """A token that may stand at a mask."""

    token: str
    """The token as the vocabulary spells it."""
    probability: float
    """How probable it is."""


class Filled(TypedDict):
    """A text with its masks filled."""

    text: str
    """The untouched text with the most probable token at every mask, each chosen on its own."""
    masks: list[list[Candidate]]
    """For every mask, in order, its most probable tokens."""
    truncated: bool
    """Whether the text was longer than the model reads, and its end was not read."""


class Predictor:
    """A model, its tokenizer, and how much text to give it at a time.

    Itself it encodes; a subclass names the model that it reads, says in :meth:`read` what it takes from its output,
    and in :meth:`predict` puts this into words.

    Attributes:
        head: the class of its models.
        columns: what the columns of its texts and of its pairs, if it needs these, are usually called.
        progress: what shows, of the tokens of a call, how many are read; see :func:`progress_bar`.
    """

    head: type[Pretrained] = Deberta
    columns: tuple[str, str | None] = ("text", None)
    progress: Callable[[int], AbstractContextManager[Callable[[float], None]]] = staticmethod(progress_bar)

    def __init__(
        self,
        model: Pretrained,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        overlap: int = OVERLAP,
        tokens_per_batch: int = 8192,
    ):
        """Joins a model and its tokenizer.

        Args:
            model: of the class ``head``, in any precision; each call puts it into evaluation mode.
            tokenizer: the one that the model was trained with.
            max_length: the longest text, or window of a longer one, in tokens, special tokens included; None:
                max_position_embeddings.
            overlap: tokens that neighbouring windows share, at most half of what fits.
            tokens_per_batch: the most tokens at a time, there is no padding; one longer text still runs alone.

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
        self.overlap = overlap
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        max_length: int | None = None,
        overlap: int = OVERLAP,
        tokens_per_batch: int = 8192,
        precision: Precision = "float32",
    ) -> Self:
        """Reads a model and its tokenizer, from a folder or by a name on the hub.

        Raises:
            InputError: see :meth:`Pretrained.from_pretrained`, :meth:`Tokenizer.from_pretrained` and
                :func:`set_precision`.
        """
        tokenizer = Tokenizer.from_pretrained(source)
        model = cls.head.from_pretrained(source)
        set_precision(model, precision)
        return cls(model, tokenizer, max_length=max_length, overlap=overlap, tokens_per_batch=tokens_per_batch)

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> Sequence[Mapping[str, Any]]:
        """What the model says of each text or pair, in words, as JSON can hold it; in their order."""
        raise NotImplementedError

    def outputs(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """What the model says of each text or pair, in their order, float32 on the CPU.

        Returns:
            For each text the states of its tokens, (tokens, C), [CLS] and [SEP] included; of a classifier the
            probabilities of the classes (labels,), or the score (1,); of a masked language model those of the
            vocabulary at each mask (masks, V).

        Raises:
            InputError: not a list of texts, not as many second texts as first ones, or lone surrogates.
        """
        return self.map(self.read, self.encode(texts, pairs))

    def decision(self, output: Tensor) -> Tensor:
        """What an output comes down to, whatever its exact numbers: the place of the largest."""
        return output.argmax(-1)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoding]:
        """Tokenises texts or pairs, cut to the longest length.

        Raises:
            InputError: see :meth:`outputs`.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("a single text came where several are read; give a list of texts.")
        return self.tokenizer.encode_batch(texts, pairs, max_length=self.max_length)

    @torch.no_grad()
    def map(self, read: Callable[[Batch], Iterable[Answer]], encodings: Sequence[Sequential]) -> list[Answer]:
        """Reads encodings in batches of like length, and puts the answers into the encodings' order.

        On a terminal, work of more than two seconds shows its progress.

        Args:
            read: a packed batch on the model's device to an answer for each of its texts, e.g. :meth:`read`.
            encodings: texts or windows of texts, of any number and length, in any order.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        answers: dict[int, Answer] = {}
        lengths = [len(encoding.ids) for encoding in encodings]
        with self.progress(sum(lengths)) as advance:
            for rows in group_by_length(lengths, self.tokens_per_batch):
                group = [encodings[row] for row in rows]
                batch = self.pack(group).to(device)
                answers.update(zip(rows, read(batch), strict=True))
                advance(len(batch.input_ids))
        return [answers[row] for row in range(len(encodings))]

    def pack(self, encodings: Sequence[Any]) -> Batch:
        """Packs encodings, or whatever else :meth:`map` was given, in their order."""
        return pack([each.ids for each in encodings], token_types=[each.segments for each in encodings])

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """What the model says of each text of a batch; see :meth:`outputs`."""
        states = _run(self.model, batch).last_hidden_state  # (N, C)
        return states.float().cpu().split(batch.packing.offsets.diff().tolist())


def _run(model: Pretrained, batch: Batch, **arguments: Tensor) -> Any:
    return model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, **arguments)


def group_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Groups sequences of like length, the shortest first.

    Args:
        lengths: in tokens.
        tokens_per_batch: the most tokens in a group; at least one sequence each.

    Yields:
        The indices of a group.

    >>> list(group_by_length([9, 2, 3, 2], tokens_per_batch=7))
    [[1, 3, 2], [0]]
    """
    group: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and tokens + lengths[index] > tokens_per_batch:
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += lengths[index]
    if group:
        yield group


class FillMask(Predictor):
    """A masked language model that fills the blanks of plain text."""

    head = DebertaForMaskedLM

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, top_k: int = 5) -> list[Filled]:
        """Fills every ``[MASK]`` of some texts, in their order.

        Args:
            texts: each with one or several ``[MASK]``.
            pairs: refused; a masked language model fills single texts.
            top_k: how many tokens to give for each mask.

        Raises:
            InputError: see :meth:`encode`; or a ``top_k`` that the vocabulary does not have.
        """
        if not 1 <= top_k <= len(self.tokenizer):
            raise InputError(f"top_k is {top_k}; choose between 1 and the {len(self.tokenizer)} tokens there are.")
        encodings = self.encode(texts, pairs)
        best = self.map(lambda batch: [each.topk(top_k) for each in self.read(batch)], encodings)
        return [
            self._filled(text, encoding, each.indices.tolist(), each.values.tolist())
            for text, encoding, each in zip(texts, encodings, best, strict=True)
        ]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoding]:
        """Tokenises texts that have masks.

        Raises:
            InputError: not a list of texts, pairs, a text without a mask, or a mask beyond the longest length.
        """
        if pairs is not None:
            raise InputError("this model fills masks; it takes single texts, no pairs.")
        encodings = super().encode(texts)
        mask = self.tokenizer.token(self.tokenizer.mask_id)
        for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if mask not in text:
                raise InputError(f"Text {index} has no {mask} to fill; put one where a word is missing.")
            if encoding.ids.count(self.tokenizer.mask_id) < text.count(mask):
                raise InputError(
                    f"Text {index} has a {mask} beyond the {self.max_length} tokens that the model reads; shorten it."
                )
        return encodings

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """See :meth:`Predictor.read`."""
        masked = batch.input_ids == self.tokenizer.mask_id  # (N,)
        logits = _run(self.model, batch, predict=masked).logits.float()
        probabilities = logits.softmax(-1)[:, : len(self.tokenizer)].cpu()  # (M, V), less spare rows
        masks = batch.packing.sequence_ids[masked].bincount(minlength=batch.packing.batch_size)
        return probabilities.split(masks.tolist())

    def _filled(
        self, text: str, encoding: Encoding, tokens: list[list[int]], probabilities: list[list[float]]
    ) -> Filled:
        """Puts the best of the candidates of each mask into the text."""
        filled = self.tokenizer.fill(text, [candidates[0] for candidates in tokens])
        masks: list[list[Candidate]] = [
            [
                {"token": self.tokenizer.token(token), "probability": probability}
                for token, probability in zip(*mask, strict=True)
            ]
            for mask in zip(tokens, probabilities, strict=True)
        ]
        return {"text": filled, "masks": masks, "truncated": encoding.truncated}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the outputs of a predictor are from those of another.

    Attributes:
        texts: how many were compared.
        changed: the share of them of which some decision is another.
        largest: the largest difference of any two numbers.
        mean: the mean over the texts of their largest difference.
    """

    texts: int
    changed: float
    largest: float
    mean: float

    def __str__(self) -> str:
        return (
            f"over {self.texts} texts {self.changed:.1%} of the answers differ, "
            f"the numbers by {self.largest:.2g} at most and {self.mean:.2g} on average"
        )


def difference(
    expected: Sequence[Tensor],
    outputs: Sequence[Tensor],
    decision: Callable[[Tensor], Tensor] = lambda output: output.argmax(-1),
) -> Difference:
    """Compares what two predictors say of the same texts, e.g. the same model in two precisions.

    Args:
        expected: from :meth:`Predictor.outputs`.
        outputs: likewise, of the other one.
        decision: see :meth:`Predictor.decision`.

    Raises:
        InputError: no texts, or outputs of other shapes.

    >>> difference([torch.tensor([0.75, 0.25])], [torch.tensor([0.5, 0.5])])
    Difference(texts=1, changed=0.0, largest=0.25, mean=0.25)
    """
    if not expected or [each.shape for each in expected] != [each.shape for each in outputs]:
        raise InputError(
            "the outputs of the two predictors cannot be compared; give both the same texts, at least one, "
            "the same tokenizer and max_length."
        )
    both = list(zip(expected, outputs, strict=True))
    gaps = torch.stack([(ours - theirs).abs().amax() if ours.numel() else torch.zeros(()) for theirs, ours in both])
    changed = sum(not torch.equal(decision(theirs), decision(ours)) for theirs, ours in both)
    return Difference(len(both), changed / len(both), gaps.amax().item(), gaps.mean().item())
