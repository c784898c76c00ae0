import copy
import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from unbraid.errors import InputError
from unbraid.objective import Loss
from unbraid.text.batch import pack
from unbraid.training.config import OptimizerConfig, TrainingConfig
from unbraid.training.update import updates


def run_updates(toys, toy, solver, *, done=0, until=None, batches=None, **fields):
    config = TrainingConfig(steps=4, **fields)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bfloat16" else "no", cpu=True)
    source = updates(toy, batches or toys.Stream(), config, solver, accelerator, done, 4, lambda: False)
    return [update for _, update in zip(range(until or 4 - done), source, strict=False)]


def plain_sgd(toy, lr=0.0):
    return torch.optim.SGD([p for p in toy.parameters() if p.requires_grad], lr=lr)


def vector(toy):
    return torch.cat([p.detach().flatten() for p in toy.parameters() if p.requires_grad])


def test_accumulation_is_one_big_batch(toys):
    toy = toys.Toy(dropout=0)
    whole = copy.deepcopy(toy)
    [update] = run_updates(
        toys, toy, plain_sgd(toy), until=1, micro_batches=3, optimizer=OptimizerConfig(clip_norm=math.inf, warmup=0)
    )

    pieces = [toys.Stream()[index] for index in range(3)]
    counts = [len(piece.input_ids) for piece in pieces]
    assert len(set(counts)) > 1  # or a mean of means would pass
    loss = whole.loss(pack([torch.cat([piece.input_ids for piece in pieces]).tolist()]))
    (loss.total / loss.count).backward()
    gradient = torch.cat([p.grad.flatten() for p in whole.parameters() if p.requires_grad])
    with torch.no_grad():
        moved = vector(whole) - 1e-4 * gradient
    torch.testing.assert_close(vector(toy), moved, rtol=1e-6, atol=1e-8)
    assert update.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert update.sums == pytest.approx(
        {
            "loss": loss.total.item(),
            "accuracy": loss.parts["accuracy"].item(),
            "items": sum(counts),
            "tokens": sum(counts),
        }
    )


def test_what_the_gradient_held_before_does_not_count(toys):
    toy, other = toys.Toy(), toys.Toy()
    for parameter in toy.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    run_updates(toys, toy, plain_sgd(toy), until=1)
    run_updates(toys, other, plain_sgd(other), until=1)
    assert torch.equal(vector(toy), vector(other))


def test_clipping_and_the_learning_rate_of_each_step(toys):
    toy = toys.Toy()
    config = OptimizerConfig(learning_rate=0.1, clip_norm=0.01, warmup=2)
    before = [vector(toy)]
    seen = []
    for done in range(4):
        seen += run_updates(toys, toy, plain_sgd(toy), done=done, until=1, optimizer=config)
        before.append(vector(toy))
    lengths = [(after - earlier).norm().item() for earlier, after in itertools.pairwise(before)]
    rates = [0.05, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    assert [update.lr for update in seen] == pytest.approx(rates)
    assert all(update.grad_norm > 0.01 for update in seen)
    assert lengths == pytest.approx([0.01 * rate for rate in rates], rel=1e-3)


def test_randomness_depends_on_the_index_and_the_seed_alone(toys):
    def sums(disturb=False, **fields):
        toy = toys.Toy(dropout=0.5)
        if disturb:
            torch.rand(100)
        return [update.sums["loss"] for update in run_updates(toys, toy, plain_sgd(toy), **fields)]

    class Same:
        per_epoch = 5

        def __getitem__(self, index):
            return toys.Stream()[0]

    assert sums() == sums(disturb=True)
    assert sums() != sums(seed=1)
    same = sums(batches=Same(), optimizer=OptimizerConfig(learning_rate=1e-30))
    assert len(set(same)) == 4
    accumulated = sums(batches=Same(), optimizer=OptimizerConfig(learning_rate=1e-30), micro_batches=2, until=2)
    assert accumulated == pytest.approx([same[0] + same[1], same[2] + same[3]])


class Faulty(nn.Module):
    """A finite loss of a weight w, except at the steps where it is told otherwise."""

    def __init__(self, fault, at):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.fault, self.left = fault, at

    def forward(self, batch):
        self.left -= 1
        total = self.fault(self.weight) if self.left == 0 else (self.weight * 2).sum()
        return Loss(total, {}, len(batch.input_ids))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda w: (w * torch.nan).sum(), "the loss is nan at step 3"),
        (lambda w: (w * torch.inf).sum(), "the loss is inf at step 3"),
        (lambda w: (w * 0).sqrt().sum(), "the loss is finite but its gradient has the norm nan at step 3"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(toys, fault, told):
    objective, healthy = Faulty(fault, 3), Faulty(fault, 0)
    with pytest.raises(InputError, match=told):
        run_updates(toys, objective, plain_sgd(objective))
    run_updates(toys, healthy, plain_sgd(healthy), until=2)
    assert torch.equal(objective.weight, healthy.weight)


def test_a_step_with_nothing_to_predict_moves_nothing(toys):
    class Nothing(Faulty):
        def forward(self, _):
            return Loss((self.weight * 0).sum(), {}, 0)

    objective = Nothing(None, 0)
    updates_made = run_updates(toys, objective, plain_sgd(objective, lr=1.0))
    assert [update.grad_norm for update in updates_made] == [0] * 4
    assert torch.equal(objective.weight, torch.ones(2))


def test_bfloat16_multiplies_in_it_and_keeps_the_weights_in_float32(toys):
    toy = toys.Toy()
    seen = []
    toy.inner.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    run_updates(toys, toy, plain_sgd(toy), precision="bfloat16", until=1)
    run_updates(toys, toy, plain_sgd(toy), until=1)
    assert seen == [torch.bfloat16, torch.float32]
    assert {p.dtype for p in toy.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # DataLoader's workers, from Python 3.12 on
def test_workers_change_nothing(toys):
    def sums(workers):
        toy = toys.Toy()
        made = run_updates(toys, toy, plain_sgd(toy), done=1, micro_batches=2, workers=workers)
        return [update.sums for update in made], vector(toy)

    (alone, alone_weights), (helped, helped_weights) = sums(0), sums(2)
    assert alone == helped
    assert torch.equal(alone_weights, helped_weights)
