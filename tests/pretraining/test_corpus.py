"""Corpus: what is on disk is the text, complete or not there at all, whoever wrote it."""

import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import prepare
from unbraid.pretraining.shards import Shard
from unbraid.text.tokenizer import train_tokenizer


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
    return sorted(entry for entry in cache.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def as_lists(documents):
    found = [ids.tolist() for ids in documents]
    assert len(documents) == len(found)
    assert documents.num_tokens == sum(map(len, found))
    return found


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
    assert corpus.train.shards[0].ids.dtype == np.uint16
    assert corpus.train.num_tokens == sum(map(len, expected))


def test_batches_of_text_leave_no_seam(tmp_path, tokenizer, monkeypatch):
    texts = write_text(tmp_path / "a.txt", 50)
    monkeypatch.setattr("unbraid.pretraining.shards._BATCH_CHARACTERS", 100)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), tokenizer, tmp_path / "cache")
    assert as_lists(corpus.train) == [tokenizer.words(text) for text in texts]


def test_a_long_line_without_spaces_is_read_in_pieces(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("unbraid.pretraining.shards._BATCH_CHARACTERS", 99)
    (tmp_path / "a.txt").write_text("one two " + "x" * 1000 + " three")
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), tokenizer, tmp_path / "cache")
    (ids,) = as_lists(corpus.train)
    assert ids[:2] == tokenizer.words("one two")
    assert ids[-2:] == tokenizer.words("three")
    assert len(ids) == pytest.approx(2 + 1000 / 3 + 2, abs=10)


def test_large_vocabulary_takes_four_bytes(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer(half=60_000)
    texts = write_text(tmp_path / "a.txt", 100)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), tokenizer, tmp_path / "cache")
    assert corpus.train.shards[0].ids.dtype == np.uint32
    assert corpus.train.shards[0].ids.max() > 1 << 16
    assert as_lists(corpus.train) == [tokenizer.words(text) for text in texts]


def test_vocabulary_of_65536_still_takes_two(tmp_path, make_tokenizer):
    class Full(make_tokenizer):
        def __len__(self):
            return 1 << 16

        def encode_plain(self, texts):
            return [np.array([65535], dtype=np.int32) for _ in texts]

    (tmp_path / "a.txt").write_text("x")
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.0), Full(), tmp_path / "cache")
    assert as_lists(corpus.train) == [[65535]]
    assert corpus.train.shards[0].dtype == "uint16"


def test_second_run_reads_what_the_first_wrote(config, tokenizer, tmp_path):
    first = prepare(config, tokenizer, tmp_path / "cache")
    seen = tokenizer.texts_seen
    other = CorpusConfig(path=config.path, held_out=0.5, sequence_length=16, batch_tokens=64, seed=3)
    second = prepare(other, tokenizer, tmp_path / "cache")
    assert tokenizer.texts_seen == seen
    assert first.train.shards == second.train.shards


def test_any_change_of_text_or_tokenizer_tokenises_anew(config, tokenizer, make_tokenizer, tmp_path):
    first = as_lists(prepare(config, tokenizer, tmp_path / "cache").train)
    other = as_lists(prepare(config, make_tokenizer(half=400), tmp_path / "cache").train)
    assert list(map(len, first)) == list(map(len, other))
    assert first != other
    lines = prepare(CorpusConfig(path=config.path, document="line"), tokenizer, tmp_path / "cache")
    assert len(lines.train) > len(first)
    with Path(config.path).open("a", encoding="utf-8") as file:
        file.write("\n\none more")
    longer = prepare(config, tokenizer, tmp_path / "cache")
    assert len(longer.train) + len(longer.held_out) == 301


