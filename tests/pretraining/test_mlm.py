"""Masked language modelling: batches against the corpus, the loss against a sum by hand, evaluation."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.objective import Loss, Objective
from unbraid.packing import Packing
from unbraid.pretraining.config import MaskingConfig
from unbraid.pretraining.masking import Masker, example_rng
from unbraid.pretraining.mlm import MaskedBatches, MaskedLanguageModeling, evaluate_mlm, frequency_loss
from unbraid.text.batch import Batch

torch.set_num_threads(1)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


class Bigram(nn.Module):
    """Scores the vocabulary by the token that stands at the place."""

    def __init__(self, vocabulary=1005):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary))

    def forward(self, input_ids, *, packing, token_type_ids, predict, hide, causal):  # noqa: ARG002, called as a model is
        assert len(packing.positions) == len(input_ids)
        assert token_type_ids is None
        return Output(self.table[input_ids[predict]])


@pytest.fixture
def documents(make_corpus):
    """120 documents of 1 to 100 tokens."""
    rng = np.random.default_rng(0)
    return make_corpus([rng.integers(5, 1005, length).tolist() for length in rng.integers(1, 101, 120)]).train


@pytest.fixture
def make_batches(documents, tokenizer):
    def make(**changes):
        options = {"sequence_length": 32, "batch_tokens": 256, "seed": 3, **changes}
        return MaskedBatches(options.pop("documents", documents), tokenizer, MaskingConfig(), **options)

    return make


def sequences_of(batch):
    """(ids, labels) of each sequence."""
    lengths = batch.packing.offsets.diff().tolist()
    return list(zip(batch.input_ids.split(lengths), batch.labels.split(lengths), strict=True))


def restore(ids, labels):
    return torch.where(labels == -100, ids, labels).tolist()


def test_an_epoch_is_the_corpus(make_batches, documents):
    batches = make_batches()
    found = [restore(*sequence) for index in range(batches.per_epoch) for sequence in sequences_of(batches[index])]
    expected = [[1, *ids[at : at + 30].tolist(), 2] for ids in documents for at in range(0, len(ids), 30)]
    assert sorted(found) == sorted(expected)


def test_batches_have_the_types_of_the_contract(make_batches):
    batch = make_batches()[0]
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.input_ids.shape == batch.labels.shape == batch.packing.positions.shape
    assert batch.token_type_ids is None
    assert batch.packing.longest <= 32
    assert 0 < (batch.labels != -100).sum() < len(batch.labels) / 2


def test_a_row_is_masked_alike_in_any_batch(make_batches):
    def masked(batches):
        found = [sequence for index in range(batches.per_epoch) for sequence in sequences_of(batches[index])]
        return sorted((restore(ids, labels), ids.tolist(), labels.tolist()) for ids, labels in found)

    assert masked(make_batches()) == masked(make_batches(batch_tokens=700))


def test_masks_change_with_the_epoch_and_the_seed(make_batches):
    def masks(batches, epoch):
        indices = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        found = [sequence for index in indices for sequence in sequences_of(batches[index])]
        return {tuple(restore(ids, labels)): labels.tolist() for ids, labels in found}

    first = masks(make_batches(), 0)
    for other in (masks(make_batches(), 1), masks(make_batches(seed=4), 0)):
        assert other.keys() == first.keys()
        alike = sum(other[row] == first[row] for row in first if len(row) == 32)
        assert alike < 0.1 * len(first)


def test_seeking_needs_no_history(make_batches):
    batches = make_batches()
    batches[2 * batches.per_epoch + 4]
    for index in (0, 5, 3 * batches.per_epoch):
        fresh, used = make_batches()[index], batches[index]
        assert torch.equal(fresh.input_ids, used.input_ids)
        assert torch.equal(fresh.labels, used.labels)
        assert torch.equal(fresh.packing.offsets, used.packing.offsets)


def test_the_masking_is_that_of_the_masker(make_corpus, tokenizer):
    only = np.random.default_rng(0).integers(5, 1005, 90).tolist()
    batches = MaskedBatches(
        make_corpus([only]).train, tokenizer, MaskingConfig(), sequence_length=512, batch_tokens=512, seed=9
    )
    assert batches.per_epoch == 1
    ids = np.array([1, *only, 2])
    masked, labels = Masker(MaskingConfig(), tokenizer)(ids, example_rng(9, 5, 0))
    assert batches[5].input_ids.tolist() == masked.tolist()
    assert batches[5].labels.tolist() == labels.tolist()


def test_no_documents(make_batches, make_corpus):
    with pytest.raises(InputError, match="give more text, or change held_out"):
        make_batches(documents=make_corpus([[7]], name="one").held_out)


def test_loss_by_hand():
    model = Bigram()
    labels = torch.tensor([-100, 7, -100, -100, 500, 1004, -100])
    batch = Batch(torch.tensor([1, 4, 2, 1, 4, 9, 2]), Packing.from_lengths([3, 4]), labels)
    with torch.no_grad():
        model.table[9, 1004] = 50.0  # certain, and right
    loss = MaskedLanguageModeling(model)(batch)
    table = model.table.detach().double()
    expected = -sum(table[seen].log_softmax(0)[label] for seen, label in [(4, 7), (4, 500), (9, 1004)])
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.total.dtype == torch.float32
    assert loss.count == 3
    best = table[4].argmax().item()
    assert loss.parts["correct"].item() == 1 + (best == 7) + (best == 500)
    assert not loss.parts["correct"].requires_grad


def test_half_precision_logits_are_summed_in_float32():
    model = Bigram().bfloat16()
    batch = Batch(torch.tensor([1, 4, 2]), Packing.from_lengths([3]), torch.tensor([-100, 7, -100]))
    loss = MaskedLanguageModeling(model).loss(batch)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(-model.table[4].detach().float().log_softmax(0)[7].item(), rel=1e-6)


def test_batch_without_labels():
    with pytest.raises(TypeError, match="without labels"):
        MaskedLanguageModeling(Bigram()).loss(Batch(torch.tensor([1, 2]), Packing.from_lengths([2])))


def tiny_model(**changes):
    torch.manual_seed(0)
    size = {
        "vocab_size": 1005,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "position_buckets": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return DebertaForMaskedLM(DebertaConfig(**(size | changes)))


@pytest.mark.parametrize("model", [Bigram(), tiny_model(), tiny_model(mask_decoder_passes=0)])
def test_nothing_to_predict(model):
    batch = Batch(torch.tensor([1, 9, 2]), Packing.from_lengths([3]), torch.full((3,), -100))
    loss = MaskedLanguageModeling(model)(batch)
    assert loss.total.item() == 0
    assert loss.count == 0
    assert loss.parts["correct"].item() == 0
    loss.total.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_loss_of_the_real_model_is_its_own_mean(make_batches):
    model, batch = tiny_model(), make_batches()[0]
    loss = MaskedLanguageModeling(model)(batch)
    output = model(batch.input_ids, packing=batch.packing, labels=batch.labels)
    assert loss.total.item() / loss.count == pytest.approx(output.loss.item(), rel=1e-5)
    assert loss.total.item() / loss.count == pytest.approx(math.log(1005), abs=0.2)


def test_the_loss_of_two_batches_is_the_sum(make_batches):
    """Accumulated gradients weigh every predicted token alike, however the rows were grouped."""
    totals = []
    for batch_tokens in (256, 10**6):
        model, batches = tiny_model(), make_batches(batch_tokens=batch_tokens)
        for index in range(batches.per_epoch):
            MaskedLanguageModeling(model)(batches[index]).total.backward()
        totals.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert make_batches(batch_tokens=10**6).per_epoch == 1
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-3, atol=1e-4)


def test_the_real_model_learns_a_batch(make_batches):
    objective, batch = MaskedLanguageModeling(tiny_model()), make_batches()[0]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
    assert loss.total.item() / loss.count < 0.1
    assert loss.parts["correct"].item() == loss.count


def test_kept_tokens_are_hidden_and_no_others():
    """Those that are predicted and shown as they are; in a causal batch the token shown is not the one predicted."""
    seen = []

    class Listening(Bigram):
        def forward(self, input_ids, **arguments):
            seen.append(arguments["hide"])
            return super().forward(input_ids, **arguments)

    batch = Batch(
        torch.tensor([1, 4, 7, 9, 8, 2]), Packing.from_lengths([6]), torch.tensor([-100, 6, 7, 5, -100, -100])
    )
    MaskedLanguageModeling(Listening()).loss(batch)
    MaskedLanguageModeling(Listening(), hide_kept_tokens=True).loss(batch)
    MaskedLanguageModeling(Listening(), hide_kept_tokens=True).loss(dataclasses.replace(batch, causal=True))
    assert seen[0] is seen[2] is None
    assert seen[1].tolist() == [False, False, True, False, False, False]


class Recorder(Objective):
    """Losses set beforehand; notes the batches and the mode it is called in."""

    def __init__(self, losses):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.losses = losses
        self.calls = []

    def loss(self, batch):
        self.calls.append((batch.input_ids.tolist(), self.training, torch.is_grad_enabled()))
        total, correct, count = self.losses[len(self.calls) - 1]
        return Loss(self.weight + total, {"correct": torch.tensor(float(correct))}, count)


def test_evaluation_weighs_every_token_alike(make_batches):
    objective = Recorder([(10.0, 1, 4), (2.0, 2, 2), (0.0, 0, 0)])
    metrics = evaluate_mlm(objective, make_batches(), max_batches=3)
    assert metrics == pytest.approx({"loss": 2.0, "accuracy": 0.5, "perplexity": math.exp(2.0)})
    assert [call[1:] for call in objective.calls] == [(False, False)] * 3
    assert objective.training


def test_evaluation_visits_one_epoch_at_most(make_batches):
    batches = make_batches()
    objective = Recorder([(1.0, 0, 1)] * 1000)
    evaluate_mlm(objective, batches)
    assert len(objective.calls) == batches.per_epoch
    evaluate_mlm(objective, batches, max_batches=10**6)
    assert len(objective.calls) == 2 * batches.per_epoch


def test_evaluation_is_fixed(make_batches):
    """The same tokens hidden, whatever was trained on between, and the mode as it was."""
    batches, objective = make_batches(), MaskedLanguageModeling(tiny_model(hidden_dropout_prob=0.5)).eval()
    first = evaluate_mlm(objective, batches, max_batches=4)
    assert not objective.training
    batches[7 * batches.per_epoch]
    state = torch.get_rng_state()
    assert evaluate_mlm(objective, make_batches(), max_batches=4) == first
    assert evaluate_mlm(objective, batches, max_batches=4) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_mode_is_restored_after_a_failure(make_batches):
    objective = Recorder([])
    with pytest.raises(IndexError):
        evaluate_mlm(objective, make_batches())
    assert objective.training


def test_diverged_model_has_infinite_perplexity(make_batches):
    assert evaluate_mlm(Recorder([(1e6, 0, 1)]), make_batches(), 1)["perplexity"] == math.inf


def test_evaluating_no_batch(make_batches):
    with pytest.raises(InputError, match="at least one batch"):
        evaluate_mlm(Recorder([]), make_batches(), max_batches=0)


def test_evaluating_unknown_tokens_only(make_batches):
    with pytest.raises(InputError, match="no token to predict"):
        evaluate_mlm(Recorder([(0.0, 0, 0)] * 2), make_batches(), max_batches=2)


class ByFrequency(nn.Module):
    """Scores every place with the logarithms of counts, as a model that reads no text would."""

    def __init__(self, documents, vocabulary=1005):
        super().__init__()
        counts = [1.0] * vocabulary
        for ids in documents:
            for token in ids.tolist():
                counts[token] += 1
        self.scores = nn.Parameter(torch.tensor(counts).log())

    def forward(self, input_ids, *, packing, token_type_ids, predict, hide, causal):  # noqa: ARG002, called as a model is
        return Output(self.scores.expand(int(predict.sum()), -1))


@pytest.mark.parametrize("max_batches", [None, 2])
def test_frequency_loss_is_that_of_a_model_of_counts(make_batches, documents, max_batches):
    batches = make_batches()
    expected = evaluate_mlm(MaskedLanguageModeling(ByFrequency(documents)), batches, max_batches)["loss"]
    assert frequency_loss(documents, batches, 1005, max_batches) == pytest.approx(expected, rel=1e-5)
