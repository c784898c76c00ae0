"""The tokenizer against the sentencepiece library, GPT-2's algorithm written out, and its own promises."""

from __future__ import annotations

import itertools
import json
import pickle
import string
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import sentencepiece

from unbraid.errors import InputError
from unbraid.text.tokenizer import Tokenizer, train_tokenizer

_BLOCKS = [
    (0x00, 0x20),  # control
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x300, 0x370),  # combining
    (0x400, 0x500),
    (0x590, 0x700),  # right to left
    (0x900, 0x980),
    (0x1100, 0x1200),  # jamo
    (0x2000, 0x2070),  # zero width, directions, spaces
    (0x3040, 0x3100),
    (0xAC00, 0xAD00),
    (0xFB00, 0xFB50),  # ligatures
    (0xFE00, 0xFE10),  # variation selectors
    (0xFF00, 0xFFF0),
    (0x1F300, 0x1F650),  # emoji
    (0x1F1E6, 0x1F200),  # flags
    (0xE0000, 0xE0080),
]
_ODD = [
    "",
    " ",
    "   ",
    "\0",
    "a\0b",
    "\n",
    "\t a\r\n",
    "é",
    "é",
    "ﬁne",
    "①②",
    "👨‍👩‍👧",
    "🇫🇷",
    "‮abc",
    "▁",
    "▁the",
    " the ",
]


def _random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(3)
    return [
        "".join(chr(rng.integers(*_BLOCKS[block])) for block in rng.integers(len(_BLOCKS), size=rng.integers(1, 30)))
        for _ in range(count)
    ]


def _spm(tokenizer: Tokenizer, folder: Path) -> sentencepiece.SentencePieceProcessor:
    tokenizer.save_pretrained(folder)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))


def _gpt2_bytes() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _gpt2_encode(text: str, vocabulary: dict[str, int], merges: list[list[str]]) -> list[int]:
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    spelling, ranks = _gpt2_bytes(), {tuple(pair): rank for rank, pair in enumerate(merges)}
    ids = []
    for word in regex.findall(pattern, text):
        parts = [spelling[byte] for byte in word.encode()]
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            first, second = min(pairs, key=ranks.__getitem__)
            merged, place = [], 0
            while place < len(parts):
                both = parts[place : place + 2] == [first, second]
                merged.append("".join(parts[place : place + 1 + both]))
                place += 1 + both
            parts = merged
        ids += [vocabulary[part] for part in parts]
    return ids