def test_the_fingerprint_is_of_the_text_and_not_of_its_file(config, tokenizer, tmp_path):
    def fingerprint(path=config.path, size=1 << 26, **options):
        told = CorpusConfig(path=str(path), **options)
        return prepare(told, tokenizer, tmp_path / "cache", processes=1, shard_bytes=size).fingerprint

    text = Path(config.path)
    first = fingerprint()
    (tmp_path / "b.txt").write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    os.utime(text, (1, 1))
    assert fingerprint(size=1 << 12) == fingerprint(tmp_path / "b.txt") == first
    assert first["tokens"] == sum(len(tokenizer.words(each)) for each in text.read_text().split("\n\n"))
    changed = [fingerprint(document="line")]
    for old, new in (("w1", "w2"), ("\n\n", "\n\nw0\n\n")):
        (tmp_path / "c.txt").write_text(text.read_text().replace(old, new, 1))
        changed.append(fingerprint(tmp_path / "c.txt"))
    documents = text.read_text().split("\n\n")
    (tmp_path / "c.txt").write_text("\n\n".join(documents[::-1]))
    changed.append(fingerprint(tmp_path / "c.txt"))
    assert len({each["documents"] for each in (first, *changed)}) == 5


def test_only_what_changed_is_tokenised_again(tmp_path, tokenizer):
    for name in "abc":
        write_text(tmp_path / f"{name}.txt", 40, seed=ord(name))
    config = CorpusConfig(path=str(tmp_path), held_out=0.0)
    prepare(config, tokenizer, tmp_path / "cache", processes=1, shard_bytes=1 << 14)
    seen, before = tokenizer.texts_seen, len(complete(tmp_path / "cache"))
    texts = write_text(tmp_path / "b.txt", 40, seed=0)
    corpus = prepare(config, tokenizer, tmp_path / "cache", processes=1, shard_bytes=1 << 14)
    assert len(complete(tmp_path / "cache")) == before + 1
    lines = [line for line in (tmp_path / "b.txt").read_text().splitlines() if line]
    assert tokenizer.texts_seen == seen + len(lines)
    assert as_lists(corpus.train)[40:80] == [tokenizer.words(text) for text in texts]
    assert len(corpus.train) == 120


@pytest.mark.parametrize("shard_bytes", [1 << 12, 1 << 26])
def test_a_file_given_twice_is_there_twice(config, tokenizer, tmp_path, shard_bytes):
    twice = CorpusConfig(path=(config.path, config.path), held_out=0.2)
    once = as_lists(prepare(config, tokenizer, tmp_path / "cache").train)
    corpus = prepare(twice, tokenizer, tmp_path / "cache", processes=1, shard_bytes=shard_bytes)
    assert as_lists(corpus.train) == once + once


@pytest.mark.parametrize("bad", [b"\n\nfine\ncaf\xe9", b""])
def test_failure_leaves_what_is_complete(config, tokenizer, tmp_path, bad):
    (tmp_path / "b.txt").write_bytes(bad)
    both = CorpusConfig(path=(config.path, str(tmp_path / "b.txt")))
    with pytest.raises(InputError, match=r"b\.txt"):
        prepare(both, tokenizer, tmp_path / "cache")
    assert complete(tmp_path / "cache") == []
    size = Path(config.path).stat().st_size // 4
    with pytest.raises(InputError, match=r"b\.txt"):
        prepare(both, tokenizer, tmp_path / "cache", processes=1, shard_bytes=size)
    assert 150 < sum(Shard.open(folder).num_documents for folder in complete(tmp_path / "cache")) < 300


def test_documents_without_tokens_vanish(tmp_path, tokenizer):
    encode = tokenizer.encode_plain
    tokenizer.encode_plain = lambda texts: encode([text.replace("\u200b", "") for text in texts])
    (tmp_path / "a.txt").write_text("\u200b\none\n\u200b\n\u200b\ntwo\n\u200b", encoding="utf-8")
    config = CorpusConfig(path=str(tmp_path / "a.txt"), document="line", held_out=0.0)
    corpus = prepare(config, tokenizer, tmp_path / "cache")
    assert as_lists(corpus.train) == [tokenizer.words("one"), tokenizer.words("two")]
    assert [shard.num_documents for shard in corpus.train.shards] == [2]


