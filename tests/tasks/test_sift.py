"""SiFT: an ascent derived by hand, what the passes touch and cost, and faults that must show.

As a script, ``test_sift.py FOLDER``, it trains in one process and in two, with whole and with sharded weights.
"""

import dataclasses
import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from unbraid import cli
from unbraid.commands.finetune import Config
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import (
    Deberta,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from unbraid.model.span_heads import DebertaForEntityChoice, DebertaForSpanClassification
from unbraid.objective import Loss
from unbraid.tasks import sift
from unbraid.tasks.classification import SequenceClassification
from unbraid.tasks.config import SiftConfig
from unbraid.tasks.objective import TaskObjective, symmetric_kl
from unbraid.tasks.question_answering import QuestionObjective
from unbraid.tasks.sift import Sift, ascend, noise
from unbraid.tasks.token_classification import TokenObjective
from unbraid.text.batch import pack
from unbraid.text.tokenizer import train_tokenizer
from unbraid.training.config import TrainingConfig
from unbraid.training.loop import train

WIDTH = 16


def tiny_model(num_labels=3, model_class=DebertaForSequenceClassification, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, position_buckets=8, type_vocab_size=2,
        id2label={i: f"c{i}" for i in range(num_labels)}, **fields,
    )  # fmt: skip
    model = model_class(config)
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, 1.0, 0.1) if "norm.weight" in name else nn.init.normal_(weight, 0.0, 0.3)
    return model


def still_model(num_labels=3, **fields):
    """Without dropout."""
    return tiny_model(num_labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **fields)


