"""Token classification of plain text: words to pieces and back, and the entities they make up."""

from __future__ import annotations

import bisect
import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.inference import Predictor
from unbraid.inference.windows import Stretch, stretches
from unbraid.metrics import entities_of, is_bio
from unbraid.model.pretrained import DebertaForTokenClassification
from unbraid.text.batch import Batch
from unbraid.text.encoding import Encoding, Span

# Scripts that put no space between words (Thai to Khmer, kana, Han) have every character for itself.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents, vowel signs and joiners belong to the character before them (the classes M, and Extend of UAX 29).
_MARKS = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
_MARK = rf"[{_MARKS}\u200c\u200d]"
_LETTERS = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]{_MARK}*|{_LETTERS}+(?:{_MARK}+{_LETTERS}*)*|[^\w\s]{_MARK}*")


class LabelledWord(TypedDict):
    """What a token classifier says of one word."""

    text: str
    """The word."""
    start: int
    """Its first character in the text."""
    end: int
    """One past its last character."""
    label: str
    """Its most probable label."""
    score: float
    """The label's probability; 0 of a word that has no piece in the vocabulary, such as a lone control character."""


class Entity(TypedDict):
    """Words that belong together."""

    text: str
    """As it stands in the text."""
    start: int
    """Its first character in the text."""
    end: int
    """One past its last character."""
    label: str
    """Its type."""
    score: float
    """The mean probability of its words' labels."""


