"""Span classification: reading, encoding, the loss, evaluation, SiFT."""

import json
import logging

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.spans import Marked, SpanClassifier
from unbraid.model.config import DebertaConfig
from unbraid.model.span_heads import DebertaForSpanClassification
from unbraid.tasks.config import METRICS, DataConfig, SiftConfig
from unbraid.tasks.sift import Sift
from unbraid.tasks.span_classification import SpanClassification, SpanExample, SpanObjective
from unbraid.text.batch import pack
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in York, where?", "Bob of Oslo met Ann.", "who met Ann in Oslo?"] * 9
LONG = "of Oslo " * 30 + "Ann " + "in York, " * 30 + "Bob"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 30)


def tiny_model(tokenizer, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2, id2label={0: "a", 1: "b"}, **fields,
    )  # fmt: skip
    model = DebertaForSpanClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def example(text, spans, label, pair=None):
    return SpanExample(Marked(text, spans), pair, label, "here")


SINGLE = [
    example("Ann met Bob.", ((0, 3), (8, 11)), "b"),
    example("Bob met Ann in York.", ((15, 19), (8, 11)), "a"),
    example(LONG, ((LONG.index("Ann"), LONG.index("Ann") + 3), (LONG.index("Bob"), len(LONG))), "b"),
]
PAIRED = [
    example("Ann met Bob.", ((0, 3), (8, 11)), "b", "who met Ann?"),
    example("Bob met Ann in York.", ((15, 19), (0, 3)), "a", "Ann"),
    example("Ann.", ((0, 4), (LONG.index("Ann"), LONG.index("Ann") + 3)), "b", LONG),
]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_text_with_two_stretches(tmp_path):
    rows = [
        {"text": each.marked.text, "span1": each.marked.spans[0], "span2": each.marked.spans[1], "label": each.label}
        for each in SINGLE
    ]
    source = write(tmp_path / "a.jsonl", rows)
    read = SpanClassification().read(source)
    assert [(each.marked, each.pair, each.label) for each in read] == [
        (each.marked, None, each.label) for each in SINGLE
    ]
    assert [each.place for each in read] == [f"{source}, line {line}" for line in (1, 2, 3)]


def test_a_pair_in_a_table_with_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text('s1,s2,one,two,same\nAnn met Bob.,who met Ann?,"[0, 3]","[8, 11]",True\n')
    data = DataConfig(text="s1", pair="s2", spans=("one", "two"), label="same")
    (read,) = SpanClassification(data=data).read(str(tmp_path / "a.csv"))
    assert (read.marked, read.pair) == (Marked("Ann met Bob.", ((0, 3), (8, 11))), "who met Ann?")
    assert read.label == "True"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"span1": [0, 13]}, r"column 'span1' holds \[0, 13\], which is no stretch of the 12 characters"),
        ({"span2": [8, 8]}, r"column 'span2' holds \[8, 8\], which is no stretch"),
        ({"span2": [-4, 8]}, "no stretch"),
        ({"span2": [8, 4]}, "no stretch"),
        ({"span2": [8]}, "no stretch"),
        ({"span2": ["8", "11"]}, "no stretch"),
        ({"span2": "met"}, "'span2' holds 'met', which is not a list"),
        ({"span2": None}, "column 'span2' is missing its value"),
        ({"label": None}, "column 'label' is missing its value"),
        ({"label": "c"}, "the label 'c' is unknown"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, row, message):
    good = {"text": "Ann met Bob.", "span1": [0, 3], "span2": [8, 11], "label": "a"}
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        SpanClassification(labels=("a", "b")).read(write(tmp_path / "a.jsonl", [good, good | row]))


def test_the_second_stretch_is_one_of_the_second_text(tmp_path):
    row = {"text": "Ann met Bob.", "pair": "Ann", "span1": [0, 12], "span2": [1, 4], "label": "a"}
    source = write(tmp_path / "a.jsonl", [row])
    assert SpanClassification().read(source)
    with pytest.raises(InputError, match="no stretch of the 3 characters"):
        SpanClassification(data=DataConfig(pair="pair")).read(source)


def test_a_stretch_without_a_token_is_named_with_its_place(tokenizer):
    with pytest.raises(InputError, match="here: characters 3 to 4 stand for no token"):
        SpanClassification(labels=("a", "b")).encode([SINGLE[0], example("Ann met", ((0, 3), (3, 4)), "a")], tokenizer)


