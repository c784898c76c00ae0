"""transformers' own classes against ours, on real tokens, both directions of the checkpoint.

Every configuration of the product is checked with one of the heads in turn, each with weights drawn large.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from torch import nn

from unbraid.errors import InputError
from unbraid.model import checkpoint, pretrained
from unbraid.model.config import DebertaConfig

TOLERANCE = 1e-5
HEADS = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
OURS = {
    "Model": pretrained.Deberta,
    "ForMaskedLM": pretrained.DebertaForMaskedLM,
    "ForSequenceClassification": pretrained.DebertaForSequenceClassification,
    "ForTokenClassification": pretrained.DebertaForTokenClassification,
    "ForQuestionAnswering": pretrained.DebertaForQuestionAnswering,
    "ForMultipleChoice": pretrained.DebertaForMultipleChoice,
}
SMALL = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "layer_norm_eps": 1e-7,
    "mask_decoder_passes": 0,
}
TERMS = [(), ("c2p",), ("p2c",), ("c2p", "p2c")]


def configurations() -> list[DebertaConfig]:
    plain = {"relative_attention": False, "pos_att_type": (), "norm_rel_ebd": "none"}
    configs = [DebertaConfig(**SMALL, **plain, position_biased_input=True)]
    v2 = itertools.product(TERMS, (True, False), (None, 8), ("none", "layer_norm"), (0, 3), (True, False))
    for index, (terms, shared, buckets, norm, kernel, absolute) in enumerate(v2, len(configs)):
        config = DebertaConfig(
            **SMALL,
            pos_att_type=terms,
            share_att_key=shared,
            position_buckets=buckets,
            norm_rel_ebd=norm,
            conv_kernel_size=kernel,
            conv_act=("tanh", "gelu")[index % 2],
            position_biased_input=absolute,
            type_vocab_size=(0, 2)[index % 3 == 0],
            embedding_size=(None, 16)[index % 5 == 1 and HEADS[index % 5] != "ForMaskedLM"],
            hidden_act=("gelu", "gelu_new", "relu", "silu")[index % 4],
            max_relative_positions=(None, 20)[index % 7 == 0],
            id2label={i: f"name {i}" for i in range(3 if HEADS[index % 5] != "ForQuestionAnswering" else 2)},
        )
        configs.append(config)
    v1 = {"model_type": "deberta", "position_buckets": None, "share_att_key": False, "norm_rel_ebd": "none"}
    for terms, absolute, types in itertools.product(TERMS, (True, False), (0, 2)):
        config = DebertaConfig(**SMALL, **v1, pos_att_type=terms, position_biased_input=absolute, type_vocab_size=types)
        configs.append(config)
    return configs


CONFIGS = configurations()


def test_there_are_many_configurations():
    assert len(set(map(repr, CONFIGS))) >= 140


def inputs(config: DebertaConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(3, 19, dtype=torch.int64)
    mask[1, 11:] = 0
    mask[2, 7] = 0
    mask[2, 17:] = 0
    return {
        "input_ids": torch.randint(0, config.vocab_size, mask.shape, generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, max(1, config.type_vocab_size), mask.shape, generator=generator),
    }


@torch.no_grad()
def draw_large(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.3, generator=generator)


def outputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What a model says of real tokens."""
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        output = model(**batch)
    names = ["last_hidden_state", "logits", "start_logits", "end_logits"]
    found = [value for name in names if (value := getattr(output, name, None)) is not None]
    return [value[real] if value.shape[: real.dim()] == real.shape else value for value in found]


