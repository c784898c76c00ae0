"""Corpus: what is on disk is the text, complete or not there at all, in memory that does not grow."""

import errno
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import Corpus, prepare


def write_text(path, count, seed=0):
    """Documents of 1 to 4 paragraphs; returns their words."""
    rng = np.random.default_rng(seed)
    documents = [
        [[f"w{word}" for word in rng.integers(0, 10**6, rng.integers(1, 31))] for _ in range(rng.integers(1, 5))]
        for _ in range(count)
    ]
    path.write_text("\n\n".join("\n".join(" ".join(words) for words in lines) for lines in documents), encoding="utf-8")
    return [" ".join(word for words in lines for word in words) for lines in documents]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def complete(cache):
    return [entry for entry in cache.iterdir() if entry.is_dir()]


def as_lists(documents):
    return [documents[index].tolist() for index in range(len(documents))]


@pytest.fixture
def config(tmp_path):
    write_text(tmp_path / "a.txt", 300)
    return CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.2)


def test_documents_come_back(tmp_path, tokenizer):
    texts = write_text(tmp_path / "a.txt", 300) + write_text(tmp_path / "b.txt", 100, seed=1)
    corpus = prepare(CorpusConfig(path=str(tmp_path), held_out=0.0), tokenizer, tmp_path / "cache")
    expected = [tokenizer.words(text) for text in texts]
    assert as_lists(corpus.train) == expected
    assert len(corpus.held_out) == 0
    assert corpus.ids.dtype == np.uint16
    assert corpus.train.num_tokens == sum(map(len, expected)) == len(corpus.ids)


def test_batches_of_text_leave_no_seam(tmp_path, tokenizer, monkeypatch):
    texts = write_text(tmp_path / "a.txt", 50)
    monkeypatch.setattr("unbraid.pretraining.corpus._BATCH_CHARACTERS", 100)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), tokenizer, tmp_path / "cache")
    assert as_lists(corpus.train) == [tokenizer.words(text) for text in texts]


def test_large_vocabulary_takes_four_bytes(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer(half=60_000)
    texts = write_text(tmp_path / "a.txt", 100)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), tokenizer, tmp_path / "cache")
    assert corpus.ids.dtype == np.uint32
    assert corpus.ids.max() > 1 << 16
    assert as_lists(corpus.train) == [tokenizer.words(text) for text in texts]


def test_vocabulary_of_65536_still_takes_two(tmp_path, make_tokenizer):
    class Full(make_tokenizer):
        def __len__(self):
            return 1 << 16

        def encode_plain(self, texts):
            return [np.array([65535], dtype=np.int32) for _ in texts]

    (tmp_path / "a.txt").write_text("x")
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), Full(), tmp_path / "cache")
    assert corpus.ids.tolist() == [65535]
    assert corpus.ids.dtype == np.uint16


def test_second_run_reads_what_the_first_wrote(config, tokenizer, tmp_path):
    first = prepare(config, tokenizer, tmp_path / "cache")
    seen = tokenizer.texts_seen
    other = CorpusConfig(path=config.path, held_out=0.5, sequence_length=16, batch_tokens=64, seed=3)
    second = prepare(other, tokenizer, tmp_path / "cache")
    assert tokenizer.texts_seen == seen
    assert (first.ids == second.ids).all()


def test_any_change_of_text_or_tokenizer_tokenises_anew(config, tokenizer, make_tokenizer, tmp_path):
    first = prepare(config, tokenizer, tmp_path / "cache")
    other = prepare(config, make_tokenizer(half=400), tmp_path / "cache")
    assert (first.ids[:100] != other.ids[:100]).any()
    lines = prepare(CorpusConfig(path=config.path, document="line"), tokenizer, tmp_path / "cache")
    assert len(lines.offsets) > len(first.offsets)
    with Path(config.path).open("a", encoding="utf-8") as file:
        file.write("\n\none more")
    longer = prepare(config, tokenizer, tmp_path / "cache")
    assert len(longer.offsets) == len(first.offsets) + 1