def test_the_classes_are_those_of_the_training_data():
    task = SpanClassification().labelled(SINGLE, "x")
    assert task.labels == ("a", "b")
    assert task.model_fields()["id2label"] == {0: "a", 1: "b"}
    assert SpanClassification(labels=("b", "a")).labelled(SINGLE, "x").labels == ("b", "a")


@pytest.mark.parametrize("examples", [SINGLE, PAIRED])
@pytest.mark.parametrize("rows", [[0, 1, 2], [2], [1, 0]])
def test_the_loss_is_the_sum_over_the_examples(tokenizer, examples, rows, caplog):
    model = tiny_model(tokenizer)
    with caplog.at_level(logging.WARNING):
        data = SpanClassification(labels=("a", "b"), max_length=40).encode(examples, tokenizer)
    assert caplog.messages == ["1 of 3 examples are longer than 40 tokens and were cut around their stretches."]
    assert data.lengths.max() == 40
    loss = SpanObjective(model.eval())(data.batch(np.array(rows)))
    expected, right = 0.0, 0
    for row in rows:
        encoding, wanted = data.encodings[row], "ab".index(examples[row].label)
        for (start, end), (a, b), text in zip(
            encoding.spans,
            examples[row].marked.spans,
            (examples[row].marked.text, examples[row].pair or examples[row].marked.text),
            strict=True,
        ):
            assert tokenizer.decode(encoding.ids[start:end]).strip() == text[a:b]
        scores = (
            model(
                torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.segments]),
                spans=torch.tensor(encoding.spans),
            )
            .logits[0]
            .detach()
            .double()
        )
        expected -= float(scores.log_softmax(-1)[wanted])
        right += int(scores.argmax()) == wanted
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert (loss.count, loss.parts["correct"].item()) == (len(rows), right)
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("examples", [SINGLE, PAIRED])
def test_evaluation_and_prediction_agree(tokenizer, batch_size, examples):
    model = tiny_model(tokenizer)
    task = SpanClassification(labels=("a", "b"), max_length=40, batch_size=batch_size)
    metrics = task.evaluate(model, task.encode(examples, tokenizer))
    pairs = [each.pair for each in examples] if examples is PAIRED else None
    predictions = SpanClassifier(model, tokenizer, max_length=40).predict([each.marked for each in examples], pairs)
    right = [each.label == said["label"] for each, said in zip(examples, predictions, strict=True)]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    loss = -np.mean([np.log(said["scores"][each.label]) for each, said in zip(examples, predictions, strict=True)])
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert {"loss", *METRICS["span-classification"]} <= set(metrics)


def test_the_scores(tokenizer):
    task = SpanClassification(labels=("a", "b"))
    data = task.encode([*SINGLE, *SINGLE], tokenizer)
    scores = task.score(data, [1, 0, 0, 1, 1, 1])  # right are b a b b a b: 3 true, 1 false positive, 1 false negative
    wanted = {"accuracy": 4 / 6, "f1": 6 / 8, "matthews": (3 * 1 - 1) / 8}
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted)


def test_divergence_and_sift(tokenizer):
    data = SpanClassification(labels=("a", "b")).encode(SINGLE, tokenizer)
    batch = data.batch(np.arange(3))
    objective = SpanObjective(tiny_model(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    clean = objective.outputs(batch)
    torch.manual_seed(1)
    perturbed = objective.outputs(batch, torch.randn(len(batch.input_ids), 16))
    p, q = (each[0].detach().double().softmax(-1) for each in (clean, perturbed))
    expected = -float((p * q.log() + q * p.log()).sum())
    assert objective.divergence(clean, perturbed, batch).item() == pytest.approx(expected, rel=1e-4)
    loss = Sift(objective, SiftConfig(weight=5.0)).train()(batch)
    assert loss.count == 3
    assert loss.total.item() == pytest.approx(
        objective(batch).total.item() + 5 * loss.parts["consistency"].item(), rel=1e-3
    )
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in objective.parameters())


def test_a_batch_without_labels(tokenizer):
    objective = SpanObjective(tiny_model(tokenizer))
    batch = pack([[1, 5, 2]], spans=[[(1, 2), (0, 1)]])
    with pytest.raises(InputError, match="no labels to learn from"):
        objective(batch)
