"""The original files of the papers' tasks: what is read from them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig
from unbraid.tasks.examples import Example, read_examples
from unbraid.tasks.formats import READERS, read_format
from unbraid.tasks.formats.conll import beginning
from unbraid.tasks.sources import read_rows

FIXTURES = Path(__file__).parent / "fixtures"


def cells(source: str, form) -> list[dict]:
    return [row.cells for row in read_format(str(FIXTURES / source), form)]


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("source", "form", "number", "first"),
    [
        ("cola/train.tsv", "cola", 5, {"text": "The baker sold every loaf before noon.", "label": "1"}),
        ("cola/test.tsv", "cola", 2, {"text": "The lamp went out.", "id": "0"}),
        ("sst-2/dev.tsv", "sst-2", 3, {"text": "a quiet little wonder ", "label": "1"}),
        ("sst-2/test.tsv", "sst-2", 2, {"text": "a warm wonder", "id": "0"}),
        ("mrpc/dev.tsv", "mrpc", 3, {"text": "Rain fell all night .", "pair": "All night it rained .", "label": "1"}),
        ("mrpc/test.tsv", "mrpc", 2, {"text": "The boat sank .", "pair": "A boat sank .", "id": "0"}),
        (
            "sts-b/dev.tsv", "sts-b", 3,
            {"text": "A cat sleeps.", "pair": "A cat is asleep.", "label": "5.000", "id": "0"},
        ),
        ("qqp/dev.tsv", "qqp", 3, {"text": "What is rye?", "pair": "What does rye mean?", "label": "1", "id": "10"}),
        ("qqp/test.tsv", "qqp", 2, {"text": "What is oat?", "pair": "What are oats?", "id": "0"}),
        (
            "mnli/dev_matched.tsv", "mnli", 4,
            {
                "text": "The ferry leaves at nine.", "pair": "The ferry leaves in the morning or evening.",
                "label": "entailment", "id": "0",
            },
        ),
        (
            "qnli/train.tsv", "qnli", 4,
            {"text": "The mill belongs to Ada.", "pair": "Who owns the mill?", "label": "entailment", "id": "0"},
        ),
        (
            "ax/diagnostic.tsv", "rte", 3,
            {"text": "The ferry leaves at nine.", "pair": "The ferry is full.", "id": "0"},
        ),
        (
            "boolq/val.jsonl", "boolq", 3,
            {"text": "Rye -- Rye is a grain.", "pair": "is rye a grain", "label": True, "id": 0},
        ),
        (
            "copa/val.jsonl", "copa", 2,
            {
                "context": "The bread burned.", "question": "What was the cause of this?",
                "choices": ["The oven was too hot.", "The oven was cold."], "label": 0, "id": 0,
            },
        ),
        (
            "multirc/val.jsonl", "multirc", 7,
            {
                "text": "Ann bought rye and oats. Bea bought rye.", "pair": "Who bought rye? Ann", "group": "0-0",
                "id": (0, 0, 0), "label": 1,
            },
        ),
        (
            "wic/train.jsonl", "wic", 4,
            {
                "text": "We sat on the bank of the river.", "pair": "The bank lent us money.", "label": False, "id": 0,
                "span1": [14, 18], "span2": [4, 8],
            },
        ),
        (
            "ax-b/AX-b.jsonl", "ax-b", 2,
            {
                "text": "Ada owns the mill by the river.", "pair": "The mill has an owner.", "label": "entailment",
                "id": 0,
            },
        ),
        (
            "race/dev/*/*.txt", "race", 4,
            {
                "context": "Ann keeps bees. She sells honey in Oslo.", "question": "Ann keeps _ .",
                "choices": ["bees", "goats", "cows", "hens"], "id": "high12.txt-0", "label": 0,
            },
        ),
        (
            "swag/train.csv", "swag", 2,
            {
                "context": "A man opens a door.", "question": "He", "label": "0", "id": "0",
                "choices": ["walks in.", "eats the door.", 'is a "boat", green.', "flies."],
            },
        ),
        (
            "anli/R*/dev.jsonl", "anli", 9,
            {"text": "A baker sleeps.", "pair": "Someone sleeps.", "label": "entailment", "id": "dev-r1-3"},
        ),
        (
            "xnli/XNLI-1.0/xnli.dev.tsv#de", "xnli", 2,
            {
                "language": "de", "text": "Die Fähre fuhr ab.", "pair": "Sie fuhr ab.", "label": "entailment",
                "id": "de-1",
            },
        ),
        (
            "squad1.1/dev-v1.1.json", "squad", 2,
            {
                "question": "Who owns the mill?", "answers": [{"text": "Ada", "answer_start": 0}], "id": "5a01",
                "context": "Ada owns the mill. It was built in 1871 by her uncle Cid.",
            },
        ),
    ],
)  # fmt: skip
def test_the_columns_have_our_names(source, form, number, first):
    rows = cells(source, form)
    assert rows[0] == first
    assert len(rows) == number


def test_every_format_has_a_file_here():
    assert {*READERS} == {
        *("cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "boolq", "cb", "copa", "multirc", "record"),
        *("wic", "wsc", "ax-b", "squad", "race", "swag", "conll2003", "anli", "xnli"),
    }


def test_test_files_have_no_labels():
    for source, form in (
        *(("boolq/test.jsonl", "boolq"), ("multirc/test.jsonl", "multirc"), ("wsc/test.jsonl", "wsc")),
        *(("copa/test.jsonl", "copa"), ("swag/test.csv", "swag"), ("mnli/test_matched.tsv", "mnli")),
    ):
        assert not any("label" in row for row in cells(source, form))
    assert not any("answers" in row for row in cells("record/test.jsonl", "record"))


def test_rows_of_qqp_with_missing_cells_are_left_out_and_told(caplog):
    rows = cells("qqp/train.tsv", "qqp")
    assert [row["id"] for row in rows] == ["0", "1", "3", "4"]
    assert "train.tsv: 2 rows have missing or surplus cells and were left out." in caplog.text


def test_quotes_in_tsv_are_characters():
    assert cells("cola/train.tsv", "cola")[2]["text"] == 'Nobody said "stop" to the ferryman.'
    assert cells("mrpc/train.tsv", "mrpc")[2]["text"] == '" We were lucky , " she said .'


def test_truth_values_are_named_as_in_json():
    examples = read_examples(
        str(FIXTURES / "boolq/val.jsonl"), DataConfig(format="boolq", pair="pair"), kind="classification"
    )
    assert [example.label for example in examples] == ["true", "false", "true"]


def test_answers_of_a_question_are_a_group():
    data = DataConfig(format="multirc", pair="pair", group="group")
    examples = read_examples(str(FIXTURES / "multirc/val.jsonl"), data, kind="classification")
    assert [example.group for example in examples] == ["0-0"] * 3 + ["0-1"] * 2 + ["1-2"] * 2
    assert examples[3] == Example("Ann bought rye and oats. Bea bought rye.", "What did Ann buy? Oats", "1", "0-1")


def test_entities_of_record_end_one_past_their_last_character():
    first, second = cells("record/val.jsonl", "record")
    names = [first["context"][start:end] for start, end in first["entities"]]
    assert names == ["Ada Byron", "Cid", "Cid", "Oslo", "Oslo"]
    assert first["entities"] == second["entities"]
    assert (first["answers"], second["answers"]) == (["Cid"], ["Oslo"])


def test_entities_of_record_without_a_character_are_passed_over(tmp_path):
    passage = {"text": "Ann met Bob.", "entities": [{"start": 4, "end": 3}, {"start": 8, "end": 10}]}
    source = write(tmp_path / "a.jsonl", json.dumps({"passage": passage, "qas": [{"query": "q", "idx": 0}]}))
    assert [row.cells["entities"] for row in read_format(source, "record")] == [[[8, 11]]]


def test_phrases_of_wsc_are_placed_by_their_words():
    rows = cells("wsc/train.jsonl", "wsc")
    found = [[row["text"][slice(*row[span])] for span in ("span1", "span2")] for row in rows]
    assert found == [["The jug", "it"], ["the shelf", "it"], ["Bea", "she"], ["Ann", "she"]]
    assert rows[0]["span2"] == [38, 40], "not the it of 'fit'"


def wsc(text: str, phrase: str, word: object) -> str:
    target = {"span1_text": phrase, "span1_index": word, "span2_text": "she", "span2_index": 0}
    return json.dumps({"text": text, "target": target, "idx": 0, "label": True})


@pytest.mark.parametrize(
    ("phrase", "word", "span"),
    [
        ("Ann", 0, (0, 3)),
        ("ann", 5, (20, 23)),  # another case, the second of three
        ("Ann", 4, (20, 23)),  # a word off
        ("Ann's", 9, (36, 41)),
    ],
)
def test_the_nearest_place_of_a_phrase_counts(tmp_path, phrase, word, span):
    text = "Ann  said that she, Ann, is she and Ann's"
    (row,) = read_format(write(tmp_path / "a.jsonl", wsc(text, phrase, word)), "wsc")
    assert tuple(row.cells["span1"]) == span


@pytest.mark.parametrize(
    ("phrase", "found"),
    [
        ("the old man", "The old\n man"),  # a line break
        (" the  old man ", "The old\n man"),
        ("the old man.", "The old\n man"),  # a full stop that the text does not have there
        ('Mr. Lee,"', "Mr. Lee"),
        ("the vase.", "the vase."),  # one that it has
        ("old m.", None),
        ('."', None),
        (" ", None),
    ],
)
def test_white_space_and_a_last_mark_do_not_hide_a_phrase(tmp_path, phrase, found):
    text = "The old\n man gave Mr. Lee the vase, for she loved the vase."
    source = write(tmp_path / "a.jsonl", wsc(text, phrase, 0))
    if found is None:
        with pytest.raises(InputError, match="does not stand in the text"):
            list(read_format(source, "wsc"))
    else:
        (row,) = read_format(source, "wsc")
        assert text[slice(*row.cells["span1"])] == found


def test_conll_reads_documents_in_bio():
    rows = cells("conll2003/eng.testb", "conll2003")
    assert [row["sentences"] for row in rows] == [[6, 6], [6]]
    assert rows[0]["words"][:7] == ["Mill", "Ltd", "sold", "Dutch", "bread", ".", "Ann"]
    mill = ["B-ORG", "I-ORG", "O", "B-MISC", "O", "O"]
    ann = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O"]
    assert [row["label"] for row in rows] == [mill + ann, ann]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("A B-X\n\nB O\n", [["A"], ["B"]]),  # without documents each sentence is a row
        ("-DOCSTART- -X- -X- O\n\nA B-X\n\nB O\n\n\n-DOCSTART- -X- -X- O\nC O", [["A", "B"], ["C"]]),
        ("A O\r\nB I-X\r\n\r\n-DOCSTART- O\r\n\r\nC O\r\n", [["A", "B"], ["C"]]),
        ("-DOCSTART- O\n\n-DOCSTART- O\n\nC O\n", [["C"]]),
    ],
)
def test_where_documents_and_sentences_end(tmp_path, content, words):
    assert [row.cells["words"] for row in read_format(write(tmp_path / "a.txt", content), "conll2003")] == words


def test_entities_of_iob1_and_bio_begin_alike():
    iob1 = ["I-PER", "O", "I-PER", "I-PER", "B-PER", "I-LOC", "I-LOC"]
    bio = ["B-PER", "O", "B-PER", "I-PER", "B-PER", "B-LOC", "I-LOC"]
    assert beginning(iob1) == beginning(bio) == bio


def test_xnli_has_all_its_languages_or_one():
    assert len(cells("xnli/XNLI-1.0/xnli.test.tsv", "xnli")) == 30
    rows = cells("xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv#en", "xnli")
    assert [row["label"] for row in rows][:3] == ["entailment", "contradiction", "neutral"]
    with pytest.raises(InputError, match="has no examples"):
        list(read_rows(str(FIXTURES / "xnli/XNLI-1.0/xnli.test.tsv#la"), DataConfig(format="xnli")))


def test_a_number_sign_in_the_name_of_a_folder_is_no_language(tmp_path):
    source = tmp_path / "run #3#b/xnli.test.tsv"
    source.parent.mkdir()
    shutil.copy(FIXTURES / "xnli/XNLI-1.0/xnli.test.tsv", source)
    assert len(list(read_format(str(source), "xnli"))) == 30
    assert [row.cells["language"] for row in read_format(f"{source}#de", "xnli")] == ["de", "de"]


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a [b] ?"
    for number in (1, 2):
        write(folder / f"R{number}/dev.jsonl", json.dumps({"uid": "1", "context": "a", "hypothesis": "b"}))
    assert len(list(read_format(str(folder / "R*/dev.jsonl"), "anli"))) == 2


PASSAGE = '{"idx": 0, "passage": {"text": "a", "questions": [{"question": "b", "idx": 0, "answers": [{"idx": 0}]}]}}'


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("cola", "a\t1\t\tb\na\t1\n", "line 2: there are 2 cells, but CoLA has source, label, mark and sentence"),
        ("cola", "sentence\tlabel\na\t1\n", "line 1: there are 2 cells, but CoLA"),
        ("cola", "index\tsentence\n0\n", "line 2: there are 1 cells but 2 columns"),
        ("sst-2", "sentence\tlabel\na\t1\tb\n", "line 2: there are 3 cells but 2 columns"),
        ("qqp", "id\tquestion1\tquestion2\n0\ta\tb\n1\ta\tb\tc\n", "line 3: there are 4 cells but 3 columns"),
        ("mnli", "index\tsentence1\n0\ta\n", "line 2: there is no column 'sentence2', only index, sentence1; see"),
        ("rte", "sentence1\tsentence2\tlabel\n\n", "has no examples"),
        ("boolq", '{"passage": "a"}', "line 1: there is no column 'question', only passage; see to it"),
        ("cb", "premise\thypothesis", "line 1: this is not a JSON object"),
        ("copa", '{"premise": "a", "question": "why", "choice1": "a", "choice2": "b"}', "asks for cause or effect"),
        ("copa", '{"premise": "a", "question": "cause", "choice1": "a"}', "there is no column 'choice2'"),
        ("multirc", '{"idx": 0, "passage": {"text": "a"}}', "is not as the files of MultiRC are .no 'questions'"),
        ("multirc", PASSAGE, "line 1 is not as the files of MultiRC are .no 'text'"),
        ("multirc", '{"idx": 0, "passage": "a"}', "line 1 is not as the files of MultiRC are"),
        ("record", '{"passage": {"text": "a", "entities": [{"start": 0}]}, "qas": []}', "of ReCoRD are .no 'end'"),
        ("record", '{"passage": {"text": "a", "entities": [{"start": 0, "end": null}]}}', "files of ReCoRD are"),
        ("wic", '{"sentence1": "a", "sentence2": "b", "start1": 0, "end1": 1, "start2": 0}', "of WiC are .no 'end2'"),
        ("wsc", wsc("she said it", "Ann", 0), "line 1: the phrase 'Ann' does not stand in the text"),
        ("wsc", wsc("she said it", "it", "2"), "line 1 is not as the files of WSC are"),
        ("wsc", '{"text": "a"}', "line 1 is not as the files of WSC are .no 'target'"),
        ("squad", '{"question": "a"}', "is no JSON of SQuAD"),
        ("squad", '{"data": [{"paragraphs": [{}]}]}', "is not as SQuAD's files are, after question 0"),
        ("race", "[", "is not JSON; fetch the file again"),
        ("race", '{"article": "a", "questions": ["b"], "options": []}', "is not as the files of RACE are"),
        (
            "race",
            '{"article": "a", "questions": ["b"], "options": [["a", "b", "c", "d"]], "answers": ["E"]}',
            "question 0: the answer is 'E', which is none of the letters A to D",
        ),
        ("swag", ",sent1,sent2,ending0\n0,a,b,c\n", "line 2: there is no column 'ending1'"),
        ("conll2003", "Ann I-PER\nByron\n", "line 2: 'Byron' is no word with its label"),
        ("conll2003", "Ann PER\n", "line 1: 'Ann PER' is no word with its label"),
        ("anli", '{"uid": 1, "context": "a", "hypothesis": "b", "label": "x"}', "label is 'x'; ANLI has e, n and c"),
        ("anli", '{"uid": 1, "premise": "a", "hypothesis": "b"}', "there is no column 'context'"),
        ("xnli", "premise\thypo\na\n", "line 2: there are 1 cells but 2 columns"),
        ("xnli", "sentence1\tsentence2\na\tb\n", "there is no column 'language'"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_place(tmp_path, form, content, message):
    with pytest.raises(InputError, match=message) as caught:
        list(read_rows(write(tmp_path / "a.txt", content), DataConfig(format=form)))
    assert "a.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_of_another_task_is_named(tmp_path):
    source = write(tmp_path / "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n")
    with pytest.raises(InputError, match=r"dev.tsv, line 2: the label 'neutral' is unknown; the classes .* are ent"):
        read_examples(
            source,
            DataConfig(format="rte", pair="pair"),
            kind="classification",
            labels=("not_entailment", "entailment"),
        )


def test_files_that_are_not_there(tmp_path):
    for source in (tmp_path / "gone.tsv", tmp_path / "R*/dev.jsonl", tmp_path / "gone/*/x.jsonl", tmp_path):
        with pytest.raises(
            InputError, match=r"there is no file .*; give the folder that the files of anli were unpacked"
        ):
            list(read_format(str(source), "anli"))
