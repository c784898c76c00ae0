"""Configurations: strict, readable from every source, with the published sizes."""

from __future__ import annotations

import json

import pytest
import torch

from unbraid.errors import InputError
from unbraid.model.config import PRESETS, DebertaConfig, preset
from unbraid.model.pretrained import Deberta

PUBLISHED = {
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        model = Deberta(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_largest_model_is_of_the_published_class():
    with torch.device("meta"):
        model = Deberta(preset("deberta-v2-xxlarge"))
    assert 1.5e9 < sum(parameter.numel() for parameter in model.parameters()) < 1.6e9


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_json(name):
    config = preset(name)
    again = DebertaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    effective = {"norm_rel_ebd": config.to_dict()["norm_rel_ebd"], "embedding_size": config.hidden_size}
    assert again == config.replace(**effective)


def test_a_published_v3_configuration():
    fields = {
        "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 512, "relative_attention": True, "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7,
        "max_relative_positions": -1, "position_biased_input": False, "num_attention_heads": 12,
        "num_hidden_layers": 12, "type_vocab_size": 0, "vocab_size": 128100,
    }  # fmt: skip
    assert DebertaConfig.from_dict(fields).replace(pos_att_type=("c2p", "p2c")) == preset("deberta-v3-base")


def test_a_published_v1_configuration():
    fields = {
        "model_type": "deberta", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12,
        "intermediate_size": 3072, "relative_attention": True, "pos_att_type": "c2p|p2c", "vocab_size": 50265,
        "position_biased_input": False, "max_relative_positions": -1, "type_vocab_size": 0, "padding_idx": 0,
        "attention_head_size": 64, "layer_norm_eps": 1e-7, "max_position_embeddings": 512, "vocab_type": "gpt2",
    }  # fmt: skip
    assert DebertaConfig.from_dict(fields) == preset("deberta-base")


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer_class": "DebertaV2Tokenizer", "sep_token_id": 2, "prefix": None},
        {"_attn_implementation_autoset": True, "torchscript": False, "auto_map": {"AutoModel": "m.M"}},
        {"sentence_transformers": {"version": "4.1.0"}, "output_past": True},
        {"max_length": 20, "num_beams": 1, "do_sample": False},
        {"classifier_dropout": None, "position_embedding_type": "absolute", "quantization_config": None},
        {"pruned_heads": {}, "add_cross_attention": False},
    ],
    ids=str,
)
def test_what_transformers_adds_means_nothing_here(fields):
    plain = preset("deberta-v3-small").to_dict()
    assert DebertaConfig.from_dict(plain | fields) == DebertaConfig.from_dict(plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"classifier_dropout": 0.2},
        {"position_embedding_type": "relative_key"},
        {"pruned_heads": {"1": [0]}},
        {"quantization_config": {"load_in_8bit": True}},
    ],
    ids=str,
)
def test_what_would_change_the_numbers_is_refused(fields):
    with pytest.raises(InputError, match=f"unknown field '{next(iter(fields))}'"):
        DebertaConfig.from_dict(preset("deberta-v3-small").to_dict() | fields)


@pytest.mark.parametrize("written", [["c2p", "p2c"], "c2p|p2c", " C2P | p2c "])
def test_position_terms_as_a_list_or_a_string(written):
    fields = {"relative_attention": True, "pos_att_type": written}
    assert DebertaConfig.from_dict(fields).pos_att_type == ("c2p", "p2c")


@pytest.mark.parametrize("written", [[], "none", None, ["none"]])
def test_no_position_terms(written):
    assert DebertaConfig.from_dict({"pos_att_type": written}).pos_att_type == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": 3}, "unknown field 'hidden_sizes'"),
        (
            {"hidden_size": 10, "num_attention_heads": 3},
            r"num_attention_heads \(3\) does not divide hidden_size \(10\)",
        ),
        ({"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
        ({"attention_head_size": 32}, "attention_head_size 32 times 12 heads is not hidden_size 768"),
        ({"talking_head": True}, "talking_head"),
        ({"pos_att_type": "c2p"}, "relative_attention is false"),
        ({"relative_attention": True, "pos_att_type": "c2c"}, "pos_att_type"),
        ({"relative_attention": True, "pos_att_type": "c2p|c2p"}, "names a term twice"),
        ({"position_buckets": 8, "max_relative_positions": 1}, "max_relative_positions of at least 2"),
        ({"conv_kernel_size": 4}, "must be odd"),
        ({"model_type": "deberta", "position_buckets": 256}, r"model_type deberta \(v1\) has no position_buckets"),
        ({"model_type": "bert"}, "model_type"),
        ({"pos_att_type": 5}, "pos_att_type: Input should be a valid tuple"),
        ({"pos_att_type": ["c2p", 5]}, "pos_att_type.1"),
        ({"position_buckets": "many"}, "position_buckets: Input should be a valid integer"),
        ({"id2label": {"1": "yes"}}, "without a gap"),
    ],
)
def test_bad_fields_are_one_sentence(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        DebertaConfig.from_dict(fields)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(InputError, match="deberta-v3-base"):
        preset("deberta-v4")


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        DebertaConfig.from_file(tmp_path / "config.json")


def test_constructed_directly_it_is_strict_too():
    with pytest.raises(InputError):
        DebertaConfig(hidden_width=3)
