"""LoRA: what is trained, the merged model, and what peft and transformers read."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import (
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from unbraid.tasks.config import LoraConfig
from unbraid.tasks.lora import add_adapters, merged, save_adapter

IDS = torch.tensor([[1, 5, 9, 7, 2], [1, 8, 2, 0, 0]])
MASK = (IDS > 0).long()
LORA = LoraConfig(rank=3, alpha=5, targets=("query", "value", "output", "up", "down"))


def drawn(kind=DebertaForSequenceClassification, **fields):
    """A small model with large weights."""
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label={0: "a", 1: "b", 2: "c"}, **{"position_buckets": 4, **fields},
    )  # fmt: skip
    return draw(kind(config)).eval()


def draw(model, names=""):
    """Large weights where a name holds some text."""
    for name, weight in model.named_parameters():
        if names in name:
            torch.nn.init.normal_(weight, 1.0 if "norm.weight" in name else 0.0, 0.1 if "norm.weight" in name else 0.3)
    return model


def adapted(*arguments, **fields):
    """With adapters, which start at 0, as after some training."""
    model = drawn(*arguments, **fields)
    add_adapters(model, LORA)
    return draw(model, "lora_")


def answers(model):
    ids, mask = (IDS[:, None], MASK[:, None]) if model.architecture == "ForMultipleChoice" else (IDS, MASK)
    with torch.no_grad():
        return model(ids, mask)


def test_adapters_and_head_are_trained():
    model = drawn()
    before = answers(model).logits
    add_adapters(model, LoraConfig(rank=3))
    assert torch.equal(answers(model).logits, before), "an adapter starts as nothing"
    trained = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    layers = {
        f"deberta.encoder.layers.{layer}.attention.{target}.lora_{matrix}.default.weight": shape
        for layer in range(2)
        for target in ("query", "value")
        for matrix, shape in (("A", (3, 12)), ("B", (12, 3)))
    }
    head = {"pooler.dense.weight": (12, 12), "pooler.dense.bias": (12,)}
    assert trained == {**layers, **head, "classifier.weight": (3, 12), "classifier.bias": (3,)}


def test_merged_weights_by_hand():
    model = adapted()
    state = model.state_dict()
    name = "deberta.encoder.layers.1.up"
    product = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    found = merged(model).state_dict()
    torch.testing.assert_close(found[f"{name}.weight"], state[f"{name}.base_layer.weight"] + 5 / 3 * product)
    assert torch.equal(found["classifier.weight"], state["classifier.weight"])
    assert found.keys() == drawn().state_dict().keys()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_merged_model_computes_the_same(own, grad):
    model = adapted(share_att_key=not own)
    with torch.set_grad_enabled(grad):
        ours, theirs = merged(model).eval()(IDS, MASK).logits, model(IDS, MASK).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - answers(drawn(share_att_key=not own)).logits).abs().max() > 0.01


HEADS = {
    DebertaForSequenceClassification: transformers.AutoModelForSequenceClassification,
    DebertaForTokenClassification: transformers.AutoModelForTokenClassification,
    DebertaForQuestionAnswering: transformers.AutoModelForQuestionAnswering,
    DebertaForMultipleChoice: transformers.AutoModelForMultipleChoice,
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.architecture)
def test_peft_and_transformers_read_the_adapter(kind, tmp_path):
    """On the model that was adapted, whose head is another one, they have the logits of ours."""
    drawn(kind).save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": None}))
    model = adapted(kind)
    head = [name for name, _ in model.named_children() if name != "deberta"]
    for name in head:
        draw(model, f"{name}.")
    assert head
    save_adapter(model, LORA, str(tmp_path / "base"), tmp_path / "adapter")
    settings = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert settings.base_model_name_or_path == str(tmp_path / "base")

    fields = {} if kind is DebertaForQuestionAnswering else {"num_labels": 3}
    base = HEADS[kind].from_pretrained(tmp_path / "base", **fields)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = answers(model)
    with torch.no_grad():
        if kind is DebertaForMultipleChoice:
            output = theirs(input_ids=IDS[:, None], attention_mask=MASK[:, None])
        else:
            output = theirs(input_ids=IDS, attention_mask=MASK)
    real = MASK.bool()
    if kind is DebertaForQuestionAnswering:
        pairs = [
            (ours.start_logits[real], output.start_logits[real]),
            (ours.end_logits[real], output.end_logits[real]),
        ]
    elif kind is DebertaForTokenClassification:
        pairs = [(ours.logits[real], output.logits[real])]
    else:
        pairs = [(ours.logits, output.logits)]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_is_small(tmp_path):
    save_adapter(adapted(), LORA, "base", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 5 * 2 + 4
    assert sum(tensor.numel() for tensor in tensors.values()) < 0.5 * sum(p.numel() for p in drawn().parameters())


def test_v1_has_no_adapter_of_its_own(tmp_path):
    model = drawn(model_type="deberta", position_buckets=None, share_att_key=False, norm_rel_ebd="none")
    add_adapters(model, LoraConfig(rank=2, targets=("query", "pos_key")))
    save_adapter(model, LoraConfig(rank=2, targets=("query", "pos_key")), "base", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    draw(model, "lora_")
    merged(model).save_pretrained(tmp_path / "model")
    again = DebertaForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(answers(again).logits, answers(model).logits, rtol=1e-4, atol=1e-5)


def test_a_projection_that_is_not_there():
    with pytest.raises(InputError, match=r"have no pos_key: choose lora.targets among query, key, value, output, up"):
        add_adapters(drawn(), LoraConfig(rank=2, targets=("query", "pos_key")))


@pytest.mark.parametrize("fields", [{"alpha": 3}, {"rank": -1}, {"rank": 1, "targets": ()}, {"rank": 1, "dropout": 1}])
def test_settings_that_are_refused(fields):
    with pytest.raises(ValueError, match=r"lora\.rank is 0|greater than or equal|at least 1 item|less than 1"):
        LoraConfig(**fields)
