"""Reading and writing models: strict, whole, and intact whatever happens."""

from __future__ import annotations

import errno
import json
import os

import pytest
import safetensors.torch
import torch

from unbraid import files
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.precision import set_precision
from unbraid.model.pretrained import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
V1 = {"model_type": "deberta", "position_buckets": None, "share_att_key": False, "norm_rel_ebd": "none"}
IDS = torch.arange(1, 11).view(2, 5)


@pytest.fixture
def folder(tmp_path):
    DebertaForMaskedLM(DebertaConfig(**SMALL, position_buckets=8)).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize("fields", [{"position_buckets": 8}, V1, {"position_buckets": 8, "conv_kernel_size": 3}])
@pytest.mark.parametrize("head", [Deberta, DebertaForMaskedLM, DebertaForReplacedTokenDetection])
def test_round_trip(tmp_path, head, fields):
    model = head(DebertaConfig(**SMALL, **fields)).eval()
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_v1_packs_its_projections_head_by_head(tmp_path):
    model = Deberta(DebertaConfig(**SMALL, **V1))
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    attention = model.encoder.layers[1].attention
    packed = tensors["deberta.encoder.layer.1.attention.self.in_proj.weight"]
    assert torch.equal(packed[0:4], attention.query.weight[0:4])
    assert torch.equal(packed[4:8], attention.key.weight[0:4])
    assert torch.equal(packed[8:12], attention.value.weight[0:4])
    assert torch.equal(packed[12:16], attention.query.weight[4:8])
    assert torch.equal(tensors["deberta.encoder.layer.1.attention.self.q_bias"], attention.query.bias)
    assert "deberta.encoder.layer.1.attention.self.pos_proj.weight" in tensors
    assert "deberta.encoder.layer.1.attention.self.pos_q_proj.bias" in tensors


@pytest.mark.parametrize("prefix", ["", "bert.", "deberta."])
def test_names_without_and_with_an_old_prefix(folder, prefix):
    expected = Deberta.from_pretrained(folder)(IDS).last_hidden_state

    def rename(tensors):
        for name in [name for name in tensors if name.startswith("deberta.")]:
            tensors[prefix + name.removeprefix("deberta.")] = tensors.pop(name)

    change(folder, rename)
    assert torch.equal(Deberta.from_pretrained(folder)(IDS).last_hidden_state, expected)


def test_bin_files_and_microsofts_configuration(folder):
    expected = DebertaForMaskedLM.from_pretrained(folder)(IDS).logits
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    fields = json.loads((folder / "config.json").read_text())
    fields = {name: fields[name] for name in (*SMALL, "relative_attention", "position_buckets", "norm_rel_ebd")}
    fields |= {"share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "padding_idx": 0}
    (folder / "model_config.json").write_text(json.dumps(fields | {"pooling": {"dropout": 0, "hidden_act": "gelu"}}))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    assert torch.allclose(DebertaForMaskedLM.from_pretrained(folder)(IDS).logits, expected)


class Harmful:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_bin_files_execute_nothing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="damaged or no weight file"):
        Deberta.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_released_checkpoints_hold_more_than_one_model_needs(folder):
    """v3 files carry both heads and the difference to the generator's table."""

    def add(tensors):
        tensors["mask_predictions.dense.weight"] = torch.zeros(12, 12)
        tensors["deberta.embeddings.word_embeddings._weight"] = torch.ones(50, 12)
        tensors["deberta.embeddings.position_ids"] = torch.arange(16)[None]

    expected = DebertaForMaskedLM.from_pretrained(folder)(IDS).logits
    change(folder, add)
    assert torch.equal(DebertaForMaskedLM.from_pretrained(folder)(IDS).logits, expected)


def test_new_heads_are_named_by_the_caller(folder):
    with pytest.raises(InputError, match=r"lacks pooler.dense.weight.*new=\('classifier', 'pooler'\)"):
        DebertaForSequenceClassification.from_pretrained(folder)
    model = DebertaForSequenceClassification.from_pretrained(folder, new=("pooler", "classifier"), num_labels=5)
    assert model(IDS).logits.shape == (2, 5)
    assert model.classifier.weight.std() > 0
    with pytest.raises(InputError, match="no module head to start fresh"):
        DebertaForSequenceClassification.from_pretrained(folder, new=("head",))


