"""Continuing from released and earlier models: what is kept, what starts fresh, and that it is said."""

import json

import pytest
import torch

from unbraid.errors import InputError
from unbraid.model import checkpoint
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from unbraid.pretraining.config import MaskingConfig, RtdConfig
from unbraid.pretraining.continuing import continued_mlm, continued_rtd
from unbraid.pretraining.rtd import ReplacedTokenDetection

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "position_buckets": 8,
}
V1 = {"model_type": "deberta", "position_buckets": None, "share_att_key": False, "norm_rel_ebd": "none"}
IDS = torch.tensor([[1, 10, 11, 12, 2]])


def draw(model_class, seed=0, **changes):
    model = model_class(DebertaConfig(**(SMALL | changes))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(float(norm), 0.1 if norm else 0.3, generator=generator)
    return model


def tensors_of(model):
    named = checkpoint.to_files(model._checkpoint_tensors(), model.config.model_type == "deberta", 2)
    return {name: tensor.detach().contiguous() for name, tensor in named.items()}


def released(folder, *models, generator=None):
    """A folder as the hub has it: one .bin with every head, and the generator's beside it."""
    folder.mkdir()
    tensors = {}
    for model in models:
        tensors |= tensors_of(model)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(models[-1].config.to_dict()))
    if generator is not None:
        torch.save(tensors_of(generator), folder / "pytorch_model.generator.bin")
    return folder


@pytest.mark.parametrize("changes", [{}, V1, {"conv_kernel_size": 3}])
def test_a_masked_language_model_continues_as_it_is(tmp_path, changes):
    model = draw(DebertaForMaskedLM, **changes)
    continued, notes = continued_mlm(released(tmp_path / "model", model))
    assert notes == []
    assert torch.equal(continued(IDS).logits, model(IDS).logits)


def test_a_discriminator_becomes_a_masked_language_model_with_new_heads(tmp_path):
    model = draw(DebertaForReplacedTokenDetection)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    continued, notes = continued_mlm(tmp_path)
    assert [note.partition(" has no ")[2] for note in notes] == [
        "absolute positions for the mask decoder: it starts fresh.",
        "masked language head: it starts fresh.",
    ]
    assert torch.equal(continued.deberta(IDS).last_hidden_state, model.deberta(IDS).last_hidden_state)
    assert continued.vocabulary.dense.weight.std() < 0.05
    assert continued.decoder.position.weight.std() > 0


def test_the_released_generator_is_found(tmp_path):
    """Whatever its number of layers, which no configuration tells."""
    generator = draw(DebertaForMaskedLM, 1, num_hidden_layers=3)
    discriminator = draw(DebertaForReplacedTokenDetection, 2)
    folder = released(tmp_path / "v3", draw(DebertaForMaskedLM, 3), discriminator, generator=generator)
    found, detector, notes = continued_rtd(folder, None)
    assert notes == []
    assert found.config.num_hidden_layers == 3
    assert torch.equal(found(IDS).logits, generator(IDS).logits)
    assert torch.equal(detector(IDS).logits, discriminator(IDS).logits)
    again, _, _ = continued_rtd(folder, 3)
    assert torch.equal(again(IDS).logits, generator(IDS).logits)
    with pytest.raises(InputError, match=r"comes with a generator of 3 layers, not 2: leave rtd\.generator_layers out"):
        continued_rtd(folder, 2)


def test_our_own_generator_is_found(tmp_path, tokenizer):
    generator = draw(DebertaForMaskedLM, 1, num_hidden_layers=2, vocab_size=len(tokenizer))
    discriminator = draw(DebertaForReplacedTokenDetection, 2, vocab_size=len(tokenizer))
    trained = ReplacedTokenDetection(generator, discriminator, RtdConfig(), MaskingConfig(), tokenizer).eval()
    with torch.no_grad():
        discriminator.deberta.embeddings.word.delta.normal_()
    trained.save_pretrained(tmp_path)
    found, detector, notes = continued_rtd(tmp_path, None)
    assert notes == []
    again = ReplacedTokenDetection(
        found, detector, RtdConfig(), MaskingConfig(), tokenizer, keep_embeddings=True
    ).eval()
    torch.testing.assert_close(
        again.detection.model.deberta.embeddings.word.delta, discriminator.deberta.embeddings.word.delta
    )
    torch.testing.assert_close(again.detection.model(IDS).logits, discriminator(IDS).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(again.generation.model(IDS).logits, generator(IDS).logits)


@pytest.mark.parametrize(("layers", "made"), [(None, 2), (3, 3)])
def test_without_a_generator_one_is_made_of_the_lower_layers(tmp_path, layers, made):
    language_model, discriminator = draw(DebertaForMaskedLM, 1), draw(DebertaForReplacedTokenDetection, 2)
    folder = released(tmp_path / "v3", language_model, discriminator)
    generator, _, notes = continued_rtd(folder, layers)
    assert len(notes) == 1
    assert notes[0].endswith(f"comes without a generator: one is made of its first {made} layers.")
    assert generator.config.num_hidden_layers == made
    states, _ = discriminator.deberta.encode(discriminator.deberta.enter(IDS, None, None, None), num_layers=made)
    assert torch.equal(generator.deberta(IDS).last_hidden_state[0], states)
    assert torch.equal(generator.vocabulary.dense.weight, language_model.vocabulary.dense.weight)
    assert torch.equal(generator.decoder.position.weight, language_model.decoder.position.weight)


@pytest.mark.parametrize("fields", [{}, V1])
@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_a_generator_that_is_made_shares_only_what_the_sharing_says(tmp_path, tokenizer, sharing, fields):
    """Although both read one float32 file."""
    draw(DebertaForMaskedLM, vocab_size=len(tokenizer), **fields).save_pretrained(tmp_path)
    generator, discriminator, _ = continued_rtd(tmp_path, None)
    config = RtdConfig(sharing=sharing, decoupled=sharing != "es")
    trained = ReplacedTokenDetection(generator, discriminator, config, MaskingConfig(), tokenizer, keep_embeddings=True)
    places = {parameter.data_ptr() for parameter in trained.detection.parameters()}
    shared = {name for name, parameter in generator.named_parameters() if parameter.data_ptr() in places}
    assert shared == ({"deberta.embeddings.word.weight"} if sharing == "es" else set())


def test_a_v1_model_becomes_a_discriminator(tmp_path):
    model = draw(DebertaForMaskedLM, **V1)
    model.save_pretrained(tmp_path)
    generator, discriminator, notes = continued_rtd(tmp_path, None)
    assert [note.partition("model.safetensors ")[2] for note in notes] == [
        "has no head for replaced tokens: it starts fresh.",
        "comes without a generator: one is made of its first 2 layers.",
    ]
    assert torch.equal(discriminator.deberta(IDS).last_hidden_state, model.deberta(IDS).last_hidden_state)
    assert generator.config.model_type == "deberta"


def test_nothing_to_continue_from(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model"):
        continued_mlm(tmp_path / "empty")
    draw(DebertaForReplacedTokenDetection).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="too few for a generator of 5"):
        continued_rtd(tmp_path / "model", 5)
    broken = tensors_of(draw(DebertaForReplacedTokenDetection))
    del broken["deberta.encoder.layer.1.output.dense.weight"]
    torch.save(broken, tmp_path / "model/pytorch_model.bin")
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks deberta.encoder.layer.1.output.dense.weight"):
        continued_mlm(tmp_path / "model")