class TokenPrediction(TypedDict):
    """What a token classifier says of one text.

    Characters are counted in the untouched text; of a list of words, in the words with a space between.
    """

    words: list[LabelledWord]
    """Its words."""
    entities: NotRequired[list[Entity]]
    """Its entities, if the labels are B-, I- and O."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """A text and the words of it that have labels.

    Attributes:
        text: untouched.
        words: the characters (start, end) of each word, from left to right.
    """

    text: str
    words: tuple[Span, ...]

    @classmethod
    def of(cls, source: str | Sequence[str]) -> Sentence:
        """A text, of which each run of letters and digits and each other mark is a word; or a list of words.

        Accents belong to their letters. Of scripts without spaces each character is a word.

        >>> Sentence.of("Ann, 32")
        Sentence(text='Ann, 32', words=((0, 3), (3, 4), (5, 7)))
        >>> Sentence.of(["New York", "!"])
        Sentence(text='New York !', words=((0, 8), (9, 10)))
        """
        if isinstance(source, str):
            return cls(source, tuple(match.span() for match in _WORD.finditer(source)))
        spans, end = [], -1
        for word in source:
            if not isinstance(word, str):
                raise InputError(f"a list of words holds {word!r}; give texts.")
            start, end = end + 1, end + 1 + len(word)
            spans.append((start, end))
        return cls(" ".join(source), tuple(spans))


@dataclasses.dataclass(frozen=True, slots=True)
class TokenWindow:
    """A stretch of a sentence as the model reads it.

    Attributes:
        ids: T token ids, [CLS] and [SEP] included.
        words: the words that are read from this window, by their number in the sentence.
        pieces: for each of them the row of its first piece.
    """

    ids: list[int]
    words: list[int]
    pieces: list[int]

    @property
    def segments(self) -> list[int]:
        """T zeros."""
        return [0] * len(self.ids)


def token_windows(sentence: Sentence, encoding: Encoding, max_length: int, overlap: int) -> list[TokenWindow]:
    """Cuts a sentence into windows; each word is read once, from where its first piece has most around it.

    A word without a piece is read nowhere.

    Args:
        sentence: the text and its words.
        encoding: of the whole text.
        max_length: of a window in tokens, [CLS] and [SEP] included.
        overlap: tokens that neighbouring windows share, at most half of a window.
    """
    cls, *ids, sep = encoding.ids
    words, pieces = _first_pieces(sentence, encoding.offsets[1:-1])

    def window(stretch: Stretch) -> TokenWindow:
        own = slice(bisect.bisect_left(pieces, stretch.own.start), bisect.bisect_left(pieces, stretch.own.stop))
        first = stretch.tokens.start - 1  # [CLS] stands before
        return TokenWindow(
            [cls, *ids[stretch.tokens.start : stretch.tokens.stop], sep],
            words[own],
            [piece - first for piece in pieces[own]],
        )

    return [window(stretch) for stretch in stretches(len(ids), max_length - 2, overlap)]


def _first_pieces(sentence: Sentence, offsets: Sequence[Span]) -> tuple[list[int], list[int]]:
    """The words that have a piece that stands for a character, and the first such piece of each, growing too."""
    pieces = [piece for piece, (start, end) in enumerate(offsets) if start < end]
    ends = [offsets[piece][1] for piece in pieces]
    words, first = [], []
    for word, (start, end) in enumerate(sentence.words):
        place = bisect.bisect_right(ends, start)
        if place < len(pieces) and offsets[pieces[place]][0] < end:
            words.append(word)
            first.append(pieces[place])
    return words, first


def silent_label(labels: Sequence[str]) -> int:
    """The label of a word that the model cannot read: O, or the first where there is no O."""
    return list(labels).index("O") if "O" in labels else 0


class TokenClassifier(Predictor):
    """A fine-tuned token classifier on plain text, however long."""

    head = DebertaForTokenClassification

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of their ids."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    def predict(
        self, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None = None
    ) -> list[TokenPrediction]:
        """Labels the words of texts, in their order.

        Args:
            texts: each a text, or a list of its words.
            pairs: refused; words are labelled in single texts.

        Raises:
            InputError: not a list of those, lone surrogates in one, or second texts.
        """
        sentences = self._sentences(texts, pairs)
        return [self._prediction(*both) for both in zip(sentences, self._probabilities(sentences), strict=True)]

    def outputs(self, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None = None) -> list[Tensor]:
        """The probabilities of the labels of the words of each text, (words, labels); zeros for words without a piece.

        Raises:
            InputError: see :meth:`predict`.
        """
        return self._probabilities(self._sentences(texts, pairs))

    def read(self, batch: Batch) -> Sequence[Tensor]:
        """The probabilities of the labels of each token, (tokens, labels) a text."""
        output = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids)
        return output.logits.float().softmax(-1).cpu().split(batch.packing.offsets.diff().tolist())

    def _sentences(self, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None) -> list[Sentence]:
        if pairs is not None:
            raise InputError("this model labels the words of single texts; it takes no pairs.")
        if isinstance(texts, str):
            raise InputError("a single text came where several are read; give a list of texts.")
        return [Sentence.of(text) for text in texts]

    def _probabilities(self, sentences: Sequence[Sentence]) -> list[Tensor]:
        encodings = self.tokenizer.encode_batch([sentence.text for sentence in sentences])
        cut = [
            token_windows(sentence, encoding, self.max_length, self.overlap)
            for sentence, encoding in zip(sentences, encodings, strict=True)
        ]
        answers = iter(self.map(self.read, [window for windows in cut for window in windows]))
        found = []
        for sentence, windows in zip(sentences, cut, strict=True):
            probabilities = torch.zeros(len(sentence.words), len(self.labels))
            for window in windows:
                probabilities[window.words] = next(answers)[window.pieces]
            found.append(probabilities)
        return found

    def _prediction(self, sentence: Sentence, probabilities: Tensor) -> TokenPrediction:
        scores, chosen = probabilities.max(-1) if len(sentence.words) else (torch.zeros(0), torch.zeros(0))
        chosen = torch.where(scores > 0, chosen, silent_label(self.labels))
        words: list[LabelledWord] = [
            {
                "text": sentence.text[start:end],
                "start": start,
                "end": end,
                "label": self.labels[int(label)],
                "score": score,
            }
            for (start, end), label, score in zip(sentence.words, chosen, scores.tolist(), strict=True)
        ]
        prediction: TokenPrediction = {"words": words}
        if is_bio(self.labels):
            prediction["entities"] = list(_entities(sentence.text, words))
        return prediction


def _entities(text: str, words: Sequence[LabelledWord]) -> Iterator[Entity]:
    for label, first, last in entities_of([word["label"] for word in words]):
        start, end = words[first]["start"], words[last]["end"]
        scores = [word["score"] for word in words[first : last + 1]]
        yield {
            "text": text[start:end],
            "start": start,
            "end": end,
            "label": label,
            "score": sum(scores) / len(scores),
        }
