"""SentencePiece models (``spm.model``): the vocabularies of DeBERTa v2 and v3."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import sentencepiece

from unbraid.errors import InputError

_UNIGRAM = 1  # TrainerSpec.ModelType
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # ModelProto.normalizer_spec.add_dummy_prefix = false
_BLOCK = 4096  # characters
_MOST_BLOCKS = 25_000  # about 2 GB at 20 bytes a character
_NUM_TRAINER_THREADS = 16  # a constant of the result: the sums of the EM steps depend on how they are split


class SpmEngine:
    """Encodes with the sentencepiece library itself, so that the ids are its ids.

    Args:
        model: the bytes of an ``spm.model``.

    Raises:
        InputError: the bytes are no SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._opening = _processor(model)
        self.pieces: dict[int, str] = dict(enumerate(self._opening.id_to_piece(list(range(len(self._opening))))))
        self.unk_id: int | None = self._opening.unk_id()
        self.word_start = "▁"
        self.unk_is_word = False

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        # Protocol buffers merge when they are concatenated, and the last value of a field counts.
        return _processor(self.model + _NO_DUMMY_PREFIX)

    def _processor_for(self, opening: bool) -> sentencepiece.SentencePieceProcessor:
        return self._opening if opening else self._continuing

    def encode(self, texts: list[str], *, opening: bool = True) -> list[np.ndarray]:
        """The ids of each text, int32; a text that is not ``opening`` goes on in the middle of a word."""
        # Copied, for the library's own arrays are read-only.
        return [ids.copy() for ids in self._processor_for(opening).encode(texts, return_type="numpy")]

    def spans(self, text: str, *, opening: bool = True) -> list[tuple[int, int]]:
        """The characters that each piece stands for."""
        return self._processor_for(opening).encode(text, return_type="offset_mapping")["offsets"]

    def decode(self, ids: list[int], *, opening: bool = True) -> str:
        """The text of some ids; where it is ``opening``, without the space that every first word has."""
        lost = "" if opening or not self.pieces[ids[0]].startswith("▁") else " "
        return lost + self._opening.decode(ids)

    def spelled(self) -> list[str]:
        """What each piece stands for, a leading ``word_start`` included."""
        return list(self.pieces.values())

    def tokenizer_json(self) -> dict[str, Any] | None:
        """The same vocabulary and normalisation for the tokenizers library; None if the model is not a unigram one."""
        fields = _fields(self.model)
        if _fields(fields.get(2, b"")).get(3, _UNIGRAM) != _UNIGRAM:
            return None
        spec = _fields(fields[3])
        charsmap, add_dummy_prefix, remove_extra_spaces = spec.get(2), spec.get(3, 1), spec.get(4, 1)
        normalizers: list[dict[str, Any]] = []
        if charsmap:
            normalizers.append(
                {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")}
            )
        if remove_extra_spaces:
            normalizers += [_replace(" {2,}", " "), _replace(" $", "")]
        metaspace = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first" if add_dummy_prefix else "never",
            "split": True,
        }
        ids = list(self.pieces)
        return {
            "version": "1.0",
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": metaspace,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]},
            "model": {
                "type": "Unigram",
                "unk_id": self.unk_id,
                "vocab": list(zip(self.pieces.values(), self._opening.get_score(ids), strict=True)),
                "byte_fallback": any(self._opening.is_byte(ids)),
            },
        }


def train_unigram(lines: Iterable[str], num_pieces: int, character_coverage: float, byte_fallback: bool) -> bytes:
    """Trains an ``spm.model`` with the pieces [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3 and the nmt_nfkc normalisation.

    Raises:
        InputError: the text is too small or too rich for so many pieces, or the coverage out of range.
    """
    if not 0.98 <= character_coverage <= 1:  # sentencepiece's own range
        raise InputError(f"character_coverage {character_coverage} is not from 0.98 to 1; the default is 0.9995.")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(_blocks(lines), _MOST_BLOCKS)),
            model_writer=written,
            model_type="unigram",
            vocab_size=max(num_pieces, 4),  # fewer than the special pieces end in other errors
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            max_sentence_length=10 * _BLOCK,
            num_threads=_NUM_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        # One id more than pieces: [MASK].
        if most := re.search(r"Vocabulary size too high .* <= (\d+)", str(error)):
            raise InputError(
                f"vocab_size {num_pieces + 1} is too large for this text; "
                f"give at most {int(most[1]) + 1}, or more text."
            ) from None
        if least := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", str(error)):
            raise InputError(
                f"vocab_size {num_pieces + 1} is too small for the characters of this text; "
                f"give at least {int(least[1]) + 1}, or a lower character_coverage."
            ) from None
        if re.search(r"sentences_\.empty|all_chars_count", str(error)):
            raise InputError("There is no text to train a tokenizer on; give lines with letters in them.") from None
        raise
    return written.getvalue()


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    """The text in blocks of about equal length, so that a sample of them weighs the text and not its lines."""
    block, size = [], 0
    for line in lines:
        for start in range(0, len(line), _BLOCK):
            block.append(line[start : start + _BLOCK])
            size += len(block[-1])
            if size >= _BLOCK:
                yield " ".join(block)
                block, size = [], 0
    yield " ".join(block)


def _sample(blocks: Iterable[str], size: int) -> list[str]:
    """At most ``size`` blocks, each with the same chance; always the same ones (sentencepiece's own sample is not)."""
    chosen, rng = [], np.random.default_rng(0)
    for seen, block in enumerate(blocks):
        if seen < size:
            chosen.append(block)
        elif (place := rng.integers(seen + 1)) < size:
            chosen[place] = block
    return chosen


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor.from_proto(model)
    except RuntimeError:
        raise InputError("spm.model is not a SentencePiece model, or is cut short; fetch it again.") from None


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _fields(message: bytes) -> dict[int, Any]:
    r"""The last value of each field of a protocol buffer: int, or bytes for strings and messages.

    >>> _fields(_NO_DUMMY_PREFIX)
    {3: b'\x18\x00'}
    """
    stream, fields = io.BytesIO(message), {}

    def varint() -> int:
        value, shift = 0, 0
        while (byte := stream.read(1)[0]) >= 128:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    while stream.tell() < len(message):
        field, wire_type = divmod(varint(), 8)
        match wire_type:
            case 0:
                fields[field] = varint()
            case 1:
                fields[field] = stream.read(8)
            case 2:
                fields[field] = stream.read(varint())
            case _:
                fields[field] = stream.read(4)
    return fields