def test_text_without_tokens(tmp_path, tokenizer):
    tokenizer.encode_plain = lambda texts: [np.array([], dtype=np.int32) for _ in texts]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no tokens"):
        prepare(CorpusConfig(path=str(tmp_path / "a.txt")), tokenizer, tmp_path / "cache")


def test_full_disk(config, tokenizer, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .* No space left on device"):
            prepare(config, tokenizer, tmp_path / "cache")
    assert complete(tmp_path / "cache") == []
    corpus = prepare(config, tokenizer, tmp_path / "cache")
    assert len(corpus.train) + len(corpus.held_out) == 300


def test_cache_folder_that_is_a_file(config, tokenizer, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the tokenised corpus"):
        prepare(config, tokenizer, tmp_path / "cache")


@pytest.fixture(scope="module")
def real_tokenizer():
    """One that another process can import."""
    words = [f"w{number}" for number in np.random.default_rng(0).integers(0, 10**6, 3000)]
    return train_tokenizer([" ".join(words[at : at + 20]) for at in range(0, len(words), 20)], "unigram", 60)


@pytest.fixture
def mixture(tmp_path):
    """Files of every kind, with 640 documents."""
    folder = tmp_path / "text"
    folder.mkdir()
    write_text(folder / "a.txt", 200)
    texts = write_text(folder / "x", 440, seed=1)
    (folder / "x").unlink()
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(texts[:100]).encode()))
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[100:300]), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": texts[300:400]}), folder / "d.parquet", row_group_size=17)
    for number, text in enumerate(texts[400:]):
        (folder / f"e{number:02}.txt").write_text(text)
    return CorpusConfig(path=str(folder), held_out=0.2)


@pytest.mark.parametrize("document", ["empty_line", "line"])
@pytest.mark.parametrize("shard_bytes", [1500, 40_000])
def test_shards_do_not_touch_the_documents(mixture, tokenizer, tmp_path, shard_bytes, document):
    config = CorpusConfig(path=mixture.path, held_out=0.2, document=document)
    whole = prepare(config, tokenizer, tmp_path / "whole")
    cut = prepare(config, tokenizer, tmp_path / "cut", processes=1, shard_bytes=shard_bytes)
    assert len(whole.train.shards) == 1
    assert len(cut.train.shards) > 4
    assert as_lists(cut.train) == as_lists(whole.train)
    assert as_lists(cut.held_out) == as_lists(whole.held_out)
    assert document == "line" or len(whole.train) + len(whole.held_out) == 640


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_do_not_touch_what_is_written(mixture, real_tokenizer, tmp_path, processes):
    alone = prepare(mixture, real_tokenizer, tmp_path / "alone", processes=1, shard_bytes=50_000)
    together = prepare(mixture, real_tokenizer, tmp_path / "together", processes=processes, shard_bytes=50_000)
    assert len(alone.train.shards) > processes
    assert [shard.folder.name for shard in together.train.shards] == [s.folder.name for s in alone.train.shards]
    for one, other in zip(alone.train.shards, together.train.shards, strict=True):
        assert contents(one.folder) == contents(other.folder)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_in_the_middle_of_a_large_file_is_told(real_tokenizer, tmp_path, processes):
    lines = [b"fine"] * 10_000
    lines[7654] = b"caf\xe9"
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    config = CorpusConfig(path=str(tmp_path / "a.txt"), document="line")
    with pytest.raises(InputError, match=r"a\.txt line 7655 is not UTF-8 .*; re-encode the file\.$"):
        prepare(config, real_tokenizer, tmp_path / "cache", processes=processes, shard_bytes=13_000)
    assert 1 <= len(complete(tmp_path / "cache")) < 4
    assert multiprocessing.active_children() == []