def test_one_new_module_may_be_named_alone(folder):
    torch.manual_seed(0)
    model = DebertaForMaskedLM.from_pretrained(folder, new="vocabulary")
    assert not torch.equal(
        model.vocabulary.dense.weight, DebertaForMaskedLM.from_pretrained(folder).vocabulary.dense.weight
    )


@pytest.mark.parametrize("fields", [{"position_buckets": 8}, V1])
def test_parts_of_the_bare_encoder_start_fresh_too(tmp_path, fields):
    Deberta(DebertaConfig(**SMALL, **fields)).save_pretrained(tmp_path)
    before = Deberta.from_pretrained(tmp_path)
    model = Deberta.from_pretrained(tmp_path, new=("embeddings",), vocab_size=70)
    assert model.embeddings.word.weight.shape == (70, 12)
    for ours, other in zip(model.encoder.parameters(), before.encoder.parameters(), strict=True):
        assert torch.equal(ours, other)
    model = Deberta.from_pretrained(tmp_path, new=("encoder",), num_hidden_layers=3)
    assert torch.equal(model.embeddings.word.weight, before.embeddings.word.weight)
    assert not torch.equal(model.encoder.layers[0].up.weight, before.encoder.layers[0].up.weight)


def test_transformers_drops_the_decoders_positions(folder):
    change(folder, lambda tensors: tensors.pop("deberta.embeddings.position_embeddings.weight"))
    with pytest.raises(InputError, match="mask_decoder_passes=0"):
        DebertaForMaskedLM.from_pretrained(folder)
    assert DebertaForMaskedLM.from_pretrained(folder, mask_decoder_passes=0).decoder is None


def test_weights_are_read_in_float32(folder):
    change(folder, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
    assert {p.dtype for p in Deberta.from_pretrained(folder).parameters()} == {torch.float32}


def test_weights_are_written_in_half_the_bytes(tmp_path):
    model = DebertaForMaskedLM(DebertaConfig(**SMALL, position_buckets=8))
    model.save_pretrained(tmp_path, torch.float16)
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    for (name, parameter), other in zip(
        model.named_parameters(), DebertaForMaskedLM.from_pretrained(tmp_path).parameters(), strict=True
    ):
        assert torch.equal(parameter.half().float(), other), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_weight_too_large_for_float16_is_named(tmp_path):
    model = DebertaForMaskedLM(DebertaConfig(**SMALL, position_buckets=8))
    with torch.no_grad():
        model.deberta.encoder.layers[1].up.weight[3, 2] = 7e4
    with pytest.raises(InputError, match=r"layer\.1\.intermediate\.dense\.weight has weights beyond the range"):
        model.save_pretrained(tmp_path, torch.float16)
    assert not (tmp_path / "model.safetensors").exists()
    model.save_pretrained(tmp_path, torch.bfloat16)


LAYER = "deberta.encoder.layer.0"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.output.dense.bias"), f"lacks {LAYER}.output.dense.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra has no place in this model"),
        (lambda t: t.update({f"{LAYER}.output.dense.bias": torch.zeros(13)}), r"has shape \(13,\).*asks for \(12,\)"),
        (lambda t: t.update({f"{LAYER}.output.dense.bias": torch.full((12,), torch.nan)}), "holds NaN or infinity"),
    ],
)
def test_a_wrong_tensor_is_named(folder, edit, message):
    change(folder, edit)
    with pytest.raises(InputError, match=message) as caught:
        DebertaForMaskedLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_told(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged or no weight file"):
        Deberta.from_pretrained(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a model"):
        Deberta.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no model.safetensors and no pytorch_model.bin"):
        Deberta.from_pretrained(tmp_path)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-00002-of-00002.*, which is not in its folder"):
        Deberta.from_pretrained(folder)


@pytest.mark.parametrize("value", [1, None, ["a"]])
def test_an_index_of_something_else_is_told(folder, value):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": value}}))
    with pytest.raises(InputError, match="is not an index of weight files"):
        Deberta.from_pretrained(folder)


def test_a_model_of_whole_numbers_is_not_written(folder):
    model = Deberta.from_pretrained(folder)
    set_precision(model, "int8")
    with pytest.raises(InputError, match="int8 weights is for inference only"):
        model.save_pretrained(folder / "int8")
    assert not (folder / "int8").exists()


def test_a_full_disk_leaves_what_was_there(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        DebertaForMaskedLM(DebertaConfig(**SMALL, position_buckets=8)).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
