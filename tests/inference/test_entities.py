"""Entities that fill a placeholder: windows that show every mention, the best mention of all, predictions."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.entities import Cloze, EntityChooser, EntityWindow, choose_entity, entity_windows
from unbraid.model.config import DebertaConfig
from unbraid.model.span_heads import DebertaForEntityChoice
from unbraid.text.tokenizer import train_tokenizer

LINES = [f"{who} of {where} met {who} in {where}, where?" for who in ("Ann", "Bob") for where in ("Oslo", "York")] * 9
SHORT = "Ann met Bob in York. Bob is of Oslo."
CONTEXT = " ".join(np.random.default_rng(0).choice(["Ann", "of", "Oslo,", "met", " Bob", "in", "York", "Zoë ﬁ."], 64))
QUESTION = "who met @placeholder in York?"


def entities(context, pattern="Ann|Bob|Oslo|York"):
    return [match.span() for match in re.finditer(pattern, context)]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(LINES, request.param, 28 if request.param == "unigram" else 275)


def tiny(vocab_size):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2,
    )  # fmt: skip
    model = DebertaForEntityChoice(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def test_a_short_context_is_a_pair_with_the_masked_question(tokenizer):
    ((window,),) = entity_windows(tokenizer, [Cloze(QUESTION, entities(SHORT))], [SHORT], 100, 8)
    pair = tokenizer.encode(SHORT, QUESTION.replace("@placeholder", "[MASK]"))
    assert (window.ids, window.segments, window.truncated) == (pair.ids, pair.segments, False)
    assert window.ids.count(tokenizer.mask_id) == 1
    assert window.mentions == [0, 1, 2, 3, 4]
    said = [tokenizer.decode(window.ids[start:end]).strip() for start, end in window.spans]
    assert said == ["Ann", "Bob", "York", "Bob", "Oslo"]


@pytest.mark.parametrize("overlap", [0, 1, 5, 8])
@pytest.mark.parametrize("max_length", [33, 36, 60])
def test_every_mention_is_read_whole_wherever_it_is_shown_whole(tokenizer, max_length, overlap):
    """Or in parts, by all windows that show some, if there is no such window."""
    found = [*entities(CONTEXT, "Ann|Bob|Oslo|York|ﬁ|ë"), *entities(CONTEXT, r"met\s+Bob")]
    (windows,) = entity_windows(tokenizer, [Cloze(QUESTION, found)], [CONTEXT], max_length, overlap)
    asked = tokenizer.encode(QUESTION.replace("@placeholder", "[MASK]")).ids[1:]
    whole = tokenizer.encode(CONTEXT)
    room = max_length - 2 - len(asked)
    step = room - min(overlap, room // 2)
    tokens = [
        [
            n
            for n, (a, b) in enumerate(whole.offsets[1:-1])
            if max(a, start) < min(b, end) or (a == b and start <= a < end)
        ]
        for start, end in found
    ]
    shown = [range(at, min(at + room, len(whole.ids) - 2)) for at in range(0, len(whole.ids) - 2, step)]
    while len(shown) > 1 and shown[-2].stop == shown[-1].stop:
        shown.pop()
    wanted = []
    for window in shown:
        readable = {}
        for number, each in enumerate(tokens):
            if each[0] in window and each[-1] in window:
                readable[number] = (each[0], each[-1] + 1)
            elif not any(each[0] in other and each[-1] in other for other in shown):
                inside = [token for token in each if token in window]
                if inside:
                    readable[number] = (inside[0], inside[-1] + 1)
        if readable:
            spans = [(a - window.start + 1, b - window.start + 1) for a, b in readable.values()]
            ids = [tokenizer.cls_id, *whole.ids[window.start + 1 : window.stop + 1], tokenizer.sep_id, *asked]
            wanted.append(EntityWindow(ids, len(window) + 2, list(readable), spans, False))
    assert windows == wanted
    assert {mention for window in windows for mention in window.mentions} == set(range(len(found)))
    assert max(len(window.ids) for window in windows) <= max_length
    assert max_length == 60 or len(windows) > 5


def test_windows_without_a_mention_are_not_read(tokenizer):
    far = "of " * 60 + "Ann " + "in " * 60
    (windows,) = entity_windows(tokenizer, [Cloze(QUESTION, entities(far))], [far], 40, 4)
    assert 1 <= len(windows) <= 2
    assert all(window.mentions == [0] for window in windows)


def test_a_mention_longer_than_a_window_is_read_in_parts(tokenizer):
    (windows,) = entity_windows(tokenizer, [Cloze("@placeholder", [(0, len(CONTEXT))])], [CONTEXT], 20, 4)
    assert len(windows) > 5
    for window in windows:
        assert window.spans == [(1, len(window.ids) - len(window.segments) + window.asked - 1)]


@pytest.mark.parametrize("count", range(1, 30))
def test_a_mention_in_parts_is_not_read_where_it_only_touches(count):
    """Windows without overlap that it begins or ends with."""
    tokenizer = train_tokenizer(LINES, "unigram", 28)
    context = " ".join(["met"] * 40)
    size = len(tokenizer.encode(context).ids[1:-1]) // 40  # tokens of a word
    asked = len(tokenizer.encode("[MASK]").ids)
    span = (4 * 4, 4 * (4 + count) - 1)  # from the fifth word on
    (windows,) = entity_windows(tokenizer, [Cloze("@placeholder", [span])], [context], 4 * size + asked + 1, 0)
    words = [(end - start) / size for window in windows for start, end in window.spans]
    assert words == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


def test_a_long_question_keeps_its_placeholder(tokenizer):
    long = "who met Bob in Oslo of York " * 5 + "where @placeholder met Ann " + "who met Bob in Oslo " * 5
    windows = entity_windows(
        tokenizer, [Cloze(long, entities(SHORT)), Cloze(QUESTION, entities(SHORT))], [SHORT] * 2, 31, 4
    )
    for window in windows[0]:
        assert window.truncated
        asked = window.ids[window.asked :]
        assert len(asked) == 14 + 1  # half of what is left of three special tokens, and [SEP]
        assert abs(asked.index(tokenizer.mask_id) - 7) <= 1
    assert not windows[1][0].truncated
    assert {mention for window in windows[0] for mention in window.mentions} == set(range(5))


def test_every_placeholder_is_masked(tokenizer):
    cloze = Cloze("@placeholder met @placeholder's Bob", entities(SHORT))
    ((window,),) = entity_windows(tokenizer, [cloze], [SHORT], 100, 4)
    assert window.ids.count(tokenizer.mask_id) == 2


@pytest.mark.parametrize(
    ("cloze", "message"),
    [
        (Cloze("who met Ann?", [(0, 3)]), "question 0: there is no @placeholder in it"),
        (Cloze(QUESTION, []), "question 0: its context has no entity to choose"),
        (Cloze(QUESTION, [(0, 3), (30, 37)]), "question 0: characters 30 to 37 are no stretch of a text of 36"),
        (Cloze(QUESTION, [(5, 5)]), "characters 5 to 5 are no stretch"),
        (Cloze(QUESTION, [(3, 4)]), "characters 3 to 4 stand for no token"),
        (Cloze(QUESTION + "\ud83d", [(0, 3)]), "lone surrogate"),
    ],
)
def test_what_is_no_question_is_refused(cloze, message):
    tokenizer = train_tokenizer(LINES, "unigram", 28)
    with pytest.raises(InputError, match=message):
        EntityChooser(tiny(len(tokenizer)), tokenizer).predict([cloze], [SHORT])


def test_no_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="max_length 4 leaves no room"):
        entity_windows(tokenizer, [Cloze(QUESTION, [(0, 3)])], [SHORT], 4, 0)


def window_of(mentions):
    return EntityWindow([], 0, mentions, [], False)


def logit(probability):
    return math.log(probability / (1 - probability))


def test_the_best_mention_of_all_windows_wins():
    context = "The U.S. and Ann; us, An n! and the"
    spans = [(0, 8), (13, 16), (18, 20), (22, 26), (32, 35)]  # The U.S., Ann, us, An n, the
    windows = [window_of([0, 1]), window_of([1, 2, 3]), window_of([4])]
    said = [
        np.array([logit(0.2), logit(0.9)]),
        np.array([logit(0.4), logit(0.7), logit(0.5)]),
        np.array([logit(0.1)]),
    ]
    chosen = choose_entity(Cloze("@placeholder", spans), context, windows, said)
    # "The U.S." and "us" are one entity; Ann was read twice, 0.9 and 0.4: the root of their product.
    assert chosen["scores"] == pytest.approx({"us": 0.7, "Ann": 0.6, "An n": 0.5, "the": 0.1})
    assert list(chosen["scores"]) == ["us", "Ann", "An n", "the"]
    assert (chosen["entity"], chosen["start"], chosen["end"]) == ("us", 18, 20)
    assert chosen["score"] == pytest.approx(0.7)


def test_extreme_logits_have_probabilities():
    context = "Ann Bob"
    chosen = choose_entity(
        Cloze("", [(0, 3), (4, 7)]), context, [window_of([0, 1])], [np.array([-2000.0, 1000.0], dtype=np.float32)]
    )
    assert chosen["scores"] == {"Ann": 0.0, "Bob": 1.0}


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 8192])
def test_predictions_are_those_of_padded_calls(tokenizer, tokens_per_batch):
    model = tiny(len(tokenizer))
    contexts = [SHORT, CONTEXT, "Bob  met Zoë in York\u2028", SHORT]
    questions = [Cloze(f"{QUESTION} {number}", entities(context)) for number, context in enumerate(contexts)]
    chooser = EntityChooser(model, tokenizer, max_length=48, overlap=6, tokens_per_batch=tokens_per_batch)
    answers = chooser.predict(questions, contexts)
    cut = entity_windows(tokenizer, questions, contexts, 48, 6)
    assert len(cut[1]) > 3
    for cloze, context, windows, answer, output in zip(
        questions, contexts, cut, answers, chooser.outputs(questions, contexts), strict=True
    ):
        logs = {number: [] for number in range(len(cloze.entities))}
        for window in windows:
            said = model(
                torch.tensor([window.ids]),
                token_type_ids=torch.tensor([window.segments]),
                spans=torch.tensor(window.spans),
            ).logits
            for number, value in zip(window.mentions, said.tolist(), strict=True):
                logs[number].append(math.log(1 / (1 + math.exp(-value))))
        best = {}
        for number, (start, end) in enumerate(cloze.entities):
            score = math.exp(sum(logs[number]) / len(logs[number]))
            best[context[start:end]] = max(score, best.get(context[start:end], 0.0))
        assert answer["scores"] == pytest.approx(best, rel=1e-3)
        assert output.tolist() == pytest.approx(list(best.values()), rel=1e-3)
        assert answer["entity"] == max(best, key=best.__getitem__) == context[answer["start"] : answer["end"]]
        assert answer["score"] == max(answer["scores"].values())
        assert not answer["truncated"]
    json.dumps(answers, allow_nan=False)


@pytest.mark.parametrize(
    ("questions", "contexts", "message"),
    [
        (["who?"], [SHORT], "questions without any"),
        ("who?", [SHORT], "questions without any"),
        ([Cloze(QUESTION, [(0, 3)])], None, "1 questions but 0 contexts"),
        ([Cloze(QUESTION, [(0, 3)])], [SHORT, SHORT], "1 questions but 2 contexts"),
    ],
)
def test_what_is_refused(tokenizer, questions, contexts, message):
    with pytest.raises(InputError, match=message):
        EntityChooser(tiny(len(tokenizer)), tokenizer).predict(questions, contexts)


def test_nothing_to_read(tokenizer):
    assert EntityChooser(tiny(len(tokenizer)), tokenizer).predict([], []) == []
