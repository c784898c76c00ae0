"""Int8 linear layers against float64 within the error that rounding allows, and models changed in place."""

from __future__ import annotations

import copy
import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.int8 import Int8Linear, num_levels
from unbraid.model.precision import set_precision
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForSequenceClassification

SHAPES = [(1, 1, 1), (2, 20, 7), (17, 63, 5), (300, 64, 48), (513, 3, 9)]


def drawn(rows, width, outputs, bias=True):
    torch.manual_seed(rows)
    linear = torch.nn.Linear(width, outputs, bias=bias)
    torch.nn.init.normal_(linear.weight)
    linear.weight.data *= torch.logspace(-3, 3, outputs)[:, None]  # every output has its own scale
    states = torch.randn(rows, width) * torch.logspace(-2, 2, rows)[:, None] + torch.randn(rows, 1)
    return linear, states


def allowed(linear, states, levels):
    """The largest error, (rows, outputs), that half a step in every activation and every weight can make."""
    weight, states = linear.weight.double(), states.double()
    step = (states.amax(1) - states.amin(1)) / (levels - 1)
    scale = (weight.abs().amax(1) / 127).clamp_min(1e-300)
    rounded = (weight / scale[:, None]).round() * scale[:, None]
    from_weights = states.abs().sum(1)[:, None] * scale / 2
    from_activations = step[:, None] / 2 * rounded.abs().sum(1)
    return from_weights + from_activations


@pytest.mark.parametrize("levels", [128, num_levels()])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_the_error_is_that_of_rounding(shape, bias, levels):
    linear, states = drawn(*shape, bias)
    exact = copy.deepcopy(linear).double()(states.double())
    output = Int8Linear(linear, levels)(states)
    assert output.dtype == torch.float32
    error = (output - exact).abs()
    assert (error <= allowed(linear, states, levels) * 1.001 + 1e-5 * exact.abs().amax(1, keepdim=True)).all()
    if min(shape) > 1:
        assert error.norm() > 1e-4 * exact.norm()  # rounded indeed


@pytest.mark.parametrize("levels", [128, num_levels()])
@torch.no_grad()
def test_whole_numbers_in_range_are_exact(levels):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(40, 11)
    linear.weight.copy_(torch.randint(-127, 128, (11, 40), generator=generator))
    linear.weight[:, 0] = 127
    states = torch.randint(0, levels, (9, 40), generator=generator).float()
    states[:, 1], states[:, 2] = 0, levels - 1
    states += torch.arange(-4, 5)[:, None] * 100
    assert torch.allclose(Int8Linear(linear, levels)(states), linear(states), rtol=1e-5, atol=0.05)


@torch.no_grad()
def test_rows_of_one_value_and_of_nothing():
    linear, _ = drawn(3, 20, 7)
    linear.weight[2] = 0
    states = torch.tensor([0.0, -3.0, 1e-30])[:, None].expand(3, 20)
    output = Int8Linear(linear, num_levels())(states)
    error = (output - linear(states)).abs()
    assert (error <= allowed(linear, states, num_levels()) + 1e-4).all()
    assert torch.equal(output[0], linear.bias)
    assert (output[:, 2] == linear.bias[2]).all()
    assert Int8Linear(linear, 128)(states[:0]).shape == (0, 7)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    linear, states = drawn(300, 64, 48)
    layer = Int8Linear(linear, num_levels())
    together = layer(states)
    for row in (0, 255, 256, 299):
        assert torch.equal(layer(states[row : row + 1])[0], together[row])
    assert torch.equal(layer(states.view(3, 100, 64)), together.view(3, 100, 48))


def test_no_product_saturates_on_a_processor_without_vnni():
    """Sums of 16 bits overflow where there are no VNNI instructions; the levels must leave room for them."""
    code = """if True:
        import torch
        from unbraid.model.int8 import Int8Linear, num_levels
        with torch.no_grad():
            linear = torch.nn.Linear(64, 32, bias=False)
            linear.weight.fill_(0.5)
            states = torch.ones(20, 64)
            states[:, 0] = 0
            print(num_levels(), (Int8Linear(linear, num_levels())(states) - linear(states)).abs().max().item())
    """
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    levels, error = found.stdout.split()
    assert int(levels) == (128 if platform.machine() in ("x86_64", "AMD64") else 256)
    assert float(error) < 1e-3


def small(kind, **fields):
    torch.manual_seed(0)
    return kind(
        DebertaConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
            max_position_embeddings=16, position_buckets=8, **fields,
        )
    ).eval()  # fmt: skip


def num_bytes(module):
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    "fields", [{"share_att_key": True}, {"share_att_key": False}, {"conv_kernel_size": 3}], ids=str
)
def test_int8_is_the_layers_alone(fields):
    model = small(DebertaForSequenceClassification, **fields)
    before = copy.deepcopy(model)
    set_precision(model, "int8")
    layers = model.deberta.encoder.layers
    assert not [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    kept = {name: weight for name, weight in before.named_parameters() if re.search(r"norm|^((?!layers).)*$", name)}
    assert {"deberta.embeddings.word.weight", "pooler.dense.weight", "classifier.weight"} < kept.keys()
    now = dict(model.named_parameters())
    assert now.keys() == kept.keys()
    assert all(torch.equal(now[name], weight) for name, weight in kept.items())
    assert {layer.weight.dtype for layer in layers.modules() if isinstance(layer, Int8Linear)} == {torch.int8}
    assert num_bytes(layers) < 0.35 * num_bytes(before.deberta.encoder.layers)


@pytest.mark.parametrize("kind", [DebertaForMaskedLM, DebertaForSequenceClassification])
def test_bfloat16_is_the_whole_model_and_can_be_undone(kind):
    model = small(kind)
    set_precision(model, "bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([[1, 7, 9]])).logits.isfinite().all()
    set_precision(model, "float32")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_int8_from_bfloat16_reads_float32():
    model = small(DebertaForMaskedLM)
    set_precision(model, "bfloat16")
    set_precision(model, "int8")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model(torch.tensor([[1, 7, 9]])).logits.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_int8_cannot_be_undone(precision):
    model = small(DebertaForMaskedLM)
    set_precision(model, "int8")
    set_precision(model, "int8")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=f"rounded to int8; read it again for precision='{precision}'"):
        set_precision(model, precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(InputError, match="precision='int4' is unknown; choose 'float32', 'bfloat16', 'int8'"):
        set_precision(small(DebertaForMaskedLM), "int4")
    with pytest.raises(InputError, match="int8 runs on the CPU"):
        set_precision(small(DebertaForMaskedLM).to("meta"), "int8")
