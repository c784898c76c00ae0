"""The C++ kernel against the reference in float64; its threads and dropout; torch's machinery around it.

All of it with uninitialised memory filled with NaN, the kernel's scratch included.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.attention import native, reference, relative_slots
from unbraid.packing import Packing

# Without a compiler there is no kernel to test; with one, a kernel that does not build fails every test here.
pytestmark = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")
NAMES = ("q", "k", "v", "pos_k", "pos_q", "pos_pos")
SPAN = 8


@pytest.fixture(autouse=True)
def nan_filled_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclasses.dataclass
class Problem:
    tensors: dict[str, torch.Tensor | None]
    slots: torch.Tensor
    queries: Packing
    keys: Packing
    causal: bool = False

    def redrawn(self, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: None if t is None else torch.randn(t.shape, generator=generator, dtype=t.dtype)
            for name, t in self.tensors.items()
        }
        return dataclasses.replace(self, tensors=tensors)

    def run(self, function, dtype: torch.dtype, dropout_p: float = 0.0) -> dict[str, torch.Tensor]:
        """The output, and the gradient of every input for a fixed random weighting of it."""
        leaves = {n: None if t is None else t.to(dtype, copy=True).requires_grad_() for n, t in self.tensors.items()}
        output = function(*leaves.values(), self.slots, self.queries, self.keys, dropout_p, self.causal)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (output * weight.to(dtype)).sum().backward()
        gradients = {n: leaf.grad for n, leaf in leaves.items() if leaf is not None}
        return {"output": output.detach()} | {n: g for n, g in gradients.items() if g is not None}


def draw_problem(keys, rows=None, terms=NAMES[3:], heads=2, width=5, slots=None, causal=False) -> Problem:
    generator = torch.Generator().manual_seed(0)
    queries = keys if rows is None else keys.select(rows)
    sizes = [len(queries.positions), len(keys.positions), len(keys.positions), *[2 * SPAN] * 3]
    tensors = {
        name: torch.randn(size, heads, *[width] * (name != "pos_pos"), generator=generator, dtype=torch.float64)
        for name, size in zip(NAMES, sizes, strict=True)
    }
    kept = {name: t if name in (*NAMES[:3], *terms) else None for name, t in tensors.items()}
    return Problem(kept, relative_slots(keys.max_length, SPAN, 40) if slots is None else slots, queries, keys, causal)


def check_exact(problem: Problem, num_draws: int = 4) -> None:
    """At most twice the reference's own error in the same dtype, and a rounding of the largest value.

    The largest error of one draw is an accident of a single element; that of several draws says what to expect.
    """
    draws = [problem, *(problem.redrawn(seed) for seed in range(1, num_draws))]
    truths = [draw.run(reference.attention, torch.float64) for draw in draws]
    largest = max([1e-3, *(float(right.abs().max()) for truth in truths for right in truth.values() if right.numel())])
    for dtype in (torch.float32, torch.bfloat16):
        plain, ours = ([draw.run(f, dtype) for draw in draws] for f in (reference.attention, native.attention))
        for name in truths[0]:
            assert all(result[name].dtype == dtype for result in ours)
            right, usual, error = (torch.cat([x[name].flatten() for x in results]) for results in (truths, plain, ours))
            usual, error = usual - right, error - right
            rounding = torch.finfo(dtype).eps * largest
            if right.numel() and right.abs().max() < 1e-12:  # sums that cancel, whose error the terms decide
                assert error.abs().max() <= 4 * rounding, (name, dtype)
            elif right.numel():
                assert error.norm() <= 2 * usual.norm() + rounding, (name, dtype)
                assert error.abs().max() <= 2 * usual.abs().max() + rounding, (name, dtype)


@pytest.mark.parametrize(
    "lengths",
    [[1], [2], [17], [63], [100], [128], [129], [200], [600], [1, 1, 1], [3, 0, 7], [5, 150, 1, 40, 270, 17]],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_lengths(lengths, causal):
    check_exact(draw_problem(Packing.from_lengths(lengths), causal=causal))


@pytest.mark.parametrize("width", [1, 5, 16, 32, 64, 80])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_head_widths(width, causal):
    check_exact(draw_problem(Packing.from_lengths([33, 140]), width=width, causal=causal))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_every_subset_of_the_terms(number, causal):
    terms = [name for bit, name in enumerate(NAMES[3:]) if number >> bit & 1]
    check_exact(draw_problem(Packing.from_lengths([9, 300]), terms=terms, width=16, causal=causal))


@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_left_padding_and_holes(width, causal):
    mask = torch.rand(4, 180, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :50] = False
    mask[1] = False
    mask[2, 3:170] = False
    check_exact(draw_problem(Packing.from_mask(mask), width=width, causal=causal))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.15, 0.6])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_fewer_queries_than_keys(share, causal):
    keys = Packing.from_lengths([12, 330, 4, 140])
    rows = (torch.rand(486, generator=torch.Generator().manual_seed(4)) < share).nonzero().squeeze(-1)
    check_exact(draw_problem(keys, rows, causal=causal))


@pytest.mark.parametrize("slots", ["one a distance", "port", "shuffled", "one for all"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_other_tables_of_slots(slots, causal):
    keys = Packing.from_lengths([7, 290])
    tables = {
        "one a distance": relative_slots(290, None, SPAN),
        "port": relative_slots(290, SPAN, 40, "port"),
        "shuffled": torch.randint(2 * SPAN, (579,), generator=torch.Generator().manual_seed(5)),
        "one for all": torch.full((579,), 3),
    }
    check_exact(draw_problem(keys, slots=tables[slots], causal=causal))


def test_slots_for_more_than_the_longest_sequence():
    keys = dataclasses.replace(Packing.from_lengths([6, 11]), max_length=50)
    check_exact(draw_problem(keys))


def test_a_query_without_keys_reads_zeros():
    queries, keys = Packing.from_lengths([2, 3]), Packing.from_lengths([0, 4])
    problem = draw_problem(keys)
    problem.tensors["q"] = torch.randn(5, 2, 5, dtype=torch.float64)
    ours = dataclasses.replace(problem, queries=queries).run(native.attention, torch.float32)
    assert not ours["output"][:2].any()
    assert not ours["q"][:2].any()
    assert all(x.isfinite().all() for x in ours.values())


def test_a_query_before_all_keys_reads_zeros():
    whole = Packing.from_lengths([300, 9])
    queries = torch.tensor([0, 2, 5, 90, 200, 299, 300, 308])
    keys = torch.tensor([*range(3, 60), *range(160, 290), 304])
    problem = draw_problem(whole, causal=True)
    kept = {"q": queries, "k": keys, "v": keys}
    tensors = {name: t[kept[name]] if name in kept else t for name, t in problem.tensors.items()}
    cut = Problem(tensors, problem.slots, whole.select(queries), whole.select(keys), causal=True)
    check_exact(cut)
    blind = torch.tensor([0, 1, 6])
    ours = cut.run(native.attention, torch.float32)
    assert not ours["output"][blind].any()
    assert not ours["q"][blind].any()


@pytest.mark.parametrize("change", [3.0, torch.inf, torch.nan])
def test_later_tokens_change_nothing_before_them(change):
    """Not a bit of the outputs, nor of what these pass back; to keys a later query passes back 0 times itself."""
    read = ("q", "k", "v") if math.isfinite(change) else ("q",)
    packing = Packing.from_lengths([300, 40])
    for place in (0, 1, 6, 127, 128, 200, 299):
        results = []
        for value in (0.5, change):
            tensors = draw_problem(packing, heads=2, width=20).tensors
            for name in ("q", "k", "v"):
                tensors[name][place:300] = value
            leaves = {name: t.float().requires_grad_() for name, t in tensors.items()}
            output = native.attention(*leaves.values(), relative_slots(300, SPAN, 40), packing, packing, 0.0, True)
            before = torch.cat([torch.arange(place), torch.arange(300, 340)])
            output[before].square().sum().backward()
            results.append([output[before], *(leaves[name].grad[before] for name in read)])
        assert all(torch.equal(*pair) and pair[0].isfinite().all() for pair in zip(*results, strict=True)), place


def test_large_scores_neither_overflow_nor_vanish():
    problem = draw_problem(Packing.from_lengths([150]))
    problem.tensors["q"] = problem.tensors["q"] * 200
    truth, ours = (
        problem.run(f, t) for f, t in ((reference.attention, torch.float64), (native.attention, torch.float32))
    )
    assert torch.allclose(ours["output"].double(), truth["output"], atol=1e-3)


def test_a_nan_stays_visible_in_its_own_row():
    problem = draw_problem(Packing.from_lengths([40]))
    problem.tensors["q"][3] = torch.nan
    output = problem.run(native.attention, torch.float32)["output"]
    assert output[3].isnan().all()
    assert output.isnan().any(-1).sum() == 2


def test_rows_that_stand_apart_as_those_of_a_fused_projection_do():
    packing = Packing.from_lengths([30, 9])
    fused = torch.randn(39, 3, 2, 16, generator=torch.Generator().manual_seed(6))
    apart = [x.requires_grad_() for x in fused.unbind(1)]
    alone = [x.detach().clone().requires_grad_() for x in fused.unbind(1)]
    slots = relative_slots(30, SPAN, 40)
    for tensors in (apart, alone):
        native.attention(*tensors, None, None, None, slots, packing, packing, 0.0).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(apart, alone, strict=True))


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_one_two_and_three_threads_agree_to_the_bit(dropout_p, causal):
    problem = draw_problem(Packing.from_lengths([5, 150, 1, 40, 270, 17]), heads=3, causal=causal)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(problem.run(native.attention, torch.float32, dropout_p))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_dropout_is_a_mask_that_the_backward_pass_replays(causal):
    lengths, width, p = [50, 64], 64, 0.3
    problem = draw_problem(Packing.from_lengths(lengths), heads=3, width=width, causal=causal)
    one_hot = torch.eye(width, dtype=torch.float64)[problem.keys.positions][:, None].expand(-1, 3, -1)
    shown = dataclasses.replace(problem, tensors=problem.tensors | {"v": one_hot})
    torch.manual_seed(7)
    weights = shown.run(native.attention, torch.float32, p)["output"]
    masks = [
        (rows[..., :n] > 0).permute(1, 0, 2) / (1 - p) for rows, n in zip(weights.split(lengths), lengths, strict=True)
    ]

    def dropped(q, k, v, pos_k, pos_q, pos_pos, slots, queries, keys, _, causal):
        kept = reference.probabilities(q, k, pos_k, pos_q, pos_pos, slots, queries, keys, causal)
        rows = zip(kept, masks, v.split(lengths), strict=True)
        return torch.cat([torch.einsum("hnk,khd->nhd", w * mask, values) for w, mask, values in rows])

    truth = problem.run(dropped, torch.float64)
    torch.manual_seed(7)
    ours = problem.run(native.attention, torch.float32, p)
    for name, right in truth.items():
        assert torch.allclose(ours[name].double(), right, rtol=0, atol=5e-6 * float(right.abs().max())), name


def test_dropout_draws_the_same_for_the_keys_that_a_causal_query_sees():
    length = 160
    packing = Packing.from_lengths([length])
    zeros, ones = torch.zeros(length, 2, length), torch.eye(length)[:, None].expand(-1, 2, -1)
    kept = []
    for causal in (False, True):
        torch.manual_seed(3)
        slots = relative_slots(length, SPAN, 40)
        kept.append(native.attention(zeros, zeros, ones, None, None, None, slots, packing, packing, 0.25, causal) > 0)
    full, causal = (x.transpose(0, 1) for x in kept)  # (heads, queries, keys)
    assert torch.equal(causal, full.tril())
    assert not full.all()


def test_dropout_keeps_the_right_share_everywhere_and_independently():
    length, p = 64, 0.25
    packing = Packing.from_lengths([length] * 4)
    zeros, ones = torch.zeros(4 * length, 6, length), torch.eye(length).repeat(4, 1)[:, None].expand(-1, 6, -1)
    torch.manual_seed(0)
    slots = relative_slots(length, SPAN, 40)

    def run() -> torch.Tensor:
        return native.attention(zeros, zeros, ones, None, None, None, slots, packing, packing, p)

    first, second = (run().view(4, length, 6, length) > 0 for _ in range(2))
    kept = first.double()
    assert torch.allclose(run().unique(), torch.tensor([0, 1 / (length * (1 - p))]))
    deviation = (p * (1 - p)) ** 0.5
    for axes in ((0, 1, 2, 3), (0, 1, 2), (0, 2, 3), (1, 2, 3), (0, 1, 3)):
        means = kept.mean(axes)
        count = kept.numel() / means.numel()
        assert ((means - (1 - p)).abs() < 5 * deviation / count**0.5).all(), axes
    others = [second, *(first.roll(1, axis) for axis in range(4))]
    for other in others:
        correlation = ((kept - 1 + p) * (other.double() - 1 + p)).mean() / deviation**2
        assert abs(float(correlation)) < 5 / kept.numel() ** 0.5


def test_dropping_everything_leaves_zeros():
    ours = draw_problem(Packing.from_lengths([9])).run(native.attention, torch.float32, 1.0)
    assert not any(x.any() for x in ours.values())


def test_autocast_mixes_types():
    packing = Packing.from_lengths([20])
    problem = draw_problem(packing)
    mixed = {
        n: t.to(torch.bfloat16 if n in "qkv" else torch.float32).requires_grad_() for n, t in problem.tensors.items()
    }
    output = native.attention(*mixed.values(), problem.slots, packing, packing, 0.0)
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(t.grad.dtype == t.dtype and t.grad.isfinite().all() for t in mixed.values())


def test_the_operator_keeps_torchs_rules():
    problem = draw_problem(Packing.from_lengths([5, 12]))
    rows = [t.float().requires_grad_() for t in problem.tensors.values()]
    layout = (problem.slots, *[x for p in (problem.queries, problem.keys) for x in (p.offsets, p.positions)])
    torch.library.opcheck(torch.ops.unbraid.attention_forward, (*rows, *layout, torch.tensor(3), 0.1, True))
    torch.library.opcheck(torch.ops.unbraid.attention_forward, (*rows[:4], None, None, *layout, None, 0.0, False))


@pytest.mark.parametrize("wrap", ["compile", "checkpoint"])
def test_compiling_and_checkpointing_pass_through(wrap):
    problem = draw_problem(Packing.from_lengths([30, 9]))

    def wrapped(*inputs):
        if wrap == "compile":
            return torch.compile(native.attention, backend="aot_eager", fullgraph=True)(*inputs)
        return torch.utils.checkpoint.checkpoint(native.attention, *inputs, use_reentrant=False)

    dropout_p = 0.2 if wrap == "checkpoint" else 0.0
    results = []
    for function in (native.attention, wrapped):
        torch.manual_seed(0)
        results.append(problem.run(function, torch.float32, dropout_p))
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


def test_it_says_what_it_cannot_serve():
    packing, rows = Packing.from_lengths([3]), torch.zeros(3, 1, 2)
    slots = relative_slots(3, None, 3)
    whole = Packing.whole(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="packed rows only"):
        native.attention(rows, rows, rows, None, None, None, slots, whole, whole, 0.0)
    with pytest.raises(ValueError, match="not in float64"):
        native.attention(*[rows.double()] * 3, None, None, None, slots, packing, packing, 0.0)
    with pytest.raises(ValueError, match="not on meta"):
        native.attention(*[rows.to("meta")] * 3, None, None, None, slots, packing, packing, 0.0)
    table = torch.zeros(2, 1, 2)
    with pytest.raises(ValueError, match="beyond the table"):
        native.attention(rows, rows, rows, table, None, None, slots, packing, packing, 0.0)
    with pytest.raises(ValueError, match="no entry"):
        native.attention(rows, rows, rows, table, None, None, slots[2:3], packing, packing, 0.0)


def test_layouts_may_be_columns_of_a_table():
    problem = draw_problem(Packing.from_lengths([9, 30]))

    def column(x):
        return torch.stack([x, torch.full_like(x, 7)], 1)[:, 0]

    def columns(packing):
        return dataclasses.replace(packing, offsets=column(packing.offsets), positions=column(packing.positions))

    apart = dataclasses.replace(
        problem, slots=column(problem.slots), queries=columns(problem.queries), keys=columns(problem.keys)
    )
    results = [layout.run(native.attention, torch.float32) for layout in (problem, apart)]
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(8, 2, 5)}, "one row for each of their positions"),
        ({"k": torch.zeros(3, 2, 5)}, "one row for each of their positions"),
        ({"k": torch.zeros(9, 1, 5), "v": torch.zeros(9, 1, 5)}, "the same heads and width"),
        ({"v": torch.zeros(9, 2, 4)}, "the same heads and width"),
        ({"pos_k": torch.zeros(16, 2, 4)}, "the heads and width of q"),
        ({"pos_q": torch.zeros(16, 1, 5)}, "the heads and width of q"),
        ({"pos_q": torch.zeros(12, 2, 5)}, "must have the same rows"),
        ({"pos_pos": torch.zeros(16, 1)}, "the heads and width of q"),
        ({"positions": torch.arange(9) // 2}, "positions must increase"),
        ({"positions": torch.arange(9).flip(0)}, "positions must increase"),
        ({"positions": torch.arange(8)}, "offsets must rise from 0 to the number of positions"),
        ({"offsets": torch.tensor([0, 12])}, "offsets must rise from 0 to the number of positions"),
        ({"offsets": torch.tensor([0, 5])}, "offsets must rise from 0 to the number of positions"),
        ({"offsets": torch.tensor([0, 5, 3, 9])}, "offsets must rise from 0 to the number of positions"),
        ({"offsets": torch.tensor([0, 4, 9])}, "of as many sequences"),
        ({"slots": torch.zeros(2, 17, dtype=torch.int64)}, "slots must be one row"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_it_is_read(change, message):
    problem = draw_problem(Packing.from_lengths([9]))
    tensors = {name: change.get(name, tensor.float()) for name, tensor in problem.tensors.items()}
    layout = {name: change[name] for name in ("offsets", "positions") if name in change}
    queries = dataclasses.replace(problem.queries, **layout)
    with pytest.raises(ValueError, match=message):
        native.attention(*tensors.values(), change.get("slots", problem.slots), queries, problem.keys, 0.0)


def test_a_second_derivative_is_refused_not_zero():
    problem = draw_problem(Packing.from_lengths([9]))
    q, *rest = [t.float().requires_grad_() for t in problem.tensors.values()]
    output = native.attention(q, *rest, problem.slots, problem.queries, problem.keys, 0.0)
    (gradient,) = torch.autograd.grad(output.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_memory_grows_with_the_length_not_its_square(causal):
    script = f"""
        import resource, torch
        from unbraid.attention import native, relative_slots
        from unbraid.packing import Packing

        torch.set_num_threads(1)
        packing = Packing.from_lengths([6144])
        q = torch.zeros(6144, 1, 16, requires_grad=True)
        table = torch.zeros(64, 1, 16, requires_grad=True)
        native.unavailable()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        slots = relative_slots(6144, 32, 512)
        native.attention(q, q, q, table, table, None, slots, packing, packing, 0.0, {causal}).sum().backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, check=True, timeout=250
    )
    assert int(run.stdout.split()[-1]) < 50_000  # KiB; one square of floats is 147,456
