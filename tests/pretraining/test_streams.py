"""Streams put together from others: languages in their proportions, short rows first, any index from nothing."""

import itertools

import numpy as np
import pytest

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.rows import Order, Rows
from unbraid.pretraining.streams import Interleaved, Successive, training_stream


class Named:
    """Micro-batches that say which they are."""

    def __init__(self, name, per_epoch=10):
        self.name = name
        self.per_epoch = per_epoch

    def __getitem__(self, index):
        assert type(index) is int
        return self.name, index


WEIGHTS = [[1.0], [3.0, 1.0], [0.5, 0.3, 0.2], [1.0] * 7, [0.9, 0.05, 0.03, 0.0199, 0.0001], list(range(1, 101))]


@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_languages_have_their_share_of_any_thousand(weights):
    stream = Interleaved([Named(number) for number in range(len(weights))], weights)
    drawn = np.array([stream[index][0] for index in range(70_000)])  # beyond a period
    shares = np.array(weights) / sum(weights)
    for first in (0, 1, 777, 65_000, 65_536, 69_000):
        counts = np.bincount(drawn[first : first + 1000], minlength=len(weights))
        assert np.abs(counts / 1000 - shares).max() < 0.01
        assert np.abs(counts - 1000 * shares).max() < 4
    assert len(np.unique(drawn)) == len(weights)


@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_a_language_goes_on_where_it_stood(weights):
    stream = Interleaved([Named(number) for number in range(len(weights))], weights)
    following = [0] * len(weights)
    for index in range(70_000):
        language, own = stream[index]
        assert own == following[language]
        following[language] += 1
    assert stream[10**12] == Interleaved([Named(number) for number in range(len(weights))], weights)[10**12]


def test_epoch_of_languages():
    assert Interleaved([Named("a", 10), Named("b", 5)], [1.0, 1.0]).per_epoch == 15
    with pytest.raises(IndexError):
        Interleaved([Named("a")], [1.0])[-1]


def test_one_stream_after_another():
    stream = Successive(Named("short", 12), 5, Named("long", 10))
    assert [stream[index] for index in (0, 4, 5, 6, 100)] == [
        ("short", 0),
        ("short", 4),
        ("long", 0),
        ("long", 1),
        ("long", 95),
    ]
    assert stream.per_epoch == 10


class Ids:
    """The ids of a micro-batch, row by row."""

    def __init__(self, documents, sequence_length, seed):
        self.rows = Rows(documents, sequence_length)
        self.order = Order(self.rows.lengths, 60, seed)
        self.per_epoch = self.order.per_epoch

    def __getitem__(self, index):
        return [self.rows[row].tolist() for row in self.order[index][1].tolist()]


def documents_from(first, count):
    rng = np.random.default_rng(first)
    edges = (first + np.cumsum([0, *rng.integers(1, 60, count)])).tolist()
    return [list(range(*span)) for span in itertools.pairwise(edges)]


def refuse(_):
    raise AssertionError("nobody asked how long the run is")


def test_a_plain_configuration_is_the_stream_itself(make_corpus):
    config = CorpusConfig(path="x", sequence_length=12, batch_tokens=60, seed=7)
    corpus = make_corpus(documents_from(0, 80))
    stream = training_stream(corpus, config, Ids, refuse)
    assert isinstance(stream, Ids)
    assert stream[5] == Ids(corpus.train, 12, 7)[5]


def test_short_rows_first(make_corpus):
    config = CorpusConfig(path="x", sequence_length=20, batch_tokens=60, first_length=10, first_share=0.25)
    corpus = make_corpus(documents_from(0, 200))
    asked = []

    def run_length(per_epoch):
        asked.append(per_epoch)
        return 3 * per_epoch

    stream = training_stream(corpus, config, Ids, run_length)
    assert stream.per_epoch == Ids(corpus.train, 20, 0).per_epoch == asked[0]
    switch = round(0.75 * stream.per_epoch)
    assert max(len(row) for index in range(switch) for row in stream[index]) == 8
    following = [stream[index] for index in range(switch, switch + stream.per_epoch)]
    assert max(len(row) for batch in following for row in batch) == 18
    tokens = sorted(token for batch in following for row in batch for token in row)
    assert tokens == sorted(token for ids in corpus.train for token in ids.tolist())
    again = training_stream(corpus, config, Ids, run_length)
    for index in (switch + 3, 0, switch, switch - 1):
        assert again[index] == stream[index]


def test_languages_of_a_corpus(make_corpus, tmp_path):
    make_corpus(documents_from(0, 240), name="a")
    make_corpus(documents_from(10**5, 20), name="b")
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    config = CorpusConfig(
        path=paths, document="line", temperature=0.5, sequence_length=20, batch_tokens=60, held_out=0.1
    )
    corpus = make_corpus([[1]], name="c", path=paths, held_out=0.1, temperature=0.5)
    stream = training_stream(corpus, config, Ids, refuse)
    batches = [stream[index] for index in range(2000)]
    small = [batch for batch in batches if batch[0][0] >= 10**5]
    assert all((token >= 10**5) == (batch[0][0] >= 10**5) for batch in batches for row in batch for token in row)
    a, b = (documents.num_tokens**0.5 for documents in corpus.languages)
    assert len(small) / 2000 == pytest.approx(b / (a + b), abs=0.002)
    assert corpus.languages[0].num_tokens > 5 * corpus.languages[1].num_tokens
    per_epoch = Ids(corpus.languages[1], 20, 0).per_epoch
    first = sorted(token for batch in small[:per_epoch] for row in batch for token in row)
    assert first == sorted(token for ids in corpus.languages[1] for token in ids.tolist())
    both = sorted(ids.tolist() for ids in corpus.held_out)
    assert both[0][0] < 10**5 <= both[-1][0]


def test_a_language_without_documents_to_train_on(make_corpus, tmp_path):
    make_corpus([[1, 2, 3]], name="a")
    make_corpus([[4, 5]], name="b")
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    config = CorpusConfig(path=paths, temperature=0.5)
    corpus = make_corpus([[1]], name="c", path=paths, held_out=0.999999, temperature=0.5)
    with pytest.raises(InputError, match="no document in this part of the corpus"):
        training_stream(corpus, config, Ids, refuse)
