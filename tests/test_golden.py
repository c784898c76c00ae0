"""Our models against the original implementation's outputs and gradients, and faults that must show.

Every tensor is compared by its largest error relative to the largest value, at 1e-5.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.model import checkpoint
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
)
from unbraid.objective import IGNORED

FOLDER = Path(__file__).parent / "golden"
FILES = ["v1", "v2", "v3", "c2p_only", "absolute"]
TOLERANCE = 1e-5


class Golden:
    """One file of vectors."""

    def __init__(self, name: str):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping: it cannot be iterated
            self.config = DebertaConfig.from_dict(json.loads(file.metadata()["config"]))
        self.ids, self.mask = self["input.ids"], self["input.mask"]
        self.labels = self["input.labels"].where(self["input.labels"] > 0, IGNORED)
        self.real = self.mask.bool()

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def load(self, model_class: type, params: str, **changes: object):
        config = self.config.replace(**changes) if changes else self.config
        model = model_class(config)
        names = model._checkpoint_tensors()
        found, missing = checkpoint.from_files(self.under(params), names, config.num_attention_heads, "golden")
        assert not missing
        model._assign({name: tensor.clone() for name, tensor in found.items()})
        return model.eval()


@pytest.fixture(params=FILES)
def golden(request) -> Golden:
    return Golden(request.param)


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def set_backend(model: nn.Module, backend: str) -> None:
    encoder = model.encoder if isinstance(model, Deberta) else model.deberta.encoder
    encoder.backend = backend


NO_COMPILER = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")
BACKENDS = ["reference", "sdpa", pytest.param("native", marks=NO_COMPILER)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_are_the_originals(golden, backend):
    encoder = golden.load(Deberta, "mlm.param.")
    set_backend(encoder, backend)
    output = encoder(golden.ids, golden.mask, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    names = ["encoder.embeddings", "encoder.hidden.1", "encoder.hidden.2", "encoder.hidden.3"]
    for name, states in zip(names, output.hidden_states, strict=True):
        assert error(states[golden.real], golden[name][golden.real]) < TOLERANCE
        assert not states[~golden.real].any()


def test_attention_weights_are_the_originals(golden):
    output = golden.load(Deberta, "mlm.param.")(golden.ids, golden.mask, output_attentions=True)
    assert error(output.attentions[0], golden["encoder.attention_probs.0"]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoder_logits_losses_and_gradients_are_the_originals(golden, backend):
    model = golden.load(DebertaForMaskedLM, "mlm.param.")
    set_backend(model, backend)
    output = model(golden.ids, golden.mask, labels=golden.labels)
    assert error(output.logits, golden["mlm.logits"]) < TOLERANCE
    losses = functional.cross_entropy(output.logits, golden.labels[golden.labels != IGNORED], reduction="none")
    assert error(losses, golden["mlm.loss_per_token"]) < TOLERANCE
    assert error(output.loss, golden["mlm.loss_per_token"].mean()) < TOLERANCE

    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    theirs = golden.under("mlm.grad.")
    found, missing = checkpoint.from_files(theirs, gradients, golden.config.num_attention_heads, "gradients")
    assert not missing
    assert len(found) == len(theirs)
    for name, gradient in found.items():
        # A bias may shift whole softmax rows: its gradient is rounding, and held to that of its module's weight.
        module = name.rpartition(".")[0]
        scale = max(float(found[other].abs().max()) for other in found if other.rpartition(".")[0] == module)
        assert float((gradients[name] - gradient).abs().max()) / scale < TOLERANCE, name


def test_only_predicted_rows_are_decoded(golden):
    model = golden.load(DebertaForMaskedLM, "mlm.param.")
    every = model(golden.ids, golden.mask).logits
    predicted = model(golden.ids, golden.mask, predict=golden.labels != IGNORED).logits
    assert error(predicted, every[(golden.labels != IGNORED)[golden.real]]) < TOLERANCE
    assert error(predicted, golden["mlm.logits"]) < TOLERANCE


def test_discriminator_is_the_originals(golden):
    model = golden.load(DebertaForReplacedTokenDetection, "rtd.param.")
    labels = torch.zeros(golden.real.shape).masked_scatter(golden.real, golden["rtd.labels"])
    output = model(golden["rtd.input.ids"], golden.mask, labels=labels)
    assert error(output.logits[golden.real], golden["rtd.logits"][golden.real]) < TOLERANCE
    losses = functional.binary_cross_entropy_with_logits(
        output.logits[golden.real], golden["rtd.labels"], reduction="none"
    )
    assert error(losses, golden["rtd.loss_per_token"]) < TOLERANCE
    assert error(output.loss, golden["rtd.loss_per_token"].mean()) < TOLERANCE


def test_classifier_is_the_originals(golden):
    labels = {i: str(i) for i in range(3)}
    model = golden.load(DebertaForSequenceClassification, "cls.param.", id2label=labels)
    plain = model(golden.ids, golden.mask)
    assert error(plain.logits, golden["cls.logits_without_sift_norm"]) < TOLERANCE

    seen = {}

    def normalise(total: Tensor) -> Tensor:
        seen["sum"] = functional.layer_norm(total, total.shape[-1:], eps=golden.config.layer_norm_eps)
        return seen["sum"]

    sifted = model(golden.ids, golden.mask, labels=golden["cls.labels"], perturbation=normalise)
    assert error(seen["sum"], golden["sift.normalised_embeddings"][golden.real]) < TOLERANCE
    assert error(sifted.logits, golden["cls.logits"]) < TOLERANCE
    assert error(sifted.loss[None], golden["cls.loss"]) < TOLERANCE


# Each fault is one that ports of DeBERTa have had.


def flipped_distance(model: nn.Module) -> None:
    encoder = model.deberta.encoder
    relative = encoder.relative

    def flipped(max_length: int, causal: bool):
        right = relative(max_length, causal)
        return dataclasses.replace(right, slots=right.slots.flip(0))

    encoder.relative = flipped


def no_key_bias(model: nn.Module) -> None:
    for layer in model.deberta.encoder.layers:
        nn.init.zeros_(layer.attention.key.bias)


def one_decoder_pass(model: nn.Module) -> None:
    model.decoder.passes = 1


def no_norm_on_the_relative_table(model: nn.Module) -> None:
    model.deberta.encoder.relative_norm = None


def position_to_content_left_out(model: nn.Module) -> None:
    for layer in model.deberta.encoder.layers:
        layer.attention.config = layer.attention.config.replace(pos_att_type=("c2p",))


def one_bucket_off(model: nn.Module) -> None:
    encoder = model.deberta.encoder
    relative = encoder.relative

    def shifted(max_length: int, causal: bool):
        right = relative(max_length, causal)
        return dataclasses.replace(right, slots=(right.slots + 1).clamp(max=len(right.table[right.used]) - 1))

    encoder.relative = shifted


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        *[(file, fault) for file in ("v1", "v2", "v3") for fault in (flipped_distance, no_key_bias, one_bucket_off)],
        *[(file, position_to_content_left_out) for file in ("v1", "v2", "v3")],
        *[(file, one_decoder_pass) for file in ("v1", "v2", "v3", "c2p_only")],
        *[(file, no_norm_on_the_relative_table) for file in ("v2", "v3", "c2p_only")],
        ("c2p_only", flipped_distance),
    ],
)
def test_a_fault_shows(file, fault):
    golden = Golden(file)
    model = golden.load(DebertaForMaskedLM, "mlm.param.")
    fault(model)
    logits = model(golden.ids, golden.mask, labels=golden.labels).logits
    assert error(logits, golden["mlm.logits"]) > 100 * TOLERANCE


def test_the_convolution_shows():
    golden = Golden("v2")
    model = golden.load(DebertaForMaskedLM, "mlm.param.")
    model.deberta.encoder.convolution.activation = torch.tanh
    logits = model(golden.ids, golden.mask, labels=golden.labels).logits
    assert error(logits, golden["mlm.logits"]) > 100 * TOLERANCE