@pytest.mark.parametrize("bad", [b"\n\nfine\ncaf\xe9", b""])
def test_failure_leaves_nothing(config, tokenizer, tmp_path, bad):
    (tmp_path / "b.txt").write_bytes(bad)
    with pytest.raises(InputError, match=r"b\.txt"):
        prepare(CorpusConfig(path=(config.path, str(tmp_path / "b.txt"))), tokenizer, tmp_path / "cache")
    assert complete(tmp_path / "cache") == []


def test_documents_without_tokens_vanish(tmp_path, tokenizer):
    encode = tokenizer.encode_plain
    tokenizer.encode_plain = lambda texts: encode([text.replace("\u200b", "") for text in texts])
    (tmp_path / "a.txt").write_text("\u200b\none\n\u200b\n\u200b\ntwo\n\u200b", encoding="utf-8")
    config = CorpusConfig(path=str(tmp_path / "a.txt"), document="line", held_out=0.0)
    corpus = prepare(config, tokenizer, tmp_path / "cache")
    assert as_lists(corpus.train) == [tokenizer.words("one"), tokenizer.words("two")]
    assert len(corpus.hashes) == 2


def test_text_without_tokens(tmp_path, tokenizer):
    tokenizer.encode_plain = lambda texts: [np.array([], dtype=np.int32) for _ in texts]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no tokens"):
        prepare(CorpusConfig(path=str(tmp_path / "a.txt")), tokenizer, tmp_path / "cache")
    assert complete(tmp_path / "cache") == []


