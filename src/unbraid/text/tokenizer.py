"""Text to token ids and back: DeBERTa v1 (byte-level BPE), v2 and v3 (SentencePiece unigram)."""

from __future__ import annotations

import functools
import itertools
import os
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from unbraid.errors import InputError
from unbraid.text.encoding import Encoding, Span, shares
from unbraid.text.files import SPECIAL_TOKENS, read_gpt2, read_pretrained, write_pretrained
from unbraid.text.spm import SpmEngine, train_unigram
from unbraid.text.tokenizer_json import JsonEngine, train_bpe


class _Fragment(NamedTuple):
    """A stretch of a text: for the engine to encode, or a token written out, such as [MASK]."""

    start: int
    text: str
    opening: bool  # whether it begins a word (of the text, or after white space)
    token: int | None = None


class Tokenizer:
    """A vocabulary of DeBERTa, with the special tokens around it.

    In a text, ``[MASK]`` and tokens that were added to a vocabulary stand for their ids. White space before them
    belongs to them, as it does to a word, and a text goes on after them as after any word, so that
    ``"The [MASK] of France, [MASK]."`` has the ids of the whole sentence but for the masked words. Every other special
    token is plain text: no input can end its own segment with ``[SEP]``.

    Attributes:
        pad_id: the id of [PAD].
        cls_id: the id of [CLS].
        sep_id: the id of [SEP].
        unk_id: the id of [UNK].
        mask_id: the id of [MASK].
        special_ids: these five.

    Args:
        engine: the vocabulary.
        added: tokens beyond the vocabulary, or special ones in it, and their ids.
        names: how the special tokens are spelled. One that neither ``added`` nor the vocabulary has gets the id after
            all others, as [MASK] does in the released models.
    """

    def __init__(
        self, engine: SpmEngine | JsonEngine, added: dict[str, int] | None = None, names: dict[str, str] | None = None
    ) -> None:
        added, names = added or {}, SPECIAL_TOKENS | (names or {})
        if engine.unk_id is not None:
            names["unk"] = engine.pieces[engine.unk_id]
        ids = {piece: index for index, piece in engine.pieces.items()} | added
        for name in names.values():
            ids.setdefault(name, max(ids.values()) + 1)
        self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id = (ids[names[role]] for role in SPECIAL_TOKENS)
        self.special_ids = frozenset((self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id))
        self._engine = engine
        self._names = names
        self._ids = {name: ids[name] for name in (*added, *names.values())}
        self._apart = {index: name for name, index in self._ids.items()}
        self._tokens = engine.pieces | self._apart
        self._size = max(self._tokens) + 1
        silent = self.special_ids - {self.mask_id}
        self._written = {name: index for name, index in self._ids.items() if index not in silent}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._written, key=len, reverse=True))))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer from a folder, or by its name from the Hugging Face hub.

        Read are, the first that is there: ``spm.model`` (v2, v3); ``tokenizer.json`` (any; its own normalisation);
        ``vocab.json`` and ``merges.txt`` (v1).

        Raises:
            InputError: there is no such folder or model, or its files are missing or damaged.
        """
        return cls(*read_pretrained(name))

    @classmethod
    def from_gpt2(cls, vocabulary: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Tokenizer:
        """Reads GPT-2's byte-level BPE and lays its ids out as DeBERTa v1: the tokens from 4 on, [MASK] last.

        The order of the tokens is GPT-2's; the released v1 models have their own, by frequency (use their files).

        Args:
            vocabulary: ``encoder.json`` or ``vocab.json``, token to id.
            merges: ``vocab.bpe`` or ``merges.txt``.

        Raises:
            InputError: a file is missing or damaged.
        """
        return cls(read_gpt2(vocabulary, merges))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files that :meth:`from_pretrained` and transformers' ``AutoTokenizer`` read."""
        write_pretrained(folder, self._engine, self._names, self._ids, self._written)

    def __len__(self) -> int:
        """One more than the highest id."""
        return self._size

    def token(self, index: int) -> str:
        """The vocabulary's spelling of an id; the name of [UNK] for an id that no token has."""
        return self._tokens.get(index, self._names["unk"])

    @functools.cached_property
    def continues_word(self) -> np.ndarray:
        """(len,) bool: whether a piece goes on with the word before it.

        False for a piece that begins with a space, is a single punctuation, space or control character, or is special.
        A text's first word has no space before it in a byte-level vocabulary: that it begins a word is for the caller
        to know.

        Source: ``part_of_whole_word`` of microsoft/DeBERTa's spm_tokenizer.py and gpt2_tokenizer.py.
        """
        continues = np.zeros(len(self), bool)
        continues[list(self._engine.pieces)] = [
            not (piece.startswith(self._engine.word_start) or (len(piece) == 1 and _stands_alone(piece)))
            for piece in self._engine.spelled()
        ]
        continues[list(self._apart)] = False
        return continues

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None) -> Encoding:
        """Encodes a text, or a pair; see :meth:`encode_batch`."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length)[0]

    def encode_batch(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None
    ) -> list[Encoding]:
        """Encodes texts, or pairs, with their special tokens.

        Args:
            texts: B texts.
            pairs: the B second texts, or None.
            max_length: the most ids an encoding may have. A longer one loses its end, a longer pair the end of its
                longer text (of two equally long ones, the second's) token by token; the texts stay in order.

        Raises:
            InputError: something that is no text, lone surrogates in one, not as many pairs as texts, or a
                ``max_length`` without room for a token of each text.
        """
        columns = [_checked(column) for column in (texts, pairs) if column is not None]
        if len(columns[-1]) != len(columns[0]):
            raise InputError(f"There are {len(columns[0])} texts but {len(columns[1])} pairs; give as many of each.")
        room = None if max_length is None else max_length - len(columns) - 1
        if room is not None and room < len(columns):
            raise InputError(f"max_length {max_length} leaves no room for text; give at least {2 * len(columns) + 1}.")
        rows = zip(*columns, strict=True)
        ids = zip(*map(self._encode, columns), strict=True)
        return [self._frame(texts, parts, room) for texts, parts in zip(rows, ids, strict=True)]

    def encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts, int32 arrays, without special tokens: ``[MASK]`` too is plain text here.

        Raises:
            InputError: something that is no text, or lone surrogates in one.
        """
        return self._engine.encode(_checked(texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; [PAD], [CLS] and [SEP] are left out, the other special tokens written by name."""
        text = ""
        for plain, run in itertools.groupby(map(int, ids), self._is_plain):
            if plain:
                text += self._engine.decode(list(run), opening=not text)
                continue
            for index in run:
                if index not in (self.pad_id, self.cls_id, self.sep_id):
                    own_space = (index != self.unk_id or self._engine.unk_is_word) and text and not text[-1].isspace()
                    text += " " * bool(own_space) + self.token(index)
        return text

    def fill(self, text: str, ids: Iterable[int]) -> str:
        """A text with a token in the place of each ``[MASK]``; the rest stays as it is.

        A token that begins a word stands behind white space, any other directly behind what is before it.

        Args:
            text: with M masks.
            ids: M tokens; [PAD], [CLS] and [SEP] leave nothing.
        """
        mask = self.token(self.mask_id)
        filled, *rest = text.split(mask)
        for index, after in zip(ids, rest, strict=True):
            token = self.decode([self.mask_id, index]).removeprefix(mask)
            if not token.startswith(" "):
                filled = filled.removesuffix(" ")
            elif not filled or filled[-1].isspace():
                token = token[1:]
            filled += token + after
        return filled

    def _is_plain(self, index: int) -> bool:
        return index in self._engine.pieces and index not in self._apart

    def _fragments(self, text: str) -> list[_Fragment]:
        fragments, start = [], 0
        for match in self._pattern.finditer(text):
            fragments.append(_Fragment(start, text[start : match.start()].rstrip(), _opens(text, start)))
            fragments.append(_Fragment(match.start(), match[0], False, self._written[match[0]]))
            start = match.end()
        fragments.append(_Fragment(start, text[start:], _opens(text, start)))
        return fragments

    def _encode(self, texts: list[str]) -> list[list[int]]:
        split = [self._fragments(text) for text in texts]
        plain = [fragment for fragments in split for fragment in fragments if fragment.token is None]
        encoded = {
            opening: iter(self._engine.encode([f.text for f in plain if f.opening == opening], opening=opening))
            for opening in {fragment.opening for fragment in plain}
        }
        ids = []
        for fragments in split:
            row: list[int] = []
            for fragment in fragments:
                row += next(encoded[fragment.opening]).tolist() if fragment.token is None else [fragment.token]
            ids.append(row)
        return ids

    def _frame(self, texts: Sequence[str], ids: Sequence[list[int]], room: int | None) -> Encoding:
        lengths = [len(part) for part in ids]
        kept = lengths if room is None else shares(lengths, room)
        framed, segments = [self.cls_id], [0]
        for segment, (part, count) in enumerate(zip(ids, kept, strict=True)):
            framed += [*part[:count], self.sep_id]
            segments += [segment] * (count + 1)
        return Encoding(framed, segments, kept != lengths, list(zip(texts, kept, strict=True)), self._spans)

    def _spans(self, text: str) -> list[Span]:
        spans = []
        for start, stretch, opening, token in self._fragments(text):
            inside = [(0, len(stretch))] if token is not None else self._engine.spans(stretch, opening=opening)
            spans += [(start + first, start + last) for first, last in inside]
        return spans


def train_tokenizer(
    lines: Iterable[str],
    kind: Literal["unigram", "bpe"],
    vocab_size: int,
    *,
    character_coverage: float = 0.9995,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Trains a tokenizer from text: the same lines give the same tokenizer.

    The lines are read once, in bounded memory: unigram training takes an even sample of a hundred million characters.

    Args:
        lines: the text; empty lines do not count.
        kind: ``unigram`` as v2 and v3 have it, or byte-level ``bpe`` as v1.
        vocab_size: the number of ids, special tokens included.
        character_coverage: the share of the text's characters that get a piece of their own, 0.98 to 1
            (unigram only).
        byte_fallback: spell other characters in bytes (256 more pieces) instead of as [UNK] (unigram only).

    Raises:
        InputError: the text is empty, ``vocab_size`` does not suit it, or ``character_coverage`` is out of range.
    """
    text = _text_lines(lines)
    match kind:
        case "unigram":
            return Tokenizer(SpmEngine(train_unigram(text, vocab_size - 1, character_coverage, byte_fallback)))
        case "bpe":
            return Tokenizer(JsonEngine(train_bpe(text, vocab_size)))
    raise InputError(f"There is no tokenizer of the kind {kind!r}; choose unigram or bpe.")


def _text_lines(lines: Iterable[str]) -> Iterator[str]:
    empty = True
    for place, line in enumerate(lines):
        if line := _checked([line], place)[0].strip():
            empty = False
            yield line
    if empty:
        raise InputError("There is no text to train a tokenizer on; give lines with letters in them.")


def _checked(texts: Sequence[str], first: int = 0) -> list[str]:
    if isinstance(texts, Iterator):
        raise InputError("the texts are an iterator, which can be read only once; give a list of them.")
    for place, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise InputError(f"Text {place} is of type {type(text).__name__}; give strings.")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"Text {place} holds a lone surrogate at character {error.start}; decode its source as UTF-8."
                ) from None
    return list(texts)


def _opens(text: str, start: int) -> bool:
    return start == 0 or text[start : start + 1].isspace()


def _stands_alone(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] in "CPZ"
