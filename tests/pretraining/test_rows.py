"""Rows and their order: every token once, every row once an epoch, from any index, in memory that does not grow."""

import itertools
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import prepare
from unbraid.pretraining.rows import Lengths, Order, Rows, permute


def documents_of(lengths):
    """Documents whose tokens count up from 0."""
    edges = np.cumsum([0, *lengths]).tolist()
    return [list(range(*span)) for span in itertools.pairwise(edges)]


def pieces_of(documents, room):
    return [document[at : at + room] for document in documents for at in range(0, len(document), room)]


LENGTHS = [1, 8, 7, 9, 16, 17, 250, *np.random.default_rng(0).integers(1, 120, 100).tolist()]


@pytest.mark.parametrize("sequence_length", [3, 4, 10, 100])
@pytest.mark.parametrize("held_out", [0.0, 0.4])
def test_rows_cut_documents_from_their_beginning(make_corpus, sequence_length, held_out):
    corpus = make_corpus(documents_of(LENGTHS), held_out=held_out)
    assert len(corpus.train.shards) > 4
    for documents in [corpus.train] + [corpus.held_out] * bool(held_out):
        rows = Rows(documents, sequence_length)
        expected = sorted(pieces_of([ids.tolist() for ids in documents], sequence_length - 2), key=len, reverse=True)
        assert [rows[row].tolist() for row in range(len(rows))] == expected
        assert rows.lengths[np.arange(len(rows))].tolist() == [len(ids) + 2 for ids in expected]
        assert rows.lengths.sum() == documents.num_tokens + 2 * len(rows)


@pytest.mark.parametrize("sequence_length", [3, 4, 10, 100, 50_000])
@pytest.mark.parametrize("held_out", [0.0, 0.4])
def test_a_stream_is_cut_into_full_rows(make_corpus, sequence_length, held_out):
    corpus = make_corpus(documents_of(LENGTHS), held_out=held_out, rows="stream")
    for documents in [corpus.train] + [corpus.held_out] * bool(held_out):
        rows = Rows(documents, sequence_length)
        stream = [token for ids in documents for token in ids.tolist()]
        assert [rows[row].tolist() for row in range(len(rows))] == pieces_of([stream], sequence_length - 2)


def test_rows_in_lots_are_those_of_one(make_corpus, monkeypatch):
    corpus = make_corpus(documents_of(LENGTHS))
    whole = Rows(corpus.train, 12)
    monkeypatch.setattr("unbraid.pretraining.corpus._CHUNK", 3)
    again = Rows(make_corpus(documents_of(LENGTHS), name="other").train, 12)
    assert [again[row].tolist() for row in range(len(again))] == [whole[row].tolist() for row in range(len(whole))]


