"""unbraid ablate: every run it promises, in its order; what is finished stays; the numbers are those of the runs."""

from __future__ import annotations

import errno
import functools
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from unbraid import cli, files
from unbraid.commands import ablate, finetune, pretrain
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Deberta
from unbraid.pretraining import attention_maps
from unbraid.pretraining.ablation import VARIANTS
from unbraid.pretraining.config import CorpusConfig
from unbraid.text.tokenizer import Tokenizer
from unbraid.training.config import TrainingConfig

WORDS = ("the", "old", "river", "runs", "by", "a", "small", "town", "where", "many", "people", "speak", "of", "stone")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a text, a tokenizer, and two recipes of tasks with their data."""
    folder = tmp_path_factory.mktemp("ablate")
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)) for i in range(1, 60)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    rows = "".join(f"a {('good', 'bad')[i % 2]} town {i}\t{('pos', 'neg')[i % 2]}\n" for i in range(20))
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    for name, test in (("towns", f"test = {str(folder / 'test.tsv')!r}\n"), ("others", "metric = 'f1'\n")):
        task = f"train = {str(folder / 'train.tsv')!r}\ndev = {str(folder / 'dev.tsv')!r}\nbatch_size = 10\n{test}"
        training = "[training]\nsteps = 3\n[training.optimizer]\nlearning_rate = 0.01\n"
        (folder / f"{name}.toml").write_text(f"[task]\n{task}{training}", encoding="utf-8")
    where = ["--path", str(folder / "text.txt"), "--output", str(folder / "tokenizer")]
    cli.main(["tokenizer", "train", "--vocab-size", "34", *where])
    return folder


def options(place: Path, output: Path, *more: object) -> list[str]:
    """Of a tiny ablation; later options override these."""
    return [
        *("--output", str(output), "--tokenizer", str(place / "tokenizer"), "--corpus.path", str(place / "text.txt")),
        *("--corpus.held-out", "0.2", "--corpus.sequence-length", "16", "--corpus.batch-tokens", "64"),
        *("--model.hidden-size", "16", "--model.num-hidden-layers", "2", "--model.num-attention-heads", "2"),
        *("--model.intermediate-size", "16", "--model.max-position-embeddings", "32", "--evaluation-batches", "2"),
        *("--training.steps", "4", "--training.evaluate-every", "2", "--tasks", str(place / "towns.toml")),
        *("--variants", "roberta", "-(EMD+C2P)", "--seeds", "3", "5", *map(str, more)),
    ]


def run(place: Path, output: Path, *more: object) -> None:
    cli.main(["ablate", *options(place, output, *more)])


def config_of(place: Path, output: Path, *more: object) -> ablate.Config:
    return cli.read_config(ablate.Config, "ablate", options(place, output, *more))


def without_minutes(output: Path) -> dict:
    summary = json.loads((output / "ablation.json").read_text())
    for variant in summary.values():
        for outcome in variant["runs"].values():
            del outcome["minutes"]
    return summary


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "runs"
    run(place, output)
    return output


def test_the_runs_are_there_and_their_numbers_are_in_the_table(finished):
    table = (finished / "ablation.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    head, *rows = rows
    assert head[:6] == ["", "masked loss", "towns, test accuracy", "seeds", "parameters", "minutes"]
    assert head[6:] == ["paper: MNLI-m/mm", "paper: SQuAD 1.1 F1/EM", "paper: SQuAD 2.0 F1/EM", "paper: RACE"]
    starts = [number for number, row in enumerate(rows) if row[0] in ("minus roberta", "")]
    rows, minus, looks = rows[: starts[0]], rows[starts[0] : starts[1]], rows[starts[1] :]
    assert [row[0] for row in rows] == ["roberta", "-(EMD+C2P)"]
    found = {}
    assert rows[1][6:] == ["85.8/85.9", "91.5/85.3", "80.3/77.2", "68.1"]
    for row in rows:
        losses, scores = [], []
        for seed in (3, 5):
            folder = finished / row[0] / f"seed-{seed}"
            lines = (folder / "pretraining/metrics.jsonl").read_text().splitlines()
            losses.append([json.loads(line) for line in lines if '"evaluation"' in line][-1]["loss"])
            scores.append(100 * json.loads((folder / "towns/results.json").read_text())["test"]["accuracy"])
        assert row[1] == f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f}"
        assert row[2] == f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        assert row[3] == "2"
        assert losses[0] != losses[1], "seeds differ"
        found[row[0]] = losses, scores
    gaps = [[after - before for before, after in zip(*pair, strict=True)] for pair in zip(*found.values(), strict=True)]
    errors = [statistics.stdev(gap) / 2**0.5 for gap in gaps]
    assert minus[0][:4] == ["minus roberta", "masked loss", "towns, test accuracy", "seeds"]
    assert minus[1][:4] == [
        "-(EMD+C2P)",
        f"{statistics.fmean(gaps[0]):+.3f} ± {errors[0]:.3f}",
        f"{statistics.fmean(gaps[1]):+.1f} ± {errors[1]:.1f}",
        "2",
    ]
    assert len(minus) == 2
    assert looks[0] == ["", "itself", "near", "[CLS]", "[SEP]", "frequent", "seeds"]
    assert [row[0] for row in looks[1:]] == ["roberta", "-(EMD+C2P)", "everywhere alike"]
    assert (finished / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_where_the_models_look_is_drawn_and_measured(finished):
    """Against the weights that each model itself gives out, token by token."""
    picture = (finished / "attention.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > 900
    assert height > 800
    summary = json.loads((finished / "ablation.json").read_text())
    texts = set()
    for name in ("roberta", "-(EMD+C2P)"):
        means = []
        for seed in (3, 5):
            folder = finished / name / f"seed-{seed}" / "pretraining"
            measured = json.loads((folder / "attention.json").read_text())
            texts.add(json.dumps([each["tokens"] for each in measured["maps"]]))
            tokenizer = Tokenizer.from_pretrained(folder / "model")
            ids = {tokenizer.token(index): index for index in range(len(tokenizer))}
            encoder = Deberta.from_pretrained(folder / "model")
            for each in measured["maps"]:
                text = torch.tensor([[ids[token] for token in each["tokens"]]])
                with torch.no_grad():
                    weights = encoder(text, output_attentions=True).attentions[-1]
                torch.testing.assert_close(weights[0].mean(0), torch.tensor(each["weights"]), rtol=0, atol=2e-5)
                assert each["tokens"][0] == "[CLS]"
                assert each["tokens"][-1] == "[SEP]"
                assert "[MASK]" not in each["tokens"], "nothing is hidden"
            means.append(measured["shares"]["near"])
        near = summary[name]["attention"]["near"]
        assert near["mean"] == pytest.approx(statistics.fmean(means))
        assert near["deviation"] == pytest.approx(statistics.stdev(means))
    assert len(texts) == 1, "the same texts for all"


def test_what_is_measured_once_is_not_measured_again(place, finished, tmp_path, monkeypatch):
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    lost = output / "roberta/seed-5/pretraining/attention.json"
    kept = lost.read_text()
    lost.unlink()
    calls = []
    measure = attention_maps.measure

    def counted(*arguments):
        calls.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(attention_maps, "measure", counted)
    run(place, output)
    assert len(calls) == 1, "the one that was not there"
    assert lost.read_text() == kept
    shutil.rmtree(output / "roberta/seed-3/towns")  # as if killed after its pretraining
    run(place, output)
    assert (output / "roberta/seed-3/towns/results.json").exists()
    assert len(calls) == 1


def test_the_models_are_those_of_the_variants(finished):
    def described(name: str) -> dict:
        path = finished / name / "seed-5" / "pretraining"
        recipe = json.loads((path / "recipe.json").read_text())
        assert recipe["corpus"]["seed"] == recipe["training"]["seed"] == 5
        return json.loads((path / "model/config.json").read_text())

    roberta, reduced = described("roberta"), described("-(EMD+C2P)")
    assert roberta["position_biased_input"]
    assert not roberta["relative_attention"]
    assert reduced["pos_att_type"] == ["p2c"]
    assert reduced["mask_decoder_passes"] == 0
    assert not reduced["share_att_key"]
    assert reduced["position_buckets"] == -1, "v1 has none"
    # The encoder by hand: the vocabulary, 2 layers of 4 projections, 2 feed-forward matrices and 2 norms, the norm of
    # the input; then 32 absolute positions, or 64 relative ones and a projection of them in each layer.
    width, words = 16, 34
    encoder = words * width + 2 * width + 2 * (6 * (width * width + width) + 4 * width)
    parameters = {name: row["runs"]["3"]["parameters"] for name, row in without_minutes(finished).items()}
    assert parameters["roberta"] == encoder + 32 * width
    assert parameters["-(EMD+C2P)"] == encoder + 64 * width + 2 * (width * width + width)


def test_run_again_nothing_is_trained_and_the_table_is_printed(place, finished, capsys, monkeypatch):
    def trains(config: object) -> None:
        raise AssertionError(f"trained again: {config}")

    monkeypatch.setattr(pretrain, "run", trains)
    monkeypatch.setattr(finetune, "run", trains)
    run(place, finished)
    printed = capsys.readouterr().out
    assert (finished / "ablation.md").read_text(encoding="utf-8") in printed
    assert " of 4" not in printed


def test_stopped_and_killed_it_continues_to_the_same_result(place, finished, tmp_path, capsys, monkeypatch):
    output = tmp_path / "runs"
    run(place, output, "--max-minutes", "1e-6")
    assert "stopped in run 1 of 4" in capsys.readouterr().out
    assert not (output / "roberta/seed-3/pretraining/model").exists()

    tune = finetune.run

    def killed(config: finetune.Config) -> None:
        if "-(EMD+C2P)" in config.output:
            raise KeyboardInterrupt
        return tune(config)

    monkeypatch.setattr(finetune, "run", killed)
    with pytest.raises(SystemExit):
        run(place, output)
    progress = capsys.readouterr().out
    assert re.findall(r"^(\d of 4: [^;\n]*)", progress, flags=re.MULTILINE) == [
        "1 of 4: roberta, seed 3",
        "2 of 4: -(EMD+C2P), seed 3",
    ]
    assert set(without_minutes(output)) == {"roberta"}, "what is finished is compared at once"
    monkeypatch.setattr(finetune, "run", tune)

    run(place, output)
    progress = capsys.readouterr().out
    assert len(re.findall(r"^\d of 4: .*; about \d+:\d\d:\d\d left$", progress, flags=re.MULTILINE)) == 3
    assert re.findall(r"^(\d of 4: [^;\n]*)", progress, flags=re.MULTILINE) == [
        "2 of 4: -(EMD+C2P), seed 3",
        "3 of 4: roberta, seed 5",
        "4 of 4: -(EMD+C2P), seed 5",
    ]
    assert without_minutes(output) == without_minutes(finished)


def test_one_seed_has_no_spread_and_no_tasks_are_needed(place, tmp_path):
    output = tmp_path / "runs"
    config = config_of(place, output, "--variants", "deberta", "--seeds", "0")
    ablate.run(ablate.Config(**{**vars_of(config), "tasks": ()}))
    table = (output / "ablation.md").read_text(encoding="utf-8")
    assert not [line for line in table.splitlines() if line.startswith("|") and "±" in line]
    assert "minus" not in table, "there is nothing to compare with"
    assert without_minutes(output)["deberta"]["masked_loss"]["deviation"] is None


def test_processes_side_by_side_take_turns_at_the_files_of_all_runs(place, finished, monkeypatch):
    config = config_of(place, finished)
    tasks, table = ablate.read_tasks(config), finished / "ablation.md"
    monkeypatch.setattr(ablate, "FileLock", functools.partial(FileLock, timeout=0))
    before = table.stat().st_mtime_ns
    with FileLock(finished / ".lock"):
        for use in (ablate.compare, functools.partial(ablate._check_same, text={}, record=True)):
            with pytest.raises(Timeout):
                use(config, tasks)
    assert table.stat().st_mtime_ns == before
    assert ablate.compare(config, tasks) == table.read_text(encoding="utf-8")
    assert table.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    "name", ["recipe.json", "attention.json", "ablation.json", "ablation.md", "ablation.png", "attention.png"]
)
def test_a_full_disk_is_one_sentence_and_costs_no_run(name, place, finished, tmp_path, capsys, monkeypatch):
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    (output / "roberta/seed-3/pretraining/attention.json").unlink()
    replace = files.replace_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, content)

    with monkeypatch.context() as patch:
        for module in (files, ablate):
            patch.setattr(module, "replace_bytes", full)
        with pytest.raises(SystemExit):
            run(place, output)
    where = output / "roberta/seed-3/pretraining" if name == "attention.json" else output
    assert capsys.readouterr().err == (
        f"unbraid: cannot write to {where} ([Errno 28] No space left on device): "
        "free space there and run the same command again to continue.\n"
    )
    run(place, output)
    assert without_minutes(output) == without_minutes(finished)


def test_an_output_that_is_a_file(place, tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    with pytest.raises(SystemExit):
        run(place, tmp_path / "runs", "--cache", tmp_path / "cache")
    assert f"unbraid: cannot write to {tmp_path / 'runs'} ([Errno 17]" in capsys.readouterr().err


def vars_of(config: ablate.Config) -> dict:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_tasks_and_seeds_may_come_later_but_no_other_values(place, finished, tmp_path, capsys, monkeypatch):
    def changed(*more: object) -> str:
        with pytest.raises(SystemExit):
            run(place, finished, *more)
        return capsys.readouterr().err

    assert "ablation.training.steps was 4, and here it is 5" in changed("--training.steps", "5")
    assert "ablation.masking.max_ngram was 3" in changed("--masking.max-ngram", "1")
    recipe = (place / "towns.toml").read_text()
    (tmp_path / "towns.toml").write_text(recipe.replace("steps = 3", "steps = 2"))
    assert "tasks.towns.training.steps was 3" in changed("--tasks", tmp_path / "towns.toml")
    text = (place / "text.txt").read_text(encoding="utf-8")
    (place / "text.txt").write_text(text + "\n\nthe river", encoding="utf-8")
    assert "holds an ablation where text.documents was" in changed()
    (place / "text.txt").write_text(text, encoding="utf-8")

    trained = []
    monkeypatch.setattr(ablate, "train", lambda *arguments: trained.append(arguments[2:4]))
    run(place, finished, "--seeds", "3", "7")
    run(place, finished, "--tasks", place / "towns.toml", place / "others.toml")
    assert trained == [("roberta", 7), ("roberta", 3)], "each stops at what is not there"


@pytest.mark.parametrize(
    ("group", "objectives", "sharing"),
    [("v3", ["mlm", "rtd", "rtd", "rtd"], [None, "es", "nes", "gdes"]), ("table-13", ["mlm"] * 4, [None] * 4)],
)
def test_a_group_is_a_table_of_the_papers(group, objectives, sharing, place, tmp_path):
    config = config_of(place, tmp_path / "runs", "--variants", group, "--rtd.detection-weight", "10")
    runs = [ablate.pretraining(config, name, 3) for name in config.names]
    assert [one.objective for one in runs] == objectives
    assert [one.rtd.sharing if one.objective == "rtd" else None for one in runs] == sharing
    assert all(one.rtd.detection_weight == 10 for one in runs if one.objective == "rtd")
    assert len({one.cache for one in runs}) == 1, "the text is tokenised once"
    assert len({one.output for one in runs}) == 4


def test_the_generator_is_what_compares_where_tokens_are_replaced(place, tmp_path):
    """Its loss is of masked tokens; the discriminator's is of another kind."""
    config = config_of(place, tmp_path / "runs", "--variants", "rtd-gdes")
    folder = tmp_path / "runs/rtd-gdes/seed-3/pretraining"
    (folder / "model").mkdir(parents=True)
    fields = DebertaConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=9
    )
    (folder / "model/config.json").write_text(json.dumps(fields.to_dict()))
    rows = [
        {"step": 4, "kind": "train", "loss": 9.0, "elapsed_s": 90.0},
        {"step": 4, "kind": "evaluation", "loss": 9.0, "generator_loss": 2.5, "detection_loss": 0.13},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "attention.json").write_text(json.dumps({"shares": {"itself": 0.5}, "even": {}, "maps": []}))
    outcome = ablate.outcome(config, {}, "rtd-gdes", 3)
    assert outcome.losses == [2.5]
    assert outcome.minutes == 1.5
    assert outcome.attention == {"itself": 0.5}


