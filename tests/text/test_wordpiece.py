"""BERT's vocabularies: a tokenizer.json of WordPiece, against the tokenizers library and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from unbraid.text.tokenizer import Tokenizer

_PIECES = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    *["the", "king", "of", "france", "walk", "cafe", "a", ",", ".", "'", "##ing", "##s", "##ed", "##e", "s", "日"],
]
_TEXTS = [
    "The King  walks, walking.",
    "CAFÉ's\u0301 of Françe",
    "日a日 \x00thes",
    "the [MASK] of France, [MASK].",
    "",
    "zz",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json as BERT's are."""
    engine = tokenizers.Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(_PIECES)}, unk_token="[UNK]")  # noqa: S106, a token of text
    )
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = tokenizers.decoders.WordPiece()
    engine.add_special_tokens(_PIECES[:5])
    engine.enable_padding(length=16)
    engine.enable_truncation(8)
    engine.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_pieces_by_hand(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    encoding = tokenizer.encode("The King  walks,", "zz CAFÉ")
    spelled = ["[CLS]", "the", "king", "walk", "##s", ",", "[SEP]", "[UNK]", "cafe", "[SEP]"]
    assert [tokenizer.token(index) for index in encoding.ids] == spelled
    assert encoding.ids == [_PIECES.index(piece) for piece in spelled]
    assert encoding.segments == [0] * 7 + [1] * 3
    assert encoding.offsets == [(0, 0), (0, 3), (4, 8), (10, 14), (14, 15), (15, 16), (0, 0), (0, 2), (3, 7), (0, 0)]


def test_transformers_gives_the_same_ids(folder, tmp_path):
    from transformers import PreTrainedTokenizerFast

    ours = Tokenizer.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "again")
    assert Tokenizer.from_pretrained(tmp_path / "again").encode_batch(_TEXTS) == ours.encode_batch(_TEXTS)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    found, expected = theirs(_TEXTS, _TEXTS[::-1]), ours.encode_batch(_TEXTS, _TEXTS[::-1])
    assert found["input_ids"] == [encoding.ids for encoding in expected]
    assert found["token_type_ids"] == [encoding.segments for encoding in expected]


def test_what_is_decoded(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    for text in ("the [MASK] of france, [MASK].", "[MASK] king", "walking walks", "the zz king"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace("zz", "[UNK]")


def test_which_pieces_continue_a_word(folder):
    continues = Tokenizer.from_pretrained(folder).continues_word
    inside = [piece for piece, yes in zip(_PIECES, continues, strict=True) if yes]
    assert inside == [
        "##ing",
        "##s",
        "##ed",
        "##e",
    ]


@pytest.mark.parametrize("splitter", ["BertPreTokenizer", "WhitespaceSplit"])
def test_only_the_mask_is_read_from_a_text(folder, splitter):
    source = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    source |= {"normalizer": None, "pre_tokenizer": {"type": splitter}}
    (folder / "tokenizer.json").write_text(json.dumps(source), encoding="utf-8")
    tokenizer = Tokenizer.from_pretrained(folder)
    for name in ("[PAD]", "[CLS]", "[SEP]"):
        assert set(tokenizer.encode(f"the {name} king").ids[1:-1]) & tokenizer.special_ids <= {tokenizer.unk_id}
    assert tokenizer.mask_id not in tokenizer.encode_plain(["the [MASK] king"])[0]
