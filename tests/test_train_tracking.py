"""What of training reaches MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from aaft.config import Paths
from aaft.io import write_jsonl
from tasks.tracking import _log_history


@pytest.mark.parametrize("timed", [True, False])
def test_speed_is_logged_where_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    logged = {}

    class Client:
        def log_batch(self, run_id, metrics) -> None:
            logged.update({metric.key: (metric.step, metric.value) for metric in metrics})

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    paths = Paths(tmp_path)
    write_jsonl(paths.stage("train") / "history.jsonl", [{"step": 3, "loss": 2.5}])
    if timed:
        rows = [{"step": 3, "seconds": 2.0, "tokens_per_second": 50.0}]
        write_jsonl(paths.stage("train") / "timing.jsonl", rows)
    _log_history("run", paths)
    speed = {"train.seconds": (3, 2.0), "train.tokens_per_second": (3, 50.0)}
    assert logged == {"train.loss": (3, 2.5)} | (speed if timed else {})
