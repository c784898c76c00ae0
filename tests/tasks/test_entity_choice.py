"""Entity choice: reading, windows to mentions, the loss, ReCoRD's official scores, SiFT."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.entities import Cloze, EntityChooser
from unbraid.metrics import squad_scores
from unbraid.model.config import DebertaConfig
from unbraid.model.span_heads import DebertaForEntityChoice
from unbraid.tasks.config import DataConfig, SiftConfig
from unbraid.tasks.entity_choice import EntityChoice, EntityExample, EntityObjective
from unbraid.tasks.sift import Sift
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in York, where?", "Bob of Oslo met Ann.", "who met Ann in Oslo?"] * 9
CONTEXT = "Ann met Bob in York. Bob is of Oslo."
SPANS = ((0, 3), (8, 11), (15, 19), (21, 24), (31, 35))  # Ann, Bob, York, Bob, Oslo


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 30)


def tiny_model(tokenizer, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2, **fields,
    )  # fmt: skip
    model = DebertaForEntityChoice(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def example(question, *answers, context=CONTEXT, spans=SPANS):
    return EntityExample(Cloze(question, spans), context, answers, "here")


FAR = "of Oslo " * 12 + "Ann " + "in York, " * 12 + "Bob."
EXAMPLES = [
    example("@placeholder of Oslo", "Bob"),
    example("who met @placeholder?", "the bob!", "Ann"),
    example(
        "@placeholder",
        "Bob",
        context=FAR,
        spans=((FAR.index("Ann"), FAR.index("Ann") + 3), (FAR.index("Bob"), FAR.index("Bob") + 3)),
    ),
    example("in @placeholder", "Zoe"),
]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


GOOD = {"question": "in @placeholder", "context": CONTEXT, "entities": SPANS, "answers": ["York"]}


def test_a_question_a_row(tmp_path):
    source = write(tmp_path / "a.jsonl", [GOOD, GOOD | {"entities": [*SPANS, SPANS[1]], "answers": ["Ann", "Bob"]}])
    first, second = EntityChoice().read(source)
    assert first == EntityExample(Cloze("in @placeholder", SPANS), CONTEXT, ("York",), f"{source}, line 1")
    assert second.cloze.entities == SPANS  # a mention twice is one
    assert first.right.tolist() == [0, 0, 1, 0, 0]
    assert second.right.tolist() == [1, 1, 0, 1, 0]


def test_other_columns_in_a_table(tmp_path):
    (tmp_path / "a.csv").write_text('q,c,e,a\nin @placeholder,Ann in York,"[[0, 3], [7, 11]]","[""York""]"\n')
    data = DataConfig(question="q", context="c", entities="e", answers="a")
    (read,) = EntityChoice(data=data).read(str(tmp_path / "a.csv"))
    assert read.cloze == Cloze("in @placeholder", ((0, 3), (7, 11)))
    assert read.right.tolist() == [0, 1]


def test_what_is_right_is_what_the_official_script_holds_for_equal():
    context = "The U.S. and us; U. S.; an US"
    spans = ((0, 8), (13, 15), (17, 22), (24, 29), (27, 29), (4, 15))
    assert example("@placeholder", "the U.S.", context=context, spans=spans).right.tolist() == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"entities": [[0, 3], [30, 37]]},
            r"column 'entities' holds \[30, 37\], which is no stretch of the 36 characters",
        ),
        ({"entities": [[3, 3]]}, "no stretch"),
        ({"entities": [0, 3]}, "holds 0, which is no stretch"),
        ({"entities": {"start": 0}}, "which is not a list"),
        ({"answers": []}, "the question has no answer; give the text of its entity"),
        ({"answers": [{"text": "York"}]}, "which is not a text"),
        ({"answers": "York"}, "holds 'York', which is not a list"),
        ({"answers": None}, "column 'answers' is missing its value"),
        ({"question": 3}, "'question' holds 3, which is not a text"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        EntityChoice().read(write(tmp_path / "a.jsonl", [GOOD, GOOD | row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "in"}, "there is no @placeholder in it"),
        ({"entities": []}, "its context has no entity to choose"),
        ({"entities": [[0, 3], [3, 4]]}, "characters 3 to 4 stand for no token"),
    ],
)
def test_faults_that_show_when_it_is_encoded_have_their_place_too(tmp_path, tokenizer, row, message):
    examples = EntityChoice().read(write(tmp_path / "a.jsonl", [GOOD, GOOD | row]))
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        EntityChoice().encode(examples, tokenizer)


def test_answers_that_are_no_entities(tmp_path, caplog):
    strange = GOOD | {"answers": ["Zoe"]}
    source = write(tmp_path / "a.jsonl", [GOOD, strange, strange])
    with caplog.at_level(logging.WARNING):
        assert len(EntityChoice().read(source)) == 3
    assert caplog.messages == [f"{source}: 2 of 3 questions have no answer among their entities."]
    with pytest.raises(InputError, match=r"of no question an answer is among the entities; see to the columns answers"):
        EntityChoice().read(write(tmp_path / "b.jsonl", [strange] * 3))


def said(model, window):
    output = model(
        torch.tensor([window.ids]), token_type_ids=torch.tensor([window.segments]), spans=torch.tensor(window.spans)
    )
    return output.logits.tolist()


@pytest.mark.parametrize("backwards", [False, True])
def test_the_loss_is_the_sum_over_the_mentions(tokenizer, backwards):
    data = EntityChoice(max_length=32, overlap=4).encode(EXAMPLES, tokenizer)
    assert len(data) > 5
    assert data.lengths.max() == 32
    model = tiny_model(tokenizer).eval()
    rows = np.arange(len(data))[:: -1 if backwards else 1].copy()
    loss = EntityObjective(model)(data.batch(rows))
    expected, count, right = 0.0, 0, 0
    for each, windows in zip(EXAMPLES, data.windows, strict=True):
        for window in windows:
            for mention, logit in zip(window.mentions, said(model, window), strict=True):
                start, end = each.cloze.entities[mention]
                true = any(squad_scores(each.context[start:end], [answer])[0] for answer in each.answers)
                expected -= math.log(1 / (1 + math.exp(-logit if true else logit)))
                count += 1
                right += (logit > 0) == true
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert (loss.count, loss.parts["correct"].item()) == (count, right)
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_scores_what_prediction_says(tokenizer, batch_size):
    model = tiny_model(tokenizer)
    task = EntityChoice(max_length=32, overlap=4, batch_size=batch_size)
    data = task.encode(EXAMPLES, tokenizer)
    metrics = task.evaluate(model, data)
    chooser = EntityChooser(model, tokenizer, max_length=32, overlap=4)
    answers = chooser.predict([each.cloze for each in EXAMPLES], [each.context for each in EXAMPLES])
    scores = [squad_scores(answer["entity"], each.answers) for answer, each in zip(answers, EXAMPLES, strict=True)]
    assert metrics["exact"] == pytest.approx(np.mean([exact for exact, _ in scores]))
    assert metrics["f1"] == pytest.approx(np.mean([f1 for _, f1 in scores]))
    loss = EntityObjective(model.eval())(data.batch(np.arange(len(data))))
    assert metrics["loss"] == pytest.approx(loss.total.item() / loss.count, rel=1e-4)


def test_the_official_scores(tokenizer):
    """ReCoRD's script by hand: the best over the answers, case, marks and articles left out, F1 over words."""
    context = "Ann of Oslo met the Bob, and Bob of York."
    spans = ((0, 3), (0, 11), (16, 23), (29, 40))  # Ann; Ann of Oslo; the Bob; Bob of York
    asked = [
        example("@placeholder", "Ann of Oslo", context=context, spans=spans),  # says Ann: P 1, R 1/3
        example("@placeholder", "BOB!", "Ann", context=context, spans=spans),  # says the Bob: right
        example("@placeholder", "Bob", "Ann of York", context=context, spans=spans),  # says Bob of York: F1 2/4, 4/6
        example("@placeholder", "the Bob", context=context, spans=spans),  # says Ann of Oslo: nothing
    ]
    data = EntityChoice().encode(asked, tokenizer)
    assert len(data) == 4
    answers = [torch.eye(4)[best] for best in (0, 2, 3, 1)]
    assert EntityChoice().score(data, answers) == pytest.approx({"exact": 1 / 4, "f1": (1 / 2 + 1 + 2 / 3 + 0) / 4})


