"""Every backend against the reference in float64: outputs and the gradient of every input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from unbraid.attention import attention_probabilities, disentangled_attention, reference, relative_slots
from unbraid.packing import Packing

BACKENDS = ["sdpa"]
LENGTHS = [[1], [2], [17], [63], [100], [1, 1, 1], [5, 1, 40, 17], [3, 0, 7]]
SPAN, HEADS, WIDTH = 8, 3, 5


@dataclasses.dataclass
class Case:
    tensors: dict[str, torch.Tensor]
    slots: torch.Tensor
    queries: Packing
    keys: Packing
    causal: bool = False

    def run(self, backend: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The output, and the gradient of every input for a fixed random weighting of it."""
        leaves = {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in self.tensors.items()}
        inputs = {name: leaves.get(name) for name in ("q", "k", "v", "pos_k", "pos_q", "pos_pos")}
        pos_pos = inputs.pop("pos_pos")
        output = disentangled_attention(
            **inputs,
            slots=self.slots,
            queries=self.queries,
            keys=self.keys,
            pos_pos=pos_pos,
            causal=self.causal,
            backend=backend,
        )
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (output * weight.to(dtype)).sum().backward()
        return output.detach(), {name: _gradient(leaf) for name, leaf in leaves.items()}


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def draw(
    keys: Packing, rows: torch.Tensor | None = None, terms=("pos_k", "pos_q"), max_length: int = 0, causal: bool = False
) -> Case:
    generator = torch.Generator().manual_seed(0)
    queries = keys if rows is None else keys.select(rows)
    shapes = {
        "q": (len(queries.positions), HEADS, WIDTH),
        "k": (len(keys.positions), HEADS, WIDTH),
        "v": (len(keys.positions), HEADS, WIDTH),
        "pos_k": (2 * SPAN, HEADS, WIDTH),
        "pos_q": (2 * SPAN, HEADS, WIDTH),
        "pos_pos": (2 * SPAN, HEADS),
    }
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    kept = {name: tensor for name, tensor in drawn.items() if name in ("q", "k", "v", *terms)}
    slots = relative_slots(max_length or keys.max_length, SPAN, 40)
    return Case(kept, slots, queries, keys, causal)


def check(case: Case, backend: str) -> None:
    """In float64 to rounding; in float32 at most twice the reference's own float32 error (and a rounding)."""
    truth, true_gradients = case.run("reference", torch.float64)
    exact, exact_gradients = case.run(backend, torch.float64)
    plain, plain_gradients = case.run("reference", torch.float32)
    ours, gradients = case.run(backend, torch.float32)
    pairs = [("output", truth, exact, plain, ours)]
    pairs += [(n, true_gradients[n], exact_gradients[n], plain_gradients[n], gradients[n]) for n in case.tensors]
    for name, right, double, single, mine in pairs:
        scale = right.abs().max().clamp(min=1e-3) if right.numel() else 1.0
        assert torch.allclose(double, right, rtol=0, atol=1e-12 * float(scale)), name
        if right.numel():
            allowed = 2 * (single - right).abs().max() + 2e-6 * scale
            assert (mine - right).abs().max() <= allowed, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [[33], [5, 1, 40, 17]], ids=str)
