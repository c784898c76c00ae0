"""The packed linear layer against torch's in float64."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn import functional
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.native.build import unavailable
from unbraid.native.linear import linear, pack_linear

pytestmark = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def nan_filled_memory():
    assert unavailable() is None
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(rows: int, inputs: int, outputs: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = [(rows, inputs), (outputs, inputs), (outputs,)]
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 1, 1), (2, 17, 5), (7, 256, 48), (8, 257, 49), (63, 100, 47), (130, 300, 100), (300, 513, 1700), (0, 4, 3)],
)
def test_exact(rows, inputs, outputs, dtype, gelu):
    x, weight, bias = draw(rows, inputs, outputs, dtype)
    ours = linear(x, pack_linear(weight), bias, gelu)
    # For a few rows torch adds in another order than for many, and we do not.
    plain = functional.linear(x.repeat(16, 1), weight, bias)[:rows]
    truth = functional.linear(x.double(), weight.double(), bias.double())
    if gelu:
        plain, truth = functional.gelu(plain), functional.gelu(truth)
    assert ours.dtype == dtype
    assert ours.shape == (rows, outputs)
    if rows:
        error, usual = (ours - truth).abs(), (plain - truth).abs()
        rounding = torch.finfo(dtype).eps * float(truth.abs().max())
        assert error.norm() <= 2 * usual.norm() + rounding
        assert error.max() <= 2 * usual.max() + rounding


def test_gelu_everywhere():
    x = torch.cat([torch.linspace(-9, 9, 100_001), torch.tensor([0.0, -0.0, 1e-30, 1e4, torch.inf, torch.nan])])[
        :, None
    ]
    ours = linear(x, pack_linear(torch.ones(1, 1)), torch.zeros(1), True)
    truth = functional.gelu(x.double())
    assert ((ours - truth).abs() <= 2.5e-7 * truth.abs().clamp(min=1)).logical_or(ours == truth)[:-1].all()
    assert ours[-1].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_company_and_with_any_number_of_threads(dtype):
    x, weight, bias = draw(200, 300, 500, dtype)
    packed, before = pack_linear(weight), torch.get_num_threads()
    together = linear(x, packed, bias, True)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(linear(x, packed, bias, True), together)
            assert torch.equal(linear(x[131:138], packed, bias, True), together[131:138])
    finally:
        torch.set_num_threads(before)


def test_rows_and_weights_may_stand_apart():
    x, weight, bias = draw(30, 20, 70, torch.float32)
    expected = linear(x, pack_linear(weight), bias, False)
    wide, turned = torch.randn(30, 50), weight.t().contiguous().t()
    wide[:, 10:30] = x
    assert torch.equal(linear(wide[:, 10:30], pack_linear(turned), bias, False), expected)
    assert torch.equal(linear(x.t().contiguous().t(), pack_linear(weight), bias, False), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, packed, bias: (x[:, :3], packed, bias),
        lambda x, packed, bias: (x[0], packed, bias),
        lambda x, packed, bias: (x, packed[0], bias),
        lambda x, packed, bias: (x, packed, bias.repeat(100)),
        lambda x, packed, bias: (x, packed, bias.bfloat16()),
        lambda x, packed, bias: (x.bfloat16(), packed, bias),
    ],
)
def test_what_does_not_fit_is_refused(change):
    x, weight, bias = draw(3, 4, 5, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        linear(*change(x, pack_linear(weight), bias), False)
    with pytest.raises(ValueError, match="float32 and bfloat16 only"):
        pack_linear(weight.double())
