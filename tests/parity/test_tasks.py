"""What finetune writes for each kind of task, transformers reads, with the same answers."""

import pytest
import torch
import transformers

from unbraid.inference.answers import QuestionAnswerer
from unbraid.inference.choices import Choices, MultipleChooser
from unbraid.inference.tokens import TokenClassifier
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import (
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForTokenClassification,
)
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in York, where?", "Bob of Oslo met Ann.", "who met Ann in Oslo?"] * 9
TEXT = "Bob met Ann in York."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 30)


def saved(head, tokenizer, folder, **fields):
    torch.manual_seed(0)
    model = head(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=64, position_buckets=8, type_vocab_size=0, **fields,
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_pipeline_of_tokens(tokenizer, tmp_path):
    labels = {0: "B-PER", 1: "I-PER", 2: "O"}
    folder = saved(DebertaForTokenClassification, tokenizer, tmp_path, id2label=labels)
    theirs = transformers.pipeline("token-classification", model=folder, ignore_labels=[], device="cpu")(TEXT)
    (ours,) = TokenClassifier.from_pretrained(folder).predict([TEXT])
    # Theirs speaks of pieces; ours are those that begin a word. A piece of theirs includes the space before it.
    pieces = {
        each["start"] + (TEXT[each["start"]] == " "): each
        for each in theirs
        if TEXT[each["start"] : each["end"]].strip()
    }
    for word in ours["words"]:
        assert word["label"] == pieces[word["start"]]["entity"]
        assert word["score"] == pytest.approx(float(pieces[word["start"]]["score"]), rel=1e-4)


def test_questions(tokenizer, tmp_path):
    folder = saved(DebertaForQuestionAnswering, tokenizer, tmp_path)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    encoded = transformers.AutoTokenizer.from_pretrained(folder)("who?", TEXT, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**encoded)
    output = QuestionAnswerer.from_pretrained(folder).outputs(["who?"], [TEXT])[0]
    torch.testing.assert_close(output[0], theirs.start_logits[0].softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output[1], theirs.end_logits[0].softmax(-1), rtol=1e-4, atol=1e-6)


def test_choices(tokenizer, tmp_path):
    folder = saved(DebertaForMultipleChoice, tokenizer, tmp_path)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder)
    choices = ["Bob", "Ann of Oslo", "York"]
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(
        ["who?"] * 3, choices, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0].softmax(-1)
    (ours,) = MultipleChooser.from_pretrained(folder).predict([Choices("who?", choices)])
    assert ours["scores"] == pytest.approx(theirs.tolist(), rel=1e-4)
