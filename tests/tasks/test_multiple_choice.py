"""Multiple choice: reading, encoding, the loss, evaluation and prediction."""

import json
import logging
import tracemalloc

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.choices import Choices, MultipleChooser
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMultipleChoice
from unbraid.tasks.config import DataConfig
from unbraid.tasks.multiple_choice import ChoiceExample, ChoiceObjective, MultipleChoice
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in York, where?", "Bob of Oslo met Ann.", "who met Ann in Oslo?"] * 9
EXAMPLES = [
    ChoiceExample(Choices("where?", ("York", "in Oslo")), "Ann met Bob in York.", 0),
    ChoiceExample(Choices("who?", ("Ann", "Bob met Ann", "York", "of")), "Bob met Ann.", 1),
    ChoiceExample(Choices("", ("met", "where", "who")), "Ann", 2),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 30)


def tiny_model(tokenizer):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2,
    )  # fmt: skip
    model = DebertaForMultipleChoice(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_list_of_choices(tmp_path):
    rows = [
        {"context": each.context, "question": each.asked.question, "choices": each.asked.choices, "label": each.label}
        for each in EXAMPLES
    ]
    assert MultipleChoice().read(write(tmp_path / "a.jsonl", rows)) == EXAMPLES


def test_a_column_a_choice(tmp_path):
    (tmp_path / "a.csv").write_text("question,choice1,choice2,label\nwhere?,York,in Oslo,0\n")
    (example,) = MultipleChoice().read(str(tmp_path / "a.csv"))
    assert example == ChoiceExample(EXAMPLES[0].asked, None, 0)
    (tmp_path / "b.csv").write_text("text,q,ending0,ending1,right\nAnn met Bob in York.,where?,York,in Oslo,0\n")
    data = DataConfig(context="text", question="q", choices=("ending0", "ending1"), label="right")
    assert MultipleChoice(data=data).read(str(tmp_path / "b.csv")) == EXAMPLES[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", " "]}, r"choice 1 \(from 0\) is empty"),
        ({"choices": ["a"]}, "there are 1 choices; it takes two"),
        ({"choices": "a"}, "'choices' holds 'a', which is not a list"),
        ({"choices": ["a", None]}, "holds None, which is not a text"),
        ({"label": 2}, "the label 2 is none of the 2 choices; they are counted from 0"),
        ({"label": -1}, "the label -1 is none"),
        ({"label": 0.5}, "the label 0.5 is none"),
        ({"label": "A"}, "'label' holds 'A', which is not a finite number"),
        ({"label": None}, "column 'label' is missing its value"),
        ({"context": "c"}, "some questions have a context and some have none"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, row, message):
    good = {"question": "q", "choices": ["a", "b"], "label": 1}
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        MultipleChoice().read(write(tmp_path / "a.jsonl", [good, good | row]))


def test_no_choices_and_a_named_context_that_is_not_there(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"question": "q", "label": 1}])
    with pytest.raises(InputError, match="there is no column 'choices'"):
        MultipleChoice().read(source)
    source = write(tmp_path / "a.jsonl", [{"question": "q", "choices": ["a", "b"], "label": 1}])
    with pytest.raises(InputError, match="there is no column 'passage'"):
        MultipleChoice(data=DataConfig(context="passage")).read(source)


def logits(model, encodings):
    """Of one question, by a padded call with its choices alone."""
    longest = max(len(each.ids) for each in encodings)
    ids, mask, types = (
        torch.tensor([[[*row, *[0] * (longest - len(row))] for row in rows]])
        for rows in (
            [each.ids for each in encodings],
            [[1] * len(each.ids) for each in encodings],
            [each.segments for each in encodings],
        )
    )
    return model.eval()(ids, mask, types).logits[0].detach()


def expected_encodings(tokenizer, example, max_length):
    question, choices = example.asked
    if example.context is None:
        return [tokenizer.encode(question, choice, max_length=max_length) for choice in choices]
    return [
        tokenizer.encode(example.context, f"{question} {choice}" if question else choice, max_length=max_length)
        for choice in choices
    ]


