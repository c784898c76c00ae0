"""Extractive question answering on plain text: windows, spans, offsets, no answer."""

import itertools
import json

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.answers import (
    QuestionAnswerer,
    QuestionWindow,
    best_span,
    question_windows,
    read_threshold,
    write_threshold,
)
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForQuestionAnswering
from unbraid.text.tokenizer import train_tokenizer

LINES = [f"{who} of {where} met {who} in {where}, where?" for who in ("Ann", "Bob") for where in ("Oslo", "York")] * 9
CONTEXT = " ".join(np.random.default_rng(0).choice(["Ann", "of", "Oslo,", "met", " Bob", "in", "York", "Zoë."], 64))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(LINES, request.param, 28 if request.param == "unigram" else 275)


def tiny(vocab_size, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2, **fields,
    )  # fmt: skip
    model = DebertaForQuestionAnswering(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("max_length", [5, 6, 20, 400])
@pytest.mark.parametrize("question", ["where?", "", "who met Bob in Oslo of York " * 5])
def test_windows_show_the_whole_context(tokenizer, max_length, question):
    (windows,) = question_windows(tokenizer, [question], [CONTEXT], max_length, overlap=4)
    asked, context = tokenizer.encode(question), tokenizer.encode(CONTEXT)
    seen = set()
    for window in windows:
        kept = window.ids[1 : window.first - 1]
        assert kept == asked.ids[1:-1][: len(kept)]
        assert window.truncated == (len(kept) < len(asked.ids) - 2)
        assert len(kept) == len(asked.ids) - 2 or len(kept) == (max_length - 3) // 2
        assert len(window.ids) == len(window.segments) == window.first + len(window.offsets) + 1 <= max_length
        assert [window.ids[row] for row in (0, window.first - 1, -1)] == [tokenizer.cls_id, *[tokenizer.sep_id] * 2]
        places = list(zip(window.ids[window.first : -1], window.offsets, strict=True))
        seen |= set(places)
    assert seen == set(zip(context.ids[1:-1], context.offsets[1:-1], strict=True))
    if len(windows) == 1:
        pair = tokenizer.encode(question, CONTEXT)
        assert (windows[0].ids, windows[0].segments) == (pair.ids, pair.segments)


def test_no_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="max_length 4 leaves no room"):
        question_windows(tokenizer, ["a"], ["b"], 4, 0)


def slow_best(windows, logits):
    """Every span of every window, one by one."""
    spans = []
    for window, (start, end) in zip(windows, logits, strict=True):
        rows = [row for row, (a, b) in enumerate(window.offsets, window.first) if a < b]
        for first, last in itertools.product(rows, rows):
            if first <= last < first + 30:
                chars = window.offsets[first - window.first][0], window.offsets[last - window.first][1]
                p = float(torch.tensor(start).softmax(-1)[first] * torch.tensor(end).softmax(-1)[last])
                spans.append((float(start[first] + end[last]), *chars, p))
    empty = min(float(start[0] + end[0]) for start, end in logits)
    best = max(spans)
    return (*best[1:], empty - best[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_best_span_of_all_windows(seed):
    generator = np.random.default_rng(seed)
    windows, logits = [], []
    for number in range(3):
        length = int(generator.integers(1, 60))
        edges = [number * 100 + np.arange(length), number * 100 + np.arange(length) + generator.integers(0, 2, length)]
        windows.append(
            QuestionWindow([0] * (length + 4), 3, list(zip(*map(np.ndarray.tolist, edges), strict=True)), False)
        )
        logits.append(generator.normal(size=(2, length + 4)) * 3)
    found = best_span(windows, logits)
    start, end, score, margin = slow_best(windows, logits)
    assert (found.start, found.end) == (start, end)
    assert (found.score, found.margin) == pytest.approx((score, margin), rel=1e-6)


def test_a_context_without_a_character_answers_nothing():
    window = QuestionWindow([1, 5, 2, 2], 3, [], False)
    assert best_span([window], [np.zeros((2, 4))]).start == best_span([window], [np.zeros((2, 4))]).end
    blank = QuestionWindow([1, 5, 2, 7, 2], 3, [(1, 1)], False)
    assert best_span([blank], [np.zeros((2, 5))]).end == 0


QUESTIONS = ["where?", "who met Bob", "", "in York?"]
CONTEXTS = ["Ann of Oslo.", CONTEXT, "Bob  met Zoë in York\u2028", "x \u200b y"]


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 8192])
def test_answers_are_those_of_padded_calls(tokenizer, tokens_per_batch):
    model = tiny(len(tokenizer))
    answerer = QuestionAnswerer(model, tokenizer, max_length=32, overlap=6, tokens_per_batch=tokens_per_batch)
    answers = answerer.predict(QUESTIONS, CONTEXTS)
    cut = question_windows(tokenizer, QUESTIONS, CONTEXTS, 32, 6)
    assert max(map(len, cut)) > 3
    for windows, context, answer, output in zip(
        cut, CONTEXTS, answers, answerer.outputs(QUESTIONS, CONTEXTS), strict=True
    ):
        logits = []
        for window in windows:
            said = model.eval()(torch.tensor([window.ids]), token_type_ids=torch.tensor([window.segments]))
            logits.append(torch.cat([said.start_logits, said.end_logits]).detach().double().numpy())
        start, end, score, margin = slow_best(windows, logits)
        assert (answer["start"], answer["end"]) == (start, end)
        assert answer["answer"] == context[start:end] != ""
        assert answer["score"] == pytest.approx(score, rel=1e-3)
        assert answer["no_answer"] == pytest.approx(margin, rel=1e-3, abs=1e-4)
        assert not answer["truncated"]
        assert output.shape == (2, sum(len(window.ids) for window in windows))
        torch.testing.assert_close(output.sum(-1), torch.ones(2))


