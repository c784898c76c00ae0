"""Packing and padding are each other's inverse, and a packing knows where its rows belong."""

from __future__ import annotations

import pytest
import torch

from unbraid.errors import InputError
from unbraid.packing import Packing, check_mask, pad


def test_from_mask_keeps_columns_as_positions():
    packing = Packing.from_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool())
    assert packing.offsets.tolist() == [0, 2, 2, 4]
    assert packing.positions.tolist() == [1, 2, 0, 2]
    assert (packing.max_length, packing.longest, packing.batch_size) == (3, 2, 3)
    assert packing.sequence_ids.tolist() == [0, 0, 2, 2]
    assert packing.ranks.tolist() == [0, 1, 0, 1]


def test_select_keeps_emptied_sequences():
    packing = Packing.from_lengths([3, 2, 4]).select(torch.tensor([0, 2, 6, 7, 8]))
    assert packing.offsets.tolist() == [0, 2, 2, 5]
    assert packing.positions.tolist() == [0, 2, 1, 2, 3]
    assert packing.longest == 3
    assert packing.max_length == 4


@pytest.mark.parametrize("seed", range(5))
def test_pad_then_read_back(seed):
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed)) > 0.5
    packing = Packing.from_mask(mask)
    rows = torch.randn(int(mask.sum()), 2)
    padded = pad(rows, packing, packing.positions, 9)
    assert torch.equal(padded[mask], rows)
    assert not padded[~mask].any()


def test_empty_sequences():
    packing = Packing.from_lengths([0, 0])
    assert packing.longest == 0
    assert packing.sequence_ids.tolist() == []
    assert pad(torch.zeros(0, 3), packing, packing.positions, 4).shape == (2, 4, 3)


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(InputError, match=r"shape \(2, 3\) but input_ids has \(2, 4\)"):
        check_mask(torch.ones(2, 3), torch.Size((2, 4)))


def test_to_moves_every_tensor():
    packing = Packing.whole(torch.ones(2, 3, dtype=torch.bool)).to("meta")
    assert {packing.offsets.device.type, packing.positions.device.type, packing.mask.device.type} == {"meta"}
