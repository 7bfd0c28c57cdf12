"""MLflow runs: one per state of the pipeline, with everything needed to trace a model back."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import get_run_logger, task

from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl, text_digest

RUN_KEY = "aaft.run_key"

_PACKAGES = ("aaft", "torch", "transformers", "peft", "mlflow", "prefect", "dvc")
_PARAM_CHARS = 6_000
_CHECK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the project's own database as an absolute URI."""
    own = f"sqlite:///{root.resolve()}/.aaft/mlflow/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or own


def select_server(root: Path) -> str:
    """Point the MLflow client at `tracking_uri`, making the local folder if need be."""
    import mlflow

    uri = tracking_uri(root)
    if uri.startswith("sqlite:"):
        (root / ".aaft/mlflow").mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    return uri


def connect(root: Path, experiment: str) -> str:
    """Check that MLflow answers, make the experiment if it is new, return the experiment's id.

    Raises:
        AaftError: no answer within about ten seconds; the message names the URI.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = select_server(root)
    try:
        with _environment(_CHECK):
            found = mlflow.get_experiment_by_name(experiment)
            if found is not None:
                return str(found.experiment_id)
            artifacts = (root / ".aaft/mlflow/artifacts").resolve().as_uri()
            own = uri.startswith("sqlite:")
            return str(mlflow.create_experiment(experiment, artifacts if own else None))
    except (MlflowException, OSError) as error:
        raise AaftError(
            f"MLflow does not answer at {uri} ({_reason(error)}); start that server, or unset "
            "MLFLOW_TRACKING_URI to use the project's own database"
        ) from None


@task(name="track", task_run_name="track")
def track(cfg: Config, paths: Paths, report: Path) -> str:
    """Log the pipeline's present state to MLflow and return the run's id.

    A state that was logged before, completely, is found again by its key and logged no second
    time.

    Raises:
        AaftError: a metric that isn't finite, or MLflow doesn't answer.
    """
    import mlflow

    root = Path.cwd()
    logger = get_run_logger()
    experiment = connect(root, cfg.registry.experiment)
    lock = read_lock(root / "dvc.lock")
    key = run_key(cfg, lock)
    known = mlflow.search_runs(
        [experiment],
        f"tags.`{RUN_KEY}` = '{key}' and attributes.status = 'FINISHED'",
        max_results=1,
        output_format="list",
    )
    if known:
        logger.info("this state is logged already: MLflow run %s", known[0].info.run_name)
        return str(known[0].info.run_id)
    _close_abandoned(experiment, key)
    with mlflow.start_run(
        experiment_id=experiment, run_name=f"retrain-{key[:8]}", tags=lineage(cfg, lock, root)
    ) as run:
        mlflow.log_params(parameters(cfg))
        mlflow.log_metrics(final_metrics(paths))
        _log_history(run.info.run_id, paths)
        _log_data(cfg, paths)
        _log_files(paths, report, root)
    logger.info("logged as MLflow run %s", run.info.run_name)
    return str(run.info.run_id)


def run_url(run_id: str) -> str:
    """Where the run is: a page of the tracking server, or the folder of its files."""
    import mlflow

    run = mlflow.get_run(run_id)
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        return f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run_id}"
    return str(run.info.artifact_uri)


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of ``dvc.lock``."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])
    except (FileNotFoundError, TypeError, KeyError):
        raise AaftError(f"{path.name}: no stage has run yet; run `dvc repro` first") from None


def run_key(cfg: Config, lock: Mapping[str, Any]) -> str:
    """Digest of what ran on what: the lock, and the configuration outside of it."""
    return text_digest(json.dumps([config_digest(cfg), lock], sort_keys=True, default=str))


def config_digest(cfg: Config) -> str:
    """Digest of the whole configuration, defaults included."""
    return text_digest(cfg.model_dump_json(by_alias=True))


def parameters(cfg: Config) -> dict[str, str]:
    """The configuration with dotted keys, each value at most as long as MLflow keeps."""
    return {
        key: str(value)[:_PARAM_CHARS]
        for key, value in _flat(cfg.model_dump(mode="json", by_alias=True))
    }


def final_metrics(paths: Paths) -> dict[str, float]:
    """``candidate.*``, ``reference.*`` and ``difference.*`` of every benchmark metric.

    Raises:
        AaftError: a value that isn't finite (MLflow would keep it without a word).
    """
    report = read_json(paths.report("evaluate"))
    verdict = read_json(paths.stage("gate") / "verdict.json")
    metrics = {
        f"{model}.{name}": entry["value"]
        for model in ("candidate", "reference")
        for name, entry in report[model].items()
    }
    metrics |= {
        f"difference.{name}": entry["difference"] for name, entry in verdict["metrics"].items()
    }
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise AaftError(f"{paths.report('evaluate')}: {name} is {value}; evaluate again")
    return metrics


def lineage(cfg: Config, lock: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Tags that lead from a run back to code, data, configuration and packages."""
    tags = {
        RUN_KEY: run_key(cfg, lock),
        "aaft.config_digest": config_digest(cfg),
        "aaft.data_md5": _locked_md5(lock, "validate", "deps", cfg.data.train),
        "aaft.bench_md5": _locked_md5(lock, "evaluate", "deps", str(cfg.data.bench)),
        "aaft.policy_md5": _locked_md5(lock, "train", "deps", cfg.policy.model),
        "aaft.adapter_md5": _locked_md5(lock, "train", "outs", "build/train/adapter"),
        "mlflow.source.git.commit": git_sha(root),
    }
    for package in _PACKAGES:
        try:
            tags[f"aaft.version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in tags.items() if value}


def git_sha(root: Path) -> str:
    """Commit checked out in ``root``, with ``-dirty`` when files differ; empty without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        sha = git("rev-parse", "HEAD")
        return f"{sha}-dirty" if sha and git("status", "--porcelain") else sha
    except FileNotFoundError:
        return ""


def _close_abandoned(experiment: str, key: str) -> None:
    """Mark runs of the same state that were killed while they were being logged."""
    import mlflow

    unfinished = f"tags.`{RUN_KEY}` = '{key}' and attributes.status = 'RUNNING'"
    for run in mlflow.search_runs([experiment], unfinished, output_format="list"):
        mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


def _locked_md5(lock: Mapping[str, Any], stage: str, part: str, path: str) -> str:
    entries = lock.get(stage, {}).get(part, [])
    return next((str(entry["md5"]) for entry in entries if entry.get("path") == path), "")


def _log_history(run_id: str, paths: Paths) -> None:
    """Numbers of ``history.jsonl`` and ``timing.jsonl`` as metrics ``train.*`` over steps."""
    import mlflow
    from mlflow.entities import Metric

    files = [paths.stage("train") / name for name in ("history.jsonl", "timing.jsonl")]
    metrics = [
        Metric(f"train.{key}", float(value), 0, int(row.get("step", number)))
        # DVC does not keep times: a step restored from its cache has none.
        for file in files
        if file.name == "history.jsonl" or file.is_file()
        for number, row in enumerate(read_jsonl(file))
        for key, value in _flat(row)
        if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    ]
    client = mlflow.MlflowClient()
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics[start : start + 1000])


def _log_data(cfg: Config, paths: Paths) -> None:
    """The rows trained on, as an MLflow dataset (its digest is MLflow's own)."""
    import mlflow
    import pandas as pd

    rows = read_jsonl(paths.stage("validate") / "clean.jsonl")
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "source": [row["source"] for row in rows],
            "messages": [json.dumps(row["messages"], ensure_ascii=False) for row in rows],
        }
    )
    with warnings.catch_warnings():
        # It finds two equal readings of a local path and says so.
        warnings.simplefilter("ignore", UserWarning)
        data = mlflow.data.from_pandas(frame, source=cfg.data.train, name=Path(cfg.data.train).stem)
    mlflow.log_input(data, context="training")


def _log_files(paths: Paths, report: Path, root: Path) -> None:
    import mlflow

    for file in (
        report,
        paths.stage("score") / "alignment.parquet",
        paths.stage("score") / "anchors.json",
        paths.stage("train") / "gates.parquet",
        paths.report("evaluate"),
        paths.stage("evaluate") / "results.jsonl",
        paths.stage("gate") / "verdict.json",
    ):
        mlflow.log_artifact(str(file), file.parent.name if file != report else None)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        mlflow.log_artifact(str(root / name), "pipeline")
    adapter = paths.stage("train") / "adapter"
    # A whole model (train.lora: null) goes into the registry anyway.
    if (adapter / "adapter_config.json").is_file():
        mlflow.log_artifacts(str(adapter), "train/adapter")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, for the length of a block."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rpartition("(Caused by ")[2].rstrip(")")[:160]
