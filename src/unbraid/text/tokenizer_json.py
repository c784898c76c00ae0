"""The tokenizers library: byte-level BPE (DeBERTa v1), and any ``tokenizer.json`` of Unigram, BPE or WordPiece."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from unbraid.errors import InputError

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class JsonEngine:
    """Encodes with the tokenizers library.

    Args:
        source: a parsed ``tokenizer.json``.

    Raises:
        InputError: the file holds neither a Unigram, a BPE nor a WordPiece model, or a damaged one.
    """

    def __init__(self, source: dict[str, Any]) -> None:
        model = source.get("model") or {}
        kind = model.get("type") or ("Unigram" if isinstance(model.get("vocab"), list) else "BPE")
        if kind not in ("Unigram", "BPE", "WordPiece") or not model.get("vocab"):
            raise InputError(
                f"tokenizer.json holds no vocabulary of a Unigram, BPE or WordPiece model (its type is {kind})."
            )
        self._inside = model.get("continuing_subword_prefix") if kind == "WordPiece" else None
        self._reserved = frozenset(added_tokens(source))
        self._source: dict[str, Any] = source | {
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._opening = self._build(opening=True)
        if kind == "Unigram":
            self.pieces: dict[int, str] = {index: piece for index, (piece, _) in enumerate(model["vocab"])}
            self.unk_id: int | None = model.get("unk_id")
        else:
            self.pieces = {index: piece for piece, index in model["vocab"].items()}
            self.unk_id = model["vocab"].get(model.get("unk_token"))
        if kind == "WordPiece" and self.unk_id is None:
            raise InputError(
                f"tokenizer.json has no id for its unknown token {model.get('unk_token')}; write it again."
            )
        self._byte_level = '"ByteLevel"' in json.dumps(source.get("pre_tokenizer"))
        self.word_start = " " if self._byte_level else "▁"
        self.unk_is_word = kind == "WordPiece"

    @functools.cached_property
    def _continuing(self) -> Tokenizer:
        return self._build(opening=False)

    def _build(self, opening: bool) -> Tokenizer:
        source: dict[str, Any] = self._source
        if not opening:
            source = source | {part: _without_prefix(source.get(part)) for part in ("pre_tokenizer", "decoder")}
        try:
            return Tokenizer.from_str(json.dumps(source | {"model": self._unspelled(source["model"])}))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"tokenizer.json is damaged ({error}); fetch or write it again.") from None

    def _unspelled(self, model: dict[str, Any]) -> dict[str, Any]:
        """The model with a space in its special pieces: none ever reaches it, so no text can spell them."""
        vocabulary, unknown = model["vocab"], model.get("unk_token")

        def hidden(piece: str) -> str:
            return f" {piece}" if piece in self._reserved and piece != unknown else piece

        if isinstance(vocabulary, list):
            return model | {"vocab": [(hidden(piece), score) for piece, score in vocabulary]}
        if self._inside is not None:
            return model | {"vocab": {hidden(piece): index for piece, index in vocabulary.items()}}
        return model

    def encode(self, texts: list[str], *, opening: bool = True) -> list[np.ndarray]:
        """The ids of each text, int32; a text that is not ``opening`` goes on in the middle of a word."""
        engine = self._opening if opening else self._continuing
        return [np.array(encoding.ids, np.int32) for encoding in engine.encode_batch_fast(texts)]

    def spans(self, text: str, *, opening: bool = True) -> list[tuple[int, int]]:
        """The characters that each piece stands for; pieces that share a character overlap."""
        return (self._opening if opening else self._continuing).encode(text).offsets

    def decode(self, ids: list[int], *, opening: bool = True) -> str:
        """The text of some ids; where it is ``opening``, without the space that every first word has."""
        if self._inside is not None and not opening and self.unk_id is not None:
            # The decoder of WordPiece puts spaces between its pieces alone, so a text goes on after one.
            return self._opening.decode([self.unk_id, *ids]).removeprefix(self.pieces[self.unk_id])
        return (self._opening if opening else self._continuing).decode(ids)

    def spelled(self) -> list[str]:
        """What each piece stands for, a leading ``word_start`` included."""
        if self._inside is not None:
            inside, start = self._inside, self.word_start
            return [
                piece.removeprefix(inside) if piece.startswith(inside) else start + piece
                for piece in self.pieces.values()
            ]
        if not self._byte_level:
            return list(self.pieces.values())
        return self._opening.decode_batch([[index] for index in self.pieces])

    def tokenizer_json(self) -> dict[str, Any]:
        """The vocabulary and its pipeline, without special tokens, template, truncation and padding."""
        return self._source


def added_tokens(source: dict[str, Any]) -> dict[str, int]:
    """The tokens that a ``tokenizer.json`` adds to its vocabulary, special or not, with their ids."""
    return {token["content"]: token["id"] for token in source.get("added_tokens") or []}


def byte_level_bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """A ``tokenizer.json`` from GPT-2's two files: the vocabulary (token to id) and the merges, best first."""
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def train_bpe(lines: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """Trains a byte-level BPE in DeBERTa v1's layout: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, tokens, [MASK] last.

    Returns:
        A ``tokenizer.json``.

    Raises:
        InputError: the bytes alone need more ids, or the text yields fewer tokens.
    """
    specials, alphabet = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < (least := len(specials) + len(alphabet) + 1):
        raise InputError(f"vocab_size {vocab_size} is too small for byte-level BPE; give at least {least}.")
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(lines, trainer)
    most = engine.get_vocab_size() + 1
    if most < vocab_size:
        raise InputError(f"vocab_size {vocab_size} is too large for this text; give at most {most}, or more text.")
    model = json.loads(engine.to_str())["model"]
    return byte_level_bpe(model["vocab"] | {"[MASK]": most - 1}, model["merges"])


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same pre-tokenizer, putting no space before a text; the same decoder, taking none away."""
    match part:
        case {"type": "Sequence", "pretokenizers": steps}:
            return part | {"pretokenizers": [_without_prefix(step) for step in steps]}
        case {"type": "Sequence", "decoders": steps}:
            return part | {"decoders": [_without_prefix(step) for step in steps]}
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return part | {"add_prefix_space": False}
    return part
