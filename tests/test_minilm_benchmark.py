"""benchmarks/minilm.py: a BERT that it converts says what transformers' BERT says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizer

from unbraid import Deberta, Tokenizer
from unbraid.errors import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PIECES = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    *["the", "film", "was", "good", "bad", "un", "naive", ".", ",", "!", "##ly", "##s", "##good", "##ness"],
]
TEXTS = ["The FILM was good.", "bad, BAD!", "Naïve  films ungoodly\x00 goodness", "the [MASK] was nothing"]
PAIRS = ["Was the film bad?", "good", "unfilms!", "The films, the film, the goodness of the film."]


@pytest.fixture
def minilm(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("minilm")


@pytest.fixture
def bert(tmp_path) -> Path:
    """A small BERT with large random weights, as a folder."""
    folder = tmp_path / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    for name, parameter in model.named_parameters():
        mean, std = (1.0, 0.1) if name.endswith("LayerNorm.weight") else (0.0, 0.3)
        torch.nn.init.normal_(parameter, mean, std)
    model.save_pretrained(folder)
    engine = tokenizers.Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]")  # noqa: S106, a token of text
    )
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.add_special_tokens(PIECES[:5])
    engine.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.enable_padding(length=20)
    engine.save(str(folder / "tokenizer.json"))
    return folder


def test_states_and_ids_are_transformers(minilm, bert, tmp_path):
    minilm.convert(bert, tmp_path / "ours")
    theirs, model = BertModel.from_pretrained(bert).eval(), Deberta.from_pretrained(tmp_path / "ours")
    fast, tokenizer = BertTokenizer.from_pretrained(bert), Tokenizer.from_pretrained(tmp_path / "ours")
    for pairs in (None, PAIRS):
        batch = fast(TEXTS, pairs, padding=True, return_tensors="pt")
        real = batch["attention_mask"].bool()
        found = tokenizer.encode_batch(TEXTS, pairs)
        assert [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], real, strict=True)] == [
            encoding.ids for encoding in found
        ]
        kinds = batch["token_type_ids"]
        assert kinds[real].tolist() == [kind for encoding in found for kind in encoding.segments]
        assert bool(kinds.any()) == (pairs is not None)
        with torch.no_grad():
            expected = theirs(**batch).last_hidden_state
            states = model(batch["input_ids"], batch["attention_mask"], kinds).last_hidden_state
        assert expected[real].std() > 0.5
        torch.testing.assert_close(states[real], expected[real], rtol=0, atol=1e-5)
        assert not states[~real].any()


def test_a_package_is_found_by_its_name(minilm, bert, tmp_path, monkeypatch):
    (tmp_path / "packaged_bert").mkdir()
    (tmp_path / "packaged_bert/__init__.py").touch()
    bert.rename(tmp_path / "packaged_bert/model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    minilm.convert(minilm.located("packaged_bert"), tmp_path / "ours")
    assert Deberta.from_pretrained(tmp_path / "ours").config.num_hidden_layers == 3
    with pytest.raises(InputError, match="neither a folder nor an installed package"):
        minilm.located("no_such_package")


def test_what_is_no_bert_is_told(minilm, bert, tmp_path):
    fields = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    for changes in ({"model_type": "roberta"}, {"position_embedding_type": "relative_key"}):
        (bert / "config.json").write_text(json.dumps(fields | changes), encoding="utf-8")
        with pytest.raises(InputError, match="give a BERT with absolute ones"):
            minilm.convert(bert, tmp_path / "ours")
    (bert / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        minilm.convert(bert, tmp_path / "ours")
