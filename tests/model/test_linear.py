"""Inference with packed weights and remembered positions gives what the layers themselves give."""

from __future__ import annotations

import copy
import pickle
import shutil
import sys
import threading

import peft
import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import get_cxx_compiler

import unbraid
from unbraid.model import linear
from unbraid.model.frozen import Frozen
from unbraid.model.linear import Linears

with_compiler = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")


def draw_model(**changes) -> unbraid.Deberta:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 56, "num_hidden_layers": 2}
    config = unbraid.preset("deberta-v3-xsmall", vocab_size=50, **{**sizes, "conv_kernel_size": 3, **changes})
    torch.manual_seed(0)
    model = unbraid.Deberta(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def run(model: nn.Module, grad: bool = False, length: int = 40) -> torch.Tensor:
    ids = torch.arange(2 * length).view(2, length) % 45 + 5
    with torch.set_grad_enabled(grad):
        return model(ids).last_hidden_state.detach()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_rel_ebd": "none"},
        {"share_att_key": False},
        {"pos_att_type": ("c2p", "p2c", "p2p")},
        {"pos_att_type": ()},
        {"relative_attention": False, "pos_att_type": (), "position_biased_input": True},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_inference_equals_the_layers(changes):
    model = draw_model(**changes)
    for length in (40, 9, 60):  # the positions remembered are those of any length
        assert close(run(model, length=length), run(model, grad=True, length=length))


CHANGES = {
    "optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1).step(),
    "in place": lambda model: [parameter.mul_(1.5) for parameter in model.parameters()],
    "behind torch's back": lambda model: [parameter.data.mul_(1.5) for parameter in model.parameters()],
    "another tensor": lambda model: [setattr(p, "data", p.data * 1.5) for p in model.parameters()],
    "loading": lambda model: model.load_state_dict({n: t * 1.5 for n, t in model.state_dict().items()}),
    "one bias": lambda model: model.encoder.layers[1].attention.key.bias.add_(1),
    "relative table": lambda model: model.encoder.relative_table.weight.mul_(-2),
    "its norm": lambda model: model.encoder.relative_norm.weight.mul_(-2),
    "another layer": lambda model: setattr(model.encoder.layers[0], "up", nn.Linear(32, 56)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_right_again_after_the_weights_change(change, mode):
    model = draw_model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with mode():
        before = model(torch.tensor([[7, 8, 9]])).last_hidden_state
    with torch.no_grad():
        CHANGES[change](model)
    with mode():
        after = model(torch.tensor([[7, 8, 9]])).last_hidden_state
    expected = model(torch.tensor([[7, 8, 9]])).last_hidden_state.detach()
    assert close(after, expected)
    assert not close(before, expected)


def test_weights_made_for_inference_alone_are_served_too():
    with torch.inference_mode():
        model = draw_model()
        expected = run(copy.deepcopy(model), length=7)
        model.encoder.layers[0].up.weight.mul_(2)
        changed = run(model, length=7)
    assert not close(changed, expected)


def test_training_mode_keeps_its_dropout_without_gradients():
    model = draw_model(hidden_dropout_prob=0.5).train()
    assert not torch.equal(run(model), run(model))


def test_copies_and_pickles_start_without_what_was_remembered():
    remembered = Frozen()
    weight = torch.ones(3)
    assert remembered([weight], lambda: [1]) is remembered([weight], lambda: [2])
    for other in (copy.deepcopy(remembered), pickle.loads(pickle.dumps(remembered))):  # noqa: S301 (just written here)
        assert other([weight], lambda: [3]) == [3]


def test_threads_get_the_value_of_their_own_weights():
    remembered: Frozen[int] = Frozen()
    found: dict[int, set[int]] = {1: set(), 2: set()}
    interval = sys.getswitchinterval()

    def ask(number):
        weights = [torch.ones(3)]
        for _ in range(5000):
            found[number].add(remembered(weights, lambda: number))
            remembered.forget()

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == {1: {1}, 2: {2}}


def test_merged_adapters_are_seen():
    """They are added to the weights in place through ``.data``."""
    model = draw_model()
    before = run(model)
    config = peft.LoraConfig(target_modules=["key", "up"], init_lora_weights=False)
    merged = peft.PeftModel(model, config).merge_and_unload()
    assert close(run(merged), run(merged, grad=True))
    assert not close(run(merged), before)


def test_training_forgets_what_was_remembered():
    model = draw_model()
    run(model)
    changed = model.encoder.layers[0].attention.key.weight
    run(model, grad=True)
    changed.data[16:].mul_(2)  # unseen
    assert close(run(model), run(model, grad=True))


def test_an_adapter_on_the_key_changes_its_positions_too():
    model = draw_model()
    before = run(model)
    doubled(model.encoder.layers[0].attention.key)
    assert close(run(model), run(model, grad=True))
    assert not close(run(model), before)


@with_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_packed_once(dtype, monkeypatch):
    model, calls = draw_model().to(dtype), []
    pack = linear._pack
    monkeypatch.setattr(linear, "_pack", lambda layers: calls.append(layers) or pack(layers))
    assert torch.equal(run(model), run(model))
    assert [len(layers) for layers in calls] == [3, 1, 1, 1] * 2


@pytest.mark.parametrize("activation", [None, torch.relu, nn.functional.gelu])
def test_onednn_for_processors_that_multiply_bfloat16(activation, monkeypatch):
    monkeypatch.setattr(linear, "_takes_onednn", lambda dtype: dtype == torch.bfloat16)
    torch.manual_seed(0)
    layers = [nn.Linear(40, 30), nn.Linear(40, 17, bias=False)]
    x = torch.randn(9, 40)
    expected = Linears(activation)(x, *layers)
    with torch.no_grad():
        ours = Linears(activation)(x.bfloat16(), *[layer.bfloat16() for layer in layers])
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() < 0.05 * b.abs().max()


def doubled(*layers: nn.Module) -> None:
    layers[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)


def parametrised(*layers: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layers[0])
    with torch.no_grad():
        layers[0].parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize("adapt", [doubled, parametrised])
def test_adapted_layers_are_called_themselves(adapt):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(3, 8)
    with torch.no_grad():
        (before,) = Linears()(x, layer)
        adapt(layer)
        (after,) = Linears()(x, layer)
    assert torch.allclose(after, 2 * before, atol=1e-5)


def test_autocast_and_compilers_see_the_layers():
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    linears = Linears()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linears(x, layer)[0].dtype == torch.bfloat16
    with torch.no_grad():
        compiled = torch.compile(lambda rows: linears(rows, layer)[0], backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))