def test_full_disk_of_a_process(mixture, real_tokenizer, tmp_path):
    real_tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = """
import resource, sys
from unbraid.pretraining import corpus
from unbraid.pretraining.config import CorpusConfig
from unbraid.text.tokenizer import Tokenizer
corpus._tokenizer_fingerprint = str  # writes a large file
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may be larger
tokenizer = Tokenizer.from_pretrained(sys.argv[2])
corpus.prepare(CorpusConfig(path=sys.argv[1]), tokenizer, sys.argv[3], processes=2, shard_bytes=100_000)
"""
    arguments = [mixture.path, str(tmp_path / "tokenizer"), str(tmp_path / "cache")]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert "InputError: cannot write the tokenised corpus to" in run.stderr
    assert "File too large" in run.stderr
    assert len(prepare(mixture, real_tokenizer, tmp_path / "cache").train) > 400


PREPARE = """
import sys
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import prepare
from unbraid.text.tokenizer import Tokenizer
config = CorpusConfig(path=sys.argv[1], held_out=0.2)
prepare(config, Tokenizer.from_pretrained(sys.argv[2]), sys.argv[3], processes=int(sys.argv[4]), shard_bytes=60_000)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_keeps_what_is_complete(mixture, real_tokenizer, tmp_path, processes):
    real_tokenizer.save_pretrained(tmp_path / "tokenizer")
    cache = tmp_path / "cache"
    cache.mkdir()
    arguments = [mixture.path, str(tmp_path / "tokenizer"), str(cache), str(processes)]
    with subprocess.Popen([sys.executable, "-c", PREPARE, *arguments], stderr=subprocess.PIPE, text=True) as run:
        while not complete(cache) and run.poll() is None:
            time.sleep(0.001)
        run.kill()
        run.stderr.read()  # to the end: no process of it is left
    assert run.returncode == -signal.SIGKILL
    first = {folder: folder.stat().st_mtime_ns for folder in complete(cache)}
    corpus = prepare(mixture, real_tokenizer, cache, processes=1, shard_bytes=60_000)
    assert 1 <= len(first) < len(corpus.train.shards)
    assert {folder: folder.stat().st_mtime_ns for folder in first} == first
    expected = prepare(mixture, real_tokenizer, tmp_path / "elsewhere", processes=1, shard_bytes=60_000)
    for one, other in zip(corpus.train.shards, expected.train.shards, strict=True):
        assert contents(one.folder) == contents(other.folder)


DIE_WHILE_TOKENISING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from conftest import ToyTokenizer
from unbraid.pretraining import shards
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import prepare

class Dying(ToyTokenizer):
    def encode_plain(self, texts):
        if self.texts_seen > 100:
            os._exit(9)
        return super().encode_plain(texts)

shards._BATCH_CHARACTERS = 1000
prepare(CorpusConfig(path=sys.argv[2]), Dying(), sys.argv[3])
"""


def test_half_a_shard_is_not_taken_for_complete(config, tokenizer, tmp_path):
    arguments = [str(Path(__file__).parent), config.path, str(tmp_path / "cache")]
    assert subprocess.run([sys.executable, "-c", DIE_WHILE_TOKENISING, *arguments], check=False).returncode == 9
    (partial,) = (tmp_path / "cache").glob(".*.partial")
    assert (partial / "ids.bin").exists()
    assert complete(tmp_path / "cache") == []
    prepare(config, tokenizer, tmp_path / "cache")
    prepare(config, tokenizer, tmp_path / "elsewhere")
    (folder,), (expected,) = complete(tmp_path / "cache"), complete(tmp_path / "elsewhere")
    assert folder.name == expected.name
    assert contents(folder) == contents(expected)


def test_a_process_that_is_killed_is_told(mixture, real_tokenizer, tmp_path):
    def kill_one():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(InputError, match=r"was killed, perhaps because memory ran out; the same command continues\."):
        prepare(mixture, real_tokenizer, tmp_path / "cache", processes=2, shard_bytes=100_000)
    killer.join()
    assert multiprocessing.active_children() == []
    assert len(prepare(mixture, real_tokenizer, tmp_path / "cache").train) > 400