def theirs_class(config: DebertaConfig, head: str):
    return getattr(transformers, ("Deberta" if config.model_type == "deberta" else "DebertaV2") + head)


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.shape == expected.shape
        assert float((actual - expected).abs().max() / expected.abs().max()) < TOLERANCE


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_both_directions(index, tmp_path):
    config, head = CONFIGS[index], HEADS[index % 5]
    ours = OURS[head](config).eval()
    draw_large(ours)
    batch = inputs(config)
    expected = outputs(ours, batch)

    ours.save_pretrained(tmp_path / "ours")
    theirs, info = theirs_class(config, head).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert_equal(expected, outputs(theirs.eval(), batch))

    theirs.save_pretrained(tmp_path / "theirs")
    back = OURS[head].from_pretrained(tmp_path / "theirs")
    assert back.config == ours.config.replace(embedding_size=config.embedding_size or config.hidden_size)
    assert_equal(outputs(back, batch), expected)
    for (name, parameter), other in zip(back.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_multiple_choice(tmp_path):
    config = DebertaConfig(**SMALL)
    ours = pretrained.DebertaForMultipleChoice(config).eval()
    draw_large(ours)
    batch = {name: cells.view(1, *cells.shape) for name, cells in inputs(config).items()}
    ours.save_pretrained(tmp_path)
    theirs = transformers.DebertaV2ForMultipleChoice.from_pretrained(tmp_path).eval()
    assert_equal(outputs(ours, batch), outputs(theirs, batch))


def test_the_old_masked_language_model_head_is_read(tmp_path):
    config = transformers.DebertaV2Config(**{**DebertaConfig(**SMALL).to_dict(), "legacy": True})
    theirs = transformers.DebertaV2ForMaskedLM(config).eval()
    draw_large(theirs)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.DebertaForMaskedLM.from_pretrained(tmp_path)
    batch = inputs(ours.config)
    expected = [logits[batch["attention_mask"].bool()] for logits in [theirs(**batch).logits.detach()]]
    assert_equal(outputs(ours, batch), expected)


@pytest.mark.parametrize("family", ["Deberta", "DebertaV2"])
def test_an_old_head_with_weights_of_its_own_is_refused(family, tmp_path):
    fields = {**DebertaConfig(**SMALL).to_dict(), "legacy": True, "tie_word_embeddings": False}
    if family == "Deberta":
        fields |= {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none", "model_type": "deberta"}
    theirs = getattr(transformers, f"{family}ForMaskedLM")(getattr(transformers, f"{family}Config")(**fields)).eval()
    draw_large(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cls.predictions.decoder.weight is not .*new=\('vocabulary',\)"):
        pretrained.DebertaForMaskedLM.from_pretrained(tmp_path)
    pretrained.DebertaForMaskedLM.from_pretrained(tmp_path, new=("vocabulary",))
    pretrained.DebertaForTokenClassification.from_pretrained(tmp_path, new=("classifier",))
    head, words = theirs.cls.predictions, theirs.deberta.embeddings.word_embeddings
    with torch.no_grad():
        head.decoder.weight.copy_(words.weight)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cls.predictions.decoder.bias is not "):
        pretrained.DebertaForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        head.decoder.bias.copy_(head.bias)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.DebertaForMaskedLM.from_pretrained(tmp_path)
    batch = inputs(ours.config)
    expected = [logits[batch["attention_mask"].bool()] for logits in [theirs(**batch).logits.detach()]]
    assert_equal(outputs(ours, batch), expected)


@pytest.mark.parametrize("buckets", [8, None])
def test_the_ports_way_beyond_the_longest_distance(buckets, tmp_path):
    config = DebertaConfig(**SMALL, position_buckets=buckets, max_relative_positions=12, long_distance="port")
    ours = pretrained.Deberta(config).eval()
    draw_large(ours)
    ours.save_pretrained(tmp_path)
    theirs = transformers.DebertaV2Model.from_pretrained(tmp_path).eval()
    batch = inputs(config)
    assert_equal(outputs(ours, batch), outputs(theirs, batch))
    clamped = pretrained.Deberta.from_pretrained(tmp_path, long_distance="clamp")
    difference = (outputs(clamped, batch)[0] - outputs(ours, batch)[0]).abs().max()
    assert (difference > 1e-2) == (buckets is not None)


def test_sharded_files_are_read(tmp_path):
    config = DebertaConfig(**SMALL)
    theirs = transformers.DebertaV2Model(transformers.DebertaV2Config(**config.to_dict())).eval()
    draw_large(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    batch = inputs(config)
    assert_equal(outputs(pretrained.Deberta.from_pretrained(tmp_path), batch), outputs(theirs, batch))


def test_training_losses_are_equal():
    config = DebertaConfig(**SMALL)
    batch = inputs(config)
    labels = torch.tensor([0, 1, 1])
    for problem, target in [
        ("single_label_classification", labels),
        ("multi_label_classification", torch.eye(2)[labels]),
        ("regression", torch.tensor([0.5, -1.0, 2.0])),
    ]:
        names = {0: "score"} if problem == "regression" else {0: "no", 1: "yes"}
        settled = config.replace(problem_type=problem, id2label=names)
        model = pretrained.DebertaForSequenceClassification(settled).eval()
        draw_large(model)
        their_config = transformers.DebertaV2Config(**settled.to_dict())
        theirs = transformers.DebertaV2ForSequenceClassification(their_config).eval()
        theirs.load_state_dict(checkpoint.to_files(model.state_dict(), v1=False, heads=3))
        expected = theirs(**batch, labels=target).loss
        assert torch.allclose(model(**batch, labels=target).loss, expected, rtol=TOLERANCE)
