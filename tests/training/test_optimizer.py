import numpy as np
import pytest
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.training.config import OptimizerConfig
from unbraid.training.optimizer import make_optimizer, parameter_groups, schedule


@pytest.mark.parametrize(
    ("steps", "warmup", "final", "expected"),
    [
        (5, 0, 0.0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (5, 1, 0.0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (6, 2, 0.0, [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]),
        (4, 4, 0.0, [0.25, 0.5, 0.75, 1.0]),
        (5, 2, 0.2, [0.5, 1.0, 0.8, 0.6, 0.4]),
        (3, 1, 1.0, [1.0, 1.0, 1.0]),
        (1, 0, 0.0, [1.0]),
    ],
)
def test_schedule_table(steps, warmup, final, expected):
    assert [schedule(step, steps, warmup, final) for step in range(1, steps + 1)] == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (1000, 999), (997, 1), (10, 3)])
def test_schedule_is_two_lines_without_a_jump(steps, warmup):
    rates = np.array([schedule(step, steps, warmup) for step in range(1, steps + 1)])
    assert rates.argmax() == warmup - 1
    assert rates.max() == 1
    assert rates.min() > 0
    assert np.allclose(np.diff(rates[:warmup], 2), 0)
    assert np.allclose(np.diff(rates[warmup - 1 :], 2), 0)
    assert abs(np.diff(rates)).max() <= max(1 / warmup, 1 / (steps + 1 - warmup)) + 1e-12


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.q_bias = nn.Parameter(torch.zeros(4))
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.table.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_biases_and_norms_have_no_decay_and_every_trained_parameter_is_there_once():
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, exempt = ([names[p] for p in group["params"]] for group in parameter_groups(model, 0.3))
    assert decayed == ["table.weight", "inner.0.weight"]
    assert exempt == [
        "q_bias",
        "norm.weight",
        "norm.bias",
        "inner.0.bias",
        "inner.1.weight",
        "inner.1.bias",
        "head.bias",
    ]
    assert [group["weight_decay"] for group in parameter_groups(model, 0.3)] == [0.3, 0.0]


def test_a_parameter_shared_with_a_norm_has_no_decay():
    model = nn.ModuleList([nn.Embedding(1, 4), nn.LayerNorm(4, bias=False)])
    model[0].weight = model[1].weight
    decayed, exempt = parameter_groups(model, 0.3)
    assert decayed["params"] == []
    assert len(exempt["params"]) == 1


def test_updates_are_adamw_by_hand():
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-3)
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, config)
    expected = {name: p.detach().double().numpy().copy() for name, p in layer.named_parameters()}
    mean = {name: np.zeros_like(p) for name, p in expected.items()}
    square = {name: np.zeros_like(p) for name, p in expected.items()}
    random = np.random.default_rng(0)
    for step in range(1, 5):
        for name, parameter in layer.named_parameters():
            gradient = random.normal(size=parameter.shape)
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            update = mean[name] / (1 - 0.8**step) / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-3)
            decay = 0.1 * expected[name] if name == "weight" else 0
            expected[name] = expected[name] - 0.01 * (update + decay)
        optimizer.step()
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-5, atol=1e-7)


def test_the_number_of_threads_does_not_change_the_update():
    def trained(threads):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        layer = nn.Linear(301, 307)
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
        optimizer = make_optimizer(layer, OptimizerConfig())
        for _ in range(3):
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
            optimizer.step()
        return layer.weight

    assert torch.equal(trained(1), trained(2))


def test_nothing_to_train():
    with pytest.raises(InputError, match="every parameter of the model is frozen"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerConfig())


def test_each_depth_has_its_own_rate():
    model = Model()
    depths = dict.fromkeys(model.parameters(), 3) | dict.fromkeys(model.table.parameters(), 0)
    depths |= dict.fromkeys(model.inner.parameters(), 2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.3, 0.5, depths)
        for parameter in group["params"]
    }
    assert found == {
        "table.weight": (0.125, 0.3),
        "inner.0.weight": (0.5, 0.3),
        "inner.0.bias": (0.5, 0.0),
        "inner.1.weight": (0.5, 0.0),
        "inner.1.bias": (0.5, 0.0),
        "q_bias": (1.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.bias": (1.0, 0.0),
    }


def test_the_first_update_goes_as_far_as_the_depth_allows(toys, tmp_path):
    """AdamW's first step is the learning rate long wherever there is a gradient."""
    toy, before = toys.Toy(dropout=0.0), dict(toys.Toy().named_parameters())
    depths = {toy.table.weight: 0, **dict.fromkeys(toy.inner.parameters(), 1)}
    config = toys.TrainingConfig(
        steps=1,
        optimizer=OptimizerConfig(
            learning_rate=0.01, layer_decay=0.1, weight_decay=0.0, eps=1e-12, warmup=0, clip_norm=1e9
        ),
    )
    toys.train(toy, toys.Stream(), config, tmp_path, depths=lambda: dict.fromkeys(toy.parameters(), 2) | depths)
    for name, parameter in toy.named_parameters():
        moved = (parameter - before[name]).abs().max().item()
        scale = {"table.weight": 1e-4, "inner.weight": 1e-3, "inner.bias": 1e-3, "frozen": 0.0}.get(name, 1e-2)
        assert moved == pytest.approx(scale, rel=1e-3), name


def test_rates_of_layers_need_layers():
    with pytest.raises(InputError, match="layer_decay is for fine-tuning"):
        make_optimizer(Model(), OptimizerConfig(layer_decay=0.9))