def test_bfloat16_errs_at_most_twice_as_much_as_the_reference_does(backend, lengths, causal):
    case = draw(Packing.from_lengths(lengths), causal=causal)
    truth, gradients = case.run("reference", torch.float64)
    plain, plain_gradients = case.run("reference", torch.bfloat16)
    ours, our_gradients = case.run(backend, torch.bfloat16)
    pairs = [(truth, plain, ours), *((gradients[n], plain_gradients[n], our_gradients[n]) for n in gradients)]
    for right, single, mine in pairs:
        assert (mine - right).abs().max() <= 2 * (single - right).abs().max() + 1e-3 * right.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_lengths(backend, lengths, causal):
    check(draw(Packing.from_lengths(lengths), causal=causal), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    "terms", [(), ("pos_k",), ("pos_q",), ("pos_pos",), ("pos_k", "pos_pos"), ("pos_k", "pos_q", "pos_pos")]
)
def test_every_subset_of_the_terms(backend, terms, causal):
    check(draw(Packing.from_lengths([9, 23]), terms=terms, causal=causal), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_left_padding_and_holes(backend, causal):
    mask = torch.rand(4, 37, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :20] = False
    mask[1] = False
    check(draw(Packing.from_mask(mask), causal=causal), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_fewer_queries_than_keys(backend, causal):
    keys = Packing.from_lengths([12, 30, 4])
    check(draw(keys, torch.tensor([0, 3, 11, 12, 40]), causal=causal), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_query_at_all(backend):
    check(draw(Packing.from_lengths([4, 3]), torch.tensor([], dtype=torch.int64)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_for_more_than_the_longest_sequence(backend):
    keys = dataclasses.replace(Packing.from_lengths([6, 11]), max_length=50)
    check(draw(keys, max_length=50), backend)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_positions_alone_decide_not_the_place_in_memory(backend):
    """A batch is its sequences, one by one."""
    case = draw(Packing.from_lengths([7, 13]))
    together, _ = case.run(backend, torch.float64)
    for b, rows in enumerate((slice(0, 7), slice(7, 20))):
        single = {name: t[rows] if name in "qkv" else t for name, t in case.tensors.items()}
        packing = Packing.from_lengths([(7, 13)[b]])
        alone, _ = Case(single, case.slots, dataclasses.replace(packing, max_length=13), packing).run(
            backend, torch.float64
        )
        assert torch.allclose(alone, together[rows], atol=1e-12)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_padded_batch_kept_whole(causal):
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    whole, packed = draw(Packing.whole(mask), causal=causal), Packing.from_mask(mask)
    rows = mask.flatten().nonzero().squeeze(-1)
    tensors = {name: t[rows] if name in "qkv" else t for name, t in whole.tensors.items()}
    expected, _ = Case(tensors, whole.slots, packed, packed, causal).run("reference", torch.float64)
    output, gradients = whole.run("sdpa", torch.float64)
    assert torch.allclose(output[rows], expected, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


HOLES = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("whole", [False, True], ids=["packed", "whole"])
@pytest.mark.parametrize("terms", [(), ("pos_k",), ("pos_k", "pos_q", "pos_pos")], ids=str)
def test_probabilities_are_the_references_and_nothing_stands_at_padding(terms, whole, causal):
    case, packed = draw(Packing.whole(HOLES), terms=terms, causal=causal), Packing.from_mask(HOLES)
    q, k, pos_k, pos_q, pos_pos = (case.tensors.get(name) for name in ("q", "k", "pos_k", "pos_q", "pos_pos"))
    rows, tables = HOLES.flatten().nonzero().squeeze(-1), (pos_k, pos_q, pos_pos, case.slots)
    truths = reference.probabilities(q[rows], k[rows], *tables, packed, packed, causal)
    if not whole:
        q, k = q[rows], k[rows]
    found = attention_probabilities(q, k, *tables, case.keys if whole else packed, causal)
    expected = found.new_zeros(4, HEADS, 6, 6)
    for cells, weights, mask in zip(expected, truths, HOLES, strict=True):
        places = mask.nonzero().squeeze(-1)
        cells[:, places[:, None], places] = weights
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_probabilities_take_no_memory_for_each_pair_of_tokens_and_width():
    """The largest tensor on the way is one of scores."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            sizes = [each.numel() for each in pytree.tree_leaves(output) if isinstance(each, torch.Tensor)]
            largest = max(largest, *sizes)
            return output

    case = draw(Packing.from_lengths([60]))
    q, k, pos_k, pos_q = (case.tensors[name] for name in ("q", "k", "pos_k", "pos_q"))
    with Watch():
        attention_probabilities(q, k, pos_k, pos_q, None, case.slots, case.keys)
    assert largest == HEADS * 60 * 60


def test_the_reference_is_the_equation():
    """One score by hand."""
    packing = Packing.from_lengths([3])
    q, k, v = (torch.tensor(rows, dtype=torch.float64).view(3, 1, 2) for rows in ([1, 0, 0, 2, 1, 1],) * 3)
    pos_k = torch.arange(8.0, dtype=torch.float64).view(4, 1, 2)
    pos_q = pos_k.flip(0)
    slots = relative_slots(3, None, 2)
    assert slots.tolist() == [0, 1, 2, 3, 3]
    expected = torch.empty(3, 2, dtype=torch.float64)
    for i in range(3):
        scores = []
        for j in range(3):
            slot = slots[i - j + 2]
            dots = (q[i] * k[j]).sum() + (q[i] * pos_k[slot]).sum() + (k[j] * pos_q[slot]).sum()
            scores.append(dots / (2 * 3) ** 0.5)
        expected[i] = torch.stack(scores).softmax(0) @ v[:, 0]
    output = disentangled_attention(q, k, v, pos_k, pos_q, slots, packing, packing, backend="reference")
    assert torch.allclose(output[:, 0], expected, atol=1e-12)


def test_the_causal_reference_is_a_triangle():
    """Every sequence of a mask with holes, cut out of the dense scores of a whole one."""
    length, rows = 7, torch.tensor([1, 4, 5])
    case = draw(Packing.from_lengths([length]), causal=True)
    q, k, v, pos_k, pos_q = (case.tensors[name] for name in ("q", "k", "v", "pos_k", "pos_q"))
    scores = torch.empty(HEADS, length, length, dtype=torch.float64)
    for i in range(length):
        for j in range(length):
            slot = case.slots[i - j + length - 1]
            dots = (q[i] * k[j]).sum(-1) + (q[i] * pos_k[slot]).sum(-1) + (k[j] * pos_q[slot]).sum(-1)
            scores[:, i, j] = dots / (3 * WIDTH) ** 0.5
    scores += torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    whole = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
    assert torch.allclose(case.run("reference", torch.float64)[0], whole, atol=1e-12)

    kept = torch.tensor([0, 1, 3, 5, 6])
    holes = torch.einsum("hij,jhd->ihd", scores[:, rows][:, :, kept].softmax(-1), v[kept])
    tensors = case.tensors | {"q": q[rows], "k": k[kept], "v": v[kept]}
    fewer = Case(tensors, case.slots, case.queries.select(rows), case.keys.select(kept), causal=True)
    assert torch.allclose(fewer.run("reference", torch.float64)[0], holes, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_query_before_all_keys_sees_none(backend):
    """Zeros and no gradient from the reference, something finite from sdpa; the others as they are without it."""
    case = draw(Packing.from_lengths([9, 4]), causal=True)
    queries, keys = torch.tensor([0, 2, 5, 8, 9, 12]), torch.tensor([3, 4, 7, 11])
    tensors = case.tensors | {"q": case.tensors["q"][queries]} | {n: case.tensors[n][keys] for n in "kv"}
    cut = Case(tensors, case.slots, case.queries.select(queries), case.keys.select(keys), causal=True)
    output, gradients = cut.run(backend, torch.float64)
    blind = torch.tensor([True, True, False, False, True, False])
    expected, _ = cut.run("reference", torch.float64)
    assert torch.allclose(output[~blind], expected[~blind], atol=1e-12)
    assert (output[~blind] != 0).all()
    assert all(x.isfinite().all() for x in (output, *gradients.values()))
    if backend == "reference":
        assert not output[blind].any()
        assert not gradients["q"][blind].any()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_dropout_drops_weights_and_keeps_their_mean(backend):
    packing = Packing.from_lengths([50] * 8)
    case = draw(packing)
    ones = case.tensors | {"v": torch.ones(400, HEADS, WIDTH, dtype=torch.float64)}
    torch.manual_seed(0)
    output = disentangled_attention(
        **{n: ones[n] for n in ("q", "k", "v", "pos_k", "pos_q")},
        slots=case.slots, queries=packing, keys=packing, dropout_p=0.3, backend=backend,
    )  # fmt: skip
    assert output.std() > 0.05
    assert abs(float(output.mean()) - 1) < 0.02


def test_a_backend_asked_for_by_name_serves_or_raises():
    packing = Packing.whole(torch.ones(1, 3, dtype=torch.bool))
    rows = torch.zeros(3, 1, 2)
    slots = relative_slots(3, None, 3)
    with pytest.raises(ValueError, match="packed rows only"):
        disentangled_attention(rows, rows, rows, None, None, slots, packing, packing, backend="reference")
    with pytest.raises(ValueError, match="'flash' is unknown"):
        disentangled_attention(rows, rows, rows, None, None, slots, packing, packing, backend="flash")


def test_float16_has_room_for_scores_whose_products_it_has_no_room_for():
    case = draw(Packing.from_lengths([17, 9]))
    rows = {name: tensor.repeat(1, 1, 20)[..., :96] for name, tensor in case.tensors.items()}
    for name in ("q", "k", "pos_k", "pos_q"):
        rows[name] = rows[name].abs() + 30  # 96 * 30 * 30 is 86,400, above the largest float16
    case = dataclasses.replace(case, tensors=rows)
    output, gradients = case.run("sdpa", torch.float16)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
