"""What backend="auto" takes, and what it says when the kernel is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.attention import disentangled_attention, native, relative_slots
from unbraid.attention.choice import choose
from unbraid.packing import Packing

compiled = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")
PACKED = Packing.from_lengths([4, 3])
WHOLE = Packing.whole(torch.ones(1, 7, dtype=torch.bool))


def rows(dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_on_the_cpu_are_native(dtype):
    assert choose(rows(dtype), PACKED, PACKED)[0] == "native"


@pytest.mark.parametrize(
    ("q", "packing", "reason"),
    [
        (rows(torch.float64), PACKED, "not in float64"),
        (rows(torch.float16), PACKED, "not in float16"),
        (rows(device="meta"), PACKED, "not on meta"),
        (rows(), WHOLE, "packed rows only"),
    ],
)
def test_what_is_not_for_the_kernel_is_sdpas_without_a_word(q, packing, reason, monkeypatch):
    monkeypatch.setattr(native, "unavailable", lambda: pytest.fail("the kernel must not be asked for"))
    name, why = choose(q, packing, packing)
    assert name == "sdpa"
    assert reason in why


def test_forward_mode_and_transforms_are_exact():
    slots = relative_slots(4, None, 3)
    tangent = torch.ones(7, 2, 5)

    def attend(q, backend):
        return disentangled_attention(q, rows(), rows(), None, None, slots, PACKED, PACKED, backend=backend)

    with torch.autograd.forward_ad.dual_level():
        assert choose(rows(), PACKED, PACKED)[0] == "sdpa"
    ours, right = (
        torch.func.grad(lambda q, name=name: (attend(q, name) * tangent.cumsum(0)).sum())(rows())
        for name in ("auto", "reference")
    )
    assert torch.allclose(ours, right, atol=1e-5)
    assert right.abs().max() > 0.1


SCRIPT = """
    import warnings
    import torch
    from unbraid.attention import disentangled_attention, relative_slots
    from unbraid.attention.choice import SlowAttentionWarning, choose
    from unbraid.packing import Packing

    packed, slots = Packing.from_lengths([4, 3]), relative_slots(4, None, 3)
    whole = Packing.whole(torch.ones(1, 7, dtype=torch.bool))
    q, table = torch.randn(7, 2, 5), torch.randn(6, 2, 5)

    def attend(backend, packing=packed, q=q, table=table):
        return disentangled_attention(q, q, q, table, table, slots, packing, packing, backend=backend)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        slots = relative_slots(7, None, 3)
        attend("auto", whole), attend("auto", packed, q.double(), table.double())
        assert not said, said
        if COMPILED:
            add_one = lambda q: q + (choose(q, packed, packed)[0] == "sdpa")
            chosen = torch.compile(add_one, fullgraph=True, backend="eager")
            assert torch.equal(chosen(q), q + 1)
        for _ in range(2):
            assert torch.equal(attend("auto"), attend("sdpa"))
    own = [entry for entry in said if entry.category is SlowAttentionWarning]
    assert len(own) == 1, said
    print(own[0].message)
    try:
        attend("native")
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("under_compile", [False, True])
def test_without_a_compiler_auto_says_so_once_and_native_raises(under_compile, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    environment |= {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    script = f"COMPILED = {under_compile}" + textwrap.dedent(SCRIPT)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    warning, refusal = run.stdout.splitlines()
    assert warning.startswith("attention takes backend='sdpa', which is slower, because the native attention kernel")
    assert warning.endswith("install one, such as g++.")
    assert refusal.startswith("the native attention kernel cannot be built or loaded: there is no C++ compiler")