def test_only_mentions_diverge_and_sift_runs(tokenizer):
    data = EntityChoice(max_length=32, overlap=4).encode(EXAMPLES, tokenizer)
    batch = data.batch(np.arange(len(data)))
    objective = EntityObjective(tiny_model(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    clean = objective.outputs(batch)
    torch.manual_seed(1)
    perturbed = objective.outputs(batch, torch.randn(len(batch.input_ids), 16))
    p, q = (each[0].detach().double().sigmoid() for each in (clean, perturbed))
    expected = -float((p * q.log() + q * p.log() + (1 - p) * (1 - q).log() + (1 - q) * (1 - p).log()).sum())
    assert objective.divergence(clean, perturbed, batch).item() == pytest.approx(expected, rel=1e-4)
    loss = Sift(objective, SiftConfig(weight=5.0)).train()(batch)
    assert loss.count == len(batch.labels) == len(batch.spans)
    assert loss.total.item() == pytest.approx(
        objective(batch).total.item() + 5 * loss.parts["consistency"].item(), rel=1e-3
    )
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in objective.parameters())


def test_a_long_question_is_counted(tokenizer, caplog):
    long = "who met Bob in Oslo of York " * 5 + "@placeholder"
    with caplog.at_level(logging.WARNING):
        data = EntityChoice(max_length=40, overlap=4).encode([EXAMPLES[0], example(long, "Bob")], tokenizer)
    assert data.num_truncated == 1
    assert caplog.messages == ["1 of 2 questions fill more than half a window and were cut around their placeholder."]
