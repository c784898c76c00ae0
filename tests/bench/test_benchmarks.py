"""The verb end to end on tiny models, and that the contestants compute what they claim."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
import transformers
from transformers.models.deberta_v2 import modeling_deberta_v2 as modeling

from unbraid import cli
from unbraid.bench import attention, memory, training
from unbraid.bench.config import RAGGED, Config, lengths
from unbraid.bench.measure import Outcome, largest_difference
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig

TINY = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "position_buckets": 16,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DebertaConfig(**TINY).to_dict()), encoding="utf-8")
    return path


def bench(what, model, folder, *options):
    options = ["--threads", "1", "--rounds", "1", "--seconds", "0", *options]
    cli.main(["bench", what, "--model", str(model), "--output", str(folder), *options])
    return json.loads((folder / f"{what}.json").read_text(encoding="utf-8"))


def medians(cell):
    return {outcome["name"]: outcome["median"] for outcome in cell["contestants"]}


def test_inference_end_to_end(model, tmp_path, capsys):
    options = ["--rivals", "transformers", "bert", "--shapes", "1x5", "ragged"]
    result = bench("inference", model, tmp_path, *options)
    assert [(cell["shape"], cell["dtype"]) for cell in result["cells"]] == [
        (shape, dtype) for dtype in ("float32", "bfloat16") for shape in ("1x5", "ragged")
    ]
    for cell in result["cells"]:
        assert set(medians(cell)) == {"unbraid-native", "unbraid-sdpa", "transformers", "bert"}
        for outcome in cell["contestants"]:
            assert (outcome["median"] is None) == (outcome["reason"] is not None)
            assert outcome["name"] == "unbraid-native" or outcome["reason"] is None
    assert "inference: encoder, float32" in capsys.readouterr().out
    before = (tmp_path / "inference.json").read_text()
    bench("inference", model, tmp_path, *options)
    assert (tmp_path / "inference.json").read_text() == before, "what is measured is not measured again"


def test_attention_end_to_end(model, tmp_path):
    options = ["--rivals", "no-positions", "--shapes", "2x9", "--memory-shapes", "1x40", "--dtypes", "float32"]
    result = bench("attention", model, tmp_path, *options)
    assert [cell["part"] for cell in result["cells"]] == ["forward", "forward and backward", "memory"]
    for cell in result["cells"]:
        assert medians(cell)["unbraid-sdpa"] is not None
        assert medians(cell)["no-positions"] is not None


def test_training_end_to_end(model, tmp_path, monkeypatch):
    def here(name, role, _threads, prepare, *arguments):
        prepare(*arguments)()
        return Outcome(name, role, median=1.0)

    monkeypatch.setattr(training, "peak_outcome", here)  # a process for each is slow
    result = bench("training", model, tmp_path, "--shapes", "2x24", "--dtypes", "float32")
    step, peaks = result["cells"]
    assert (step["part"], peaks["part"], peaks["unit"]) == ("step", "memory", "MiB")
    named = {outcome["name"]: outcome for outcome in step["contestants"]}
    assert named["unbraid-sdpa"]["difference"] < 1e-4
    assert named["transformers"]["median"] is not None
    assert medians(peaks)["transformers"] is not None


def test_a_kill_loses_nothing(model, tmp_path, monkeypatch):
    made = []

    def interrupted(cell):
        made.append(cell)
        if len(made) == 3:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(attention, "_times", lambda *arguments: interrupted(arguments))
    with pytest.raises(SystemExit):
        bench("attention", model, tmp_path, "--shapes", "1x5", "1x6")
    assert len(json.loads((tmp_path / "attention.json").read_text())["cells"]) == 2


def test_a_rival_that_nobody_knows_is_refused(model, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench("training", model, tmp_path, "--rivals", "bert")
    assert "no rival 'bert'" in capsys.readouterr().err
    with pytest.raises(InputError, match="neither a file nor a preset"):
        Config(what="inference", model="nothing").architecture()


def test_shapes():
    assert lengths("2x3") == [3, 3]
    assert lengths("ragged") == list(RAGGED)
    with pytest.raises(ValueError, match="shapes"):
        Config(what="inference", shapes=("8by3",))


def draw(shape, dtype=torch.float32):
    return attention.Problem.draw(DebertaConfig(**TINY, long_distance="port"), shape, dtype)


@pytest.mark.parametrize("shape", ["1x1", "3x17", "1x90", "ragged"])
def test_the_attention_of_transformers_is_that_of_its_module(shape):
    """Content and tables go through identity projections of the module, whose heads are then those of the problem."""
    problem = draw(shape)
    config = transformers.DebertaV2Config.from_dict({**problem.config.to_dict(), "share_att_key": False})
    module = modeling.DisentangledSelfAttention(config).eval()
    width = problem.config.hidden_size
    content = [problem.padded(rows) for rows in problem.content[:3]]
    tables = [table.flatten(1) for table in problem.position]
    names = ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj")
    for index, name in enumerate(names):  # each reads its own part of states or tables laid side by side
        projection = torch.nn.Linear(3 * width if index < 3 else 2 * width, width, bias=False)
        part = index if index < 3 else index - 3
        with torch.no_grad():
            projection.weight.zero_()[:, part * width : (part + 1) * width] = torch.eye(width)
        setattr(module, name, projection)
    pairs = problem.mask[:, None, :, None] & problem.mask[:, None, None, :]
    out = module(torch.cat(content, -1), pairs, rel_embeddings=torch.cat(tables, -1))[0]
    ready = attention.build("transformers", problem, backward=False)
    torch.testing.assert_close(ready.outputs()[0], problem.unpadded(out), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["unbraid-sdpa", "transformers"])
def test_contestants_agree_with_the_equation_and_its_gradients(name):
    problem = draw("ragged" if name == "unbraid-sdpa" else "2x33")
    wide = dataclasses.replace(
        problem,
        content=tuple(x.double() for x in problem.content),
        position=tuple(x.double() for x in problem.position),
    )
    truth = attention._ours("reference", wide, backward=True).outputs()
    outputs = attention.build(name, problem, backward=True).outputs()
    assert len(outputs) == len(truth) == 6
    for output, expected in zip(outputs, truth, strict=True):
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_a_wrong_position_does_not_pass_for_agreement():
    problem = draw("2x33")
    flipped = dataclasses.replace(problem, position=tuple(table.flip(0) for table in problem.position))
    for dtype, tolerance in attention.TOLERANCE.items():
        right, wrong = (attention.build("transformers", p, backward=False).outputs() for p in (problem, flipped))
        assert largest_difference(wrong, right) > 3 * tolerance, dtype


def test_about_fifteen_percent_of_real_tokens_are_predicted():
    inputs = training.batch("ragged", 1000)
    predicted = inputs["labels"] != -100
    real = inputs["attention_mask"].bool()
    assert not (predicted & ~real).any()
    assert 0.12 < float(predicted.sum() / real.sum()) < 0.18
    assert torch.equal(inputs["labels"][predicted], inputs["input_ids"][predicted])


def test_peak_memory_is_what_the_work_takes():
    def peak(*work):
        return memory.peak_outcome("x", "ours", 1, *work)

    assert 95 < peak(functools.partial, torch.ones, 100 * 2**18).median < 130
    assert peak(functools.partial, torch.ones, 2**46).reason, "it fails, and nothing is killed for it"
    assert peak(int, "seven").reason == "invalid literal for int() with base 10: 'seven'"
