"""Configuration errors a person can act on, and files that are whole or as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from aaft.config import Config, load_config
from aaft.errors import AaftError
from aaft.io import atomic_path, read_jsonl, write_json, write_jsonl

ROOT = Path(__file__).resolve().parent.parent


def test_params_yaml_states_the_defaults_of_the_code() -> None:
    assert load_config(ROOT / "params.yaml") == Config.model_validate({})


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("score: {rolouts: 3}", [], r"score\.rolouts: unknown parameter; did you mean 'rollouts'"),
        ("zzz: 1", [], r"zzz: unknown parameter; known keys: seed, data"),
        ("score: {rollouts: -1}", [], r"score\.rollouts: .*greater than or equal to 0 \(got -1\)"),
        ("", ["score.rolouts=3"], r"score\.rolouts: unknown parameter; did you mean 'rollouts'"),
        ("", ["train.gate.etta=3"], r"train\.gate\.etta: unknown .* did you mean 'eta'"),
        ("", ["rollouts"], r"--set rollouts: write it as section\.key=value"),
        ("", ["seed.x=1"], "seed"),
        ("[1, 2]", [], "expected a mapping"),
        ("a: [", [], "not valid YAML"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_line(tmp_path, text, overrides, message) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(AaftError, match=message) as caught:
        load_config(file, overrides)
    assert "\n" not in str(caught.value)


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("score: {rollouts: 1}")
    cfg = load_config(file, ["score.rollouts=3", "evaluate.limit=null", "train.gate.eta=0"])
    assert (cfg.score.rollouts, cfg.evaluate.limit, cfg.train.gate.eta) == (3, None, 0.0)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError), atomic_path(target) as temporary:
        temporary.write_text("half\ud800", encoding="utf-8")
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"b": \xff}\n', r"rows\.jsonl: line 2: invalid UTF-8 at byte 6"),
        (b'{"a": 1}\n\n{"b"\n', r"rows\.jsonl: line 3: not JSON"),
        (b"[1]\n", r"rows\.jsonl: line 1: not a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(AaftError, match=message):
        read_jsonl(path)


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = [{"a": "é\u2028"}, {"b": None}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