def test_of_several_at_once_one_tokenises(config, make_tokenizer, tmp_path):
    tokenizers = [make_tokenizer() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda tokenizer: prepare(config, tokenizer, tmp_path / "cache"), tokenizers))
    seen = sorted(tokenizer.texts_seen for tokenizer in tokenizers)
    assert seen[:3] == [0, 0, 0]
    assert seen[3] > 0
    assert len(complete(tmp_path / "cache")) == 1


@pytest.mark.parametrize("name", ["ids.bin", "offsets.bin", "hashes.bin", "shard.json"])
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


def begins_of(documents):
    return [begin for begins, _ in documents.spans() for begin in begins.tolist()]


def test_split_is_a_partition_of_the_share_asked_for(tmp_path, tokenizer):
    write_text(tmp_path / "a.txt", 4000)
    corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.1), tokenizer, tmp_path / "cache")
    assert len(corpus.held_out) == pytest.approx(400, abs=80)  # four standard deviations
    assert len(corpus.held_out) + len(corpus.train) == 4000
    (shard,) = corpus.train.shards
    assert corpus.held_out.num_tokens + corpus.train.num_tokens == len(shard.ids)
    assert sorted(begins_of(corpus.train) + begins_of(corpus.held_out)) == shard.offsets[:-1].tolist()


def test_split_stands_when_the_text_grows_and_the_tokenizer_changes(tmp_path, tokenizer, make_tokenizer):
    def held_out(tokenizer, **config):
        corpus = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), **config), tokenizer, tmp_path / "cache")
        return [tuple(ids) for ids in as_lists(corpus.held_out)], corpus

    write_text(tmp_path / "a.txt", 400)
    before, corpus = held_out(tokenizer, held_out=0.1)
    places = np.flatnonzero(np.isin(corpus.train.shards[0].offsets[:-1], begins_of(corpus.held_out)))
    more, _ = held_out(tokenizer, held_out=0.3)
    assert set(before) < set(more)
    assert held_out(tokenizer, held_out=0.1, seed=5)[0] == before
    _, other = held_out(make_tokenizer(half=300), held_out=0.1)
    assert (np.flatnonzero(np.isin(other.train.shards[0].offsets[:-1], begins_of(other.held_out))) == places).all()


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


def test_the_split_is_by_the_hash_of_the_text(tmp_path, tokenizer):
    """The documents that former versions held out."""
    texts = write_text(tmp_path / "a.txt", 200)
    held_out = prepare(CorpusConfig(path=str(tmp_path / "a.txt"), held_out=0.2), tokenizer, tmp_path / "cache").held_out

    def hash_of(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    assert as_lists(held_out) == [tokenizer.words(text) for text in texts if hash_of(text) < 0.2 * 2**64]
    assert len(held_out) > 20


def test_languages(tmp_path, tokenizer):
    texts = {name: write_text(tmp_path / f"{name}.txt", count, seed=count) for name, count in (("a", 90), ("b", 30))}
    config = CorpusConfig(path=(str(tmp_path / "a.txt"), str(tmp_path / "b.txt")), held_out=0.0, temperature=0.3)
    corpus = prepare(config, tokenizer, tmp_path / "cache", processes=1)
    expected = [[tokenizer.words(text) for text in texts[name]] for name in "ab"]
    assert [as_lists(documents) for documents in corpus.languages] == expected
    assert as_lists(corpus.train) == expected[0] + expected[1]
    together = prepare(CorpusConfig(path=config.path, held_out=0.0), tokenizer, tmp_path / "cache")
    assert [as_lists(documents) for documents in together.languages] == [expected[0] + expected[1]]


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
        {"path": "a.txt", "rows": "sentence"},
        {"path": "a.txt", "first_length": 512},
        {"path": "a.txt", "first_length": 128, "first_share": 1.0},
        {"path": "a.txt", "first_share": 0.3},
        {"path": "a.txt", "temperature": 0.3},
        {"path": ("a.txt", "b.txt"), "temperature": 1.5},
    ],
)
def test_bad_corpus_configuration(fault):
    with pytest.raises(InputError, match=list(fault)[-1]):
        CorpusConfig(**fault)
