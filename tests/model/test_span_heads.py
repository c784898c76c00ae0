"""The heads of marked stretches: values and gradients of a loop over single examples, forms of input, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.precision import set_precision
from unbraid.model.pretrained import Deberta, DebertaForSequenceClassification
from unbraid.model.span_heads import DebertaForEntityChoice, DebertaForSpanClassification
from unbraid.packing import Packing
from unbraid.text.batch import pack

WIDTH = 24
CONFIG = DebertaConfig(
    vocab_size=60, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=32, position_buckets=8, type_vocab_size=2, id2label={0: "a", 1: "b", 2: "c"},
)  # fmt: skip
LENGTHS = (9, 4, 17)
PAIRS = [[(1, 4), (5, 6)], [(0, 4), (2, 3)], [(16, 17), (1, 16)]]
"""Of one token and of all, one within the other."""
MENTIONS = [[(1, 2)], [], [(3, 9), (4, 6), (16, 17), (3, 9), (0, 17)]]


def draw(model_class, config=CONFIG):
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.3, generator=generator)
    return model


def sequences(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 60, (length,), generator=generator).tolist() for length in lengths]


def batch_of(spans):
    ids = sequences()
    return pack(ids, token_types=[[0] * 2 + [1] * (len(row) - 2) for row in ids], spans=spans)


def call(model, batch, **arguments):
    return model(
        batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, spans=batch.spans, **arguments
    )


def states_alone(model):
    """(T, C) of each sequence, read by itself."""
    for ids in sequences():
        types = torch.tensor([[0] * 2 + [1] * (len(ids) - 2)])
        yield model.deberta(torch.tensor([ids]), token_type_ids=types).last_hidden_state[0]


def looped_classes(model):
    rows = []
    for states, ((a, b), (c, d)) in zip(states_alone(model), PAIRS, strict=True):
        pooled = functional.gelu(model.pooler.dense(states[0]))
        first = sum(states[row] for row in range(a, b)) / (b - a)
        second = sum(states[row] for row in range(c, d)) / (d - c)
        hidden = functional.gelu(model.joint(torch.cat([pooled, first, second])))
        rows.append(model.classifier(hidden))
    return torch.stack(rows)


def looped_mentions(model):
    logits = []
    for states, mentions in zip(states_alone(model), MENTIONS, strict=True):
        for start, end in mentions:
            scores = [torch.dot(states[0], states[row]) / math.sqrt(WIDTH) for row in range(start, end)]
            weights = torch.stack(scores).softmax(0)
            pooled = sum(weights[row - start] * states[row] for row in range(start, end))
            logits.append(model.classifier(functional.gelu(model.projection(pooled)))[0])
    return torch.stack(logits)


CASES = [
    (DebertaForSpanClassification, PAIRS, looped_classes, (3, 3)),
    (DebertaForEntityChoice, MENTIONS, looped_mentions, (6,)),
]


@pytest.mark.parametrize(("model_class", "spans", "looped", "shape"), CASES)
def test_values_and_gradients_are_those_of_a_loop_over_single_examples(model_class, spans, looped, shape):
    model = draw(model_class)
    found = call(model, batch_of(spans)).logits
    expected = looped(model)
    assert found.shape == shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((found * weights).sum(), parameters.values(), allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters.values(), allow_unused=True)
    for name, gradient, wanted in zip(parameters, ours, theirs, strict=True):
        assert gradient is not None, name
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()), msg=name)


@pytest.mark.parametrize(("model_class", "spans", "looped", "shape"), CASES)
def test_the_mean_loss(model_class, spans, looped, shape):
    model, labels = draw(model_class), torch.tensor([2, 0, 1] if len(shape) == 2 else [1, 0, 0, 1, 0, 1])
    logits = looped(model).detach().double()
    if len(shape) == 2:
        wanted = -sum(float(row.log_softmax(-1)[label]) for row, label in zip(logits, labels, strict=True)) / 3
    else:
        right = [1 / (1 + math.exp(-float(x))) for x in logits]
        wanted = -sum(math.log(p if y else 1 - p) for p, y in zip(right, labels.tolist(), strict=True)) / 6
    assert call(model, batch_of(spans), labels=labels).loss.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("model_class", "spans"), [case[:2] for case in CASES])
def test_padding_on_either_side_and_holes_change_nothing(model_class, spans):
    """Where the places of the tokens stay what they are, each stretch has its tokens and no padding."""
    model, width = draw(model_class), 20
    ids, types, mask = (torch.zeros(len(LENGTHS), width, dtype=torch.int64) for _ in range(3))
    cells = []
    for row, (tokens, marked) in enumerate(zip(sequences(), spans, strict=True)):
        at = (width - len(tokens)) if row == 1 else 0
        columns = [at + place + (row == 2 and place >= 12) for place in range(len(tokens))]  # a hole at 12
        ids[row, columns], mask[row, columns] = torch.tensor(tokens), 1
        types[row, columns[2:]] = 1
        cells += [[row * width + columns[start], row * width + columns[end - 1] + 1] for start, end in marked]
    output = model(ids, mask, types, spans=torch.tensor(cells))
    packed = model(
        ids[mask.bool()],
        packing=Packing.from_mask(mask.bool()),
        token_type_ids=types[mask.bool()],
        spans=batch_of(spans).spans,
    )
    torch.testing.assert_close(output.logits, packed.logits)
    if model_class is DebertaForSpanClassification:  # the others are read as they are without padding
        torch.testing.assert_close(output.logits[:2], call(model, batch_of(spans)).logits[:2], rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow():
    model = draw(DebertaForEntityChoice)
    model.deberta.encoder.layers[-1].norm.weight.data.mul_(100)
    assert call(model, batch_of(MENTIONS)).logits.isfinite().all()
    torch.testing.assert_close(call(model, batch_of(MENTIONS)).logits, looped_mentions(model), rtol=1e-3, atol=1e-2)


def test_no_mention_is_no_logit():
    assert call(draw(DebertaForEntityChoice), batch_of([[], [], []])).logits.shape == (0,)


@pytest.mark.parametrize(("model_class", "spans"), [case[:2] for case in CASES])
def test_dropout_acts_before_the_classifier(model_class, spans):
    model = draw(model_class, CONFIG.replace(hidden_dropout_prob=0, attention_probs_dropout_prob=0, cls_dropout=0.999))
    still = call(model, batch_of(spans)).logits
    torch.manual_seed(0)
    dropped = call(model.train(), batch_of(spans)).logits
    bias = model.classifier.bias.expand_as(dropped.view(len(dropped), -1)).view_as(dropped)
    assert (dropped == bias).float().mean() > 0.5  # nothing but the bias is left of most
    assert not torch.equal(still, dropped)


@pytest.mark.parametrize(("model_class", "spans"), [case[:2] for case in CASES])
def test_bfloat16(model_class, spans):
    model = draw(model_class)
    expected = call(model, batch_of(spans)).logits
    set_precision(model, "bfloat16")
    found = call(model, batch_of(spans)).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(("model_class", "spans"), [case[:2] for case in CASES])
def test_saved_and_read_again(model_class, spans, tmp_path):
    model = draw(model_class)
    model.save_pretrained(tmp_path / "a")
    again = model_class.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(call(again, batch_of(spans)).logits, call(model, batch_of(spans)).logits)
    # The encoder, and other heads, start from it; and these heads from theirs.
    ids = torch.tensor([sequences()[0]])
    encoder = Deberta.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(encoder(ids).last_hidden_state, model.deberta(ids).last_hidden_state)
    other = DebertaForSequenceClassification.from_pretrained(tmp_path / "a", new=("pooler", "classifier"))
    other.save_pretrained(tmp_path / "b")
    new = [name for name, _ in model.named_children() if name not in ("deberta", "dropout")]
    fresh = model_class.from_pretrained(tmp_path / "b", new=new)
    torch.testing.assert_close(fresh.deberta(ids).last_hidden_state, model.deberta(ids).last_hidden_state)
    assert all(weight.isfinite().all() and weight.std() < 0.05 for weight in (fresh.classifier.weight,))


WHOLE = [[0, 1], [1, 2], [9, 10], [9, 13], [13, 14], [29, 30]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 1, 2]], "spans has shape"),
        ([0, 1], "spans has shape"),
        ([[0.0, 1.0]], "spans is of type torch.float32"),
        ([[-1, 3]], "spans holds -1"),
        ([[0, 31]], "spans holds 31"),
        ([[3, 3]], "without a token"),
        ([[4, 2]], "without a token"),
        ([[30, 30]], "without a token"),
        ([[8, 10]], "over two sequences"),
    ],
)
@pytest.mark.parametrize("model_class", [DebertaForSpanClassification, DebertaForEntityChoice])
def test_what_is_no_stretch_is_refused(model_class, spans, message):
    batch = batch_of(None)
    with pytest.raises(InputError, match=message):
        draw(model_class)(batch.input_ids, packing=batch.packing, spans=torch.tensor(spans))


@pytest.mark.parametrize("spans", [WHOLE[:4], [*WHOLE, [29, 30]], WHOLE[::-1], [WHOLE[0], *WHOLE[2:], WHOLE[1]]])
def test_a_sequence_has_two_stretches(spans):
    batch = batch_of(None)
    with pytest.raises(InputError, match="not two stretches of each sequence"):
        draw(DebertaForSpanClassification)(batch.input_ids, packing=batch.packing, spans=torch.tensor(spans))


def test_a_stretch_of_padding_is_refused():
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    with pytest.raises(InputError, match="without a token"):
        draw(DebertaForEntityChoice)(ids, mask, spans=torch.tensor([[3, 5]]))


def test_a_label_out_of_range():
    with pytest.raises(InputError, match="labels holds 3"):
        call(draw(DebertaForSpanClassification), batch_of(PAIRS), labels=torch.tensor([0, 3, 1]))


def test_the_heads_start_as_the_others_do():
    torch.manual_seed(0)
    for model_class in (DebertaForSpanClassification, DebertaForEntityChoice):
        model = model_class(CONFIG.replace(hidden_size=96, num_attention_heads=3))
        for name, child in model.named_children():
            if isinstance(child, nn.Linear):
                assert child.weight.std().item() == pytest.approx(0.02, rel=0.3), name
                assert not child.bias.any()