def test_no_answer_above_the_threshold(tokenizer):
    model = tiny(len(tokenizer))
    margins = [each["no_answer"] for each in QuestionAnswerer(model, tokenizer).predict(QUESTIONS, CONTEXTS)]
    threshold = sorted(margins)[1]
    answers = QuestionAnswerer(model, tokenizer, threshold=threshold).predict(QUESTIONS, CONTEXTS)
    assert [each["answer"] == "" for each in answers] == [margin > threshold for margin in margins]
    assert ["start" in each for each in answers] == [margin <= threshold for margin in margins]


def test_a_long_question_says_that_it_was_cut(tokenizer):
    answers = QuestionAnswerer(tiny(len(tokenizer)), tokenizer, max_length=20).predict(
        ["who? " * 30, "who"], ["Ann"] * 2
    )
    assert [each["truncated"] for each in answers] == [True, False]


def test_nothing_to_read(tokenizer):
    answerer = QuestionAnswerer(tiny(len(tokenizer)), tokenizer)
    assert answerer.predict([], []) == []
    (answer,) = answerer.predict(["who?"], [" "])
    assert answer["answer"] == ""
    json.dumps(answer, allow_nan=False)


def test_a_folder_keeps_its_threshold(tokenizer, tmp_path):
    model = tiny(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert QuestionAnswerer.from_pretrained(tmp_path).threshold is None
    write_threshold(tmp_path, -1.25)
    read = QuestionAnswerer.from_pretrained(tmp_path)
    assert read.threshold == read_threshold(tmp_path) == -1.25
    assert read.predict(QUESTIONS, CONTEXTS) == QuestionAnswerer(model, tokenizer, threshold=-1.25).predict(
        QUESTIONS, CONTEXTS
    )
    for damaged in ("{", "[]", "{}", '{"threshold": "x"}'):
        (tmp_path / "no_answer.json").write_text(damaged)
        with pytest.raises(InputError, match=r"no_answer.json cannot be read"):
            read_threshold(tmp_path)


@pytest.mark.parametrize(
    ("questions", "contexts", "message"),
    [
        ("who?", ["a"], "a single text came"),
        (["who?"], "a", "a single text came"),
        (["who?"], None, "1 questions but 0 contexts"),
        (["who?"], ["a", "b"], "1 questions but 2 contexts"),
        (["who?"], ["a\ud83d"], "lone surrogate"),
        ([None], ["a"], "Text 0 is of type NoneType"),
    ],
)
def test_what_is_no_question_is_refused(tokenizer, questions, contexts, message):
    with pytest.raises(InputError, match=message):
        QuestionAnswerer(tiny(len(tokenizer)), tokenizer).predict(questions, contexts)
