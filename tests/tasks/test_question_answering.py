"""Question answering: SQuAD's files, spans to tokens, the loss, the official scores, the threshold."""

import gzip
import json
import logging

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.answers import question_windows
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForQuestionAnswering
from unbraid.tasks.config import DataConfig
from unbraid.tasks.question_answering import QuestionAnswering, QuestionObjective, QuestionRows, answer_rows
from unbraid.tasks.squad import Question, read_questions
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in York, where?", "Bob of Oslo met Ann.", "who met Ann in Oslo?"] * 9
CONTEXT = "Ann met Bob in York. Bob is of Oslo."
FLEXIBLE = DataConfig(unanswerable=True)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 30)


def tiny_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2,
    )  # fmt: skip
    model = DebertaForQuestionAnswering(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def nested(indent=None):
    """The form of the original files of SQuAD 2.0."""
    entries = [
        {"id": "a", "question": "who?", "is_impossible": False, "answers": [{"text": "Bob", "answer_start": 8}]},
        {
            "id": "b", "question": "when?", "is_impossible": True, "answers": [],
            "plausible_answers": [{"text": "Ann", "answer_start": 0}],
        },
    ]  # fmt: skip
    paragraphs = [{"context": CONTEXT, "qas": entries}]
    return json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": paragraphs}]}, indent=indent)


WANTED = [Question("who?", CONTEXT, (("Bob", 8),)), Question("when?", CONTEXT, ())]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_the_original_format(tmp_path, name, indent):
    content = nested(indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_questions(str(tmp_path / name), FLEXIBLE) == WANTED
    with pytest.raises(InputError, match=r"dev.json(.gz)?, question b: the question has no answer; .*unanswerable"):
        read_questions(str(tmp_path / name), DataConfig())


@pytest.mark.parametrize(
    "answers",
    [
        ({"text": ["Bob"], "answer_start": [8]}, {"text": [], "answer_start": []}),
        ([{"text": "Bob", "answer_start": 8}], []),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_question_a_row(tmp_path, name, answers):
    rows = [
        {"question": question, "context": CONTEXT, "answers": each}
        for question, each in zip(("who?", "when?"), answers, strict=True)
    ]
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    assert read_questions(str(tmp_path / name), FLEXIBLE) == WANTED


def test_other_columns_in_a_table(tmp_path):
    (tmp_path / "a.tsv").write_text(f'q\tc\ta\nwho?\t{CONTEXT}\t[{{"text": "Bob", "answer_start": 8}}]\n')
    data = DataConfig(question="q", context="c", answers="a")
    assert read_questions(str(tmp_path / "a.tsv"), data) == WANTED[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": {"text": ["Bob"], "answer_start": [7]}}, "answer 'Bob' does not stand at character 7"),
        ({"answers": {"text": ["Bobby"], "answer_start": [8]}}, "answer 'Bobby' does not stand at character 8"),
        ({"answers": {"text": ["Bob"], "answer_start": [400]}}, "does not stand at character 400"),
        ({"answers": {"text": ["Bob"], "answer_start": [-28]}}, "is no answer"),
        ({"answers": {"text": ["Bob"], "answer_start": []}}, "the answers are not as in SQuAD"),
        ({"answers": {"text": ["  "], "answer_start": [8]}}, "is no answer"),
        ({"answers": {"text": ["Bob"], "answer_start": [None]}}, "is no answer"),
        ({"answers": ["Bob"]}, "the answers are not as in SQuAD"),
        ({"answers": "Bob"}, "the answers are not as in SQuAD"),
        ({"answers": None}, "column 'answers' is missing its value"),
        ({"answers": []}, "the question has no answer; drop it, or set data.unanswerable"),
        ({"context": 3}, "'context' holds 3, which is not a text"),
        ({"question": "\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, row, message):
    good = {"question": "who?", "context": CONTEXT, "answers": {"text": ["Bob"], "answer_start": [8]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | row))
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        read_questions(str(tmp_path / "a.jsonl"), DataConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": []}', "a.json has no examples"),
        ('{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "is not as SQuAD's files are, after question 1"),
        ('{"data": [3]}', "is not as SQuAD's files are, after question 0"),
        ("[1]", "line 1: this is not a JSON object"),
        ("{", "line 1: this is not a JSON object"),
    ],
)
def test_what_is_no_squad_file(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_questions(str(tmp_path / "a.json"), DataConfig())


def at(context, text, occurrence=0):
    start = -1
    for _ in range(occurrence + 1):
        start = context.index(text, start + 1)
    return text, start


@pytest.mark.parametrize("max_length", [9, 14, 100])
@pytest.mark.parametrize(
    ("context", "text", "occurrence", "spoken"),
    [
        (CONTEXT, "Bob", 0, "Bob"),
        (CONTEXT, "Bob", 1, "Bob"),
        (CONTEXT, "York. ", 0, "York."),
        ("ｆｕｌｌ ﬁ York in Oslo e\u0301 Ann.", "York", 0, "York"),
        ("ｆｕｌｌ ﬁ York in Oslo e\u0301 Ann.", "Ann", 0, "Ann"),
    ],
)
def test_an_answer_is_found_again_from_its_rows(tokenizer, max_length, context, text, occurrence, spoken):
    question = Question("who?", context, (at(context, text, occurrence), ("never trained on", 0)))
    (windows,) = question_windows(tokenizer, [question.question], [context], max_length, overlap=3)
    start, hits = question.answers[0][1], 0
    for window, (first, last) in zip(windows, answer_rows(windows, question), strict=True):
        shown = [offset for offset in window.offsets if offset[0] < offset[1]]
        whole = shown[0][0] <= start and start + len(spoken) <= shown[-1][1]
        assert (first > 0) == (last > 0) == whole
        if whole:
            hits += 1
            begin, end = window.offsets[first - window.first][0], window.offsets[last - window.first][1]
            assert (begin, context[begin:end]) == (start, spoken)
    assert hits or max_length == 9
    assert max_length < 100 or hits == 1


def test_a_question_without_an_answer_points_at_cls(tokenizer):
    (windows,) = question_windows(tokenizer, ["who?"], [CONTEXT], 100, 3)
    assert answer_rows(windows, WANTED[1]) == [(0, 0)]


@pytest.mark.parametrize("max_length", [9, 100])
@pytest.mark.parametrize("hidden", ["\u200b", "\ufeff"])
@pytest.mark.parametrize(
    ("text", "spoken"), [("{}Ann", "Ann"), ("Ann", "Ann"), ("Oslo. {}", "Oslo."), ("Oslo.", "Oslo."), (" {}", None)]
)
def test_characters_without_a_token_are_no_part_of_an_answer(tokenizer, hidden, text, spoken, max_length):
    context, text = f"{hidden}Ann met Bob in York of Oslo. {hidden}", text.format(hidden)
    question = Question("who?", context, (at(context, text),))
    (windows,) = question_windows(tokenizer, ["who?"], [context], max_length, overlap=3)
    found = {
        context[window.offsets[first - window.first][0] : window.offsets[last - window.first][1]]
        for window, (first, last) in zip(windows, answer_rows(windows, question), strict=True)
        if first
    }
    assert found == ({spoken} if spoken else set())


def questions():
    return [
        Question("who?", CONTEXT, (("Bob", 8),)),
        Question("where?", CONTEXT, (("York", 15), ("in York", 12))),
        Question("when?", CONTEXT, ()),
        Question("who met Ann in Oslo of York? " * 3, "Ann.", (("Ann", 0),)),
    ]


def test_the_loss_is_the_sum_over_the_windows(tokenizer, caplog):
    task = QuestionAnswering(data=FLEXIBLE, max_length=20, overlap=4)
    with caplog.at_level(logging.WARNING):
        data = task.encode(questions(), tokenizer)
    assert data.num_truncated == 1
    assert caplog.messages == ["1 of 4 questions fill more than half a window and were cut."]
    assert len(data) > 6
    assert data.lengths.max() <= 20
    model = tiny_model(tokenizer).eval()
    rows = np.arange(len(data))[::-1].copy()
    loss = QuestionObjective(model)(data.batch(rows))
    expected, right = 0.0, 0
    for window, (first, last) in data.rows:
        said = model(torch.tensor([window.ids]), token_type_ids=torch.tensor([window.segments]))
        start, end = said.start_logits[0].detach().double(), said.end_logits[0].detach().double()
        expected -= float(start.log_softmax(-1)[first] + end.log_softmax(-1)[last]) / 2
        right += int(start.argmax()) == first and int(end.argmax()) == last
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count == len(data)
    assert loss.parts["correct"].item() == right
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_divergence_is_the_mean_of_both_ends(tokenizer):
    data = QuestionAnswering(data=FLEXIBLE, max_length=20, overlap=4).encode(questions(), tokenizer)
    batch = data.batch(np.arange(len(data)))
    objective = QuestionObjective(tiny_model(tokenizer).eval())
    clean = objective.outputs(batch)
    torch.manual_seed(1)
    perturbed = objective.outputs(batch, torch.randn(len(batch.input_ids), 16))
    found = objective.divergence(clean, perturbed, batch)
    expected = 0.0
    for row, length in enumerate(batch.packing.offsets.diff().tolist()):
        for one, other in zip(clean, perturbed, strict=True):
            p, q = one[row, :length].softmax(-1), other[row, :length].softmax(-1)
            expected -= float((p * q.log() + q * p.log()).detach().sum()) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert all(weight.grad.isfinite().all() for weight in objective.parameters() if weight.grad is not None)


def logits_for(data: QuestionRows, wanted):
    """Logits that make each question's best span the wanted text, with a wanted margin of "no answer"."""
    answers = []
    for question, windows, (text, margin) in zip(data.questions, data.windows, wanted, strict=True):
        asked = Question("", question.context, (at(question.context, text),))
        for window, (first, last) in zip(windows, answer_rows(windows, asked), strict=True):
            start, end = np.zeros(len(window.ids)), np.zeros(len(window.ids))
            start[first], end[last] = 5.0, 5.0
            start[0], end[0] = 5 + margin / 2, 5 + margin / 2
            answers.append(np.stack([start, end]))
    return answers


def test_the_official_scores(tokenizer):
    task = QuestionAnswering()
    data = task.encode([questions()[0], questions()[1]], tokenizer)
    scores = task.score(data, logits_for(data, [("Bob", 0.0), ("in York. Bob", 0.0)]))
    # "in york bob" against "in york": precision 2/3, recall 1
    assert scores == pytest.approx({"exact": 0.5, "f1": (1 + 0.8) / 2})


def test_the_threshold_is_chosen_by_f1():
    tokenizer = train_tokenizer(LINES, "unigram", 30)
    asked = [
        Question("who?", CONTEXT, (("Bob", 8),)),
        Question("where?", CONTEXT, (("York", 15),)),
        Question("when?", CONTEXT, ()),
        Question("why?", CONTEXT, ()),
    ]
    task = QuestionAnswering(data=FLEXIBLE)
    data = task.encode(asked, tokenizer)
    answers = logits_for(data, [("Bob", -3.0), ("York", 1.0), ("Oslo", 2.0), ("Ann", -5.0)])
    before = task.score(data, answers)  # threshold 0: Bob and Ann are answered
    assert before["exact"] == 0.5
    tuned = task.tuned(data, answers)
    assert tuned.threshold == pytest.approx(1.5)
    scores = tuned.score(data, answers)
    assert scores == pytest.approx(
        {
            "exact": 0.75, "f1": 0.75, "has_answer_exact": 1.0, "has_answer_f1": 1.0, "no_answer_exact": 0.5,
            "no_answer_f1": 0.5, "no_answer_threshold": 1.5,
        }
    )  # fmt: skip
    plain = QuestionAnswering()
    assert plain.tuned(data, answers) is plain


def test_settings_go_with_the_model(tmp_path):
    QuestionAnswering(data=FLEXIBLE, threshold=2.5).save_settings(tmp_path)
    assert QuestionAnswering.settings_of(str(tmp_path)) == {"threshold": 2.5}
    (tmp_path / "plain").mkdir()
    QuestionAnswering(threshold=2.5).save_settings(tmp_path / "plain")
    assert QuestionAnswering.settings_of(str(tmp_path / "plain")) == {}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_scores_what_prediction_says(tokenizer, batch_size):
    from unbraid.inference.answers import QuestionAnswerer
    from unbraid.metrics import squad_scores

    asked, model = questions(), tiny_model(tokenizer)
    task = QuestionAnswering(data=FLEXIBLE, max_length=20, overlap=4, batch_size=batch_size, threshold=-1.0)
    scores = task.evaluate(model, task.encode(asked, tokenizer))
    answerer = QuestionAnswerer(model, tokenizer, max_length=20, overlap=4, threshold=-1.0)
    answers = answerer.predict([each.question for each in asked], [each.context for each in asked])
    expected = [
        squad_scores(answer["answer"], [text for text, _ in question.answers], True)[1]
        for answer, question in zip(answers, asked, strict=True)
    ]
    assert scores["f1"] == pytest.approx(np.mean(expected))
