"""The aligned start: a whole model directory, made once for the same inputs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from aaft.config import Config
from aaft.data.prompts import PREFILLS, VALID_PREFILLS
from aaft.data.text import bucket
from aaft.errors import AaftError
from aaft.io import read_json, write_jsonl
from aaft.models.fingerprint import model_digest
from aaft.models.policy import load_codec, load_policy
from aaft.study import start
from aaft.study.config import PRESETS
from aaft.study.openings import OPENINGS
from aaft.tuning.trainer import Trainer
from tests import tiny

ROWS = [
    {"id": f"a{i}", "kind": kind, "prompt": f"Say {i}", "response": f"No {i}"}
    for i, kind in enumerate(["refusal", "benign", "refusal", "grounded", "benign"])
]


OWN = [
    {"id": f"o{i}", "source": "t", "messages": [{"role": "user", "content": f"May I {i}?"}]}
    for i in range(2)
]


def write_rows(root: Path, rows=ROWS) -> None:
    write_jsonl(root / "data/study/align.jsonl", rows)
    write_jsonl(root / "data/study/own.jsonl", OWN)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    tiny.save_policy(root / "policy")
    write_rows(root)
    return root


def config(root: Path, **train) -> Config:
    return Config.model_validate(
        {
            "data": {"bench": root / "data/bench"},
            "policy": {"model": str(root / "policy")},
            "train": {"lora": {"r": 2, "alpha": 4}} | train,
        }
    )


@pytest.fixture(scope="module")
def out(project) -> Path:
    start.run(config(project), project / "start")
    return project / "start"


def test_it_is_a_model_that_learned_and_a_report(project, out) -> None:
    report = read_json(out / "report.json")
    # The tiny policy ends no request, so it makes no twins.
    rows = {"benign": 2, "grounded": 1, "own": 2, "refusal": 2, "begun": 2, "twin": 0}
    assert report["rows"] == rows
    assert report["steps"] == start.EPOCHS * math.ceil(9 / start.ROWS_PER_STEP)
    assert report["loss_last"] < report["loss_first"]
    before, after = (
        load_policy(str(folder), torch.device("cpu"), torch.bfloat16)
        for folder in (project / "policy", out)
    )
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert sorted(path.name for path in project.iterdir()) == ["data", "policy", "start"]


def test_the_same_inputs_are_not_trained_again(project, out, monkeypatch) -> None:
    digest = model_digest(str(out), None, "policy.model")
    monkeypatch.setattr(Trainer, "run", lambda _: pytest.fail("trained again"))
    report = start.run(config(project), out)
    assert report == read_json(out / "report.json")
    # What gating needs doesn't touch plain supervised training.
    start.run(config(project, gate={"eta": 1.0}), out)
    assert model_digest(str(out), None, "policy.model") == digest


def test_it_learns_as_the_studys_methods_do(project, tmp_path, monkeypatch) -> None:
    seen = []

    class Spy(Trainer):
        def __init__(self, model, examples, cfg, seed) -> None:
            seen.append((cfg.epochs, cfg.rows_per_step, cfg.learning_rate))
            super().__init__(model, examples, cfg, seed)

    monkeypatch.setattr(start, "Trainer", Spy)
    cfg = config(project, rows_per_step=9, learning_rate=1.0, epochs=7)
    start.run(cfg, tmp_path / "start")
    methods = PRESETS["small"].train
    assert seen == [(1, methods["rows_per_step"], methods["learning_rate"])]


def test_half_of_the_refusals_are_also_learned_after_an_opening(
    project, tmp_path, monkeypatch
) -> None:
    rows = [
        {"id": f"r{i}", "kind": "refusal", "prompt": f"Say {i}", "response": f"No {i}"}
        for i in range(40)
    ]
    seen = []

    class Spy(Trainer):
        def __init__(self, model, examples, cfg, seed) -> None:
            seen.extend(examples)
            super().__init__(model, examples[:2], cfg, seed)

    monkeypatch.setattr(start, "Trainer", Spy)
    cfg = copy_of(project, tmp_path, rows)
    start.run(cfg, tmp_path / "start")
    codec = load_codec(cfg.policy.model)
    plain = {example.id: example for example in seen if "~" not in example.id}
    begun = {example.id.split("~")[0]: example for example in seen if "~" in example.id}
    assert len(begun) == 40
    for name, example in begun.items():
        own = plain[name]
        assert example.candidates == own.candidates
        assert example.prompt[: len(own.prompt)] == own.prompt
        prefix = example.prompt[len(own.prompt) :]
        assert 1 <= len(prefix) <= start.BEGUN_TOKENS
        opened = any(codec.response_ids(text)[: len(prefix)] == prefix for text in OPENINGS)
        assert opened == (bucket(name, "opening") < start.OPENED_PERCENT)


def test_no_opening_begins_as_one_that_measures_does() -> None:
    def first(texts) -> set[str]:
        return {re.split(r"\W", text.lower())[0] for text in texts}

    assert not first(OPENINGS) & first((*PREFILLS, *VALID_PREFILLS))


def test_two_questions_to_one_passage_come_into_one_step(project, tmp_path, monkeypatch) -> None:
    rows = [*ROWS]
    for number in range(6):
        for kind, passage in (("grounded", number), ("unanswerable", (number + 1) % 6)):
            prompt = f"It is known that {passage} is {passage * 7}. Question: what is {number}?"
            row = {"id": f"{kind}{number}", "kind": kind, "prompt": prompt}
            rows.append(row | {"response": "It is so." if kind == "grounded" else "Unknown."})
    windows = []

    class Spy(Trainer):
        def _step(self, step, epoch, window, lr) -> None:
            windows.append(window)
            super()._step(step, epoch, window, lr)

    monkeypatch.setattr(start, "Trainer", Spy)
    cfg = copy_of(project, tmp_path, rows)
    start.run(cfg, tmp_path / "start")
    hosts = {}
    for window in windows:
        hosts |= {e.id: e.host for e in window}
        assert {e.host for e in window} - {None} <= {e.id for e in window}
    guests = {f"unanswerable{n}": f"grounded{(n + 1) % 6}" for n in range(6)}
    assert {name: host for name, host in hosts.items() if host} == guests


def test_other_benchmarks_make_another_start(project, out, tmp_path) -> None:
    cfg = copy_of(project, tmp_path)
    assert start.run(cfg, tmp_path / "start")["inputs"] == read_json(out / "report.json")["inputs"]
    write_jsonl(tmp_path / "data/bench/benign.jsonl", [{"id": "b"}])
    assert start._inputs(cfg, cfg.train) != start._inputs(config(project), cfg.train)


def test_the_same_inputs_give_the_same_bytes(project, out) -> None:
    start.run(config(project), project / "again" / "start")
    assert model_digest(str(project / "again" / "start"), None, "m") == model_digest(
        str(out), None, "m"
    )


def copy_of(project: Path, root: Path, rows=ROWS) -> Config:
    write_rows(root, rows)
    cfg = config(root)
    policy = cfg.policy.model_copy(update={"model": str(project / "policy")})
    return cfg.model_copy(update={"policy": policy})


def test_other_rows_make_another_start_in_its_place(project, tmp_path) -> None:
    start.run(copy_of(project, tmp_path), tmp_path / "start")
    first = (tmp_path / "start/model.safetensors").read_bytes()
    report = start.run(copy_of(project, tmp_path, ROWS[:3]), tmp_path / "start")
    rows = {"benign": 1, "own": 2, "refusal": 2, "begun": 2, "twin": 0}
    assert report["rows"] == rows
    assert (tmp_path / "start/model.safetensors").read_bytes() != first


def test_a_start_that_fails_half_way_leaves_the_earlier_one(project, tmp_path, monkeypatch) -> None:
    cfg = copy_of(project, tmp_path)
    start.run(cfg, tmp_path / "start")
    before = {path.name: path.read_bytes() for path in (tmp_path / "start").iterdir()}
    cfg = copy_of(project, tmp_path, ROWS[:3])

    def full(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(start, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        start.run(cfg, tmp_path / "start")
    after = {path.name: path.read_bytes() for path in (tmp_path / "start").iterdir()}
    assert before == after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "start"]


def test_a_start_that_cannot_take_its_place_leaves_the_earlier_one(
    project, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "start"
    start.run(copy_of(project, tmp_path), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    replace = Path.replace

    def denied(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise PermissionError("denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", denied)
    with pytest.raises(PermissionError):
        start.run(copy_of(project, tmp_path, ROWS[:3]), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "start"]


@pytest.mark.parametrize("name", ["notes.txt", "report.json"])
def test_a_folder_of_somebody_elses_is_not_replaced(project, tmp_path, name) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / name).write_text(json.dumps({"precious": 1}))
    with pytest.raises(AaftError, match="not made by aaft align"):
        start.run(config(project), other)
    assert [path.name for path in other.iterdir()] == [name]


def test_a_row_that_does_not_fit_is_named(project, tmp_path) -> None:
    cfg = copy_of(project, tmp_path, [ROWS[0], {**ROWS[1], "response": "x" * 600}])
    with pytest.raises(AaftError, match=r"row a1 takes .* policy\.max_tokens = 512"):
        start.run(cfg, tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_missing_rows_name_the_remedy(tmp_path) -> None:
    tiny.save_policy(tmp_path / "policy")
    with pytest.raises(AaftError, match=r"align\.jsonl: no such file; run aaft data build"):
        start.run(config(tmp_path), tmp_path / "start")