def test_full_disk(config, tokenizer, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .* No space left on device"):
            prepare(config, tokenizer, tmp_path / "cache")
    assert complete(tmp_path / "cache") == []
    assert len(prepare(config, tokenizer, tmp_path / "cache").hashes) == 300


def test_cache_folder_that_is_a_file(config, tokenizer, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the tokenised corpus"):
        prepare(config, tokenizer, tmp_path / "cache")


DIE_WHILE_TOKENISING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from conftest import ToyTokenizer
from unbraid.pretraining import corpus
from unbraid.pretraining.config import CorpusConfig

class Dying(ToyTokenizer):
    def encode_plain(self, texts):
        if self.texts_seen > 100:
            os._exit(9)
        return super().encode_plain(texts)

corpus._BATCH_CHARACTERS = 1000
corpus.prepare(CorpusConfig(path=sys.argv[2]), Dying(), sys.argv[3])
"""


def test_killed_run_is_not_taken_for_complete(config, tokenizer, tmp_path):
    arguments = [str(Path(__file__).parent), config.path, str(tmp_path / "cache")]
    assert subprocess.run([sys.executable, "-c", DIE_WHILE_TOKENISING, *arguments], check=False).returncode == 9
    (partial,) = complete(tmp_path / "cache")
    assert (partial / "ids.bin").exists()
    prepare(config, tokenizer, tmp_path / "cache")
    prepare(config, tokenizer, tmp_path / "elsewhere")
    (folder,), (expected,) = complete(tmp_path / "cache"), complete(tmp_path / "elsewhere")
    assert folder.name == expected.name
    assert contents(folder) == contents(expected)


def test_of_several_at_once_one_tokenises(config, make_tokenizer, tmp_path):
    tokenizers = [make_tokenizer() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda tokenizer: prepare(config, tokenizer, tmp_path / "cache"), tokenizers))
    seen = sorted(tokenizer.texts_seen for tokenizer in tokenizers)
    assert seen[:3] == [0, 0, 0]
    assert seen[3] > 0
    assert len(complete(tmp_path / "cache")) == 1


@pytest.mark.parametrize("name", ["ids.bin", "offsets.bin", "hashes.bin", "corpus.json"])
@pytest.mark.parametrize("fault", ["cut", "empty", "missing"])
def test_damaged_corpus(config, tokenizer, tmp_path, name, fault):
    prepare(config, tokenizer, tmp_path / "cache")
    (folder,) = complete(tmp_path / "cache")
    file = folder / name
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -16 if fault == "cut" else 0])
    with pytest.raises(InputError, match=r"is not a complete tokenised corpus .* delete it"):
        prepare(config, tokenizer, tmp_path / "cache")


def test_split_is_a_partition_of_the_share_asked_for(tmp_path, tokenizer):
    write_text(tmp_path / "a.txt", 4000)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.1), tokenizer, tmp_path / "cache")
    assert len(corpus.held_out) == pytest.approx(400, abs=80)  # four standard deviations
    assert len(corpus.held_out) + len(corpus.train) == 4000
    assert corpus.held_out.num_tokens + corpus.train.num_tokens == len(corpus.ids)
    begins = np.concatenate([corpus.train.begins, corpus.held_out.begins])
    assert sorted(begins.tolist()) == corpus.offsets[:-1].tolist()


def test_split_stands_when_the_text_grows_and_the_tokenizer_changes(tmp_path, tokenizer, make_tokenizer):
    def held_out(tokenizer, **config):
        corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), **config), tokenizer, tmp_path / "cache")
        return [tuple(ids) for ids in as_lists(corpus.held_out)], corpus

    write_text(tmp_path / "a.txt", 400)
    before, corpus = held_out(tokenizer, held_out=0.1)
    places = np.flatnonzero(np.isin(corpus.offsets[:-1], corpus.held_out.begins))
    more, _ = held_out(tokenizer, held_out=0.3)
    assert set(before) < set(more)
    assert held_out(tokenizer, held_out=0.1, seed=5)[0] == before
    _, other = held_out(make_tokenizer(half=300), held_out=0.1)
    assert (np.flatnonzero(np.isin(other.offsets[:-1], other.held_out.begins)) == places).all()


def test_copies_of_a_document_are_on_one_side(tmp_path, tokenizer):
    lines = [f"text {number}" for number in range(200)] * 3
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    config = CorpusConfig(path=str(tmp_path / "a.txt"), document="line", held_out=0.3)
    held_out = as_lists(prepare(config, tokenizer, tmp_path / "cache").held_out)
    assert held_out
    assert all(held_out.count(document) % 3 == 0 for document in held_out)


def test_text_added_leaves_the_split_as_it_was(tmp_path, tokenizer):
    write_text(tmp_path / "a.txt", 400)
    config = CorpusConfig(path=str(tmp_path), held_out=0.1)
    before = as_lists(prepare(config, tokenizer, tmp_path / "cache").held_out)
    write_text(tmp_path / "0.txt", 300, seed=1)
    after = as_lists(prepare(config, tokenizer, tmp_path / "cache").held_out)
    assert after[-len(before) :] == before
    assert len(after) > len(before)


def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("unbraid.pretraining.corpus._BATCH_CHARACTERS", 1 << 15)
    peaks = []
    for count in (500, 10_000):
        write_text(tmp_path / f"{count}.txt", count)
        config = CorpusConfig(path=str(tmp_path / f"{count}.txt"))
        tracemalloc.start()
        prepare(config, tokenizer, tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.1 * (tmp_path / "10000.txt").stat().st_size


@pytest.mark.parametrize(
    "fault",
    [
        {"path": ""},
        {"path": ()},
        {"path": "a.txt", "held_out": 1.0},
        {"path": "a.txt", "sequence_length": 2},
        {"path": "a.txt", "batch_tokens": 511},
        {"path": "a.txt", "document": "page"},
        {"path": "a.txt", "columns": "text"},
    ],
)
def test_bad_corpus_configuration(fault):
    with pytest.raises(ValidationError, match=list(fault)[-1]):
        CorpusConfig(**fault)


def test_corpus_opens_without_a_configuration(config, tokenizer, tmp_path):
    prepare(config, tokenizer, tmp_path / "cache")
    (folder,) = complete(tmp_path / "cache")
    assert len(Corpus(folder).train) == 300
