"""The retraining flow with the real stages, on a tiny model: Prefect, DVC, MLflow, all real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aaft.io import read_json
from tests import tiny
from tests.test_pipeline import METRICS, write_data

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real") / "project"
    root.mkdir()
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "aaft", root / "aaft", ignore=shutil.ignore_patterns("__pycache__"))
    write_data(root / "data")
    tiny.save_policy(root / "models/policy")
    for name in ("embedder", "intent_embedder"):
        tiny.save_encoder(root / "models" / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["score"] |= {"max_new_tokens": 6, "batch_size": 4}
    params["train"] |= {"rows_per_step": 4, "tokens_per_batch": 300}
    params["evaluate"] |= {"max_new_tokens": 6, "batch_size": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    run(root, str(Path(sys.executable).with_name("dvc")), "init", "--no-scm", "-q")
    return root


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    env |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def flow(root: Path) -> subprocess.CompletedProcess[str]:
    return run(root, sys.executable, "-P", "-m", "flows.retrain")


@pytest.fixture(scope="module")
def first(project: Path) -> subprocess.CompletedProcess[str]:
    return flow(project)


def test_a_real_run_ends_with_a_verdict_on_every_metric(project: Path, first) -> None:
    assert first.returncode == 0, first.stderr + first.stdout
    verdict = read_json(project / "build/gate/verdict.json")
    assert set(verdict["metrics"]) == METRICS
    for metric in METRICS:
        assert metric in first.stdout
    assert (project / "build/report.html").is_file()
    assert (project / "build/validate/data_docs/index.html").is_file()


def test_the_reference_and_the_candidate_are_registered(project: Path, first) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/.aaft/mlflow/mlflow.db")
    aliases = client.get_registered_model("aaft").aliases
    assert {"candidate", "champion"} <= set(aliases)
    assert len(client.search_model_versions("name='aaft'")) == 2


def test_dvc_has_nothing_left_to_do_and_neither_has_a_second_run(project: Path, first) -> None:
    lock = (project / "dvc.lock").read_bytes()
    done = run(project, str(Path(sys.executable).with_name("dvc")), "repro")
    assert "Data and pipelines are up to date" in done.stdout
    again = flow(project)
    assert again.returncode == 0, again.stderr
    assert (project / "dvc.lock").read_bytes() == lock