def examples(num_labels=3, lengths=(5, 1, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(0, 50, (length,), generator=generator).tolist() for length in lengths]
    labels = torch.randn(len(lengths), generator=generator)
    if num_labels > 1:
        labels = torch.randint(0, num_labels, (len(lengths),), generator=generator)
    return pack(sequences, labels, [[0] * (length - length // 2) + [1] * (length // 2) for length in lengths])


def sift_of(model, **fields):
    return Sift(SequenceClassification(model), SiftConfig(**{"weight": 5.0, "step_size": 0.1, **fields})).train()


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def taught(objective, batch, seed=0):
    """The loss and the gradients of one batch."""
    objective.zero_grad()
    torch.manual_seed(seed)
    loss = objective(batch)
    loss.total.backward()
    return loss, gradients(objective)


# A model that can be followed by hand: one token, two components, a score that is linear in them.


class Line(TaskObjective):
    """Scores the first token's embedding e by e . w, and learns nothing of it; counts its passes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.w = nn.Parameter(torch.tensor([3.0, -4.0]))
        self.passes = 0

    def outputs(self, batch, perturbation=None):
        self.passes += 1
        total = perturbation if isinstance(perturbation, torch.Tensor) else perturbation(self.table[batch.input_ids])
        return (total @ self.w,)

    def loss_from(self, outputs, _batch):
        return Loss(0 * outputs[0].sum(), {}, 1)

    def divergence(self, clean, perturbed, _batch):
        return (clean[0] - perturbed[0]).square().sum()


@pytest.fixture
def line(monkeypatch):
    """Noise of (0.1, 0.2): the gradient is 2 (d . w) w = -(3, -4), so every step has the direction (-3, 4)."""
    monkeypatch.setattr(sift, "noise", lambda *_: torch.tensor([[0.1, 0.2]]))
    return Line()


def along(line, **fields):
    config = SiftConfig(weight=2.0, normalise=False, **fields)
    loss = Sift(line, config).train()(pack([[0]]))
    assert loss.total.item() == pytest.approx(2 * loss.parts["consistency"].item())
    return loss


@pytest.mark.parametrize(
    ("fields", "reached"),
    [
        ({"steps": 0}, (0.1, 0.2)),
        ({"step_size": 0.4}, (-0.2, 0.6)),  # 0.4 * (-3, 4) / 4
        ({"step_size": 0.5, "norm": "l2"}, (-0.2, 0.6)),  # 0.5 * (-3, 4) / 5
        ({"step_size": 0.4, "steps": 2}, (-0.5, 1.0)),
        ({"step_size": 0.4, "radius": 0.3}, (-0.2, 0.3)),
        ({"step_size": 0.5, "norm": "l2", "radius": 0.1**0.5}, (-0.1, 0.3)),  # half of the length sqrt(0.4)
        ({"step_size": 0.4, "radius": 7.0}, (-0.2, 0.6)),
    ],
)
def test_the_ascent_is_the_one_derived_by_hand(line, fields, reached):
    loss = along(line, **fields)
    rise = 3 * reached[0] - 4 * reached[1]
    assert loss.parts["consistency"].item() == pytest.approx(rise**2, rel=1e-5)
    assert line.passes == 2 + fields.get("steps", 1)


@pytest.mark.parametrize(
    ("fields", "w", "table"),
    [
        # The divergence is (d . w) ** 2 with d = (-0.2, 0.6), weighted 2: its gradient is 4 (d . w) d = -12 d.
        ({}, (2.4, -7.2), None),
        # With the clean score held, 4 (d . w) (e + d) = -12 (0.8, 2.6): nothing to do with the embedding yet.
        ({"clean_gradient": False}, (-9.6, -31.2), None),
        # And then the embedding's: 4 (d . w) w = -12 (3, -4).
        ({"clean_gradient": False, "embedding_gradient": True}, (-9.6, -31.2), (-36.0, 48.0)),
        # Score and perturbed score move alike with the embedding: it has nothing to gain.
        ({"embedding_gradient": True}, (2.4, -7.2), (0.0, 0.0)),
    ],
)
def test_the_gradient_reaches_what_it_should(line, fields, w, table):
    along(line, step_size=0.4, **fields).total.backward()
    assert_close(line.w.grad, torch.tensor(w), rtol=1e-4, atol=0)
    if table is None and "clean_gradient" not in fields:  # the clean score alone: -4 (d . w) w
        table = (36.0, -48.0)
    assert_close(line.table.grad, torch.tensor([table or (0.0, 0.0)]), rtol=1e-4, atol=1e-4)


def test_a_step_of_every_token_has_its_length():
    torch.manual_seed(0)
    delta, slopes = torch.randn(7, 5), torch.randn(7, 5) * torch.logspace(-2, 9, 7)[:, None]
    for norm, order in (("inf", torch.inf), ("l2", 2)):
        config = SiftConfig(weight=1, step_size=0.25, norm=norm)
        moved = ascend(delta, slopes, config) - delta
        assert_close(moved.norm(order, -1), torch.full((7,), 0.25), rtol=1e-3, atol=0)
        assert_close(functional.cosine_similarity(moved, slopes), torch.ones(7))
        kept = ascend(delta, slopes, SiftConfig(weight=1, step_size=0.25, norm=norm, radius=0.5))
        assert kept.norm(order, -1).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("norm", ["inf", "l2"])
@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan")])
def test_a_token_whose_gradient_overflowed_stays(norm, broken):
    delta, slopes = torch.ones(2, 3), torch.tensor([[1.0, broken, 2.0], [0.0, 0.0, 4.0]])
    moved = ascend(delta, slopes, SiftConfig(weight=1, step_size=0.5, norm=norm))
    assert moved.tolist() == [[1, 1, 1], [1, 1, pytest.approx(1.5)]]


def test_no_slope_no_step():
    half = ascend(torch.zeros(1, 2), torch.tensor([[1e-6, 0.0]]), SiftConfig(weight=1, step_size=1.0))
    assert half.tolist() == [[pytest.approx(0.5), 0]]
    assert ascend(torch.ones(2, 3), torch.zeros(2, 3), SiftConfig(weight=1, radius=9.0)).tolist() == [[1.0] * 3] * 2


def test_noise_is_normal_and_clipped_at_two_deviations():
    torch.manual_seed(0)
    drawn = noise(torch.zeros(100_000, dtype=torch.float32), 0.3)
    assert drawn.dtype == torch.float32
    assert drawn.abs().max().item() == pytest.approx(0.6)
    assert (drawn.abs() > 0.599).float().mean().item() == pytest.approx(0.0455, abs=3e-3)
    assert drawn.std().item() == pytest.approx(0.3 * 0.959, rel=0.01)  # of the normal distribution clipped there


def test_symmetric_kl_has_its_value_and_the_difference_of_the_probabilities_for_gradient():
    torch.manual_seed(0)
    ours, theirs = (2 * torch.randn(4, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours.retain_grad(), theirs.retain_grad()
    divergences = symmetric_kl(ours, theirs)
    p, q = ours.detach().softmax(-1), theirs.detach().softmax(-1)
    entropies = -(p * p.log() + q * q.log()).sum(-1)
    assert_close(divergences.detach(), ((p - q) * (p.log() - q.log())).sum(-1) + entropies)
    divergences.sum().backward()
    assert_close(ours.grad, p - q)
    assert_close(theirs.grad, q - p)


def test_symmetric_kl_does_not_see_what_cannot_be_chosen():
    torch.manual_seed(0)
    lowest = torch.full((2, 2), torch.finfo(torch.float32).min)
    few = [(9 * torch.randn(2, 3)).requires_grad_() for _ in range(2)]
    divergences = symmetric_kl(*(torch.cat([logits, lowest], -1) for logits in few))
    assert_close(divergences, symmetric_kl(*few))
    divergences.sum().backward()
    assert all(logits.grad.isfinite().all() and logits.grad.any() for logits in few)


# Every kind of output.


def test_classes_diverge_by_the_sum_of_their_symmetric_kl():
    objective, batch = SequenceClassification(still_model()), examples()
    clean, perturbed = (
        torch.tensor([[1.0, 2, 3], [0, 0, 0], [1, 0, 0]]),
        torch.tensor([[1.0, 2, 4], [1, 0, 0], [1, 0, 0]]),
    )
    assert_close(objective.divergence((clean,), (perturbed,), batch), symmetric_kl(clean, perturbed).sum())


def test_scores_diverge_by_their_squared_difference():
    """The original's symmetric KL runs over the batch here, and its divergence of one score is always zero."""
    model, batch = still_model(1), examples(1)
    objective = sift_of(model, embedding_gradient=True)
    loss, found = taught(objective, batch)
    assert loss.parts["consistency"] > 1e-4

    torch.manual_seed(0)
    plain = objective.objective
    kept = functools.partial(functional.layer_norm, normalized_shape=(WIDTH,), eps=1e-7)
    with torch.no_grad():
        total = model.deberta.embeddings.word(batch.input_ids) + model.deberta.embeddings.token_type(
            batch.token_type_ids
        )
        clean = plain.outputs(batch, kept)[0]
    delta = noise(total, 0.01).requires_grad_()
    (plain.outputs(batch, kept(total) + delta)[0] - clean).square().sum().backward()
    climbed = delta.detach() + 0.1 * delta.grad / (1e-6 + delta.grad.abs().amax(-1, keepdim=True))
    objective.zero_grad()
    clean = plain.outputs(batch, kept)[0]
    perturbed = plain.outputs(batch, lambda total: kept(total) + climbed)[0]
    expected = (clean[:, 0] - batch.labels).square().sum() + 5 * (clean - perturbed).square().sum()
    expected.backward()
    assert_close(loss.total, expected)
    for name, gradient in gradients(objective).items():
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def crossed(clean, perturbed):
    """Two cross entropies of one distribution each, either way round."""
    p, q = clean.detach().double().log_softmax(-1), perturbed.detach().double().log_softmax(-1)
    return float(-(p.exp() * q + q.exp() * p).sum())


def moved(total):
    return total + 0.3 * torch.ones(WIDTH).cumsum(0)


def test_only_counted_tokens_diverge():
    model = still_model(model_class=DebertaForTokenClassification)
    batch = dataclasses.replace(examples(lengths=(3, 4)), labels=torch.tensor([-100, 1, -100, 0, 2, -100, -100]))
    objective = TokenObjective(model)
    clean, perturbed = (objective.outputs(batch, change) for change in (None, moved))
    expected = sum(crossed(clean[0][row], perturbed[0][row]) for row in (1, 3, 4))
    assert objective.divergence(clean, perturbed, batch).item() == pytest.approx(expected, rel=1e-5)
    loss = Sift(objective, SiftConfig(weight=1.0)).train()(batch)
    assert loss.count == 3
    assert loss.parts["consistency"] > 0


def test_spans_diverge_by_the_mean_of_both_ends_over_their_own_text():
    model = still_model(model_class=DebertaForQuestionAnswering)
    batch = dataclasses.replace(examples(lengths=(3, 6)), labels=torch.tensor([[1, 2], [0, 0]]))
    objective = QuestionObjective(model)
    call = functools.partial(model, batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids)
    plain, other = call(), call(perturbation=moved)
    expected = sum(
        crossed(getattr(plain, end)[rows], getattr(other, end)[rows]) / 2
        for end in ("start_logits", "end_logits")
        for rows in (slice(0, 3), slice(3, 9))
    )
    clean, perturbed = (objective.outputs(batch, change) for change in (None, moved))
    assert objective.divergence(clean, perturbed, batch).item() == pytest.approx(expected, rel=1e-5)
    loss, found = taught(Sift(objective, SiftConfig(weight=1.0)).train(), batch)
    assert loss.parts["consistency"] > 0
    assert all(gradient.isfinite().all() for gradient in found.values())


HEADS = [
    (DebertaForSequenceClassification, {}),
    (DebertaForTokenClassification, {}),
    (DebertaForQuestionAnswering, {}),
    (DebertaForMultipleChoice, {"num_choices": 3}),
    (DebertaForSpanClassification, {"spans": torch.tensor([[0, 2], [4, 5], [5, 6], [5, 6], [7, 9], [6, 15]])}),
    (DebertaForEntityChoice, {"spans": torch.tensor([[0, 2], [5, 6], [6, 15], [7, 9]])}),
]


def logits_of(output):
    return output.logits if hasattr(output, "logits") else torch.cat([output.start_logits, output.end_logits])


@pytest.mark.parametrize(("model_class", "more"), HEADS)
@pytest.mark.parametrize("embedding_size", [None, 12])
def test_every_head_takes_a_perturbation_of_the_sum_or_in_its_place(model_class, more, embedding_size):
    model, batch = still_model(model_class=model_class, embedding_size=embedding_size), examples()
    call = functools.partial(model, batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, **more)
    sums = []
    plain = logits_of(call())
    assert_close(logits_of(call(perturbation=lambda total: sums.append(total) or total)), plain)
    assert sums[0].shape == (len(batch.input_ids), WIDTH)
    changed = logits_of(call(perturbation=moved))
    assert (changed - plain).abs().max() > 0.01
    for table in (model.deberta.embeddings.word, model.deberta.embeddings.token_type):
        table.weight.data.fill_(float("nan"))
    assert_close(logits_of(call(perturbation=sums[0])), plain)
    assert_close(logits_of(call(perturbation=moved(sums[0]))), changed)


# The passes.


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_ascent_leaves_the_parameters_alone_and_nothing_below_the_seam_is_computed_again(steps):
    model, batch = still_model(), examples()
    objective = sift_of(model, steps=steps)
    lookups, forwards = [], []
    model.deberta.embeddings.word.register_forward_hook(lambda *_: lookups.append(1))
    model.deberta.embeddings.register_forward_hook(lambda *_: forwards.append(1))
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 7.0)
    wants = [weight.requires_grad for weight in model.parameters()]
    objective(batch)
    assert (len(lookups), len(forwards)) == (1, 2 + steps)
    assert all(bool((weight.grad == 7).all()) for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == wants


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_batch_costs_the_passes_that_it_must(steps):
    """In products: a forward pass 1, a backward pass 2, half of which is for the weights and not for the ascent."""
    model, batch = still_model(hidden_act="relu"), examples(lengths=(9, 9, 9))
    model.deberta.encoder.backend = "sdpa"

    def products(objective):
        with FlopCounterMode(display=False) as counter:
            objective(batch).total.backward()
        return counter.get_total_flops()

    times = products(sift_of(model, steps=steps)) / products(SequenceClassification(model))
    assert times == pytest.approx((2 + steps + 2 * 2 + steps) / 3, rel=0.03)


def test_examples_of_a_batch_do_not_see_each_other(monkeypatch):
    """So that gradient accumulation and processes weigh every example alike: sums over micro-batches add up."""
    torch.manual_seed(1)
    table = 0.05 * torch.randn(15, WIDTH)
    rows = [slice(0, 5), slice(5, 6), slice(6, 15)]
    model, batch = still_model(), examples()
    objective = sift_of(model, steps=2)
    monkeypatch.setattr(sift, "noise", lambda *_: table)
    loss, found = taught(objective, batch)
    assert loss.count == 3
    objective.zero_grad()
    sums = {"total": 0.0, "consistency": 0.0, "correct": 0.0}
    for number, row in enumerate(rows):
        monkeypatch.setattr(sift, "noise", lambda *_, row=row: table[row])
        one = pack(
            [batch.input_ids[row].tolist()], batch.labels[number : number + 1], [batch.token_type_ids[row].tolist()]
        )
        part = objective(one)
        part.total.backward()
        sums["total"] += part.total.item()
        for name, value in part.parts.items():
            sums[name] += value.item()
    assert sums == pytest.approx(
        {"total": loss.total.item(), **{name: value.item() for name, value in loss.parts.items()}}, rel=1e-4
    )
    for name, gradient in gradients(objective).items():
        assert_close(gradient, found[name], rtol=1e-3, atol=1e-3 * float(found[name].abs().max()))


def test_evaluation_is_the_objective_alone():
    model, batch = tiny_model(), examples()
    plain, objective = SequenceClassification(model).eval(), sift_of(model).eval()
    ours, theirs = objective(batch), plain(batch)
    assert ours.total.item() == theirs.total.item()
    assert ours.parts == theirs.parts
    assert (ours.count, ours.handed) == (theirs.count, None)


def test_the_norm_is_another_eps_of_the_embeddings_own_norm():
    """So a model trained with it is saved without: LN(LN(x)) is LN(x) with the product of both eps in the place of one.

    Exactly: with a and b for the eps, within and without, 1 / sqrt(1 + b) of the norm whose eps is a b / (1 + b).
    """
    torch.manual_seed(0)
    rows = torch.randn(8, WIDTH, dtype=torch.float64) * torch.logspace(-4, 1, 8)[:, None]
    a, b = 1e-7, 1e-3
    twice = functional.layer_norm(functional.layer_norm(rows, (WIDTH,), eps=a), (WIDTH,), eps=b)
    once = functional.layer_norm(rows, (WIDTH,), eps=a * b / (1 + b)) / (1 + b) ** 0.5
    assert_close(twice, once, rtol=1e-9, atol=0)

    model, batch = still_model().eval(), examples()
    kept = functools.partial(functional.layer_norm, normalized_shape=(WIDTH,), eps=1e-7)
    (plain,), (normed,) = (SequenceClassification(model).outputs(batch, perturbed) for perturbed in (None, kept))
    assert_close(plain, normed, rtol=1e-5, atol=1e-5)


def test_the_seed_decides_all():
    objective, batch = sift_of(tiny_model()), examples()
    losses = [taught(objective, batch, seed) for seed in (0, 0, 1)]
    assert losses[0][0].total.item() == losses[1][0].total.item() != losses[2][0].total.item()
    for name, gradient in losses[0][1].items():
        assert torch.equal(gradient, losses[1][1][name])


@pytest.mark.parametrize("backend", ["reference", "sdpa", "auto"])
def test_shared_dropout_is_the_same_in_all_passes(backend, monkeypatch):
    monkeypatch.setattr(sift, "noise", lambda embedded, _: torch.zeros_like(embedded))
    model, batch = tiny_model(), examples()
    model.deberta.encoder.backend = backend
    clean = []
    for share in (True, False):
        objective = sift_of(model, share_dropout=share, step_size=1e-12)
        perturbed = []
        outputs = objective.objective.outputs
        objective.objective.outputs = lambda *args, kept=perturbed, outputs=outputs: (
            kept.append(outputs(*args)) or kept[-1]
        )
        torch.manual_seed(3)
        objective(batch)
        same = [torch.equal(perturbed[0][0], logits) for (logits,) in perturbed[1:]]
        assert same == [share, share]
        clean.append(perturbed[0][0])
    assert not torch.equal(*clean)  # each draws its own: a seed was drawn first


def test_gradient_checkpointing_changes_nothing_but_memory():
    model, batch = tiny_model(), examples()
    results = []
    for checkpointing in (False, True):
        model.deberta.encoder.gradient_checkpointing = checkpointing
        results.append(taught(sift_of(model, steps=2), batch))
    (kept, expected), (again, found) = results
    assert again.total.item() == kept.total.item()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_lower_precision_is_near_float32_and_the_perturbation_stays_in_it(dtype, bound):
    model, batch = still_model(embedding_size=12), examples()
    objective, seen = sift_of(model, step_size=0.01), []
    model.deberta.embeddings.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact, expected = taught(objective, batch)
    with torch.autocast("cpu", dtype):
        torch.manual_seed(0)
        objective.zero_grad()
        loss = objective(batch)
    loss.total.backward()
    assert seen == [torch.float32] * 6
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=bound)
    for name in ("classifier.weight", "deberta.encoder.layers.0.value.weight"):
        name = next(known for known in expected if known.endswith(name.rpartition("layers.0.")[2]))
        cosine = functional.cosine_similarity(gradients(objective)[name].flatten(), expected[name].flatten(), dim=0)
        assert cosine > 1 - bound


# Faults that must show.


def direction(objective, batch):
    torch.manual_seed(0)
    return objective(batch).parts["consistency"].item()


def test_the_ascent_climbs():
    """With small steps the squared difference of the scores grows manyfold; against the slope it would shrink."""
    model, batch = still_model(1), examples(1)
    low, high = (direction(sift_of(model, steps=steps, step_size=2e-3), batch) for steps in (0, 10))
    assert high > 3 * low > 0


def test_a_step_the_other_way_would_show(monkeypatch):
    model, batch = still_model(), examples()
    right = direction(sift_of(model), batch)
    monkeypatch.setattr(sift, "ascend", lambda delta, slope, config: ascend(delta, -slope, config))
    assert abs(direction(sift_of(model), batch) / right - 1) > 1e-2


def test_the_norm_and_the_gradient_of_the_clean_output_show():
    model, batch = still_model(), examples()
    _, right = taught(sift_of(model), batch)
    for fault in ({"normalise": False}, {"clean_gradient": False}):
        _, wrong = taught(sift_of(model, **fault), batch)
        worst = max(float((wrong[name] - right[name]).abs().max() / right[name].abs().max()) for name in right)
        assert worst > 1e-2, fault


# What may be asked for.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"steps": -1}, "steps"),
        ({"step_size": 0}, "step_size"),
        ({"start": -0.1}, "start"),
        ({"radius": 0}, "radius"),
        ({"norm": "l1"}, "norm"),
        ({"epsilon": 1}, "epsilon"),
        ({"start": 0, "share_dropout": True}, "all passes the same"),
        ({"weight": 0, "steps": 2}, "sift.weight is 0, so steps does nothing"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        SiftConfig(**{"weight": 1.0, **fields})


def test_the_defaults_are_the_originals():
    config = SiftConfig()
    assert (config.weight, config.steps, config.step_size, config.start) == (0.0, 1, 1e-4, 1e-2)
    assert (config.norm, config.radius, config.normalise, config.clean_gradient) == ("inf", None, True, True)
    assert (config.embedding_gradient, config.share_dropout) == (False, False)


def test_without_a_weight_there_is_no_sift():
    with pytest.raises(InputError, match="leave SiFT out"):
        Sift(SequenceClassification(still_model()), SiftConfig())


# From the command line.


def documented():
    """The settings in the table of docs/finetuning.md."""
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| `(--sift[^`]+)`", text, flags=re.MULTILINE)
    return {name: options.replace("EPS", "0.1").split() for name, options in rows}


@pytest.mark.parametrize("name", ["SMART", "VAT", "noise alone", "R-Drop's consistency"])
def test_documented_settings_are_settings(name):
    files = ["--model", "m", "--output", "o", "--task.train", "t.tsv", "--task.dev", "d.tsv", "--training.steps", "1"]
    config = cli.read_config(Config, "finetune", [*files, "--sift.weight", "1", *documented()[name]]).sift
    loss, found = taught(Sift(SequenceClassification(tiny_model(1)), config).train(), examples(1))
    assert loss.parts["consistency"] > 0
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = train_tokenizer(["good bad film book"] * 9, "unigram", 19)
    Deberta(tiny_model().config.replace(vocab_size=len(tokenizer), type_vocab_size=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "data.tsv").write_text("text\tlabel\ngood film\tyes\nbad film\tno\ngood book\tyes\nbad book\tno\n")
    return folder


def finetune(pretrained, output, *options):
    data = pretrained / "data.tsv"
    files = ["--model", pretrained, "--output", output, "--task.train", data, "--task.dev", data]
    cli.main(["finetune", *map(str, files), "--training.steps", "2", "--training.log-every", "1", *options])
    rows = [json.loads(row) for row in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["consistency"] for row in rows if "consistency" in row]


def test_what_is_saved_is_an_ordinary_model_with_the_scores_it_was_chosen_by(pretrained, tmp_path):
    assert finetune(pretrained, tmp_path / "plain") == []
    consistency = finetune(pretrained, tmp_path / "sift", "--sift.weight", "5")
    assert len(consistency) == 2
    assert min(consistency) > 0
    assert json.loads((tmp_path / "sift" / "recipe.json").read_text())["sift"]["weight"] == 5
    names, configs = [], []
    for run in ("plain", "sift"):
        folder = tmp_path / run / "best"
        names.append(set(load_file(folder / "model.safetensors")))
        configs.append(json.loads((folder / "config.json").read_text()))
    assert names[0] == names[1]
    assert configs[0] == configs[1]
    scores = json.loads((tmp_path / "sift" / "results.json").read_text())["dev"]
    rows = [json.loads(row) for row in (tmp_path / "sift" / "metrics.jsonl").read_text().splitlines()]
    assert scores["loss"] in [pytest.approx(row["loss"], rel=1e-5) for row in rows if row["kind"] == "evaluation"]


def test_options_without_a_weight_are_refused(pretrained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune(pretrained, tmp_path, "--sift.steps", "2")
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "sift.weight is 0, so steps does nothing: give a weight, such as 5." in told


# Several processes.


class Examples:
    """Ragged micro-batches with labels, 5 an epoch."""

    per_epoch = 5

    def __getitem__(self, index):
        return examples(lengths=(3 + index % 4, 2, 7), seed=index)


RUNS = {
    "alone": (1, {}),
    "whole": (2, {}),
    "sharded": (2, {"sharding": "full"}),
    "sharded and checkpointing": (2, {"sharding": "full", "checkpointing": True}),
}


def _train(folder, checkpointing=False, **fields):
    model = tiny_model()
    model.deberta.encoder.gradient_checkpointing = checkpointing
    objective = sift_of(model, steps=2, embedding_gradient=True)
    config = TrainingConfig(steps=3, micro_batches=2, log_every=1, evaluate_every=None, device="cpu", **fields)
    train(
        objective,
        Examples(),
        config,
        folder,
        save_last=lambda last: save_file({k: v.detach() for k, v in model.named_parameters()}, last / "w.safetensors"),
    )


def _spread(folder):
    """Forks the processes of every run in :data:`RUNS`."""
    import torch._dynamo  # DDP and FSDP do: once, before forking

    torch.set_num_threads(1)
    for name, (processes, fields) in RUNS.items():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                if processes > 1:
                    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                    os.environ.update({key: str(value) for key, value in names.items()})
                    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
                try:
                    _train(folder / name, **fields)
                finally:
                    sys.stdout.flush()
                    os._exit(1 if sys.exc_info()[0] else 0)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            raise SystemExit(f"{name} failed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, folder], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def outcome(folder):
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [{k: v for k, v in row.items() if k not in ("kind", "elapsed_s", "tokens_per_s")} for row in rows]
    return curve, load_file(folder / "model" / "w.safetensors")


@pytest.mark.parametrize("together", ["whole", "sharded", "sharded and checkpointing"])
def test_any_number_of_processes_has_the_curve_and_the_weights_of_one(runs, together):
    (curve, weights), (their_curve, their_weights) = outcome(runs / "alone"), outcome(runs / together)
    assert len(curve) == 3
    assert all("consistency" in row for row in curve)
    for ours, theirs in zip(curve, their_curve, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    assert_close(their_weights, weights, rtol=1e-3, atol=2e-5)


if __name__ == "__main__":
    _spread(Path(sys.argv[1]))
