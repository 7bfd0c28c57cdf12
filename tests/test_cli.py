"""The command line, and the parameter file that it reads by default."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from aaft import cli
from aaft.config import Config, load_config
from aaft.errors import AaftError

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from aaft.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_stage_and_is_quick() -> None:
    def timed() -> float:
        start = time.monotonic()
        shown = run("--help")
        assert all(word in shown.stdout for word in ("validate", "score", "train", "gate", "ask"))
        return time.monotonic() - start

    assert min(timed() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--params", "none.yaml"], "error: none.yaml: no such file"),
        (["score", "--set", "score.rolouts=3"], "did you mean 'rollouts'?"),
        (["score", "--set", "rollouts"], "write it as section.key=value"),
        (["gate", "--build", "nowhere"], "error: nowhere/evaluate/report.json: no such file"),
        (["ask", "hello", "--model", "models/none"], "model directory models/none does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_option_is_exit_code_2() -> None:
    assert run("score", "--bogus").returncode == 2


def test_overrides_and_build_reach_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.chdir(ROOT)
    stage = type("stage", (), {"run": staticmethod(lambda cfg, paths: seen.append((cfg, paths)))})
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: seen.append(name) or stage)
    monkeypatch.setattr(sys, "argv", ["aaft", "score", "--set", "score.rollouts=7", "--build", "b"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 0
    name, (cfg, paths) = seen
    assert name == "aaft.scoring.stage"
    assert cfg.score.rollouts == 7
    assert paths.report("score") == Path("b/score/report.json")


@pytest.mark.parametrize(("raised", "code"), [(AaftError("x"), 2), (KeyboardInterrupt(), 130)])
def test_exit_code_of_a_stopped_stage(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def stop(*_: object) -> None:
        raise raised

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "_run", stop)
    monkeypatch.setattr(sys, "argv", ["aaft", "train"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == code


def test_params_yaml_names_every_parameter() -> None:
    """DVC sees what params.yaml says, so a default that only config.py knows would go unseen."""
    load_config(ROOT / "params.yaml")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert _missing(Config, raw) == []


def _missing(model: type[BaseModel], raw: dict, prefix: str = "") -> list[str]:
    missing = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in raw:
            missing.append(prefix + key)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            missing += _missing(field.annotation, raw[key], f"{prefix}{key}.")
    return missing
