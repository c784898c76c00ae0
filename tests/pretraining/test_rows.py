"""Rows and their order: every token once, every row once an epoch, from any index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.errors import InputError
from unbraid.pretraining.corpus import Documents
from unbraid.pretraining.rows import Order, Rows


def documents_of(lengths, skip=0):
    """Documents whose tokens count up from 0; the first ``skip`` tokens belong to none of them."""
    edges = skip + np.cumsum([0, *lengths])
    return Documents(np.arange(edges[-1], dtype=np.uint32), edges[:-1], edges[1:])


@pytest.mark.parametrize("sequence_length", [3, 4, 10, 100])
def test_rows_cut_documents_from_their_beginning(sequence_length):
    documents = documents_of([1, 8, 7, 9, 16, 17, 250], skip=5)
    rows = Rows(documents, sequence_length)
    expected = [
        documents[number][at : at + sequence_length - 2].tolist()
        for number in range(len(documents))
        for at in range(0, len(documents[number]), sequence_length - 2)
    ]
    assert [rows[row].tolist() for row in range(len(rows))] == expected
    assert rows.lengths.tolist() == [len(ids) + 2 for ids in expected]


def epoch_of(order, epoch):
    return [order[index] for index in range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=400),
    batch_tokens=st.integers(40, 300),
    seed=st.integers(0, 2**63),
)
def test_an_epoch_has_every_row_once(lengths, batch_tokens, seed):
    order = Order(np.array(lengths), batch_tokens, seed)
    share = sum(lengths) / order.per_epoch
    assert order.per_epoch == max(1, sum(lengths) // batch_tokens)
    for epoch in (0, 3):
        batches = epoch_of(order, epoch)
        assert {number for number, _ in batches} == {epoch}
        assert sorted(np.concatenate([rows for _, rows in batches]).tolist()) == list(range(len(lengths)))
        for _, rows in batches:
            assert len(rows) >= 1
            assert abs(sum(lengths[row] for row in rows) - share) < max(lengths)


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(3, 129, 5000)


def test_any_index_from_nothing(lengths):
    order = Order(lengths, 1024, seed=1)
    expected = [(epoch, rows.tolist()) for epoch in range(3) for _, rows in epoch_of(order, epoch)]
    for index in [0, 2 * order.per_epoch + 5, 17, order.per_epoch, order.per_epoch - 1]:
        epoch, rows = Order(lengths, 1024, seed=1)[index]
        assert (epoch, rows.tolist()) == expected[index]
    epoch, rows = order[1]  # back, after later epochs
    assert (epoch, rows.tolist()) == expected[1]


def test_epochs_and_seeds_differ(lengths):
    order = Order(lengths, 1024, seed=1)
    orders = [np.concatenate([rows for _, rows in epoch_of(order, epoch)]).tolist() for epoch in range(2)]
    other = Order(lengths, 1024, seed=2)
    orders.append(np.concatenate([rows for _, rows in epoch_of(other, 0)]).tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_of_a_batch_are_about_equally_long(lengths):
    order = Order(lengths, 1024, seed=1)
    batches = [lengths[rows] for _, rows in epoch_of(order, 0)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.1 * lengths.sum()  # shuffled alone: 1.7 times


def test_batches_of_an_epoch_are_shuffled(lengths):
    order = Order(lengths, 1024, seed=1)
    means = [lengths[rows].mean() for _, rows in epoch_of(order, 0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # sorted: near 1


def test_neighbours_change_from_epoch_to_epoch():
    """Even where all rows fit a few windows."""
    lengths = np.random.default_rng(0).integers(3, 129, 600)
    order = Order(lengths, 1024, seed=1)
    pairs = [
        {(a, b) for _, rows in epoch_of(order, epoch) for a in rows.tolist() for b in rows.tolist() if a < b}
        for epoch in range(2)
    ]
    assert len(pairs[0] & pairs[1]) < 0.3 * len(pairs[0])


def test_no_rows():
    with pytest.raises(InputError, match="give more text, or change held_out"):
        Order(Rows(documents_of([]), 16).lengths, 64, 0)


def test_negative_index(lengths):
    with pytest.raises(IndexError):
        Order(lengths, 1024, 0)[-1]