def test_unigram_ids_are_the_sentencepiece_librarys(unigram: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    library = _spm(unigram, tmp_path)
    texts = [*_ODD, *_random_texts(1500), *corpus[:200]]
    expected = [library.encode(text) for text in texts]
    assert [ids.tolist() for ids in unigram.encode_plain(texts)] == expected
    for encoding, ids in zip(unigram.encode_batch(texts), expected, strict=True):
        assert encoding.ids == [1, *ids, 2]


def test_bpe_ids_are_gpt2s(bpe: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    bpe.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    for text in [*_ODD, *corpus[:200], "I'll walk'd  \n\n  12 apples,they've x² ½ don't!!  "]:
        assert bpe.encode(text).ids[1:-1] == _gpt2_encode(text, model["vocab"], model["merges"]), text


def test_layout_of_the_ids(unigram: Tokenizer, bpe: Tokenizer) -> None:
    for tokenizer, size in ((unigram, 300), (bpe, 420)):
        assert len(tokenizer) == size
        assert [tokenizer.token(index) for index in (0, 1, 2, 3, size - 1)] == [
            "[PAD]",
            "[CLS]",
            "[SEP]",
            "[UNK]",
            "[MASK]",
        ]
        assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (0, 1, 2, 3)
        assert tokenizer.mask_id == size - 1
        assert tokenizer.special_ids == {0, 1, 2, 3, size - 1}
        assert tokenizer.token(size + 5) == "[UNK]"


def test_frame_of_a_text_and_of_a_pair(tokenizer: Tokenizer) -> None:
    first, second = (ids.tolist() for ids in tokenizer.encode_plain(["the king", "walked slowly"]))
    single = tokenizer.encode("the king")
    assert single.ids == [1, *first, 2]
    assert single.segments == [0] * (len(first) + 2)
    assert not single.truncated
    pair = tokenizer.encode("the king", "walked slowly")
    assert pair.ids == [1, *first, 2, *second, 2]
    assert pair.segments == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert tokenizer.encode("").ids == [1, 2]
    assert tokenizer.encode("", "").ids == [1, 2, 2]
    assert tokenizer.encode_batch([], []) == []


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, corpus: list[str]) -> None:
    texts = [*corpus[:20], "the [MASK], king", *_ODD, "[MASK][MASK]"]
    pairs = list(reversed(texts))
    for encoding, text, pair in zip(tokenizer.encode_batch(texts, pairs, max_length=24), texts, pairs, strict=True):
        alone = tokenizer.encode(text, pair, max_length=24)
        assert encoding == alone
        assert encoding.offsets == alone.offsets


def test_truncation_trims_the_longer_end_and_keeps_the_order(tokenizer: Tokenizer) -> None:
    short, long = "the king", "walked slowly to the old stone bridge of the village"
    first, second = (ids.tolist() for ids in tokenizer.encode_plain([short, long]))
    whole = len(first) + len(second) + 3
    for max_length in range(5, whole + 2):
        encoding = tokenizer.encode(short, long, max_length=max_length)
        border = encoding.ids.index(2)
        kept_first, kept_second = encoding.ids[1:border], encoding.ids[border + 1 : -1]
        assert len(encoding.ids) == len(encoding.segments) == len(encoding.offsets) == min(max_length, whole)
        assert encoding.truncated == (max_length < whole)
        assert kept_first == first[: len(kept_first)]
        assert kept_second == second[: len(kept_second)]
        assert kept_first == first or len(kept_second) in (len(kept_first), len(kept_first) - 1)
    alone = tokenizer.encode(long, max_length=6)
    assert alone.ids == [1, *second[:4], 2]
    assert alone.offsets == [*tokenizer.encode(long).offsets[:5], (0, 0)]


def test_offsets_spell_the_pieces(tokenizer: Tokenizer) -> None:
    text, pair = "  the king   walked, slowly-- ", "to London 1914"
    encoding = tokenizer.encode(text, pair)
    sources = {0: text, 1: pair}
    spelled = {0: "", 1: ""}
    for index, (start, end), segment in zip(encoding.ids, encoding.offsets, encoding.segments, strict=True):
        if index in tokenizer.special_ids:
            assert (start, end) == (0, 0)
        else:
            piece = sources[segment][start:end]
            assert piece == tokenizer.token(index).lstrip("▁Ġ")
            spelled[segment] += piece
    assert spelled == {0: "thekingwalked,slowly--", 1: "toLondon1914"}


def test_offsets_never_overlap(tokenizer: Tokenizer) -> None:
    for text in [*_ODD, *_random_texts(300), "x[MASK] é[MASK]😀 \u3000[MASK]"]:
        offsets = tokenizer.encode(text).offsets[1:-1]
        for (start, end), (following, _) in itertools.pairwise([*offsets, (len(text), len(text))]):
            assert 0 <= start <= end <= following, (text, offsets)
            assert text[start:end] == text[start:end].strip()


def test_offsets_cover_every_letter(unigram: Tokenizer, bpe: Tokenizer) -> None:
    for tokenizer, text in itertools.product((unigram, bpe), [*_ODD, *_random_texts(300), "é[MASK]é [MASK]"]):
        covered = {place for start, end in tokenizer.encode(text).offsets for place in range(start, end)}
        letters = {place for place, character in enumerate(text) if unicodedata.category(character)[0] in "LN"}
        assert letters <= covered, text


def test_the_last_piece_of_a_shared_character_has_it(bpe: Tokenizer) -> None:
    encoding = bpe.encode("a 😀b")
    assert encoding.offsets == [(0, 0), (0, 1), *[(2, 2)] * (len(encoding.ids) - 5), (2, 3), (3, 4), (0, 0)]
    assert len(encoding.ids) > 7


def test_characters_that_normalise_to_several_or_none(unigram: Tokenizer) -> None:
    text = "\ufb01\x01s\ufb03"  # the ligature fi, a control character, s, the ligature ffi
    encoding = unigram.encode(text)
    assert unigram.decode(encoding.ids) == "fisffi"
    assert [span for span in encoding.offsets if span[0] < span[1]] == [(0, 2), (2, 3), (3, 4)]


def test_a_mask_takes_the_place_of_a_word(tokenizer: Tokenizer) -> None:
    text, masked = "The queen of France, walked slowly (summer).", "The [MASK] of France, [MASK] slowly ([MASK])."
    encoding = tokenizer.encode(text)
    words = [(text.index(word), text.index(word) + len(word)) for word in ("queen", "walked", "summer")]
    expected: list[int] = []
    masked_words: list[tuple[int, int]] = []
    for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        word = next((word for word in words if word[0] <= start and end <= word[1]), None)
        if word is None or index in tokenizer.special_ids:
            expected.append(index)
        elif word not in masked_words:
            masked_words.append(word)
            expected.append(tokenizer.mask_id)
    assert expected.count(tokenizer.mask_id) == 3
    found = tokenizer.encode(masked)
    assert found.ids == expected
    assert [span for index, span in zip(found.ids, found.offsets, strict=True) if index == tokenizer.mask_id] == [
        (place, place + 6) for place in (4, 22, 37)
    ]
    assert tokenizer.decode(found.ids) == masked.replace("([", "( [")
    assert tokenizer.encode("[MASK]").ids == [1, tokenizer.mask_id, 2]


def test_a_mask_is_filled_and_the_rest_of_the_text_stays(tokenizer: Tokenizer) -> None:
    text = "The queen of France,\n walked  slowly (summer)."
    encoding = tokenizer.encode(text)
    pieces = [piece for piece in zip(encoding.ids, encoding.offsets, strict=True) if piece[1][0] < piece[1][1]]
    assert len(pieces) > 8
    for index, (start, end) in pieces:
        before, inside, after = text[:start], text[start:end], text[end:]
        filled = tokenizer.fill(f"{before}[MASK]{after}", [index])
        # A piece of the vocabulary that begins no word takes a space before it away.
        assert filled in (text, before.removesuffix(" ") + inside + after), (inside, filled)
    queen = [index for index, (start, end) in pieces if start >= 4 and end <= 9]
    assert tokenizer.fill(f"🐍  {'[MASK]' * len(queen)} of[MASK]", [*queen, queen[0]]).startswith("🐍  queen of ")
    assert tokenizer.fill("[MASK]  é", [tokenizer.pad_id]) == "  é"


def test_only_the_mask_is_read_from_a_text(tokenizer: Tokenizer) -> None:
    for name in ("[PAD]", "[CLS]", "[SEP]", "<s>", "[UNK]", "[mask]"):
        for text in (name, f"the {name} king", f"the{name}"):
            found = set(tokenizer.encode(text).ids[1:-1]) & (tokenizer.special_ids - {tokenizer.unk_id})
            assert not found, text
    assert tokenizer.mask_id not in tokenizer.encode_plain(["the [MASK] king"])[0]


def test_which_pieces_continue_a_word(unigram: Tokenizer, bpe: Tokenizer) -> None:
    byte_of = {character: byte for byte, character in _gpt2_bytes().items()}

    def alone(text: str) -> bool:
        category = unicodedata.category(text) if len(text) == 1 else ""
        return category == "Zs" or category[:1] in ("C", "P") or (len(text) == 1 and text in string.punctuation)

    for index in range(len(unigram)):
        piece = unigram.token(index)
        begins = index in unigram.special_ids or piece[0] == "▁" or alone(piece)
        assert unigram.continues_word[index] == (not begins), piece
    for index in range(len(bpe)):
        piece = bpe.token(index)
        if index in bpe.special_ids:
            assert not bpe.continues_word[index]
            continue
        text = bytes(byte_of[character] for character in piece).decode(errors="replace")
        assert bpe.continues_word[index] == (not (text[0] == " " or alone(text))), piece
    for tokenizer in (unigram, bpe):
        assert tokenizer.continues_word.shape == (len(tokenizer),)
        assert tokenizer.continues_word.dtype == bool
        text = "the walking king, well"
        words = "".join(
            " |"[int(tokenizer.continues_word[index])] + text[start:end]
            for index, (start, end) in zip(*_inner(tokenizer, text), strict=True)
        )
        assert words.replace("|", "") == " the walking king , well".removeprefix(" " * (words[0] != " "))


def _inner(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer.encode(text)
    return encoding.ids[1:-1], encoding.offsets[1:-1]


def test_decode_gives_the_text_back(tokenizer: Tokenizer, corpus: list[str]) -> None:
    plain = [text for text in corpus[:80] if unicodedata.is_normalized("NFKC", text)]
    for text in [*plain, "the [MASK] of [MASK]", "[MASK] king", ""]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.decode(np.array(tokenizer.encode("the king").ids)) == "the king"


def test_decode_names_what_is_unknown(unigram: Tokenizer) -> None:
    assert unigram.decode(unigram.encode("the 😀 king😀").ids) == "the [UNK] king[UNK]"
    assert unigram.decode([1, 10_000, 2]) == "[UNK]"


def test_a_long_line_is_encoded_whole(tokenizer: Tokenizer) -> None:
    for text in ("x" * 100_000, "the king " * 10_000, "é̂😀" * 20_000, " " * 100_000, "[MASK] " * 5_000):
        encoding = tokenizer.encode(text)
        assert len(encoding.ids) == len(encoding.offsets)
        assert encoding.offsets[-2][1] >= len(text.rstrip()) or not text.strip()


def test_a_tokenizer_and_an_encoding_can_go_to_another_process(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("the [MASK], king")
    again, copy = pickle.loads(pickle.dumps((tokenizer, encoding)))  # noqa: S301 (our own bytes)
    assert copy == encoding == again.encode("the [MASK], king")
    assert copy.offsets == encoding.offsets


def test_plain_arrays_can_be_written_to(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_plain(["the king"])
    assert ids.dtype == np.int32
    assert ids.flags.writeable


def test_bad_text_is_told_in_one_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="Text 1 holds a lone surrogate at character 2"):
        tokenizer.encode_batch(["fine", "no\ud800"])
    with pytest.raises(InputError, match="Text 0 holds a lone surrogate"):
        tokenizer.encode_plain(["\udfff"])
    with pytest.raises(InputError, match="Text 1 is of type float"):
        tokenizer.encode_plain(["fine", float("nan")])
    with pytest.raises(InputError, match="2 texts but 1 pairs"):
        tokenizer.encode_batch(["a", "b"], ["c"])
    with pytest.raises(InputError, match="max_length 2 leaves no room for text; give at least 3"):
        tokenizer.encode("a", max_length=2)
    with pytest.raises(InputError, match="give at least 5"):
        tokenizer.encode("a", "b", max_length=4)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_quiet_and_repeatable(
    kind: str, corpus: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        train_tokenizer((line for line in corpus), kind, 290).save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_tells_what_does_not_suit(kind: str, corpus: list[str]) -> None:
    with pytest.raises(InputError, match="vocab_size 100000 is too large for this text; give at most") as error:
        train_tokenizer(corpus[:30], kind, 100_000)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert len(train_tokenizer(corpus[:30], kind, most)) == most
    with pytest.raises(InputError, match=r"vocab_size 12 is too small .* give at least") as error:
        train_tokenizer(corpus[:30], kind, 12)
    least = int(str(error.value).split("at least ")[1].split(",")[0].rstrip("."))
    assert len(train_tokenizer(corpus[:30], kind, least)) == least
    for size in (0, -3):
        with pytest.raises(InputError, match="too small"):
            train_tokenizer(corpus[:30], kind, size)
    for lines in ([], ["", " \n"]):
        with pytest.raises(InputError, match="There is no text"):
            train_tokenizer(lines, kind, 300)
    with pytest.raises(InputError, match="Text 1 holds a lone surrogate"):
        train_tokenizer(["fine", "\ud800"], kind, 300)


def test_training_tells_of_text_that_normalises_to_nothing_and_of_bad_options() -> None:
    with pytest.raises(InputError, match="There is no text"):
        train_tokenizer(["\u200b"], "unigram", 300)
    with pytest.raises(InputError, match="kind 'words'; choose unigram or bpe"):
        train_tokenizer(["a"], "words", 300)
    with pytest.raises(InputError, match=r"character_coverage 0.5 is not from 0.98 to 1"):
        train_tokenizer(["a"], "unigram", 300, character_coverage=0.5)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_error_of_the_lines_is_the_callers_own(kind: str) -> None:
    def lines():
        yield "the king"
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        train_tokenizer(lines(), kind, 300)


def test_training_reads_lines_of_any_length(corpus: list[str]) -> None:
    line = " ".join(corpus)
    tokenizer = train_tokenizer([line * 3 + " ж" * 600], "unigram", 300)
    assert tokenizer.unk_id not in tokenizer.encode("ж").ids


def test_byte_fallback_spells_the_unknown(corpus: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(corpus, "unigram", 560, byte_fallback=True)
    encoding = tokenizer.encode("the 😀king")
    assert tokenizer.unk_id not in encoding.ids
    assert tokenizer.decode(encoding.ids) == "the 😀king"
    assert [tokenizer.token(index) for index in encoding.ids if tokenizer.token(index).startswith("<0x")] == [
        "<0xF0>",
        "<0x9F>",
        "<0x98>",
        "<0x80>",
    ]
    assert [span for span in encoding.offsets if span[0] == 4] == [(4, 4)] * (encoding.offsets.index((4, 5)) - 2) + [
        (4, 5)
    ]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "spm.model").unlink()
    as_json = Tokenizer.from_pretrained(tmp_path)
    assert as_json.encode("the 😀king") == encoding
    assert as_json.encode("the 😀king").offsets == encoding.offsets
    assert as_json.decode(encoding.ids) == "the 😀king"