def test_rows_are_written_once(make_corpus, monkeypatch, tmp_path):
    corpus = make_corpus(documents_of(LENGTHS))
    first = Rows(corpus.train, 12)
    other = Rows(corpus.train, 10)
    monkeypatch.setattr("unbraid.pretraining.rows.write_atomically", None)
    again = Rows(corpus.train, 12)
    assert len(first) == len(again) != len(other)
    assert len(pickle.dumps(again)) < 10_000  # for the processes that prepare batches
    (folder,) = {path.parent for path in tmp_path.rglob("begins.bin") if path.stat().st_size == 8 * len(first)}
    with (folder / "begins.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"rows-.* is damaged \(begins\.bin has .* bytes instead of .*\); delete it"):
        Rows(corpus.train, 12)


def test_rows_that_cannot_be_written(make_corpus, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    corpus = make_corpus(documents_of(LENGTHS))
    monkeypatch.setattr("unbraid.pretraining.rows.write_atomically", full)
    with pytest.raises(InputError, match=r"cannot write .*rows-.* \(No space left on device\); make room"):
        Rows(corpus.train, 12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 1000])
def test_permutation(size):
    keys = np.random.default_rng(0).integers(0, 2**64, (20, 1), np.uint64)
    permuted = permute(np.arange(size), size, keys)
    assert (np.sort(permuted, 1) == np.arange(size)).all()
    some = np.random.default_rng(1).integers(0, size, 7)
    assert (permute(some, size, keys) == permuted[:, some]).all()
    assert size < 15 or len(np.unique(permuted, axis=0)) == 20


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_every_permutation_is_as_likely_as_others(size):
    """Where two numbers go, over many keys: each pair of places with the same probability."""
    count = 20_000
    keys = np.random.default_rng(0).integers(0, 2**64, (count, 1), np.uint64)
    first, second = permute(np.array([0, size - 1]), size, keys).T
    expected = count / (size * (size - 1))
    found = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert (found.diagonal() == 0).all()
    assert np.abs(found[~np.eye(size, dtype=bool)] - expected).max() < 5 * expected**0.5


def epoch_of(order, epoch):
    return [order[index] for index in range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=400),
    batch_tokens=st.integers(40, 300),
    seed=st.integers(0, 2**63),
)
def test_an_epoch_has_every_row_once(lengths, batch_tokens, seed):
    order = Order(Lengths(np.bincount(lengths)), batch_tokens, seed)
    lengths = sorted(lengths, reverse=True)
    share = sum(lengths) / order.per_epoch
    assert order.per_epoch == max(1, sum(lengths) // batch_tokens)
    for epoch in (0, 3):
        batches = epoch_of(order, epoch)
        assert {number for number, _ in batches} == {epoch}
        assert sorted(np.concatenate([rows for _, rows in batches]).tolist()) == list(range(len(lengths)))
        for _, rows in batches:
            assert len(rows) >= 1
            assert abs(sum(lengths[row] for row in rows) - share) < 2 * lengths[0]


def test_batches_are_mostly_within_a_row_of_their_size(lengths):
    order = Order(lengths, 1024, seed=1)
    sizes = np.array([lengths[rows].sum() for _, rows in epoch_of(order, 0)])
    assert np.abs(sizes - sizes.mean()).max() < 1.1 * 128
    assert np.mean(np.abs(sizes - sizes.mean()) < 64) > 0.5


@pytest.fixture
def lengths():
    return Lengths(np.bincount(np.random.default_rng(0).integers(3, 129, 5000)))


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
    lengths = Lengths(np.bincount(np.random.default_rng(0).integers(3, 129, 600)))
    order = Order(lengths, 1024, seed=1)
    pairs = [
        {(a, b) for _, rows in epoch_of(order, epoch) for a in rows.tolist() for b in rows.tolist() if a < b}
        for epoch in range(2)
    ]
    assert len(pairs[0] & pairs[1]) < 0.3 * len(pairs[0])


def test_rows_of_one_length_are_drawn_from_the_whole_corpus():
    order = Order(Lengths(np.bincount([16] * 40_000)), 256, seed=1)  # 16 rows in a micro-batch
    spans = [np.ptp(rows) for _, rows in epoch_of(order, 0)]
    assert np.mean(spans) == pytest.approx(40_000 * 15 / 17, rel=0.02)  # as of 16 numbers drawn at random


def test_a_row_is_anywhere_in_an_epoch():
    order = Order(Lengths(np.bincount(np.random.default_rng(0).integers(3, 30, 800))), 100, seed=1)
    places = np.array(
        [
            next(index for index, (_, rows) in enumerate(epoch_of(order, epoch)) if 7 in rows) / order.per_epoch
            for epoch in range(60)
        ]
    )
    assert places.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / 60) ** 0.5)
    assert np.histogram(places, 4, (0, 1))[0].min() > 4


def test_an_order_of_many_rows_takes_no_memory_for_them():
    counts = np.zeros(513, np.int64)
    counts[3:] = 10**7
    tracemalloc.start()
    order = Order(Lengths(counts), 8192, seed=0)  # 5,100 million rows, 160 million micro-batches
    for index in (0, 123_456_789, 2 * order.per_epoch + 5):
        assert 8192 - 1024 < order._lengths[order[index][1]].sum() < 8192 + 1024
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


class Quarters:
    """A token for every four characters."""

    def __len__(self):
        return 256

    def save_pretrained(self, folder):
        (Path(folder) / "quarters").touch()

    def encode_plain(self, texts):
        return [np.frombuffer(text.encode(), np.uint8)[::4].astype(np.int32) for text in texts]


def peak_memory(folder, num_bytes):
    """The most bytes allocated while text is prepared and some of two epochs of it is read."""
    line = b"abcdefghijklmnopqrstuvwxyz. " * 9
    with (folder / f"{num_bytes}.txt").open("wb") as file:
        for number in range(num_bytes // len(line)):
            file.write(b"%d " % number + line[: 50 + number * 17 % 200] + b"\n")
    tracemalloc.start()
    try:
        config = CorpusConfig(path=str(folder / f"{num_bytes}.txt"), document="line")
        corpus = prepare(config, Quarters(), folder / "cache", processes=1, shard_bytes=200_000)
        rows = Rows(corpus.train, 8)
        order = Order(rows.lengths, 64, seed=0)
        for index in [*range(200), order.per_epoch // 2, order.per_epoch + 7]:
            for row in order[index][1].tolist():
                rows[row]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr("unbraid.pretraining.shards._BATCH_CHARACTERS", 1 << 15)  # less than the small text
    monkeypatch.setattr("unbraid.pretraining.corpus._CHUNK", 1 << 10)
    small, large = peak_memory(tmp_path, 500_000), peak_memory(tmp_path, 5_000_000)
    assert large < small + 250_000


def test_no_rows(make_corpus):
    corpus = make_corpus([[1, 2, 3]])
    assert len(corpus.held_out) == 0
    for sequence_length in (3, 16):
        rows = Rows(corpus.held_out, sequence_length)
        assert len(rows) == 0
        with pytest.raises(InputError, match="give more text, or change held_out"):
            Order(rows.lengths, 64, 0)


def test_negative_index(lengths):
    with pytest.raises(IndexError):
        Order(lengths, 1024, 0)[-1]
