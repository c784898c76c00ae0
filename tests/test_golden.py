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
from unbraid.objective import IGNORED, Loss
from unbraid.packing import Packing
from unbraid.tasks import sift
from unbraid.tasks.classification import SequenceClassification
from unbraid.tasks.config import SiftConfig
from unbraid.tasks.sift import Sift, ascend
from unbraid.text.batch import Batch

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


def gradient_error(model: nn.Module, theirs: dict[str, Tensor], num_heads: int) -> float:
    """The worst error of the gradients that the original has kept.

    A bias may shift whole softmax rows: its gradient is rounding, and held to that of its module's weight.
    """
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found, _ = checkpoint.from_files(theirs, ours, num_heads, "gradients")
    assert len(found) == len(theirs)
    errors = []
    for name, gradient in found.items():
        module = name.rpartition(".")[0]
        scale = max(float(found[other].abs().max()) for other in found if other.rpartition(".")[0] == module)
        errors.append(float((ours[name] - gradient).abs().max()) / scale)
    return max(errors)


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
    theirs = golden.under("mlm.grad.")
    assert len(theirs) == sum(p.grad is not None for p in model.parameters())
    assert gradient_error(model, theirs, golden.config.num_attention_heads) < TOLERANCE


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


class Sifted(SequenceClassification):
    """SiFT's model of a file, in training and without dropout; keeps what every pass puts in the embeddings' place."""

    def __init__(self, golden: Golden, backend: str = "sdpa") -> None:
        super().__init__(
            golden.load(DebertaForSequenceClassification, "cls.param.", id2label={i: str(i) for i in range(3)})
        )
        set_backend(self.model, backend)
        self.golden = golden
        self.embedded: list[Tensor] = []

    def outputs(self, batch, perturbation=None):
        if isinstance(perturbation, Tensor):
            self.embedded.append(perturbation)
            return super().outputs(batch, perturbation)
        return super().outputs(batch, lambda total: self.embedded.append(perturbation(total)) or self.embedded[-1])

    def run(self, monkeypatch, **fields) -> Loss:
        """The mean loss and its gradients, from the noise of the file."""
        golden = self.golden
        monkeypatch.setattr(sift, "noise", lambda *_: golden["sift.delta_init"][golden.real])
        objective = Sift(self, SiftConfig(**{"weight": 5.0, "step_size": 1e-2, **fields})).train()
        batch = Batch(golden.ids[golden.real], Packing.from_mask(golden.mask), golden["cls.labels"])
        loss = objective(batch)
        (loss.total / loss.count).backward()
        return loss

    def errors(self, loss: Loss) -> dict[str, float]:
        golden = self.golden
        normalised, delta = golden["sift.normalised_embeddings"], golden["sift.delta_after_step"]
        clean, first, perturbed = self.embedded
        assert torch.equal(first, clean + golden["sift.delta_init"][golden.real])
        gradients = gradient_error(self.model, golden.under("sift.grad."), golden.config.num_attention_heads)
        return {
            "normalised": error(clean, normalised[golden.real]),
            "perturbed": error(perturbed, (normalised + delta)[golden.real]),
            "consistency": error(loss.parts["consistency"][None] / loss.count, golden["sift.loss"]),
            "total": error(loss.total[None] / loss.count, golden["cls.loss"] + 5 * golden["sift.loss"]),
            "gradients": gradients,
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_sift_is_the_originals(golden, backend, monkeypatch):
    sifted = Sifted(golden, backend)
    errors = sifted.errors(sifted.run(monkeypatch))
    assert max(errors.values()) < TOLERANCE, errors
    # The slope is of a difference of nearly equal probabilities: float32 leaves up to 4e-4 of a step, ours and theirs.
    _, first, perturbed = sifted.embedded
    step = (golden["sift.delta_after_step"] - golden["sift.delta_init"])[golden.real]
    assert error(perturbed - first, step) < 1e-3


def downhill(monkeypatch) -> dict:
    monkeypatch.setattr(sift, "ascend", lambda delta, slope, config: ascend(delta, -slope, config))
    return {}


def no_norm(_) -> dict:
    return {"normalise": False}


def clean_output_held(_) -> dict:
    return {"clean_gradient": False}


def weighting_probabilities_with_gradient(monkeypatch) -> dict:
    def divergence(_self, clean, perturbed, _batch):
        p, q = clean[0].log_softmax(-1), perturbed[0].log_softmax(-1)
        return -(p.exp() * q + q.exp() * p).sum()

    monkeypatch.setattr(SequenceClassification, "divergence", divergence)
    return {}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (downhill, {"perturbed", "gradients"}),
        (no_norm, {"normalised", "perturbed", "gradients"}),
        (clean_output_held, {"gradients"}),
        (weighting_probabilities_with_gradient, {"gradients"}),
    ],
)
def test_a_fault_of_sift_shows(file, fault, shown, monkeypatch):
    sifted = Sifted(Golden(file))
    errors = sifted.errors(sifted.run(monkeypatch, **fault(monkeypatch)))
    assert {name for name, value in errors.items() if value > 100 * TOLERANCE} >= shown, errors


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
