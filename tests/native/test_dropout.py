"""Native dropout: the right share, independent, replayed backward, the same for any number of threads."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.model.dropout import Dropout
from unbraid.native.build import unavailable
from unbraid.native.dropout import dropout

pytestmark = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def nan_filled_memory():
    assert unavailable() is None
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (3, 5, 7), (4097,), (100, 131)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_kept_scaled_or_zeroed_and_gradients_likewise(shape, dtype):
    x = (torch.rand(shape) + 1).to(dtype).requires_grad_()
    y = dropout(x, 0.25)
    y.backward(torch.full(shape, 3.0, dtype=dtype))
    kept = y != 0
    assert y.dtype == dtype
    assert torch.equal(y, torch.where(kept, x.detach().float() * (1 / torch.tensor(0.75)), 0).to(dtype))
    assert torch.equal(x.grad, torch.where(kept, 3 * (1 / torch.tensor(0.75)), 0.0).to(dtype))


def test_the_right_share_everywhere_and_independently():
    shape, p = (40, 50, 160), 0.1
    first, second = (dropout(torch.ones(shape), p).bool().double() for _ in range(2))
    deviation = (p * (1 - p)) ** 0.5
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        means = first.mean(axes)
        count = first.numel() / means.numel()
        assert ((means - (1 - p)).abs() < 5 * deviation / count**0.5).all(), axes
    flat = first.flatten()
    for other in (second.flatten(), *(flat.roll(step) for step in (1, 16, 160, 4096, 8000))):
        correlation = ((flat - 1 + p) * (other - 1 + p)).mean() / deviation**2
        assert abs(float(correlation)) < 5 / flat.numel() ** 0.5


def test_the_same_for_any_number_of_threads_and_any_layout():
    x, before, results = torch.randn(300, 200), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            results.append(dropout(x, 0.3))
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(1)
    results.append(dropout(x.t().contiguous().t(), 0.3))
    assert all(torch.equal(result, results[0]) for result in results)


def test_nothing_and_everything():
    x = torch.randn(50)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()


def test_second_derivatives_and_torchs_rules():
    x = torch.randn(9, dtype=torch.float32, requires_grad=True)
    y = dropout(x, 0.5)
    (gradient,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, torch.where(y != 0, 8.0, 0.0))
    torch.library.opcheck(torch.ops.unbraid.dropout, (x, torch.tensor(3), 0.5))


def test_the_module_drops_in_training_only_and_leaves_the_rest_to_torch():
    module, x = Dropout(0.5), torch.ones(1000)
    assert set(module(x).tolist()) == {0.0, 2.0}
    assert set(module(x.double()).tolist()) == {0.0, 2.0}
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    gradient = torch.func.grad(lambda rows: module.train()(rows).sum())(x)
    assert set(gradient.tolist()) == {0.0, 2.0}


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="float32 and bfloat16 only"):
        dropout(torch.ones(3).double(), 0.5)
