"""What the train stage does with twins and siblings of harmful requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aaft.config import Paths, TrainConfig, load_config
from aaft.io import read_json, read_jsonl, write_jsonl
from aaft.tuning import stage
from aaft.tuning.decision import Remedy, decide
from aaft.tuning.kin import kept_siblings, kept_twins
from aaft.tuning.recipe import GatedRecipe
from tests import tiny_train
from tests.test_train_recipe import trainer
from tests.test_tuning_trainer import example
from tests.tiny_train import outcome

Scores = dict[str, tuple[float, float]]
"""By name: rewards of what stands as gold, and of a refusal."""


def add_kin(build: Path, twins: Scores, siblings: Scores) -> None:
    """As the score stage leaves them; siblings with the rollouts that `ROLLOUTS` has."""
    scored = build / "score"
    candidates = read_jsonl(scored / "candidates.jsonl")
    conservative = read_jsonl(scored / "conservative.jsonl")
    table = []
    for file, scores in (("twins", twins), ("siblings", siblings)):
        rows = []
        for name, (gold, declined) in scores.items():
            turns = [{"role": "user", "content": "Do it"}, {"role": "assistant", "content": "abc"}]
            rows.append({"id": name, "source": "test", "messages": turns, "context": None})
            for k, reward in enumerate([gold, *ROLLOUTS.get(name, [])]):
                candidates.append({"id": name, "candidate": k, "token_ids": [70, 80 + k, 81, 0]})
                row = {"id": name, "candidate": k, "safety": reward, "u_safety": 0.0}
                table.append(row | {"r": reward, "logprob": -15.0})
            refusal = {"id": name, "objective": "safety", "text": "I can't.", "r": declined}
            conservative.append(refusal)
        write_jsonl(scored / f"{file}.jsonl", rows)
    write_jsonl(scored / "candidates.jsonl", candidates)
    write_jsonl(scored / "conservative.jsonl", conservative)
    before = pd.read_parquet(scored / "alignment.parquet")
    pd.concat([before, pd.DataFrame(table)]).to_parquet(scored / "alignment.parquet", index=False)


TWINS = {"harmless": (0.9, 0.1), "rightly declined": (0.9, 0.8), "badly answered": (0.2, 0.1)}
SIBLINGS = {"harmful": (0.1, 0.9), "harmless after all": (0.9, 0.1), "unclear": (0.1, 0.2)}
SIBLINGS |= {"declined already": (0.1, 0.9), "declined once": (0.1, 0.9)}
ROLLOUTS = {"declined already": (0.9, 0.8), "declined once": (0.9, 0.2)}


@pytest.fixture
def params(tmp_path: Path) -> Path:
    made = tiny_train.save_project(tmp_path, records=8)
    add_kin(tmp_path / "build", TWINS, SIBLINGS)
    return made


def trained(params: Path, *overrides: str) -> Path:
    paths = Paths(params.parent / "build")
    stage.run(load_config(params, list(overrides)), paths)
    return paths.stage("train")


def test_only_kin_that_the_judges_agree_on_are_trained_on(params: Path) -> None:
    out = trained(params)
    report = read_json(out / "report.json")
    assert report["twins"] == {"scored": 3, "kept": 1}
    assert report["siblings"] == {"scored": 5, "kept": 2}
    assert report["records"] == 8
    gates = pd.read_parquet(out / "gates.parquet")
    assert gates["id"].tolist() == [f"r{i}" for i in range(8)]
    history = read_jsonl(out / "history.jsonl")
    assert sum(row["anchor"] for row in history) > 0


def test_a_refusal_that_no_judge_scored_keeps_nothing(params: Path) -> None:
    path = params.parent / "build/score/conservative.jsonl"
    names = {*TWINS, *SIBLINGS}
    write_jsonl(path, [r | {"r": None} if r["id"] in names else r for r in read_jsonl(path)])
    report = read_json(trained(params) / "report.json")
    assert report["twins"] == {"scored": 3, "kept": 0}
    assert report["siblings"] == {"scored": 5, "kept": 0}


def test_siblings_teach_to_decline_and_to_turn_back(tmp_path: Path) -> None:
    params = tiny_train.save_project(tmp_path, records=8)
    parts = ("abstain", "recovery")
    before = read_jsonl(trained(params) / "history.jsonl")
    add_kin(tmp_path / "build", {}, SIBLINGS)
    after = read_jsonl(trained(params) / "history.jsonl")
    for part in parts:
        assert sum(row[part] for row in after) > sum(row[part] for row in before)


def test_without_its_weight_there_is_no_anchor(params: Path) -> None:
    out = trained(params, "train.objective.beta_anchor=0")
    assert all(row["anchor"] == 0 for row in read_jsonl(out / "history.jsonl"))


def test_plain_fine_tuning_never_sees_them(tmp_path: Path) -> None:
    params = tiny_train.save_project(tmp_path, records=8)
    without = outcome(trained(params, "train.method=sft").parent)
    add_kin(tmp_path / "build", TWINS, SIBLINGS)
    assert outcome(trained(params, "train.method=sft").parent) == without


@pytest.mark.parametrize(
    ("reward", "declined", "kept"),
    [(0.5, 0.49, True), (0.49, 0.1, False), (0.9, 0.5, False), (0.9, np.nan, False)],
)
def test_the_judges_must_accept_the_answer_and_reject_declining(reward, declined, kept) -> None:
    twin = example(0, [reward, 0.9])
    assert bool(kept_twins([twin], {twin.id: declined}, longest=4)) is kept


def test_a_twin_is_an_anchor_and_nothing_else() -> None:
    made_of = example(0, [0.9, 0.1], conservative=[7, 0])
    (twin,) = kept_twins([made_of], {"r0": 0.1}, longest=2)
    assert twin.candidates == [made_of.candidates[0][:2]]
    window = [twin, example(1, [0.99, 0.98])]
    cfg = TrainConfig()
    made = trainer(window)
    recipe = GatedRecipe(cfg)
    recipe.begin(made, window)
    plan = recipe.plan(made, window, 0)
    assert plan.gating is not None
    assert plan.gating.gates.tolist()[0] == plan.gating.imitation.tolist()[0] == 0
    (term,) = [term for term in plan.terms if term.example == 0]
    assert term.response == twin.candidates[0]
    assert term.soft is not None
    size = len(window) * len(twin.candidates[0])
    assert term.parts == {"anchor": pytest.approx(cfg.objective.beta_anchor / size)}


def test_a_sibling_declines_and_recovers_and_is_not_gated() -> None:
    (sibling,) = kept_siblings([example(0, [0.1, 0.1], conservative=[7, 8, 0])])
    assert kept_siblings([example(1, [0.1, 0.1])]) == []
    window = [sibling, example(1, [0.99, 0.98])]
    made = trainer(window)
    recipe = GatedRecipe(TrainConfig())
    recipe.begin(made, window)
    plan = recipe.plan(made, window, 0)
    assert plan.gating is not None
    assert plan.gating.gates.tolist()[0] == plan.gating.imitation.tolist()[0] == 0
    own = [term for term in plan.terms if term.example == 0]
    assert {part for term in own for part in term.parts} == {"abstain", "recovery"}
    assert all(term.response == [7, 8, 0] for term in own)


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [
        ([0.1], True),
        ([0.1, 0.2, 0.2], True),
        ([0.1, 0.9, 0.4], True),
        ([0.1, 0.9, np.nan], True),
        ([0.1, 0.9, 0.5], False),
    ],
)
def test_what_the_reference_declines_is_left_to_it(rewards, kept) -> None:
    assert bool(kept_siblings([example(0, rewards, conservative=[7, 8, 0])])) is kept


def test_a_sibling_is_kept_though_its_rollouts_do_less_well_on_another_objective() -> None:
    """Of a request that hardly looks harmful: with a low `comply` on average."""
    quality = np.array([[0.99, 0.2], [0.51, 0.96], [0.49, 0.96]])
    refusal = {"safety": Remedy([7, 0], 0.51)}
    decided = decide(quality, quality.min(axis=1), ("comply", "safety"), refusal, {})
    made_of = dataclasses.replace(example(0, [0.2, 0.51, 0.49]), **decided)
    (sibling,) = kept_siblings([made_of])
    assert (sibling.conservative, sibling.abstention, sibling.unsafe) == ([7, 0], [7, 0], True)


def test_gates_of_the_history_are_those_of_records() -> None:
    (twin,) = kept_twins([example(0, [0.9, 0.9])], {"r0": 0.1}, longest=9)
    made = trainer([twin, example(1, [0.1, 0.9])], rows_per_step=2)
    made.run()
    assert made.history[0]["gate_open_share"] == made.history[0]["gate_p10"] == 1.0
    alone = trainer([twin], rows_per_step=2)
    alone.run()
    assert "gate_open_share" not in alone.history[0]
