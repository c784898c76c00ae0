import copy
import json

import pytest
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.objective import Loss, Objective
from unbraid.training.precision import check_precision

CPU = torch.device("cpu")


class Straight(Objective):
    """Scales what its layer answers, before the loss or in the loss."""

    def __init__(self, inside=1.0, outside=1.0):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.inside, self.outside = inside, outside

    def loss(self, batch):
        generator = torch.Generator().manual_seed(2)
        states = torch.randn((len(batch.input_ids), 8), generator=generator)
        logits = self.head(self.layer(states) * self.inside).float()
        labels = batch.input_ids % 3
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return Loss(total * self.outside + 7 * (1 - self.outside) * len(labels), {}, len(labels))


class Rounded(Straight):
    """Learns from a difference that bfloat16 does not see."""

    def loss(self, batch):
        states = torch.linspace(0, 1, 8).expand(len(batch.input_ids), 8)
        products = self.layer(states).float()
        near = self.layer(states * (1 + 1e-3)).float()
        return Loss(((near - products) * 1e3).square().sum() * 1e-4 + 9.0 * len(states), {}, len(states))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_model_that_bears_it_is_left_without_a_trace(toys, precision):
    pair = toys.Pair()
    pair.judge.eval()
    pair.reader.table.weight.grad = torch.ones_like(pair.reader.table.weight)
    before, modes = copy.deepcopy(pair.state_dict()), [module.training for module in pair.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    scales = check_precision(pair, toys.Stream()[0], precision, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in pair.modules()] == modes
    assert [name for name, weight in pair.named_parameters() if weight.grad is not None] == ["reader.table.weight"]
    assert (pair.reader.table.weight.grad == 1).all()
    assert all(torch.equal(before[name], weight) for name, weight in pair.state_dict().items())
    if precision == "bfloat16":
        assert scales == [1, 1]
    else:
        reader, judge = scales
        assert judge < reader < 2**16  # its loss is 50 times as large


@pytest.mark.parametrize(
    ("objective", "precision", "told"),
    [
        (Straight(inside=1e6), "float16", r"refused: on the first batch the loss is (nan|inf) instead of .*; set"),
        (Straight(outside=1e-14), "float16", r"the gradient is zero; set precision to bfloat16 or float32\."),
        (Rounded(), "bfloat16", r"^bfloat16 is refused: .* cosine .*, less than 0\.9; set precision to float32\.$"),
    ],
)
def test_a_model_that_does_not_is_refused(toys, objective, precision, told):
    with pytest.raises(InputError, match=told):
        check_precision(objective, toys.Stream()[0], precision, CPU)
    assert objective.training


def test_the_same_models_in_the_other_precision(toys):
    check_precision(Straight(inside=1e6), toys.Stream()[0], "bfloat16", CPU)
    check_precision(Straight(outside=1e-14), toys.Stream()[0], "bfloat16", CPU)


def test_a_loss_that_is_far_away(toys):
    class Far(Straight):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.total * (1 + 0.1 * torch.is_autocast_enabled("cpu")), {}, loss.count)

    with pytest.raises(
        InputError, match=r"the loss is .* instead of .*, more than 5% away; set precision to float32\."
    ):
        check_precision(Far(), toys.Stream()[0], "bfloat16", CPU)


def test_a_run_is_refused_before_its_first_step(toys, tmp_path):
    with pytest.raises(InputError, match="float16 is refused"):
        toys.run(tmp_path, Straight(inside=1e6), precision="float16")
    assert not tmp_path.joinpath("metrics.jsonl").exists()


def rows(folder):
    found = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == "train"]


def test_an_overflow_is_passed_over_counted_and_said_once(toys, tmp_path, capsys):
    toys.run(tmp_path / "whole", toys.Overflowing(), precision="float16", log_every=1, checkpoint_every=1)
    assert [row["skipped"] for row in rows(tmp_path / "whole")] == [0, 1, 1, 1]
    assert [row["grad_norm"] is None for row in rows(tmp_path / "whole")] == [False, True, False, False]
    assert capsys.readouterr().err.count("step 2: the gradient overflows float16, so this update is passed over") == 1

    for _ in range(3):
        toys.run(tmp_path / "pieces", toys.Overflowing(), precision="float16", log_every=1, max_minutes=1e-9)
    toys.run(tmp_path / "pieces", toys.Overflowing(), precision="float16", log_every=1)
    whole, pieces = (toys.outcome(tmp_path / name) for name in ("whole", "pieces"))
    name = "checkpoints/step-00000004/model.safetensors"
    assert whole[name] == pieces[name]
    assert whole["rows"] == pieces["rows"]


def test_an_overflow_without_end_stops_the_run(toys, tmp_path):
    class Endless(toys.Overflowing):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.total * (torch.inf if self.training else 1), loss.parts, loss.count)

    with pytest.raises(InputError, match=r"overflows float16 however small the loss is scaled, so the run stops"):
        toys.run(tmp_path, Endless(), precision="float16", steps=99)