@pytest.mark.parametrize("rows", [[0, 1, 2], [2], [1, 0]])
def test_the_loss_is_the_sum_over_the_questions(tokenizer, rows):
    model = tiny_model(tokenizer)
    data = MultipleChoice().encode(EXAMPLES, tokenizer)
    batch = data.batch(np.array(rows))
    loss = ChoiceObjective(model.eval())(batch)
    expected, right = 0.0, 0
    for row in rows:
        scores = logits(model, expected_encodings(tokenizer, EXAMPLES[row], 256))
        expected -= float(scores.log_softmax(-1)[EXAMPLES[row].label])
        right += int(scores.argmax()) == EXAMPLES[row].label
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert (loss.count, loss.parts["correct"].item()) == (len(rows), right)
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_divergence_leaves_missing_choices_out(tokenizer):
    objective = ChoiceObjective(tiny_model(tokenizer).eval())
    batch = MultipleChoice().encode(EXAMPLES, tokenizer).batch(np.arange(3))
    clean = objective.outputs(batch)
    torch.manual_seed(1)
    perturbed = objective.outputs(batch, torch.randn(len(batch.input_ids), 16))
    expected = 0.0
    for row, example in enumerate(EXAMPLES):
        p, q = (each[0][row, : len(example.asked.choices)].detach().softmax(-1) for each in (clean, perturbed))
        expected -= float((p * q.log() + q * p.log()).sum())
    found = objective.divergence(clean, perturbed, batch)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert all(weight.grad.isfinite().all() for weight in objective.parameters() if weight.grad is not None)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("paired", [False, True])
def test_evaluation_and_prediction_agree(tokenizer, batch_size, paired):
    model = tiny_model(tokenizer)
    examples = EXAMPLES if paired else [ChoiceExample(each.asked, None, each.label) for each in EXAMPLES]
    task = MultipleChoice(batch_size=batch_size)
    metrics = task.evaluate(model, task.encode(examples, tokenizer))
    chooser = MultipleChooser(model, tokenizer, tokens_per_batch=10 * batch_size)
    contexts = [each.context for each in examples] if paired else None
    predictions = chooser.predict([each.asked for each in examples], contexts)
    right, loss = 0, 0.0
    for prediction, output, example in zip(
        predictions, chooser.outputs([each.asked for each in examples], contexts), examples, strict=True
    ):
        scores = logits(model, expected_encodings(tokenizer, example, 64)).softmax(-1)
        assert prediction["scores"] == pytest.approx(scores.tolist(), rel=1e-4) == output.tolist()
        assert prediction["index"] == int(scores.argmax())
        assert prediction["choice"] == example.asked.choices[prediction["index"]]
        assert prediction["score"] == max(prediction["scores"])
        right += prediction["index"] == example.label
        loss -= float(scores.log()[example.label]) / len(examples)
    assert metrics == pytest.approx({"loss": loss, "accuracy": right / len(examples)}, rel=1e-4)


def test_what_is_cut_is_said(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        data = MultipleChoice(max_length=14).encode(EXAMPLES, tokenizer)
    cut = [any(each.truncated for each in expected_encodings(tokenizer, example, 14)) for example in EXAMPLES]
    assert data.num_truncated == sum(cut) == 2
    assert caplog.messages == ["2 of 3 questions are longer than 14 tokens with a choice and were cut."]
    chooser = MultipleChooser(tiny_model(tokenizer), tokenizer, max_length=14)
    predictions = chooser.predict([each.asked for each in EXAMPLES], [str(each.context) for each in EXAMPLES])
    assert [each["truncated"] for each in predictions] == cut
    assert data.lengths.max() <= 14 * 4


def test_what_is_kept_of_a_token_is_its_id_and_its_segment(tokenizer):
    examples = [ChoiceExample(Choices("where?", ("York", "in Oslo")), "Ann met Bob in York. " * 40, 0)] * 20
    tracemalloc.start()
    data = MultipleChoice().encode(examples, tokenizer)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.lengths.sum() == 20 * 2 * 256
    assert kept < 8 * data.lengths.sum()  # 5 bytes, and what an array has beside its numbers


@pytest.mark.parametrize(
    ("questions", "contexts", "message"),
    [
        ([Choices("q", ["a"])], None, "question 0 has the choices .*two or more"),
        ([Choices("q", ["a", "b"]), Choices("q", ["a", ""])], None, "question 1 has .* none of them empty"),
        ([Choices("q", "ab")], None, "two or more"),
        ([Choices("q", ["a", "b"])], ["c", "d"], "1 questions but 2 contexts"),
    ],
)
def test_what_is_no_choice_is_refused(tokenizer, questions, contexts, message):
    with pytest.raises(InputError, match=message):
        MultipleChooser(tiny_model(tokenizer), tokenizer).predict(questions, contexts)
