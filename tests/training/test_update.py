import copy
import itertools
import math

import pytest
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.objective import Loss, Objective
from unbraid.text.batch import pack
from unbraid.training.config import OptimizerConfig, TrainingConfig
from unbraid.training.update import prepare, updates


def run_updates(toys, toy, solver, *, done=0, until=None, batches=None, scale=1.0, **fields):
    config = TrainingConfig(steps=4, **fields)
    cpu = torch.device("cpu")
    phases = prepare(toy, config, cpu, [scale for _ in toy.phases])
    source = updates(phases, batches or toys.Stream(), config, solver, cpu, done, 4, lambda: False)
    return [update for _, update in zip(range(until or 4 - done), source, strict=False)]  # stops early


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
    assert update.grad_norms == pytest.approx((gradient.norm().item(),), rel=1e-6)
    assert update.tokens == sum(counts)
    [sums] = update.sums
    expected = {"loss": loss.total.item(), "accuracy": loss.parts["accuracy"].item(), "items": sum(counts)}
    assert sums == pytest.approx(expected)
    assert update.loss == pytest.approx(loss.total.item() / sum(counts))


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
    assert all(update.grad_norms[0] > 0.01 for update in seen)
    assert lengths == pytest.approx([0.01 * rate for rate in rates], rel=1e-3)


def test_randomness_depends_on_the_index_and_the_seed_alone(toys):
    def sums(disturb=False, **fields):
        toy = toys.Toy(dropout=0.5)
        if disturb:
            torch.rand(100)
        return [update.sums[0]["loss"] for update in run_updates(toys, toy, plain_sgd(toy), **fields)]

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


class Faulty(Objective):
    """A finite loss of a weight w, except at the steps where it is told otherwise."""

    def __init__(self, fault, at):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.fault, self.left = fault, at

    def loss(self, batch):
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
        def loss(self, _):
            return Loss((self.weight * 0).sum(), {}, 0)

    objective = Nothing(None, 0)
    updates_made = run_updates(toys, objective, plain_sgd(objective, lr=1.0))
    assert [update.grad_norms for update in updates_made] == [(0,)] * 4
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


class TwoSteps(Objective):
    """Two phases that pull w and v; the second reads the w that the first has just moved, and hands w a gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Pull(None), Pull(None)
        self.second.other = (self.first,)

    @property
    def phases(self):
        return self.first, self.second


class Pull(Objective):
    def __init__(self, other):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.other = other
        self.seen = []

    def loss(self, batch):
        self.seen.append((batch, torch.rand(1).item(), self.other and self.other[0].weight.item()))
        total = 3 * self.weight.sum()
        if self.other:
            return Loss(total * 2 + 5 * self.other[0].weight.sum(), {}, 3)
        return Loss(total, {}, 1, len(batch.input_ids))


def test_each_phase_moves_its_own_weights_before_the_next_one_reads_them(toys):
    objective = TwoSteps()
    config = OptimizerConfig(learning_rate=0.5, warmup=0, clip_norm=2.0)
    updates_made = run_updates(toys, objective, plain_sgd(objective), until=2, micro_batches=2, optimizer=config)
    rates = [update.lr for update in updates_made]
    assert rates == [0.5, 0.375]
    # The mean gradients are 3 (clipped to 2) and 2.
    assert [update.grad_norms for update in updates_made] == [pytest.approx((3, 2))] * 2
    first = [1 - 2 * 0.5, 1 - 2 * 0.5 - 2 * 0.375]
    assert objective.first.weight.item() == pytest.approx(first[1], abs=1e-5)
    assert objective.second.weight.item() == pytest.approx(first[1], abs=1e-5)  # the same lengths
    batches, draws, seen = zip(*objective.second.seen, strict=True)
    assert list(batches) == [len(toys.Stream()[index].input_ids) for index in range(4)]  # what the first handed on
    assert seen == pytest.approx([first[0], first[0], first[1], first[1]], abs=1e-5)
    assert len({*draws, *(draw for _, draw, _ in objective.first.seen)}) == 8
    assert [update.sums[1]["items"] for update in updates_made] == [6, 6]


def test_processes_that_cannot_share_the_micro_batches(toys, monkeypatch):
    from unbraid.training import update

    monkeypatch.setattr(update, "num_processes", lambda: 2)
    toy = toys.Toy()
    with pytest.raises(InputError, match=r"the 3 micro-batches .* by 2 processes: set training.micro_batches to a mul"):
        run_updates(toys, toy, plain_sgd(toy), micro_batches=3)


@pytest.mark.parametrize(("processes", "index"), [(2, 0), (2, 1), (4, 3)])
def test_each_process_takes_every_other_micro_batch_wherever_it_begins(toys, monkeypatch, processes, index):
    from unbraid.training import update

    class Noted(toys.Stream):
        taken = []  # noqa: RUF012, one stream is made

        def __getitem__(self, index):
            self.taken.append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(update, "num_processes", lambda: processes)
    monkeypatch.setattr(update, "process_index", lambda: index)
    toy, batches = toys.Toy(), Noted()
    run_updates(toys, toy, plain_sgd(toy), done=1, until=2, micro_batches=4, batches=batches)
    assert batches.taken[: 8 // processes] == [a for a in range(4, 12) if a % processes == index]