def test_faults_are_told_before_anything_is_trained(place, tmp_path, capsys):
    output = tmp_path / "runs"
    recipe = (place / "towns.toml").read_text()
    (tmp_path / "bad.toml").write_text(recipe.replace("batch_size", "batchsize"))
    (tmp_path / "worse.toml").write_text("[task\n")
    (tmp_path / "lost.toml").write_text(recipe.replace("train.tsv", "lost.tsv"))
    (tmp_path / "without.toml").write_text("[training]\nsteps = 3\n")
    (tmp_path / "seeds.toml").write_text("seeds = [1, 2]\n" + recipe)
    (tmp_path / "pretraining.toml").write_text(recipe)
    (tmp_path / "towns.toml").write_text(recipe)
    cases = [
        (["--tasks", tmp_path / "none.toml"], "there is no recipe"),
        (["--tasks", tmp_path / "bad.toml"], "unknown field 'task.batchsize'"),
        (["--tasks", tmp_path / "worse.toml"], "is not a TOML file"),
        (["--tasks", tmp_path / "lost.toml"], "lost.tsv"),
        (["--tasks", tmp_path / "without.toml"], "without.toml: task"),
        (["--tasks", tmp_path / "seeds.toml"], "leave seeds and folds out"),
        (["--tasks", tmp_path / "pretraining.toml"], "cannot be called pretraining"),
        (["--tasks", tmp_path / "towns.toml", place / "towns.toml"], "recipes of the same name"),
        (["--variants", "mlm", "deberta"], "deberta and mlm are the same model here"),
        (["--variants", "deberta", "+ShareProjection", "--model.share-att-key"], "are the same model here"),
        (["--corpus.held-out", "0"], "corpus.held_out must be more than 0"),
        (["--variants", "bert"], "bert"),
        (["--training.patience", "2"], "leave training.patience out"),
        (["--evaluation-batches", "0"], "evaluation_batches: Input should be greater than or equal to 1"),
    ]
    for more, message in cases:
        with pytest.raises(SystemExit):
            run(place, output, *more)
        err = capsys.readouterr().err
        assert message in re.sub(r"[\s│]+", " ", err), err
        assert "Traceback" not in err
    assert not output.exists()


