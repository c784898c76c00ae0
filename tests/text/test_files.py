"""Tokenizers on disk: ours and transformers' read each other's."""

from __future__ import annotations

import io
import json
from pathlib import Path

import huggingface_hub
import pytest
import sentencepiece
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import models

from unbraid.errors import InputError
from unbraid.text.tokenizer import Tokenizer

_TEXTS = [
    "The king walked slowly, to Paris.",
    "  café  naïve\tsquare ",
    "日本語 день (1914)",
    "１２ ﬁne ①",
    "the [MASK] of France, [MASK].",
]


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_saved_tokenizer_is_read_back(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    again = Tokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert len(again) == len(tokenizer)
    assert again.special_ids == tokenizer.special_ids
    assert again.encode_batch(_TEXTS) == tokenizer.encode_batch(_TEXTS)
    again.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / "folder" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("before", "after"), [("unigram", "bpe"), ("bpe", "unigram")])
def test_a_tokenizer_takes_the_place_of_another(
    before: str, after: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = request.getfixturevalue(after)
    request.getfixturevalue(before).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer.encode_batch(_TEXTS)
    assert Tokenizer.from_pretrained(tmp_path).encode_batch(_TEXTS) == expected
    _edit(tmp_path / "config.json", model_type="deberta-v2")
    assert AutoTokenizer.from_pretrained(tmp_path)(_TEXTS)["input_ids"] == [each.ids for each in expected]


@pytest.mark.parametrize(("kind", "model_type"), [("unigram", "deberta-v2"), ("bpe", "deberta")])
def test_transformers_gives_the_same_ids(
    kind: str, model_type: str, request: pytest.FixtureRequest, corpus: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    _edit(tmp_path / "config.json", model_type=model_type)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*_TEXTS, *corpus[:200]]
    pairs = list(reversed(texts))
    assert theirs(texts)["input_ids"] == [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    found, expected = theirs(texts, pairs), tokenizer.encode_batch(texts, pairs)
    assert found["input_ids"] == [encoding.ids for encoding in expected]
    assert found["token_type_ids"] == [encoding.segments for encoding in expected]
    assert len(theirs) == len(tokenizer)
    names = ("pad", "cls", "sep", "unk", "mask")
    assert [getattr(theirs, f"{name}_token_id") for name in names] == [
        getattr(tokenizer, f"{name}_id") for name in names
    ]


def test_a_unigram_tokenizer_that_transformers_wrote(unigram: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    from transformers import DebertaV2Tokenizer

    unigram.save_pretrained(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    theirs = DebertaV2Tokenizer(vocab=[(piece, score) for piece, score in vocabulary], unk_id=3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Tokenizer.from_pretrained(tmp_path / "theirs")
    texts = ["  two  spaces\nand a line ", "е́ combining", "the [MASK] of France", *corpus[:100]]
    assert ours.mask_id == theirs.mask_token_id == len(vocabulary)
    assert [encoding.ids for encoding in ours.encode_batch(texts)] == theirs(texts)["input_ids"]
    assert ours.encode("the [MASK], king").ids == unigram.encode("the [MASK], king").ids


def test_a_bpe_tokenizer_that_transformers_wrote(bpe: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    from transformers import DebertaTokenizer

    bpe.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    theirs = DebertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Tokenizer.from_pretrained(tmp_path / "theirs")
    texts = [*_TEXTS[:-1], *corpus[:100]]  # theirs leaves the space before [MASK] a token of its own
    assert [encoding.ids for encoding in ours.encode_batch(texts)] == theirs(texts)["input_ids"]
    assert ours.encode("a", "b").ids.count(ours.sep_id) == 2  # theirs has three


def _write_v1(folder: Path, bpe: Tokenizer) -> None:
    bpe.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def test_vocabulary_and_merges_of_v1(bpe: Tokenizer, tmp_path: Path) -> None:
    _write_v1(tmp_path, bpe)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.special_ids == bpe.special_ids
    assert tokenizer.encode_batch(_TEXTS) == bpe.encode_batch(_TEXTS)


def test_gpt2s_own_files_get_the_layout_of_v1(bpe: Tokenizer, tmp_path: Path) -> None:
    _write_v1(tmp_path, bpe)
    theirs = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    plain = [token for token in theirs if token not in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")]
    plain = plain[100:] + plain[:100]
    vocabulary = {token: index for index, token in enumerate(plain)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(InputError, match=r"vocab.json lacks \[PAD\]; read GPT-2's own files with from_gpt2"):
        Tokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert [tokenizer.token(index) for index in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert tokenizer.mask_id == len(plain) + 4 == len(tokenizer) - 1
    expected = [[vocabulary[bpe.token(index)] + 4 for index in ids] for ids in bpe.encode_plain(_TEXTS)]
    assert [ids.tolist() for ids in tokenizer.encode_plain(_TEXTS)] == expected
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.from_gpt2(tmp_path / "encoder.json", tmp_path / "merges.txt")


@pytest.fixture
def bare_spm(unigram: Tokenizer, tmp_path: Path) -> Path:
    """A folder as the released v2 and v3 models have it: ``spm.model`` alone."""
    unigram.save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "spm.model":
            path.unlink()
    return tmp_path


def test_a_bare_spm_model_has_its_mask_after_the_pieces(bare_spm: Path, unigram: Tokenizer) -> None:
    _edit(bare_spm / "tokenizer_config.json", do_lower_case=False, vocab_type="spm")
    tokenizer = Tokenizer.from_pretrained(bare_spm)
    assert tokenizer.mask_id == 299
    assert tokenizer.encode_batch(_TEXTS) == unigram.encode_batch(_TEXTS)


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_are_read_wherever_they_stand(bare_spm: Path, where: str) -> None:
    tokens = {"[MASK]": 330, "<<ENT>>": 331}
    if where == "added_tokens.json":
        _edit(bare_spm / where, **tokens)
    elif where == "tokenizer_config.json":
        _edit(bare_spm / where, added_tokens_decoder={str(i): {"content": token} for token, i in tokens.items()})
    else:
        _edit(bare_spm / where, added_tokens=[{"id": i, "content": token} for token, i in tokens.items()])
    tokenizer = Tokenizer.from_pretrained(bare_spm)
    assert tokenizer.mask_id == 330
    assert len(tokenizer) == 332
    assert tokenizer.token(325) == "[UNK]"
    assert not tokenizer.continues_word[299:].any()
    plain = tokenizer.encode("the king, walked").ids
    found = tokenizer.encode("the <<ENT>> king<<ENT>>, walked")
    assert found.ids.count(331) == 2
    assert [index for index in found.ids if index != 331] == plain
    assert tokenizer.decode(found.ids) == "the <<ENT>> king <<ENT>>, walked"
    tokenizer.save_pretrained(bare_spm / "again")
    assert Tokenizer.from_pretrained(bare_spm / "again").encode("the <<ENT>> king") == tokenizer.encode(
        "the <<ENT>> king"
    )


def test_special_tokens_of_other_names(corpus: list[str], tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=280, pad_id=3, minloglevel=2
    )
    (tmp_path / "spm.model").write_bytes(model.getvalue())
    names = {
        "pad": "<pad>",
        "cls": "<s>",
        "sep": {"content": "</s>", "lstrip": False},
        "unk": "<unk>",
        "mask": "<mask>",
    }
    _edit(tmp_path / "tokenizer_config.json", **{f"{role}_token": name for role, name in names.items()})
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    ids = (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 280)
    assert tokenizer.encode("the <mask> king").ids.count(280) == 1
    (tmp_path / "tokenizer_config.json").unlink()
    appended = Tokenizer.from_pretrained(tmp_path)
    ids = (appended.unk_id, appended.pad_id, appended.cls_id, appended.sep_id, appended.mask_id)
    assert ids == (0, 280, 281, 282, 283)


def test_a_name_is_asked_of_the_hub(bare_spm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:  # noqa: ARG001, called as the hub is
        asked[name] = allow_patterns
        return str(bare_spm)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert len(Tokenizer.from_pretrained("someone/something")) == 300
    assert "spm.model" in asked["someone/something"]
    assert not any(pattern.endswith(("safetensors", "bin", "*")) for pattern in asked["someone/something"])


def test_what_cannot_be_read_is_told_in_one_sentence(
    bare_spm: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand much more")

    with pytest.raises(InputError, match="no/such/folder is neither a folder nor a model"):
        Tokenizer.from_pretrained("no/such/folder")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"^someone/something is neither .* \(no connection\)\.$"):
        Tokenizer.from_pretrained("someone/something")

    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"holds no spm.model, no tokenizer.json"):
        Tokenizer.from_pretrained(empty)

    _edit(bare_spm / "tokenizer_config.json", do_lower_case=True)
    with pytest.raises(InputError, match=r"sets do_lower_case, which needs a tokenizer.json"):
        Tokenizer.from_pretrained(bare_spm)
    (bare_spm / "tokenizer_config.json").unlink()
    model = (bare_spm / "spm.model").read_bytes()
    (bare_spm / "spm.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(InputError, match="not a SentencePiece model, or is cut short"):
        Tokenizer.from_pretrained(bare_spm)

    folder = tmp_path_factory.mktemp("bpe")
    bpe.save_pretrained(folder)
    source = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    wordpiece = json.loads(models.WordPiece({"a": 0}).__getstate__())
    for damaged, sentence in (
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "holds no vocabulary"),
        (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}}}), "its type is WordLevel"),
        (json.dumps({"model": wordpiece | {"unk_token": "?"}}), "no id for its unknown token \\?"),
        (json.dumps(source | {"model": source["model"] | {"merges": [["no", "such"]]}}), "is damaged"),
    ):
        (folder / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match=sentence):
            Tokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.from_pretrained(folder)
