"""Sources: every way text is stored gives the same documents, and every fault is named."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.sources import cut, find_sources


def documents(**config):
    found = []
    for source in find_sources(CorpusConfig(**config)):
        pieces = list(source)
        assert [piece.done for piece in pieces] == sorted(piece.done for piece in pieces)
        assert 0 <= pieces[-1].done <= 1
        for piece in pieces:
            if piece.opens:
                found.append([])
            found[-1].append(piece.text)
    return found


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_empty_lines_end_documents(tmp_path):
    path = write(tmp_path / "a.txt", "\n \none\ntwo \n\t\n\n  three\nfour\n\nfive")
    assert documents(path=path) == [["one", " two"], ["three", " four"], ["five"]]


def test_each_line_is_a_document(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    assert documents(path=path, document="line") == [["one"], ["two"], ["three"]]


def test_line_ends_byte_order_mark_and_separators(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n\r\nthr\u2028ee\r\n")
    assert documents(path=path) == [["one", " two"], ["thr\u2028ee"]]


def compress_zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path, suffix):
    text = "".join(f"λόγος {number}\n" for number in range(20_000)).encode()
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](text))
    assert documents(path=path, document="line") == [[f"λόγος {number}"] for number in range(20_000)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_truncated_compressed_file(tmp_path, suffix):
    data = COMPRESS[suffix]("".join(f"{number * number}\n" for number in range(50_000)).encode())
    path = write(tmp_path / f"a.txt{suffix}", data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"a\.txt{suffix} cannot be read after line \d+ .*truncated"):
        documents(path=path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_file_that_is_not_what_its_name_says(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", b"plain text")
    with pytest.raises(InputError, match="cannot be read after line 0"):
        documents(path=path)


def test_jsonl(tmp_path):
    lines = [{"body": "one\n\ntwo", "id": 1}, {"body": "three"}, {"body": " "}]
    text = "\n\n".join(json.dumps(line) for line in lines)
    expected = [["one\n\ntwo"], ["three"]]
    assert documents(path=write(tmp_path / "a.jsonl", text), column="body") == expected
    assert documents(path=write(tmp_path / "a.jsonl.gz", gzip.compress(text.encode())), column="body") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 2 is not JSON"),
        ('["text"]', "line 2 is not a JSON object"),
        ('{"body": "x", "id": 1}', "line 2 has no column 'text', only body, id; set column"),
        ('{"text": null}', "line 2: 'text' is NoneType, not text"),
        ('{"text": ["x"]}', "line 2: 'text' is list, not text"),
        ('{"text": "\\ud800"}', "line 2: 'text' is not valid Unicode"),
    ],
)
def test_bad_jsonl(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match=message):
        documents(path=path)


def test_parquet(tmp_path):
    texts = [f"document {number}" for number in range(3000)]
    table = pyarrow.table({"id": range(3000), "body": texts})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert documents(path=str(tmp_path / "a.parquet"), column="body") == [[text] for text in texts]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"]}, r"a\.parquet has no column 'text', only body"),
        ({"text": ["x", None]}, r"a\.parquet row 2: 'text' is NoneType"),
        ({"text": [1]}, r"a\.parquet row 1: 'text' is int"),
    ],
)
def test_bad_parquet(tmp_path, columns, message):
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        documents(path=str(tmp_path / "a.parquet"))


def test_truncated_parquet(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["x"] * 1000}), tmp_path / "whole.parquet")
    path = write(tmp_path / "cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut\.parquet is not a readable Parquet file"):
        documents(path=path)


def test_hub_data_set(monkeypatch):
    def load(name, subset, split):
        assert (name, subset, split) == ("owner/set", "small", "validation")
        return datasets.Dataset.from_dict({"body": ["one", "", "two"], "id": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = {"path": "owner/set", "subset": "small", "split": "validation"}
    assert documents(**config, column="body") == [["one"], ["two"]]
    with pytest.raises(InputError, match="owner/set has no column 'text', only body, id"):
        documents(**config)


def test_hub_data_set_that_does_not_load(monkeypatch):
    def load(name, *_, **__):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {name!r} doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"neither a file nor a hub data set .* doesn't exist$"):
        documents(path="nobody/nothing")


def test_folder_glob_and_list(tmp_path):
    (tmp_path / "deep").mkdir()
    b = write(tmp_path / "b.txt", "bee")
    write(tmp_path / "a.jsonl", '{"text": "ay"}')
    write(tmp_path / "deep" / "c.txt", "sea")
    write(tmp_path / "notes.md", "not read")
    assert documents(path=str(tmp_path)) == [["ay"], ["bee"], ["sea"]]
    assert documents(path=str(tmp_path / "*.txt")) == [["bee"]]
    assert documents(path=str(tmp_path / "**" / "*.txt")) == [["bee"], ["sea"]]
    assert documents(path=[b, str(tmp_path / "deep")]) == [["bee"], ["sea"]]


@pytest.mark.parametrize("name", ["missing.txt", "deep/missing.jsonl.gz", "no such folder/", "*.txt"])
def test_path_that_leads_nowhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        documents(path=name)


def test_kinds_that_are_not_read(tmp_path):
    with pytest.raises(InputError, match=r"a\.pdf is not a \.txt, \.jsonl or \.parquet file"):
        documents(path=write(tmp_path / "a.pdf", "x"))
    with pytest.raises(InputError, match=r"holds no \.txt, \.jsonl or \.parquet file"):
        documents(path=str(tmp_path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path, content):
    with pytest.raises(InputError, match=r"a\.txt holds no text"):
        documents(path=write(tmp_path / "a.txt", content))


def test_file_that_is_not_utf8(tmp_path):
    path = write(tmp_path / "a.txt", b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"a\.txt line 3 is not UTF-8"):
        documents(path=path)


def test_fingerprint_follows_the_content(tmp_path):
    config = CorpusConfig(path=write(tmp_path / "a.txt", "one"))
    (first,), (again,) = find_sources(config), find_sources(config)
    write(tmp_path / "a.txt", "one two")
    (changed,) = find_sources(config)
    assert first.fingerprint == again.fingerprint != changed.fingerprint


def texts_of(pieces):
    found = []
    for piece in pieces:
        assert 0 <= piece.done <= 1
        if piece.opens:
            found.append([])
        found[-1].append(piece.text)
    return found


def in_parts(source, num_bytes):
    """The documents of the parts of a source, each read by itself."""
    parts = [part for lot in cut([source], num_bytes) for part in lot]
    return [text for part in parts for text in texts_of(part)], len(parts)


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", "", "a", "bb ", " \u3000", "λόγος", "c\r"]), min_size=1, max_size=30),
    num_bytes=st.integers(1, 40),
    document=st.sampled_from(["line", "empty_line"]),
    end=st.sampled_from(["", "\n"]),
)
def test_parts_of_a_text_file_have_every_document_once(tmp_path_factory, lines, num_bytes, document, end):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", "first\n" + "\n".join(lines) + end)
    (source,) = find_sources(CorpusConfig(path=path, document=document))
    found, count = in_parts(source, num_bytes)
    assert found == texts_of(source)
    assert count == -(-source.size // num_bytes)


def jsonl(texts):
    return "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()


@pytest.mark.parametrize("num_bytes", [1, 7, 100, 2999])
def test_parts_of_records_have_every_document_once(tmp_path, monkeypatch, num_bytes):
    texts = ["λ" * (number * 17 % 40 + 1) for number in range(100)]
    write(tmp_path / "a.jsonl", jsonl(texts))
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=9)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": texts}))
    for path in (str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet"), "hub"):
        (source,) = find_sources(CorpusConfig(path=path))
        found, count = in_parts(source, num_bytes)
        assert found == [[text] for text in texts]
        assert count == min(
            {"jsonl": source.size, "parquet": 12, "hub": 100}[path.split(".")[-1]], -(-source.size // num_bytes)
        )


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_one_part(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](b"one\n\ntwo\n\n" * 1000))
    (source,) = find_sources(CorpusConfig(path=path))
    assert in_parts(source, 10) == ([["one"], ["two"]] * 1000, 1)


def test_small_files_are_gathered(tmp_path):
    for number, size in enumerate([10, 20, 30, 50, 250, 5, 90]):
        write(tmp_path / f"{number}.txt", "x" * size)
    lots = cut(find_sources(CorpusConfig(path=str(tmp_path))), 100)
    assert [[round(part.size) for part in lot] for lot in lots] == [[10, 20, 30], [50], [83], [83], [84, 5], [90]]


def test_faults_in_a_part_are_told_where_they_stand(tmp_path):
    lines = [b'{"text": "fine"}'] * 100
    for fault, message in [
        (b"{", "line 61 is not JSON"),
        (b"[]", "line 61 is not a JSON"),
        (b"\xff", "line 61 is not UTF-8"),
    ]:
        path = write(tmp_path / "a.jsonl", b"\n".join([*lines[:60], fault, *lines[61:]]))
        (source,) = find_sources(CorpusConfig(path=path))
        with pytest.raises(InputError, match=message):
            in_parts(source, 100)
    parquet.write_table(pyarrow.table({"text": ["x"] * 60 + [None] * 40}), tmp_path / "a.parquet", row_group_size=7)
    (source,) = find_sources(CorpusConfig(path=str(tmp_path / "a.parquet")))
    with pytest.raises(InputError, match=r"a\.parquet row 61: 'text' is NoneType"):
        in_parts(source, source.size // 10)


def test_an_endless_document_is_read_by_one_part_alone(tmp_path):
    path = write(tmp_path / "a.txt", "line\n" * 100)
    (source,) = find_sources(CorpusConfig(path=path))
    pieces = [len(list(part)) for lot in cut([source], 50) for part in lot]
    assert pieces == [100] + [0] * 9
