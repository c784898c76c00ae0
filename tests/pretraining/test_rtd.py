"""Replaced token detection: labels, gradients and tables against cases made by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from unbraid.packing import Packing
from unbraid.pretraining.config import MaskingConfig, RtdConfig
from unbraid.pretraining.mlm import MaskedBatches
from unbraid.pretraining.rtd import Detection, Generation, ReplacedTokenDetection, evaluate_rtd
from unbraid.text.batch import Batch
from unbraid.training.config import TrainingConfig
from unbraid.training.loop import train

torch.set_num_threads(1)
SMALL = {
    "vocab_size": 1005,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "position_buckets": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def draw(model):
    generator = torch.Generator().manual_seed(len(model.state_dict()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.normal_(float(norm), 0.1 if norm else 0.3, generator=generator)
    return model


def make(tokenizer, keep_embeddings=False, **fields):
    changes = fields.pop("model", {})
    config = DebertaConfig(**(SMALL | changes))
    generator = draw(DebertaForMaskedLM(config.replace(num_hidden_layers=2)))
    discriminator = draw(DebertaForReplacedTokenDetection(config))
    fields = {"decoupled": fields.get("sharing") != "es", **fields}
    masking = MaskingConfig()
    return ReplacedTokenDetection(
        generator, discriminator, RtdConfig(**fields), masking, tokenizer, keep_embeddings=keep_embeddings
    )


def tables(objective):
    return (
        objective.generation.model.deberta.embeddings.word,
        objective.detection.model.deberta.embeddings.word,
    )


@pytest.fixture
def batches(tokenizer, make_corpus):
    rng = np.random.default_rng(0)
    documents = make_corpus([rng.integers(5, 1005, length).tolist() for length in rng.integers(5, 60, 40)]).train
    return MaskedBatches(documents, tokenizer, MaskingConfig(), sequence_length=32, batch_tokens=256, seed=0)


class Certain(nn.Module):
    """A generator that is sure of the ids it is given."""

    def __init__(self, ids, vocabulary=12):
        super().__init__()
        self.scores = nn.Parameter(functional.one_hot(torch.tensor(ids), vocabulary).float() * 1000)

    def forward(self, *_, **__):
        return type("Output", (), {"logits": self.scores})


def all_drawable(vocabulary=12):
    return torch.ones(vocabulary, dtype=torch.bool)


def test_labels_by_hand():
    """Masked, kept and random places, a lucky guess among them."""
    seen = torch.tensor([1, 4, 7, 4, 9, 10, 2])
    labels = torch.tensor([-100, 6, 7, 8, 5, -100, -100])  # 6 and 8 masked, 7 kept, 5 shown as 9
    batch = Batch(seen, Packing.from_lengths([7]), labels)
    loss = Generation(Certain([6, 11, 10, 5]), all_drawable(), 1.0, False).loss(batch)
    assert loss.handed.input_ids.tolist() == [1, 6, 11, 10, 5, 10, 2]
    assert loss.handed.labels.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert loss.count == 4
    assert loss.parts["generator_correct"].item() == 2
    assert loss.total.item() == pytest.approx(2000)
    assert seen.tolist() == [1, 4, 7, 4, 9, 10, 2]


def test_forbidden_ids_are_never_drawn():
    drawable = all_drawable()
    drawable[[0, 1, 2, 4]] = False
    generation = Generation(Certain([4] * 3), drawable, 1.0, False)  # sure of a special token
    torch.manual_seed(0)
    batch = Batch(torch.full((3,), 4), Packing.from_lengths([3]), torch.tensor([5, 6, 7]))
    drawn = torch.cat([generation.corrupt(batch, torch.randn(3, 12)).input_ids for _ in range(200)])
    assert set(drawn.tolist()) == {3, *range(5, 12)}


def test_the_vocabulary_beyond_the_tokenizer_is_never_drawn(make_tokenizer):
    objective = make(make_tokenizer(), model={"vocab_size": 1100})
    assert objective.generation.drawable.nonzero().flatten().tolist() == list(range(5, 1005))


def test_guesses_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([2.0, 0.0, 1.0]).repeat(20000, 1)
    batch = Batch(torch.zeros(20000, dtype=torch.int64), Packing.from_lengths([20000]), torch.zeros(20000).long())
    torch.manual_seed(0)
    for temperature in (1.0, 0.5):
        generation = Generation(Certain([0], 3), all_drawable(3), temperature, False)
        counts = generation.corrupt(batch, logits).input_ids.bincount(minlength=3) / 20000
        expected = [math.exp(score / temperature) for score in (2, 0, 1)]
        torch.testing.assert_close(counts, torch.tensor(expected) / sum(expected), atol=0.015, rtol=0)


def test_scores_that_are_not_finite_are_guessed_from_and_touch_no_other_guess():
    drawable = all_drawable()
    drawable[[0, 4]] = False
    batch = Batch(torch.full((40,), 4), Packing.from_lengths([40]), torch.full((40,), 5))
    logits = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 3
    generation = Generation(Certain([4]), drawable, 0.5, False)
    torch.manual_seed(1)
    healthy = generation.corrupt(batch, logits).input_ids
    torch.manual_seed(1)
    chances = (logits / 0.5).masked_fill(~drawable, -torch.inf).softmax(-1)
    assert torch.equal(healthy, chances.multinomial(1).squeeze(-1))
    logits[0], logits[1, 3], logits[2], logits[3, 7] = torch.nan, torch.nan, -torch.inf, torch.inf
    torch.manual_seed(1)
    drawn = generation.corrupt(batch, logits).input_ids
    assert torch.equal(drawn[4:], healthy[4:])
    assert drawable[drawn].all()
    assert drawn[3] == 7


def test_a_run_that_diverges_ends_with_a_sentence(tokenizer, batches, tmp_path):
    objective = make(tokenizer)
    with torch.no_grad():
        objective.generation.model.deberta.embeddings.word.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="the loss is nan at step 1, so the run stops"):
        train(objective, batches, TrainingConfig(steps=1, device="cpu"), tmp_path)


def test_nothing_to_fill(tokenizer):
    objective = make(tokenizer, sharing="es")
    batch = Batch(torch.tensor([1, 9, 2]), Packing.from_lengths([3]), torch.full((3,), -100))
    handed = objective.generation.loss(batch).handed
    assert handed.input_ids.tolist() == [1, 9, 2]
    assert not handed.labels.any()


def test_detection_is_over_every_real_token():
    logits = torch.tensor([3.0, -1.0, 0.5, -2.0])
    model = nn.Module()
    model.forward = lambda *_, **__: type("Output", (), {"logits": logits})
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    loss = Detection(model, 50.0).loss(Batch(torch.tensor([1, 8, 9, 2]), Packing.from_lengths([4]), labels))
    probability = [1 / (1 + math.exp(-x)) for x in (3.0, -1.0, 0.5, -2.0)]
    expected = -math.log(1 - probability[0]) - math.log(probability[1] * probability[2]) - math.log(1 - probability[3])
    assert loss.total.item() == pytest.approx(50 * expected, rel=1e-6)
    assert {name: value.item() for name, value in loss.parts.items()} == pytest.approx(
        {"detection_loss": expected, "detection_correct": 2, "replaced": 2, "found": 1, "suspected": 2}, rel=1e-6
    )
    assert loss.count == 4


def detect(objective, batches):
    torch.manual_seed(0)
    handed = objective.generation.loss(batches[0]).handed
    objective.zero_grad()
    objective.detection.loss(handed).total.backward()
    return handed


def test_gdes_keeps_the_discriminators_gradient_from_the_generator(tokenizer, batches):
    objective = make(tokenizer, sharing="gdes")
    handed = detect(objective, batches)
    generator, discriminator = tables(objective)
    assert all(parameter.grad is None for parameter in objective.generation.parameters())

    # The difference gets the gradient that a table of its own with the same values would get.
    plain = objective.discriminator()
    plain.requires_grad_(True)
    Detection(plain, 50.0).loss(handed).total.backward()
    torch.testing.assert_close(discriminator.delta.grad, plain.deberta.embeddings.word.weight.grad)
    assert discriminator.delta.grad.any()

    objective.zero_grad()
    objective.generation.loss(batches[0]).total.backward()
    assert generator.weight.grad.any()
    assert all(parameter.grad is None for parameter in objective.detection.parameters())


def test_gdes_reads_the_generators_table_as_it_becomes(tokenizer):
    objective = make(tokenizer, sharing="gdes")
    generator, discriminator = tables(objective)
    ids = torch.tensor([7, 9, 7])
    with torch.no_grad():
        discriminator.delta.normal_()
        generator.weight += 1
    torch.testing.assert_close(discriminator(ids), (generator.weight + discriminator.delta)[ids])
    torch.testing.assert_close(discriminator.weight, generator.weight + discriminator.delta)
    names = [name for name, _ in objective.named_parameters() if "word" in name]
    assert names == [
        "generation.model.deberta.embeddings.word.weight",
        "detection.model.deberta.embeddings.word.delta",
    ]


def test_gdes_begins_with_the_generators_table_or_keeps_the_discriminators(tokenizer):
    own = draw(DebertaForReplacedTokenDetection(DebertaConfig(**SMALL))).deberta.embeddings.word.weight
    generator, discriminator = tables(make(tokenizer, sharing="gdes"))
    assert torch.equal(discriminator.weight, generator.weight)
    generator, discriminator = tables(make(tokenizer, sharing="gdes", keep_embeddings=True))
    torch.testing.assert_close(discriminator.weight, own)
    assert not torch.allclose(own, generator.weight)


def test_es_adds_both_gradients_in_one_table(tokenizer, batches):
    objective = make(tokenizer, sharing="es")
    generator, discriminator = tables(objective)
    assert generator is discriminator
    handed = detect(objective, batches)
    detection = generator.weight.grad.clone()
    objective.zero_grad()
    objective.generation.loss(batches[0]).total.backward()
    generation = generator.weight.grad.clone()
    objective.zero_grad()
    torch.manual_seed(0)
    loss = objective(batches[0])
    loss.total.backward()
    torch.testing.assert_close(generator.weight.grad, generation + 0.15 * detection, rtol=1e-4, atol=1e-5)
    assert detection.any()
    assert generation.any()
    assert loss.count == (batches[0].labels != -100).sum()
    assert len(handed.labels) * 0.05 < loss.count < len(handed.labels) * 0.25


def test_nes_shares_nothing(tokenizer, batches):
    objective = make(tokenizer, sharing="nes")
    generator, discriminator = tables(objective)
    assert generator.weight.data_ptr() != discriminator.weight.data_ptr()
    assert not torch.allclose(generator.weight, discriminator.weight)
    detect(objective, batches)
    assert generator.weight.grad is None
    assert discriminator.weight.grad.any()


def test_es_in_two_steps_is_refused():
    with pytest.raises(ValueError, match="set decoupled to false"):
        RtdConfig(sharing="es")


def test_position_tables_at_the_input_are_shared_too(tokenizer):
    objective = make(tokenizer, model={"position_biased_input": True})
    generator = objective.generation.model.deberta.embeddings.position
    assert objective.detection.model.deberta.embeddings.position.weight.equal(generator.weight)
    plain = objective.discriminator()
    assert plain.deberta.embeddings.position.weight.equal(generator.weight)
    objective.detection.model(torch.tensor([[1, 8, 2]]))


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_saved_is_an_ordinary_model(tokenizer, batches, tmp_path, sharing):
    objective = make(tokenizer, sharing=sharing).eval()
    if sharing == "gdes":
        with torch.no_grad():
            tables(objective)[1].delta.normal_()
    objective.save_pretrained(tmp_path)
    discriminator = DebertaForReplacedTokenDetection.from_pretrained(tmp_path)
    generator = DebertaForMaskedLM.from_pretrained(tmp_path / "generator")
    assert type(discriminator.deberta.embeddings.word) is nn.Embedding
    batch = batches[0]
    for saved, trained in ((discriminator, objective.detection.model), (generator, objective.generation.model)):
        with torch.no_grad():
            found, expected = (model(batch.input_ids, packing=batch.packing).logits for model in (saved, trained))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected = tables(objective)[0].weight + (tables(objective)[1].delta if sharing == "gdes" else 0)
    if sharing != "nes":
        assert discriminator.deberta.embeddings.word.weight.equal(expected)


def test_phases(tokenizer, batches):
    decoupled, joint = make(tokenizer), make(tokenizer, decoupled=False)
    assert decoupled.phases == (decoupled.generation, decoupled.detection)
    assert joint.phases == (joint,)
    torch.manual_seed(0)
    generated = joint.generation.loss(batches[0])
    detected = joint.detection.loss(generated.handed)
    torch.manual_seed(0)
    loss = joint(batches[0])
    assert loss.total.item() == pytest.approx((generated.total + 0.15 * detected.total).item(), rel=1e-6)
    assert loss.handed is None


def test_evaluation_by_hand(tokenizer, batches):
    objective = make(tokenizer)
    with torch.no_grad():  # so that it suspects about half of the tokens
        model, batch = objective.eval().detection.model, batches[0]
        model.replaced.classifier.bias -= model(batch.input_ids, packing=batch.packing).logits.median()
    found = evaluate_rtd(objective, batches, 2)
    sums = {}
    with torch.no_grad():
        for index in range(2):
            torch.manual_seed(index)
            generated = objective.generation.loss(batches[index])
            detected = objective.detection.loss(generated.handed)
            parts = {"M": generated.count, "N": detected.count, **generated.parts, **detected.parts}
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    expected = {
        "generator_loss": sums["generator_loss"] / sums["M"],
        "generator_accuracy": sums["generator_correct"] / sums["M"],
        "detection_loss": sums["detection_loss"] / sums["N"],
        "detection_accuracy": sums["detection_correct"] / sums["N"],
        "precision": sums["found"] / sums["suspected"],
        "recall": sums["found"] / sums["replaced"],
    }
    expected["loss"] = expected["generator_loss"] + 50 * expected["detection_loss"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0 < found["recall"] < 1


def test_it_learns_to_find_replaced_tokens(make_tokenizer, make_corpus):
    """Text with a rule (each token is followed by its successor) that a replaced token breaks."""
    tokenizer = make_tokenizer(20)
    starts = np.random.default_rng(0).integers(0, 40, 64)
    documents = make_corpus([(5 + (start + np.arange(14)) % 40).tolist() for start in starts]).train
    data = MaskedBatches(documents, tokenizer, MaskingConfig(), sequence_length=16, batch_tokens=512, seed=0)
    torch.manual_seed(0)
    config = DebertaConfig(**(SMALL | {"vocab_size": 45, "hidden_size": 32, "initializer_range": 0.1}))
    objective = ReplacedTokenDetection(
        DebertaForMaskedLM(config.replace(num_hidden_layers=2)),
        DebertaForReplacedTokenDetection(config),
        RtdConfig(detection_weight=5.0),
        MaskingConfig(),
        tokenizer,
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(200):
        batch = data[step]
        for phase in objective.phases:
            loss = phase(batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            batch = loss.handed
    intact = torch.tensor([1, *range(9, 23), 2])
    broken = intact.clone()
    broken[7] = 30
    for ids, replaced in ((intact, []), (broken, [7])):
        suspected = objective.eval().detection.model(ids[None]).logits[0] > 0
        assert suspected.nonzero().flatten().tolist() == replaced
