"""What stops a run before anything long starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aaft.config import Config
from aaft.errors import AaftError
from tasks.preflight import check_inputs
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save_policy(tmp_path / "policy")
    for name in ("small", "large"):
        tiny.save_encoder(tmp_path / name)
    (tmp_path / "train.jsonl").touch()
    shutil.copy(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    return Path("dvc.yaml")


def config(**judges: str) -> Config:
    named = {"embedder": "small", "intent_embedder": "large"} | judges
    data = {"data": {"train": "train.jsonl"}, "policy": {"model": "policy"}, "judges": named}
    return Config.model_validate(data)


def test_what_exists_passes(pipeline: Path) -> None:
    check_inputs(config(), pipeline)


@pytest.mark.parametrize("key", ["embedder", "intent_embedder"])
def test_a_missing_encoder_is_named_by_its_parameter(pipeline: Path, key: str) -> None:
    with pytest.raises(AaftError, match=rf"judges\.{key}: .*nowhere/at/all"):
        check_inputs(config(**{key: "nowhere/at/all"}), pipeline)


def test_one_encoder_for_both_needs_a_line_less(pipeline: Path) -> None:
    cfg = config(intent_embedder="small")
    line = "- ${judges.intent_embedder}"
    with pytest.raises(AaftError, match=r"small is judges\.embedder too.*delete every line"):
        check_inputs(cfg, pipeline)
    kept = [row for row in pipeline.read_text().splitlines() if line not in row.strip()[:40]]
    pipeline.write_text("\n".join(kept))
    check_inputs(cfg, pipeline)
