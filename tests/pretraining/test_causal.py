"""Next-token prediction: its streams against the corpus, the model's blindness to what follows, perplexity."""

import itertools
import math

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.packing import Packing
from unbraid.pretraining.causal import CausalBatches, JointBatches
from unbraid.pretraining.mlm import MaskedLanguageModeling, evaluate_mlm
from unbraid.text.batch import Batch

torch.set_num_threads(1)
SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "position_buckets": 8,
}
STUDY = {
    "deberta": DebertaConfig(**SMALL),
    "deberta-ap": DebertaConfig(**SMALL, position_biased_input=True),
    "roberta": DebertaConfig(**SMALL, position_biased_input=True, relative_attention=False, pos_att_type=()),
    "deberta without decoder": DebertaConfig(**SMALL, mask_decoder_passes=0),
}


class Masked:
    """A stream of rows of 1 to 31 tokens of which some are hidden; the rows as they were are its ``originals``."""

    per_epoch = 3

    def originals(self, index: int) -> list[list[int]]:
        rng = np.random.default_rng(index)
        return [rng.integers(5, 60, length).tolist() for length in rng.integers(1, 32, 8)]

    def __getitem__(self, index: int) -> Batch:
        rows = self.originals(index)
        ids = torch.tensor([*itertools.chain(*rows)])
        hidden = torch.rand(len(ids), generator=torch.Generator().manual_seed(index)) < 0.3
        replaced = torch.where(torch.arange(len(ids)) % 3 == 0, ids, 4)
        shown, labels = torch.where(hidden, replaced, ids), torch.where(hidden, ids, -100)
        return Batch(shown, Packing.from_lengths([len(row) for row in rows]), labels)


def draw_model(config: DebertaConfig) -> DebertaForMaskedLM:
    model = DebertaForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.3, generator=generator)
    return model


def test_each_token_is_to_predict_the_next_of_its_row():
    masked = Masked()
    causal = CausalBatches(masked)
    assert causal.per_epoch == masked.per_epoch
    for index in (0, 2, 7):
        batch, rows = causal[index], masked.originals(index)
        assert batch.causal
        assert batch.packing.offsets.tolist() == masked[index].packing.offsets.tolist()
        assert batch.input_ids.tolist() == [*itertools.chain(*rows)]
        assert batch.labels.tolist() == [*itertools.chain(*([*row[1:], -100] for row in rows))]


def test_joint_batches_take_turns():
    masked = Masked()
    causal = CausalBatches(masked)
    joint = JointBatches(masked, causal)
    assert joint.per_epoch == 6
    for index in (0, 1, 2, 5, 9):
        found, expected = joint[index], (causal if index % 2 else masked)[index // 2]
        assert found.causal == expected.causal == bool(index % 2)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("config", STUDY.values(), ids=STUDY)
@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
def test_no_logit_depends_on_a_later_token(config, backend):
    model = draw_model(config)
    model.deberta.encoder.backend = backend
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(60, (2, 37), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[1, 20] = mask[1, 33:] = 0
    for cut in (1, 6, 19, 36):
        changed = ids.clone()
        changed[:, cut:] = torch.randint(60, (2, 37 - cut), generator=generator)
        before = torch.arange(37).expand(2, -1)[mask.bool()] < cut
        with torch.no_grad():
            one, other, seeing = model(ids, mask, causal=True), model(changed, mask, causal=True), model(changed, mask)
        assert torch.equal(one.logits[before], other.logits[before])
        difference = (other.logits - one.logits).abs().amax(1)
        assert (difference[~before] > 1e-2).all()
        assert ((seeing.logits - one.logits)[before].abs().amax(1) > 1e-2).all()


@pytest.mark.parametrize("config", STUDY.values(), ids=STUDY)
def test_a_row_reads_itself_and_all_that_stands_before(config):
    """Cut behind any token, a sequence predicts at that token what it predicts there in full."""
    model = draw_model(config)
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = model(ids, causal=True).logits
        ends = torch.cat([model(ids[:, : n + 1], causal=True).logits[-1:] for n in range(12)])
    torch.testing.assert_close(whole, ends, rtol=1e-4, atol=1e-4)


def test_only_the_rows_asked_for():
    model = draw_model(STUDY["deberta"])
    ids = torch.randint(60, (20,), generator=torch.Generator().manual_seed(5))
    packing = Packing.from_lengths([13, 7])
    predict = torch.zeros(20, dtype=torch.bool)
    predict[[0, 5, 12, 14]] = True
    with torch.no_grad():
        some = model(ids, packing=packing, predict=predict, causal=True).logits
        every = model(ids, packing=packing, causal=True).logits
    torch.testing.assert_close(some, every[predict], rtol=1e-4, atol=1e-4)


def test_a_convolution_looks_ahead():
    model = DebertaForMaskedLM(DebertaConfig(**SMALL, conv_kernel_size=3))
    with pytest.raises(InputError, match="a convolution sees the next tokens"):
        model(torch.tensor([[1, 5, 2]]), causal=True)


def test_the_perplexity_of_a_uniform_model_is_the_vocabulary():
    model = DebertaForMaskedLM(STUDY["deberta"])
    with torch.no_grad():
        for parameter in model.vocabulary.parameters():
            parameter.zero_()
    scores = evaluate_mlm(MaskedLanguageModeling(model), CausalBatches(Masked()), 2)
    assert scores["perplexity"] == pytest.approx(60, rel=1e-5)
    assert scores["loss"] == pytest.approx(math.log(60), rel=1e-5)


def test_a_pattern_is_learned_jointly():
    """A model that sees ahead would know every next token; this one knows those that the pattern decides."""
    words = torch.arange(5, 45).view(10, 4)  # the first two of each four tell the others, not the next four
    generator = torch.Generator().manual_seed(6)

    def draw_batch(causal: bool) -> Batch:
        ids = words[torch.randint(10, (8, 5), generator=generator)].flatten(1)  # (8, 20)
        labels = torch.full_like(ids, -100)
        if causal:
            labels[:, :-1] = ids[:, 1:]
        else:
            places = torch.rand(ids.shape, generator=generator) < 0.2
            labels[places] = ids[places]
            ids = ids.masked_fill(places, 4)
        return Batch(ids.flatten(), Packing.from_lengths([20] * 8), labels.flatten(), causal=causal)

    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    objective = MaskedLanguageModeling(DebertaForMaskedLM(STUDY["deberta"].replace(**dropout, initializer_range=0.1)))
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    for step in range(300):
        loss = objective(draw_batch(step % 2 == 1))
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.eval()
    with torch.no_grad():
        means = [
            {name: float(value) / loss.count for name, value in [("loss", loss.total), *loss.parts.items()]}
            for loss in (objective(draw_batch(causal)) for causal in (False, True))
        ]
    # Of 19 next tokens 4 begin a new four of ten: no model can know them.
    entropy = 4 / 19 * math.log(10)
    assert entropy - 0.1 < means[1]["loss"] < entropy + 0.15
    assert 15 / 19 - 0.03 < means[1]["correct"] < 15 / 19 + 0.15
    assert means[0]["correct"] > 0.9
