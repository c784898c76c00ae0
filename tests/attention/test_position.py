"""Buckets and slots, exhaustively, against the published formula written in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from unbraid.attention.position import log_bucket, relative_slots, relative_span


def published_bucket(distance: int, buckets: int, longest: int) -> int:
    """microsoft/DeBERTa deberta/da_utils.py in plain arithmetic, for a distance below the longest."""
    mid = buckets // 2
    size = mid - 1 if -mid < distance < mid else abs(distance)
    if size <= mid:
        return distance
    return int(
        math.copysign(math.ceil(math.log(size / mid) / math.log((longest - 1) / mid) * (mid - 1)) + mid, distance)
    )


@pytest.mark.parametrize(
    ("buckets", "longest"), [(256, 512), (128, 512), (64, 128), (32, 64), (16, 64), (8, 2048), (2, 16)]
)
def test_every_bucket_is_the_published_one(buckets, longest):
    distance = torch.arange(1 - longest, longest)
    bucket = log_bucket(distance, buckets, longest)
    assert bucket.tolist() == [published_bucket(d, buckets, longest) for d in distance.tolist()]
    assert torch.equal(bucket, -bucket.flip(0)), "odd"
    assert (bucket.diff() >= 0).all(), "monotone"
    assert bucket[-1] == buckets - 1


def test_known_buckets():
    known = {128: 128, 129: 129, 150: 143, 200: 169, 256: 192, 300: 207, 400: 233, 511: 255}
    assert log_bucket(torch.tensor(list(known)), 256, 512).tolist() == list(known.values())


@pytest.mark.parametrize("length", [1, 2, 17, 512, 513, 4096])
@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (None, 512), (16, 64)])
def test_slots_stay_in_the_table(length, buckets, longest):
    slots = relative_slots(length, buckets, longest)
    span = relative_span(buckets, longest)
    assert len(slots) == 2 * length - 1
    assert slots[length - 1] == span, "distance 0"
    assert slots.min() >= 0
    assert slots.max() <= 2 * span - 1
    if buckets:
        assert slots.min() >= 1, "row 0 is never read"


def test_a_longer_sequence_sees_the_same_slots_near_zero():
    short, long = relative_slots(5, 16, 64), relative_slots(300, 16, 64)
    assert torch.equal(short, long[295:304])


def test_far_distances_are_clamped_or_read_as_the_port_does():
    clamped = relative_slots(600, 256, 512)
    port = relative_slots(600, 256, 512, "port")
    assert clamped[0] == clamped[599 - 511] == 1
    assert port[0] == 0
    assert clamped[-1] == port[-1] == 511


def test_without_buckets_each_distance_has_its_slot():
    assert relative_slots(4, None, 3).tolist() == [0, 1, 2, 3, 4, 5, 5]
