"""The models as people use them: forms of input, invariances, bad input."""

from __future__ import annotations

import itertools
import pickle
from typing import get_args

import pytest
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.model.config import Activation, DebertaConfig
from unbraid.model.pretrained import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from unbraid.packing import Packing

SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "position_buckets": 8,
}
CONFIGS = {
    "v3": DebertaConfig(**SMALL),
    "v2": DebertaConfig(**SMALL, conv_kernel_size=3),
    "p2p": DebertaConfig(**SMALL, pos_att_type=("c2p", "p2c", "p2p"), share_att_key=False),
    "bert": DebertaConfig(
        **SMALL, relative_attention=False, pos_att_type=(), position_biased_input=True, type_vocab_size=2
    ),
}
HEADS = [
    Deberta,
    DebertaForMaskedLM,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    DebertaForQuestionAnswering,
]


def draw(model_class, config: DebertaConfig):
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.3, generator=generator)
    return model


def batch(rows: int = 3, width: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, SMALL["vocab_size"], (rows, width), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(rows, width, dtype=torch.int64)
    mask[1:2, 9:] = 0
    return ids, mask


def says(output) -> torch.Tensor:
    for name in ("last_hidden_state", "logits", "start_logits"):
        if hasattr(output, name):
            return getattr(output, name)
    raise AssertionError(output)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_padded_packed_and_alone_are_the_same(head, config):
    """A sequence's outputs depend neither on padding, nor on its neighbours, nor on their order."""
    model = draw(head, config)
    ids, mask = batch()
    padded = says(model(ids, mask))
    per_sequence = head is DebertaForSequenceClassification
    packed = says(model(ids[mask.bool()], packing=Packing.from_mask(mask.bool())))
    if head is DebertaForMaskedLM or per_sequence:
        assert torch.allclose(packed, padded, atol=1e-5)
    else:
        assert torch.allclose(packed, padded[mask.bool()], atol=1e-5)
    backwards = says(model(ids.flip(0), mask.flip(0)))
    alone = says(model(ids[1:2, :9]))
    wider = says(model(nn.functional.pad(ids, (0, 5)), nn.functional.pad(mask, (0, 5))))
    if head is DebertaForMaskedLM:
        assert torch.allclose(alone, padded[17:26], atol=1e-5)
        assert torch.allclose(wider, padded, atol=1e-5)
    else:
        assert torch.allclose(backwards.flip(0), padded, atol=1e-5)
        assert torch.allclose(alone[0], padded[1] if per_sequence else padded[1, :9], atol=1e-5)
        assert torch.allclose(wider if per_sequence else wider[:, :17], padded, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_both_backends_and_a_batch_kept_whole(config):
    model = draw(Deberta, config)
    ids, mask = batch()
    mask[2, 4] = 0
    expected = model(ids, mask).last_hidden_state
    model.encoder.backend = "reference"
    assert torch.allclose(model(ids, mask).last_hidden_state, expected, atol=1e-5)
    model.encoder.backend = "sdpa"
    whole = model(ids.flatten(), packing=Packing.whole(mask.bool())).last_hidden_state.view(3, 17, -1)
    assert torch.allclose(whole[mask.bool()], expected[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("config", [CONFIGS["v3"], CONFIGS["v2"]], ids=["v3", "v2"])
def test_left_padding_changes_nothing_without_absolute_positions(config):
    model = draw(Deberta, config)
    ids, _ = batch(1, 12)
    shifted = model(nn.functional.pad(ids, (6, 0)), nn.functional.pad(torch.ones_like(ids), (6, 0)))
    assert torch.allclose(shifted.last_hidden_state[:, 6:], model(ids).last_hidden_state, atol=1e-5)


def test_hidden_states_on_request():
    model = draw(Deberta, CONFIGS["v2"])
    output = model(*batch(), output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert output.hidden_states[-1] is output.last_hidden_state
    assert model(*batch()).hidden_states is None


def test_attention_weights_sum_to_one_at_real_tokens():
    ids, mask = batch()
    attentions = draw(Deberta, CONFIGS["p2p"])(ids, mask, output_attentions=True).attentions
    assert len(attentions) == 3
    for weights in attentions:
        sums = weights.sum(-1)
        assert torch.allclose(sums, mask[:, None].expand_as(sums).float(), atol=1e-5)
        assert not weights[1, :, :, 9:].any()


def test_attention_weights_of_a_batch_kept_whole():
    model = draw(Deberta, CONFIGS["v2"])
    ids, mask = batch()
    expected = model(ids, mask, output_attentions=True).attentions
    whole = model(ids.flatten(), packing=Packing.whole(mask.bool()), output_attentions=True).attentions
    for ours, weights in zip(whole, expected, strict=True):
        assert torch.allclose(ours, weights, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradient_checkpointing_changes_no_gradient(config):
    config = config.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    gradients = []
    for recompute in (False, True):
        model = draw(DebertaForSequenceClassification, config).train()
        model.deberta.encoder.gradient_checkpointing = recompute
        model(*batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        assert plain is None or torch.allclose(plain, recomputed, atol=1e-6)


def test_dropout_only_in_training():
    model = draw(Deberta, CONFIGS["v3"])
    assert torch.equal(model(*batch()).last_hidden_state, model(*batch()).last_hidden_state)
    model.train()
    assert not torch.equal(model(*batch()).last_hidden_state, model(*batch()).last_hidden_state)


def test_predict_and_labels_agree():
    model = draw(DebertaForMaskedLM, CONFIGS["v3"])
    ids, mask = batch()
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 2], labels[1, 12] = 7, 8, 9  # the last one stands at padding
    output = model(ids, mask, labels=labels)
    assert output.logits.shape == (2, 60)
    expected = nn.functional.cross_entropy(output.logits, torch.tensor([7, 8]))
    assert torch.allclose(output.loss, expected)
    assert torch.allclose(model(ids, mask, predict=labels != -100).logits, output.logits)
    assert torch.allclose(model(ids, mask).logits[[3, 19]], output.logits, atol=1e-5)
    nothing = model(ids, mask, labels=torch.full_like(ids, -100))
    assert nothing.loss == 0
    assert nothing.logits.shape == (0, 60)
    nothing.loss.backward()


def test_the_number_of_decoder_passes_matters():
    ids, mask = batch()
    logits = []
    for passes in range(4):
        model = draw(DebertaForMaskedLM, CONFIGS["v3"].replace(mask_decoder_passes=passes))
        assert (model.decoder is None) == (passes == 0)
        logits.append(model(ids, mask).logits)
    for one, other in itertools.pairwise(logits):
        assert (one - other).abs().max() > 0.1


def test_losses_by_hand():
    ids, mask = batch()
    labels = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(4))
    tokens = draw(DebertaForTokenClassification, CONFIGS["v3"])
    labels[0, 0] = -100
    output = tokens(ids, mask, labels=labels)
    counted = mask.bool() & (labels != -100)
    assert torch.allclose(output.loss, nn.functional.cross_entropy(output.logits[counted], labels[counted]))
    assert not output.logits[~mask.bool()].any()

    spans = draw(DebertaForQuestionAnswering, CONFIGS["v3"])
    start, end = torch.tensor([2, 0, 5]), torch.tensor([4, 0, 5])
    answer = spans(ids, mask, start_positions=start, end_positions=end)
    assert (answer.start_logits[~mask.bool()] == torch.finfo(torch.float32).min).all()
    expected = [
        nn.functional.cross_entropy(answer.start_logits, start),
        nn.functional.cross_entropy(answer.end_logits, end),
    ]
    assert torch.allclose(answer.loss, sum(expected) / 2)


def test_what_is_not_counted_leaves_every_loss_alone():
    ids, mask = batch()
    real = mask.bool()
    nothing, left_out = torch.full_like(ids, -100), torch.zeros_like(real)
    left_out[0, 0] = left_out[1, 4] = True
    labels = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(4)).masked_fill(left_out, -100)

    detector = draw(DebertaForReplacedTokenDetection, CONFIGS["v3"])
    output, counted = detector(ids, mask, labels=labels), real & ~left_out
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits[counted], labels[counted].float())
    assert torch.allclose(output.loss, expected)
    assert torch.allclose(detector(ids, mask, labels=labels.float()).loss, expected)
    for head in (DebertaForReplacedTokenDetection, DebertaForTokenClassification, DebertaForMaskedLM):
        assert draw(head, CONFIGS["v3"])(ids, mask, labels=nothing).loss == 0

    spans = draw(DebertaForQuestionAnswering, CONFIGS["v3"])
    start, end = torch.tensor([2, -100, 5]), torch.full((3,), -100)
    output = spans(ids, mask, start_positions=start, end_positions=end)
    assert torch.allclose(output.loss, nn.functional.cross_entropy(output.start_logits, start) / 2)
    output = spans(ids, mask, start_positions=end, end_positions=end)
    assert output.loss == 0
    output.loss.backward()


def test_labels_may_be_of_32_bits():
    ids, mask = batch()
    each = torch.tensor([1, 0, 1])
    cases = [(head, {"labels": ids % 2}) for head in (DebertaForMaskedLM, DebertaForTokenClassification)]
    cases += [
        (DebertaForReplacedTokenDetection, {"labels": ids % 2}),
        (DebertaForSequenceClassification, {"labels": each}),
    ]
    cases += [(DebertaForQuestionAnswering, {"start_positions": each, "end_positions": each})]
    for head, labels in cases:
        model = draw(head, CONFIGS["v3"])
        short = {name: value.int() for name, value in labels.items()}
        assert torch.equal(model(ids, mask, **short).loss, model(ids, mask, **labels).loss), head
    choices, ids, mask = draw(DebertaForMultipleChoice, CONFIGS["v3"]), ids[None], mask[None]
    one = torch.tensor([2])
    assert torch.equal(choices(ids, mask, labels=one.int()).loss, choices(ids, mask, labels=one).loss)


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (
            DebertaForSequenceClassification,
            {"labels": torch.tensor([[1, -100], [0, 1], [1, 1]])},
            "labels holds -100; ",
        ),
        (DebertaForSequenceClassification, {"labels": torch.tensor([[1, 0], [0, 0.5], [1, 1]])}, "labels holds 0.5; "),
        (DebertaForReplacedTokenDetection, {"labels": torch.full((3, 17), 2)}, "labels holds 2; give 0 or 1"),
        (
            DebertaForQuestionAnswering,
            {"start_positions": torch.tensor([0, 8, 0]), "end_positions": torch.tensor([0, 9, 0])},
            "positions holds one where there is no token",
        ),
    ],
)
def test_labels_that_mean_nothing_are_refused(head, labels, message):
    model = draw(head, CONFIGS["v3"].replace(problem_type="multi_label_classification"))
    with pytest.raises(InputError, match=message):
        model(*batch(), **labels)


def test_a_row_of_padding_only_gives_zeros():
    ids, mask = batch()
    mask[2] = 0
    for head in (Deberta, DebertaForReplacedTokenDetection, DebertaForTokenClassification):
        assert not says(draw(head, CONFIGS["v2"])(ids, mask))[2].any()
    classifier = draw(DebertaForSequenceClassification, CONFIGS["v3"])
    assert not classifier(ids, mask).logits[2].any()
    assert torch.allclose(classifier(ids, mask).logits[:2], classifier(ids[:2], mask[:2]).logits, atol=1e-5)
    for head in HEADS:
        assert says(draw(head, CONFIGS["v2"])(ids, mask * 0)).isfinite().all()


def test_a_choice_of_padding_only_is_no_choice():
    model = draw(DebertaForMultipleChoice, CONFIGS["v3"])
    ids, mask = batch(6)
    mask[5] = 0
    output = model(ids.view(2, 3, -1), mask.view(2, 3, -1), labels=torch.tensor([2, 1]))
    assert output.logits[1].softmax(-1)[2] == 0
    assert output.loss.isfinite()
    packed = model(ids[mask.bool()], packing=Packing.from_mask(mask.bool()), num_choices=3)
    assert torch.allclose(packed.logits, output.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.tensor([[1, 60]])}, "input_ids holds 60, outside the 60 ids from 0 to 59"),
        ({"input_ids": torch.tensor([[1, -2]])}, "input_ids holds -2"),
        ({"input_ids": torch.tensor([[1.0, 2.0]])}, "whole numbers"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, "at least one of each"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, r"give \(sequences, tokens\)"),
        ({"attention_mask": torch.ones(2, 3)}, r"attention_mask has shape \(2, 3\) but input_ids has \(1, 2\)"),
        ({"token_type_ids": torch.ones(2, 3)}, "token_type_ids has shape"),
        ({"labels": torch.tensor([[1, 77]])}, "labels holds 77"),
        ({"labels": torch.tensor([[1, 2, 3]])}, "labels has shape"),
        ({"predict": torch.ones(1, 3, dtype=torch.bool)}, "predict has shape"),
        ({"packing": Packing.from_lengths([3])}, "its packing has 3 tokens"),
        ({"input_ids": torch.zeros(1, 33, dtype=torch.int64)}, "33 tokens does not fit the 32 absolute positions"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    model = draw(DebertaForMaskedLM, CONFIGS["v3"])
    with pytest.raises(InputError, match=message) as caught:
        model(**({"input_ids": torch.tensor([[1, 2]])} | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_survives_pickling(activation):
    model = draw(Deberta, CONFIGS["v2"].replace(hidden_act=activation, conv_act=activation))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (just written here)
    assert torch.equal(says(again(*batch())), says(model(*batch())))


def test_only_absolute_positions_limit_the_length():
    ids = torch.randint(0, 60, (1, 100))
    assert draw(Deberta, CONFIGS["v3"])(ids).last_hidden_state.shape == (1, 100, 24)
    with pytest.raises(InputError, match="100 tokens does not fit"):
        draw(Deberta, CONFIGS["bert"])(ids)


@pytest.mark.parametrize(("head", "config"), [(Deberta, "bert"), (DebertaForMaskedLM, "v3")])
def test_padding_beyond_the_absolute_positions_does_no_harm(head, config):
    model = draw(head, CONFIGS[config])
    ids = torch.zeros(2, 40, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    ids[0, :5], mask[0, :5] = torch.arange(5, 10), 1
    alone, padded = says(model(ids[:1, :5])).view(5, -1), says(model(ids, mask))
    assert torch.allclose(padded[0, :5] if head is Deberta else padded, alone, atol=1e-5)
    assert says(model(ids, mask * 0)).isfinite().all()
    with pytest.raises(InputError, match="a sequence of 36 tokens does not fit the 32 absolute positions"):
        model(ids, mask.roll(31, 1))  # a token's column is its position


def test_the_mask_decoder_needs_two_layers():
    with pytest.raises(InputError, match="num_hidden_layers >= 2"):
        DebertaForMaskedLM(CONFIGS["v3"].replace(num_hidden_layers=1))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_overfits_one_batch(config):
    torch.manual_seed(0)
    model = DebertaForMaskedLM(config.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    ids, mask = batch()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        loss = model(ids, mask, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


TERMS = [terms for count in range(4) for terms in itertools.combinations(("c2p", "p2c", "p2p"), count)]


@pytest.mark.parametrize("terms", TERMS, ids="+".join)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("head", [DebertaForMaskedLM, DebertaForReplacedTokenDetection])
def test_whatever_is_trained_gets_a_gradient(head, norm, shared, terms, tmp_path):
    """Or several processes could not train together."""
    config = CONFIGS["v2"].replace(pos_att_type=terms, share_att_key=shared, norm_rel_ebd=norm)
    drawn = draw(head, config)
    drawn.save_pretrained(tmp_path)
    ids, mask = batch()
    for model in (drawn, head.from_pretrained(tmp_path)):
        model(ids, mask, labels=ids % 2).loss.backward()
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {
            name for name, p in model.named_parameters() if p.grad is not None
        }
        left = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert left == (set() if terms else {name for name in dict(model.named_parameters()) if ".relative_" in name})


def below_the_decoder(model, ids, row, hide):
    """Logits with the state that the decoder reads at one row as it is, and shifted."""
    layer = model.deberta.encoder.layers[model.config.num_hidden_layers - 2]
    found = []
    for shift in (0.0, 5.0):

        def move(_module, _inputs, states, shift=shift):
            states = states.clone()
            states[row] += shift
            return states

        handle = layer.register_forward_hook(move)
        with torch.no_grad():
            found.append(model(ids, hide=hide).logits)
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["v3", "v2", "p2p"])
def test_a_hidden_token_does_not_tell_its_own_prediction(name):
    model = draw(DebertaForMaskedLM, CONFIGS[name])
    ids = torch.tensor([[1, 10, 11, 12, 13, 2]])
    hide = torch.zeros_like(ids, dtype=torch.bool)
    plain, moved = below_the_decoder(model, ids, 3, None)
    assert (plain - moved).abs().amax(1).gt(1e-2).all()
    hide[0, 3] = True
    plain, moved = below_the_decoder(model, ids, 3, hide)
    assert torch.equal(plain, moved)
    plain, moved = below_the_decoder(model, ids, 2, hide)  # what its neighbour has read of it remains
    assert (plain - moved).abs().amax(1).gt(1e-2).all()


def test_hidden_tokens_by_hand():
    """The decoder on states whose hidden rows are the position table's."""
    model = draw(DebertaForMaskedLM, CONFIGS["v3"])
    ids, mask = torch.tensor([[0, 1, 10, 11, 2], [1, 12, 13, 14, 2]]), torch.ones(2, 5, dtype=torch.int64)
    mask[0, 0] = 0
    hide = torch.zeros_like(ids, dtype=torch.bool)
    hide[0, 2] = hide[1, 3] = True
    inputs = model.deberta.enter(ids, mask, None, None)
    with torch.no_grad():
        states, relative = model.deberta.encode(inputs, num_layers=2)
        for row, position in ((1, 2), (7, 3)):
            states[row] = model.decoder.position.weight[position]
        query = states + model.decoder.position.weight[inputs.packing.positions]
        for _ in range(2):
            query = model.deberta.encoder.layers[-1](states, relative, inputs.packing, query, inputs.packing)
        expected = model.vocabulary(query, model.deberta.embeddings.word.weight)
        found = model(ids, mask, hide=hide).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hiding_needs_a_decoder():
    model = DebertaForMaskedLM(CONFIGS["bert"])
    ids = torch.tensor([[1, 10, 2]])
    with pytest.raises(InputError, match="only a mask decoder"):
        model(ids, hide=ids == 10)
    with pytest.raises(InputError, match="hide has shape"):
        DebertaForMaskedLM(CONFIGS["v3"])(ids, hide=torch.ones(1, 2, dtype=torch.bool))
