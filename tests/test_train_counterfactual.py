"""What the train stage does with counterfactuals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from aaft.config import Paths, load_config
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl, write_jsonl
from aaft.tuning import stage
from aaft.tuning.counterfactual import kept_counterfactuals
from tests import tiny_train
from tests.test_tuning_trainer import example
from tests.tiny_train import outcome

Scores = dict[str, tuple[float, float | None]]
"""By name: rewards of the gold, and of the conservative response (None: there is none)."""

KEPT: Scores = {"hopeless": (0.05, 0.9), "hardly": (0.4, 0.6)}
DROPPED: Scores = {
    "answered after all": (0.9, None),
    "declining is no answer": (0.05, 0.2),
    "nothing to decline with": (0.05, None),
}


def add_counterfactuals(build: Path, scores: Scores) -> None:
    """As the score stage leaves them: in its files after the records."""
    scored = build / "score"
    candidates = read_jsonl(scored / "candidates.jsonl")
    conservative = read_jsonl(scored / "conservative.jsonl")
    rows, table = [], []
    for name, (gold, declining) in scores.items():
        name = f"{name}~swap"
        turns = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "ab"}]
        rows.append({"id": name, "source": "test", "messages": turns, "context": None})
        candidates.append({"id": name, "candidate": 0, "token_ids": [70, 80, 0]})
        row = {"id": name, "candidate": 0, "safety": gold, "u_safety": 0.0, "r": gold}
        table.append(row | {"logprob": -15.0})
        if declining is not None:
            text = {"objective": "safety", "text": "I can't.", "r": declining}
            conservative.append({"id": name} | text)
    write_jsonl(scored / "counterfactuals.jsonl", rows)
    write_jsonl(scored / "candidates.jsonl", candidates)
    write_jsonl(scored / "conservative.jsonl", conservative)
    before = pd.read_parquet(scored / "alignment.parquet")
    pd.concat([before, pd.DataFrame(table)]).to_parquet(scored / "alignment.parquet", index=False)


def project(root: Path, scores: Scores) -> Path:
    params = tiny_train.save_project(root, records=8)
    add_counterfactuals(root / "build", scores)
    return params


def trained(params: Path, method: str = "aaft") -> Path:
    paths = Paths(params.parent / "build")
    stage.run(load_config(params, [f"train.method={method}"]), paths)
    return paths.stage("train")


def test_only_counterfactuals_that_abstain_are_trained_on(tmp_path: Path) -> None:
    out = trained(project(tmp_path, KEPT | DROPPED))
    report = read_json(out / "report.json")
    assert report["counterfactuals"] == {"scored": 5, "kept": 2}
    assert report["records"] == 8
    gates = pd.read_parquet(out / "gates.parquet")
    added = gates[gates["counterfactual"]]
    assert added["id"].tolist() == ["hopeless~swap", "hardly~swap"]
    assert added["abstain"].all()
    assert added["gate"].eq(1).all()
    assert gates[~gates["counterfactual"]]["id"].tolist() == [f"r{i}" for i in range(8)]
    assert report["gates"]["mean"] == pytest.approx(gates["gate"][~gates["counterfactual"]].mean())


def test_plain_fine_tuning_never_sees_them(tmp_path: Path) -> None:
    params = tiny_train.save_project(tmp_path, records=8)
    without = outcome(trained(params, "sft").parent)
    add_counterfactuals(tmp_path / "build", KEPT)
    out = trained(params, "sft")
    assert outcome(out.parent) == without
    assert "counterfactuals" not in read_json(out / "report.json")


def test_many_counterfactuals_that_teach_nothing_stop_the_run(tmp_path: Path) -> None:
    useless = {f"c{i}": DROPPED["declining is no answer"] for i in range(20)}
    params = project(tmp_path, useless)
    with pytest.raises(AaftError, match=r"of 20 questions .* set score\.counterfactuals to 0"):
        trained(params)
    assert not (tmp_path / "build/train/report.json").exists()


def test_a_counterfactual_is_the_guest_of_the_record_whose_passage_it_has() -> None:
    passage = [[9, *range(20 + 10 * n, 30 + 10 * n)] for n in range(3)]
    records = [replace(example(n, [0.9, 0.9]), prompt=[*passage[n], 5, 6 + n]) for n in range(3)]
    asked = replace(example(7, [0.1, 0.1], conservative=[7, 0]), prompt=[*passage[1], 5, 99, 98])
    (guest,) = kept_counterfactuals([asked], records)
    assert (guest.host, guest.shared) == ("r1", len(passage[1]) + 1)
    first = replace(asked, prompt=[9, 99, 98, *passage[1]])
    (stranger,) = kept_counterfactuals([first], records)
    assert (stranger.host, stranger.shared) == (None, 0)
    assert kept_counterfactuals([asked], []) == [replace(guest, host=None, shared=0)]
