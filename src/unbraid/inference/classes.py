"""Classification, multi-label classification and regression of plain text, however long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference import Predictor
from unbraid.inference.windows import stretches
from unbraid.model.pretrained import DebertaForSequenceClassification
from unbraid.text.batch import Batch
from unbraid.text.encoding import Encoding


class Verdict(TypedDict):
    """What a classifier says of what it reads.

    A regression model has the score alone, a multi-label model all but label and score.
    """

    label: NotRequired[str]
    """The most probable class."""
    labels: NotRequired[list[str]]
    """Of a multi-label model, the classes that are more probable than not, in the order of their ids."""
    score: NotRequired[float]
    """The probability of the label; of a regression model the score itself."""
    scores: NotRequired[dict[str, float]]
    """The probability of every class."""


class WindowVerdict(Verdict):
    """What a classifier says of one window of a longer text."""

    start: int
    """Its first character in the untouched text."""
    end: int
    """One past its last character."""


class Prediction(Verdict):
    """What a classifier says of one text or pair."""

    windowed: NotRequired[Literal["text", "pair"]]
    """Where a text or pair is longer than the model reads at once, which of its texts is read in windows."""
    windows: NotRequired[list[WindowVerdict]]
    """What the model says of each of them, from left to right."""
    truncated: bool
    """Whether something was not read: the end of the shorter text of a pair of which both are long."""


@dataclasses.dataclass(frozen=True, slots=True)
class TextWindow:
    """A text or pair, or a window of a longer one, as the model reads it.

    Attributes:
        ids: T token ids, special tokens included.
        segments: T numbers: 0 up to the first [SEP], 1 after it.
        start: the window's first character in the longer text.
        end: one past its last character.
        weight: how many tokens no other window shows with more around them.
    """

    ids: list[int]
    segments: list[int]
    start: int = 0
    end: int = 0
    weight: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How a text or pair is read.

    Attributes:
        windows: one, or several that cover the longer text; each shows the whole of the other text of a pair.
        windowed: which text they are windows of.
        truncated: whether the other text lost its end.
    """

    windows: list[TextWindow]
    windowed: Literal["text", "pair"] = "text"
    truncated: bool = False


def read_whole(encoding: Encoding, max_length: int, overlap: int) -> Reading:
    """Cuts what is too long into windows: of a pair the longer text, of equally long ones the second.

    The other text of a pair may fill half of what a window has room for, and loses what is beyond.

    Args:
        encoding: of the whole text or pair.
        max_length: of a window in tokens, special tokens included.
        overlap: tokens that neighbouring windows share, at most half of what fits.

    Raises:
        InputError: no room for a token of each text.
    """
    first = encoding.segments.count(0)  # [CLS], the first text and its [SEP]
    paired = first < len(encoding.ids)
    least = 5 if paired else 3
    if max_length < least:
        raise InputError(f"max_length {max_length} leaves no room for text; give at least {least}.")
    if len(encoding.ids) <= max_length:
        return Reading([TextWindow(encoding.ids, encoding.segments)])

    (cls, *before, sep), after = encoding.ids[:first], encoding.ids[first:-1]
    second = paired and len(after) >= len(before)
    long, short = (after, before) if second else (before, after)
    offsets = encoding.offsets[first:-1] if second else encoding.offsets[1 : first - 1]
    room = max_length - (3 if paired else 2)
    kept = short[: room // 2]

    def window(tokens: range, weight: int) -> TextWindow:
        shown = long[tokens.start : tokens.stop]
        left, right = (kept, shown) if second else (shown, kept)
        ids = [cls, *left, sep, *right, sep] if paired else [cls, *shown, sep]
        segments = [0] * (len(left) + 2) + [1] * (len(ids) - len(left) - 2)
        return TextWindow(ids, segments, offsets[tokens.start][0], offsets[tokens.stop - 1][1], weight)

    cut = stretches(len(long), room - len(kept), overlap)
    windows = [window(stretch.tokens, len(stretch.own)) for stretch in cut]
    return Reading(windows, "pair" if second else "text", len(kept) < len(short))


class Classifier(Predictor):
    """A fine-tuned sequence classifier, or regression model, on plain text, however long.

    What is longer than the model reads at once is read in windows. The answer for the whole is the mean of theirs,
    each weighted by the tokens that it shows best, so that every token counts once: neither those that two windows
    share, nor those of a short last window, count for more than others. Where one bad place is enough, as for a guard,
    take the maximum over the windows.
    """

    head = DebertaForSequenceClassification

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Classifies texts, or pairs of texts, in their order.

        Raises:
            InputError: see :meth:`outputs`.
        """
        readings = self._readings(texts, pairs)
        return [
            self._prediction(reading, outputs)
            for reading, outputs in zip(readings, self._outputs(readings), strict=True)
        ]

    def outputs(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """The probabilities of the classes of each text or pair, (labels,), or its score, (1,).

        Raises:
            InputError: see :meth:`Predictor.outputs`, or no room for text in ``max_length``.
        """
        readings = self._readings(texts, pairs)
        return [_mean(reading, outputs) for reading, outputs in zip(readings, self._outputs(readings), strict=True)]

    def decision(self, output: Tensor) -> Tensor:
        """See :meth:`Predictor.decision`; of a multi-label model the classes that are more probable than not."""
        return output >= 0.5 if self._several else output.argmax(-1)

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The probabilities of the classes in each window, (labels,), or its score, (1,)."""
        output = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids)
        logits = output.logits.float().cpu()
        if self._several:
            return logits.sigmoid().unbind()
        return (logits if logits.shape[1] == 1 else logits.softmax(-1)).unbind()

    @property
    def _several(self) -> bool:
        return self.model.config.problem_type == "multi_label_classification"

    def _readings(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Reading]:
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("a single text came where several are read; give a list of texts.")
        encodings = self.tokenizer.encode_batch(texts, pairs)
        return [read_whole(encoding, self.max_length, self.overlap) for encoding in encodings]

    def _outputs(self, readings: Sequence[Reading]) -> list[Tensor]:
        """The outputs of the windows of each text, (windows, labels)."""
        outputs = iter(self.map(self.read, [window for reading in readings for window in reading.windows]))
        return [torch.stack([next(outputs) for _ in reading.windows]) for reading in readings]

    def _prediction(self, reading: Reading, outputs: Tensor) -> Prediction:
        prediction: Prediction = {**self._verdict(_mean(reading, outputs)), "truncated": reading.truncated}
        if len(reading.windows) > 1:
            prediction["windowed"] = reading.windowed
            prediction["windows"] = [
                {"start": window.start, "end": window.end, **self._verdict(output)}
                for window, output in zip(reading.windows, outputs, strict=True)
            ]
        return prediction

    def _verdict(self, output: Tensor) -> Verdict:
        names = self.model.config.id2label
        scores = {names[index]: probability for index, probability in enumerate(output.tolist())}
        if self._several:
            chosen = self.decision(output).nonzero().flatten().tolist()
            return {"labels": [names[index] for index in chosen], "scores": scores}
        if len(output) == 1:
            return {"score": output.item()}
        label, score = max(scores.items(), key=itemgetter(1))
        return {"label": label, "score": score, "scores": scores}


def _mean(reading: Reading, outputs: Tensor) -> Tensor:
    """The mean of the outputs of the windows, (windows, labels), each weighted by its own tokens."""
    weights = torch.tensor([window.weight for window in reading.windows], dtype=outputs.dtype)
    return (weights / weights.sum()) @ outputs