def test_processes_that_cannot_share_a_step_of_a_task_are_told_at_once(place, tmp_path):
    config = config_of(place, tmp_path / "runs", "--training.micro-batches", "2")
    tasks = ablate.read_tasks(config)
    ablate.check_shared(config, tasks, 1)
    with pytest.raises(InputError, match=r"towns: training\.micro_batches is 1, which 2 processes cannot"):
        ablate.check_shared(config, tasks, 2)
    with pytest.raises(InputError, match=r"^training\.micro_batches is 2, .*: make it a multiple of 3"):
        ablate.check_shared(config, {}, 3)


def test_too_little_text_to_hold_out_is_told(place, tmp_path):
    (tmp_path / "one.txt").write_text("One document of several lines about the old town.\n" * 40, encoding="utf-8")
    config = config_of(place, tmp_path / "runs", "--corpus.path", tmp_path / "one.txt", "--seeds", "0")
    with pytest.raises(InputError, match="no document fell into the held-out part"):
        ablate.run(config)
    assert not (tmp_path / "runs" / "roberta").exists(), "before anything is trained"


def test_the_base_is_the_papers():
    config = ablate.Config(output="", tokenizer="", corpus=CorpusConfig(path="text"), training=TrainingConfig(steps=20))
    assert config.names == ("roberta", "deberta", "-EMD", "-C2P", "-P2C", "-(EMD+C2P)", "-(EMD+P2C)")
    base = ablate.pretraining(config, "deberta", 0).model
    assert (base.num_hidden_layers, base.hidden_size, base.num_attention_heads) == (12, 768, 12)
    assert (base.position_buckets, base.share_att_key, base.norm_rel_ebd) == (None, False, "none")
    assert base.replace(share_att_key=True) == ablate.pretraining(config, "+ShareProjection", 0).model
    assert VARIANTS["deberta"].model == {}
