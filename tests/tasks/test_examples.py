"""Reading labelled data: every format says the same, and what is wrong is named with its place."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig, TaskConfig
from unbraid.tasks.examples import Example, read_examples
from unbraid.tasks.kinds import read_splits

PAIRS = DataConfig(text="premise", pair="hypothesis", label="gold")
TABLE = [
    {"premise": 'She said "no", twice.', "hypothesis": "", "gold": "1"},
    {"premise": "naïve 😀 \u2028 x", "hypothesis": "b", "gold": "0"},
]
EXAMPLES = [Example('She said "no", twice.', "", "1"), Example("naïve 😀 \u2028 x", "b", "0")]


def write(path, content):
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def csv_text(end="\n"):
    return end.join(["premise,hypothesis,gold", '"She said ""no"", twice.","",1', "", "naïve 😀 \u2028 x,b,0"]) + end


def tsv_text(end="\n"):
    return end.join(["premise\thypothesis\tgold", 'She said "no", twice.\t\t1', "naïve 😀 \u2028 x\tb\t0"]) + end


def json_text():
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE)


@pytest.mark.parametrize("byte_order_mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv_text()),
        ("a.CSV", csv_text("\r\n")),
        ("a.csv.gz", csv_text()),
        ("a.tsv", tsv_text()),
        ("a.tsv", tsv_text("\r\n")),
        ("a.tsv.gz", tsv_text()),
        ("a.jsonl", json_text()),
        ("a.json", json_text()),
        ("a.jsonl.gz", json_text()),
    ],
)
def test_text_formats(tmp_path, name, content, byte_order_mark):
    source = write(tmp_path / name, byte_order_mark + content)
    assert read_examples(source, PAIRS, kind="classification") == EXAMPLES


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), tmp_path / "a.parquet")
    assert read_examples(str(tmp_path / "a.parquet"), PAIRS, kind="classification") == EXAMPLES


def test_a_data_set_by_name_and_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", json_text())
    write(folder / "test.jsonl", json.dumps(TABLE[0]))
    data = DataConfig(dataset=str(folder), text="premise", pair="hypothesis", label="gold")
    assert read_examples("train", data, kind="classification") == EXAMPLES
    assert read_examples("test", data, kind="classification") == EXAMPLES[:1]
    with pytest.raises(InputError, match=r"split 'dev' of the data set .*set cannot be loaded: .*dev"):
        read_examples("dev", data)
    with pytest.raises(InputError, match="test, row 1: there is no column 'text', only premise, hypothesis, gold"):
        read_examples("test", DataConfig(dataset=str(folder)))


def test_classes_of_a_data_set_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["poor", "good"])})
    (tmp_path / "set").mkdir()
    for split, labels in (("train", [1, 0]), ("test", [-1, None])):
        table = Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
        table.to_parquet(tmp_path / f"set/{split}.parquet")
    data = DataConfig(dataset=str(tmp_path / "set"))
    examples = read_examples("train", data, kind="classification")
    assert examples == [Example("a", None, "good"), Example("b", None, "poor")]
    assert read_examples("test", data) == [Example("a"), Example("b")]
    with pytest.raises(InputError, match="test, row 1: column 'label' is missing its value"):
        read_examples("test", data, kind="classification")


def test_quoted_line_breaks_stay_in_the_text(tmp_path):
    source = write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\nb\n')
    with pytest.raises(InputError, match="line 4: there are 1 cells but 2 columns"):
        read_examples(source, DataConfig())
    source = write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\n')
    assert read_examples(source, DataConfig()) == [Example("two\nlines")]


def test_a_long_document_is_one_cell(tmp_path):
    text = "long " * 100_000
    source = write(tmp_path / "a.csv", f"text,label\n{text},x\n")
    assert read_examples(source, DataConfig()) == [Example(text)]


def test_labels_are_not_read_where_nobody_asks(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": ""}\n')
    assert read_examples(source, DataConfig()) == [Example("a"), Example("")]


@pytest.mark.parametrize(
    ("value", "name"), [("1", "1"), (1, "1"), (1.0, "1"), (-3, "-3"), (True, "true"), (False, "false"), ("é", "é")]
)
def test_names_of_classes(tmp_path, value, name):
    source = write(tmp_path / "a.jsonl", json.dumps({"text": "a", "label": value}))
    assert read_examples(source, DataConfig(), kind="classification") == [Example("a", None, name)]


@pytest.mark.parametrize(("value", "score"), [("2.5", 2.5), (3, 3.0), (-1e-3, -1e-3), (" 4 ", 4.0)])
def test_scores(tmp_path, value, score):
    source = write(tmp_path / "a.jsonl", json.dumps({"text": "a", "label": value}))
    assert read_examples(source, DataConfig(), kind="regression") == [Example("a", None, score)]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.csv", "", None, "a.csv has no examples"),
        ("a.csv", "text,label\n", None, "a.csv has no examples"),
        ("a.tsv", "\n\n", None, "a.tsv has no examples"),
        ("a.jsonl", "\n\n", None, "a.jsonl has no examples"),
        ("a.txt", "a", None, r"a.txt is none of the known kinds of file: .csv, .tsv, .jsonl, .json, .parquet"),
        ("a.csv", b"text,label\na,x\nb\xff,y\n", None, "a.csv, line 3: byte 2 is not UTF-8"),
        ("a.tsv.gz", b"text\tlabel\n\xe9\tx\n", None, "a.tsv.gz, line 2: byte 1 is not UTF-8"),
        ("a.csv", "sentence,label\na,x\n", None, "a.csv, line 2: there is no column 'text', only sentence, label"),
        ("a.jsonl", '{"text": "a", "l": 1}\n', "classification", "line 1: there is no column 'label', only text, l"),
        ("a.csv", "text,label\na,x,y\n", None, "line 2: there are 3 cells but 2 columns"),
        ("a.tsv", "text\tlabel\na\tx\nb\n", None, "line 3: there are 1 cells but 2 columns"),
        ("a.csv", 'text,label\n"a"b,x\n', None, "line 2: this is not CSV"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', None, "line 3: this is not CSV"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', None, "line 2: this is not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text"', None, "line 2: this is not a JSON object"),
        ("a.jsonl", "[" * 100_000, None, "line 1: this is not a JSON object"),
        ("a.jsonl", '{"text": null}\n', None, "line 1: column 'text' is missing its value"),
        ("a.jsonl", r'{"text": "a\ud83d b"}', None, "line 1: column 'text' holds half of a surrogate pair"),
        ("a.jsonl", '{"text": 5}\n', None, "line 1: column 'text' holds 5, which is not a text"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "classification", "column 'label' is missing its value"),
        ("a.csv", "text,label\na,\n", "classification", "line 2: column 'label' holds '', which names no class"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "classification", "label' holds 0.5, which names no class"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "classification", "which names no class"),
        (
            "a.csv",
            "text,label\na,1\nb,n/a\n",
            "regression",
            "line 3: column 'label' holds 'n/a', which is not a finite",
        ),
        ("a.csv", "text,label\na,nan\n", "regression", "which is not a finite number"),
        ("a.jsonl", '{"text": "a", "label": 1e999}\n', "regression", "which is not a finite number"),
        ("a.jsonl", '{"text": "a", "label": true}\n', "regression", "which is not a finite number"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "regression", "which is not a finite number"),
        ("a.parquet", "text,label\n", None, "a.parquet cannot be read"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, name, content, kind, message):
    with pytest.raises(InputError, match=message) as caught:
        read_examples(write(tmp_path / name, content), DataConfig(), kind=kind)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"gone.csv cannot be read: .*No such file"):
        read_examples(str(tmp_path / "gone.csv"), DataConfig())
    with pytest.raises(InputError, match=r"gone.parquet cannot be read"):
        read_examples(str(tmp_path / "gone.parquet"), DataConfig())
    (tmp_path / "plain.csv.gz").write_text("text,label\na,x\n")
    with pytest.raises(InputError, match=r"plain.csv.gz cannot be read: .*gzip"):
        read_examples(str(tmp_path / "plain.csv.gz"), DataConfig())
    whole = gzip.compress(b"text,label\n" + b"a,x\n" * 1000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.csv.gz cannot be read"):
        read_examples(str(tmp_path / "cut.csv.gz"), DataConfig())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder.csv cannot be read"):
        read_examples(str(tmp_path / "folder.csv"), DataConfig())


def splits_of(folder, train, dev, **fields):
    files = {
        name: write(
            folder / f"{name}.csv", "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
        )
        for name, labels in (("train", train), ("dev", dev))
    }
    return read_splits(TaskConfig(**files, test=files["dev"], **fields))


@pytest.mark.parametrize(
    ("train", "labels"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1", "10"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
    ],
)
def test_classes_are_those_of_the_training_data(tmp_path, train, labels):
    splits = splits_of(tmp_path, train, train[:1])
    assert splits.task.labels == labels
    assert [example.label for example in splits.train] == train
    assert splits.dev == splits.tests["test"] == [Example("t0", None, train[0])]


def test_classes_may_be_named_in_their_order(tmp_path):
    assert splits_of(tmp_path, ["b", "a"], ["c"], labels=("c", "b", "a")).task.labels == ("c", "b", "a")


def test_a_label_never_seen_in_training_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"dev.csv, line 3: the label 'meh' is unknown; the classes .* are good, poor\."
    ):
        splits_of(tmp_path, ["good", "poor"], ["good", "meh"])
    with pytest.raises(InputError, match=r"train.csv, line 2: the label 'good' is unknown"):
        splits_of(tmp_path, ["good", "poor"], ["poor"], labels=("poor", "fair"))
    with pytest.raises(InputError, match=r"are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\."):
        splits_of(tmp_path, [str(i) for i in range(100)], ["100"])


def test_one_class_is_not_a_task(tmp_path):
    with pytest.raises(InputError, match=r"train.csv has only the label good; it takes two"):
        splits_of(tmp_path, ["good", "good"], ["good"])


def test_regression_has_no_classes(tmp_path):
    splits = splits_of(tmp_path, ["1", "2.5"], ["0"], kind="regression")
    assert splits.task.labels is None
    assert [example.label for example in splits.train] == [1.0, 2.5]
