"""The study, really run on a tiny model: cells, resuming, report."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aaft.config import load_config
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl
from aaft.study import stage
from aaft.study.config import StudyConfig
from tests import tiny_study

ROOT = Path(__file__).resolve().parent.parent
STUDY = StudyConfig(
    methods=("reference", "sft", "filter-replace", "aaft"),
    scenarios=("unsafe-start",),
    seeds=(0, 1),
    rows=tiny_study.ROWS,
    bench_limit=2,
    max_new_tokens=4,
)
CELLS = 4 * 2
KILLED = """
import os, signal, sys
from pathlib import Path
from aaft.config import load_config
from aaft.study import cells, stage
from tests.test_study_run import STUDY

write, left = cells.write_json, [2]

def write_or_die(path, value):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(path, value)

cells.write_json = write_or_die
stage.run(load_config(Path(sys.argv[1])), STUDY, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study.save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def out(params: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    stage.run(load_config(params), STUDY, folder)
    return folder


def results(folder: Path) -> list[Path]:
    return sorted(folder.glob("cells/*/*/*/result.json"))


def test_every_cell_has_rates_answers_and_what_its_training_cost(out: Path) -> None:
    paths = results(out)
    assert len(paths) == CELLS
    for path in paths:
        cell = read_json(path)
        assert cell["rates"]["harmful_rate"]["n"] == 2
        assert cell["rates"]["harmful_rate_prefill"]["n"] == 3 * 2
        answers = read_jsonl(path.with_name("answers.jsonl"))
        assert len(answers) == (1 + 3 + 1 + 1 + 2) * 2
        if cell["method"] == "reference":
            assert "train" not in cell
        else:
            assert cell["train"]["rows"] >= 1
            assert cell["train"]["tokens"] > 0
            assert cell["train"]["seconds"] > 0


def test_gates_are_counted_by_kind_of_row_for_gated_methods_alone(out: Path) -> None:
    for path in results(out):
        cell = read_json(path)
        assert ("gates" in cell) == (cell["method"] == "aaft")
        if "gates" in cell:
            assert sum(map(sum, cell["gates"].values())) == cell["train"]["rows"]
            assert "grounded" in cell["gates"]


def test_the_report_covers_every_method_with_claims_tables_and_plots(out: Path) -> None:
    report = read_json(out / "report.json")
    rates = report["rates"]["unsafe-start"]
    assert list(rates) == list(STUDY.methods)
    assert rates["reference"]["qa_f1"]["n"] == rates["aaft"]["qa_f1"]["n"] == 2 * 2
    assert set(report["differences"]["unsafe-start"]) == {"aaft - sft", "aaft - filter-replace"}
    assert {claim["scenario"] for claim in report["claims"]} >= {"unsafe-start", "all"}
    assert "| filter-replace |" in (out / "report.md").read_text()
    assert {p.name for p in out.glob("*.png")} == {"trade-off.png", "gates.png"}


def test_methods_of_a_seed_are_asked_the_same_prompts_and_other_seeds_other_ones(
    out: Path,
) -> None:
    asked: dict[int, set[tuple[str, ...]]] = {0: set(), 1: set()}
    for path in results(out):
        rows = read_jsonl(path.with_name("answers.jsonl"))
        asked[read_json(path)["seed"]].add(tuple(row["id"] for row in rows))
    assert len(asked[0]) == len(asked[1]) == 1
    assert asked[0] != asked[1]


def test_one_reference_counts_for_every_seed_where_all_prompts_are_asked(
    params: Path, tmp_path: Path
) -> None:
    study = STUDY.model_copy(update={"bench_limit": None, "methods": ("reference",)})
    report = stage.run(load_config(params), study, tmp_path)
    assert [read_json(path)["seed"] for path in results(tmp_path)] == [0]
    rate = report["rates"]["unsafe-start"]["reference"]["qa_f1"]
    assert rate["n"] == 2 * rate["prompts"]


def test_workers_compute_every_cell_and_make_the_aligned_start_beside_them(
    params: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"scenarios": ("clean", "unsafe-start"), "methods": ("reference", "sft"), "seeds": (0,)}
    alone = stage.run(load_config(params), STUDY.model_copy(update=both), tmp_path / "alone")
    study = STUDY.model_copy(update={**both, "workers": 2})
    report = stage.run(load_config(params), study, tmp_path / "two")
    assert "one worker makes the aligned start first" in capsys.readouterr().out
    names = {
        str(path.parent.relative_to(tmp_path / "two/cells")) for path in results(tmp_path / "two")
    }
    assert names == {
        "unsafe-reference/reference/seed-0",
        "aligned-reference/reference/seed-0",
        "clean/sft/seed-0",
        "unsafe-start/sft/seed-0",
    }
    assert report["rates"] == alone["rates"]
    weights = "start/model.safetensors"
    assert (tmp_path / "two" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    stage.run(load_config(params), study, tmp_path / "two")
    assert "4 cells, 4 done already" in capsys.readouterr().out


def test_cells_of_a_start_that_was_made_again_are_kept(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = STUDY.model_copy(update={"scenarios": ("clean",), "seeds": (0,)})
    report = stage.run(load_config(params), study, tmp_path)
    shutil.rmtree(tmp_path / "start")

    def computed(*_: object) -> None:
        raise AssertionError("a cell was computed again")

    for name in ("trained_cell", "reference_cell", "signal"):
        monkeypatch.setattr(stage, name, computed)
    assert stage.run(load_config(params), study, tmp_path) == report
    assert (tmp_path / "start/report.json").is_file()


def test_cells_are_of_the_code_that_computed_them(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = STUDY.model_copy(update={"methods": ("reference",), "seeds": (0,)})
    real = stage.reference_cell

    def edited(*given: Any) -> Any:
        monkeypatch.setattr(stage, "code_digest", lambda: "edited meanwhile")
        return real(*given)

    monkeypatch.setattr(stage, "reference_cell", edited)
    stage.run(load_config(params), study, tmp_path)
    (path,) = results(tmp_path)
    before = read_json(path)["digest"]
    stage.run(load_config(params), study, tmp_path)
    assert read_json(path)["digest"] != before


@pytest.mark.parametrize("scenario", ["clean", "unsafe-start"])
def test_workers_without_cells_beside_the_aligned_start(
    params: Path, tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = STUDY.model_copy(
        update={"workers": 2, "methods": ("reference",), "scenarios": (scenario,)}
    )
    report = stage.run(load_config(params), study, tmp_path)
    assert report["rates"][scenario]["reference"]["qa_f1"]["n"] == 2 * 2
    assert (tmp_path / "start").exists() == (scenario == "clean")
    assert "one worker" not in capsys.readouterr().out


def test_a_rerun_computes_nothing_and_reports_the_same(
    params: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in results(out)}
    report = (out / "report.json").read_bytes()

    def computed(*_: object) -> None:
        raise AssertionError("a cell was computed again")

    for name in ("trained_cell", "reference_cell", "signal"):
        monkeypatch.setattr(stage, name, computed)
    stage.run(load_config(params), STUDY, out)
    assert {path: path.stat().st_mtime_ns for path in results(out)} == before
    assert (out / "report.json").read_bytes() == report


def test_other_settings_recompute_the_cells_that_they_shape(
    params: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def stop(method: str, *_: object) -> None:
        seen.append(method)
        raise AaftError("enough")

    monkeypatch.setattr(stage, "trained_cell", stop)
    monkeypatch.setattr(stage, "reference_cell", stop)
    changed = STUDY.model_copy(update={"train": {"learning_rate": 1e-3}})
    with pytest.raises(AaftError, match="enough"):
        stage.run(load_config(params), changed, out)
    assert seen == ["sft"]  # the reference has no training to change


def test_training_starts_from_the_aligned_model_where_the_scenario_says_so(
    params: Path, tmp_path: Path
) -> None:
    study = STUDY.model_copy(
        update={"scenarios": ("noise-10",), "methods": ("reference", "aaft"), "seeds": (3,)}
    )
    stage.run(load_config(params), study, tmp_path)
    assert (tmp_path / "start/report.json").is_file()
    names = [str(path.parent.relative_to(tmp_path / "cells")) for path in results(tmp_path)]
    assert names == ["aligned-reference/reference/seed-3", "noise-10/aaft/seed-3"]


def test_a_killed_study_goes_on_with_the_cell_that_it_was_computing(
    params: Path, out: Path, tmp_path: Path
) -> None:
    """Killed at the worst moment: the third cell's answers are written, its result is not."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(params), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in results(tmp_path)}
    assert len(kept) == 2
    assert len(list(tmp_path.glob("cells/*/*/*/answers.jsonl"))) == 3
    assert not (tmp_path / "report.json").exists()

    stage.run(load_config(params), STUDY, tmp_path)
    assert len(results(tmp_path)) == CELLS
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for path in results(tmp_path):  # and with what an uninterrupted study measures
        same = out / path.relative_to(tmp_path)
        assert read_json(path)["rates"] == read_json(same)["rates"]


def test_two_studies_do_not_share_a_folder(params: Path, tmp_path: Path) -> None:
    with stage._alone(tmp_path), pytest.raises(AaftError, match="under way"):
        stage.run(load_config(params), STUDY, tmp_path)
