"""The study from the command line and as a Prefect flow, with a stand-in for the study itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aaft import cli
from aaft.errors import AaftError
from aaft.study import stage, start
from aaft.study.config import METHODS
from tasks.stages import StageError
from tasks.study import run_study

ROOT = Path(__file__).resolve().parent.parent
STUB = """
import os, signal, sys
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])
match sys.argv[sys.argv.index("--preset") + 1]:
    case "wrong":
        print("error: --preset wrong: no such preset", file=sys.stderr)
        sys.exit(2)
    case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
print("study: 4 cells, 0 done already")
out.mkdir(parents=True)
(out / "report.md").write_text("| method | harm |\\n" + " ".join(sys.argv[2:]))
(out / "report.json").write_text("{}")
"""


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["aaft", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_the_command_splits_the_studys_settings_from_the_pipelines(monkeypatch) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(stage, "run", lambda *given: seen.append(given))
    overrides = ["--set", "train.epochs=3", "--set", "study.seeds=[7]"]
    assert command(monkeypatch, "study", "--preset", "full", "--out", "x", *overrides) == 0
    cfg, study, out = seen[0]
    assert cfg.train.epochs == 3
    assert study.seeds == (7,)
    assert study.methods == METHODS
    assert out == Path("x")


def test_align_writes_where_it_is_told(monkeypatch) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(start, "run", lambda *given: seen.append(given))
    assert command(monkeypatch, "align", "--out", "y", "--set", "seed=5") == 0
    cfg, out = seen[0]
    assert (cfg.seed, out) == (5, Path("y"))


@pytest.mark.parametrize("arguments", [["--preset", "huge"], ["--set", "study.row=3"]])
def test_a_wrong_setting_is_exit_code_2(monkeypatch, capsys, arguments: list[str]) -> None:
    assert command(monkeypatch, "study", "--out", "x", *arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "aaft").mkdir()
    (tmp_path / "aaft/__init__.py").write_text("")
    (tmp_path / "aaft/__main__.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("preset", "error", "message"),
    [("wrong", AaftError, "^--preset wrong: no such"), ("killed", StageError, "cells are kept")],
)
def test_a_study_that_fails_says_whose_fault_it_is(workspace, preset, error, message) -> None:
    from prefect.logging import disable_run_logger

    with disable_run_logger(), pytest.raises(error, match=message):
        run_study.fn(preset, Path("out"))


def test_the_flow_publishes_the_studys_tables(workspace: Path) -> None:
    code = (
        "from prefect.artifacts import Artifact\n"
        "from flows.study import study\n"
        "report = study('small', 'out', ('seed=3',))\n"
        "print('REPORT', report.name)\n"
        "found = Artifact.get('study-report')\n"
        "print('TABLE', found.data)\n"
    )
    home = workspace / "prefect"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "REPORT report.json" in done.stdout
    assert "TABLE | method | harm |" in done.stdout
    assert "--set seed=3" in done.stdout
    assert "4 cells, 0 done already" in done.stderr
