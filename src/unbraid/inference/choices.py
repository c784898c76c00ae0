"""Multiple choice on plain text: each choice is scored on its own, the best one is taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference import Predictor
from unbraid.model.pretrained import DebertaForMultipleChoice
from unbraid.text.batch import Batch
from unbraid.text.encoding import Encoding
from unbraid.text.tokenizer import Tokenizer


class Choices(NamedTuple):
    """A question and what may answer it."""

    question: str
    choices: Sequence[str]


class Chosen(TypedDict):
    """The answer to one question."""

    choice: str
    """The most probable choice."""
    index: int
    """Its place among the choices, from 0."""
    score: float
    """Its probability."""
    scores: list[float]
    """The probability of every choice, in their order."""
    truncated: bool
    """Whether a choice, with its question and context, was longer than the model reads, and lost text."""


def encode_choices(
    tokenizer: Tokenizer, questions: Sequence[Choices], contexts: Sequence[str] | None, max_length: int
) -> list[list[Encoding]]:
    """Encodes every choice of every question: ``[CLS] context [SEP] question choice [SEP]``.

    Without contexts: ``[CLS] question [SEP] choice [SEP]``. Of what is too long the longer text loses its end.

    Args:
        tokenizer: text to ids.
        questions: B questions with any number of choices, none of them empty.
        contexts: the texts that the questions are about, or None.
        max_length: in tokens, special tokens included.

    Raises:
        InputError: fewer than two choices, an empty one, or see :meth:`Tokenizer.encode_batch`.
    """
    firsts: list[str] = []
    seconds: list[str] = []
    for number, (question, choices) in enumerate(questions):
        if isinstance(choices, str) or len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise InputError(
                f"question {number} has the choices {list(choices)}; give two or more, none of them empty."
            )
        if contexts is None:
            firsts += [question] * len(choices)
            seconds += choices
        else:
            firsts += [contexts[number]] * len(choices)
            seconds += [f"{question} {choice}".lstrip() for choice in choices]
    encodings = iter(tokenizer.encode_batch(firsts, seconds, max_length=max_length))
    return [list(itertools.islice(encodings, len(choices))) for _, choices in questions]


class MultipleChooser(Predictor):
    """A fine-tuned model for multiple choice on plain text."""

    head = DebertaForMultipleChoice
    columns = ("question", None)

    def predict(self, texts: Sequence[Choices], pairs: Sequence[str] | None = None) -> list[Chosen]:
        """Chooses an answer to each question, in their order.

        Args:
            texts: the questions with their choices.
            pairs: the texts that the questions are about, or None.

        Raises:
            InputError: not as many contexts as questions, or see :func:`encode_choices`.
        """
        encoded = self._encode(texts, pairs)
        return [
            self._chosen(question.choices, probabilities, any(encoding.truncated for encoding in encodings))
            for question, encodings, probabilities in zip(texts, encoded, self._probabilities(encoded), strict=True)
        ]

    def outputs(self, texts: Sequence[Choices], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """The probabilities of the choices of each question, (choices,).

        Raises:
            InputError: see :meth:`predict`.
        """
        return self._probabilities(self._encode(texts, pairs))

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The logit of each choice, ()."""
        output = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, num_choices=1)
        return output.logits.float().squeeze(-1).cpu().unbind()

    def _encode(self, texts: Sequence[Choices], pairs: Sequence[str] | None) -> list[list[Encoding]]:
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"there are {len(texts)} questions but {len(pairs)} contexts; give one each, or none.")
        return encode_choices(self.tokenizer, texts, pairs, self.max_length)

    def _probabilities(self, encoded: Sequence[Sequence[Encoding]]) -> list[Tensor]:
        logits = iter(self.map(self.read, [encoding for encodings in encoded for encoding in encodings]))
        return [torch.stack([next(logits) for _ in encodings]).softmax(-1) for encodings in encoded]

    def _chosen(self, choices: Sequence[str], probabilities: Tensor, truncated: bool) -> Chosen:
        scores = probabilities.tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        return {
            "choice": choices[best],
            "index": best,
            "score": scores[best],
            "scores": scores,
            "truncated": truncated,
        }
