"""What can be checked before anything long starts."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from aaft.config import Config
from aaft.errors import AaftError
from aaft.models.policy import locate_model
from tasks import tracking


@task(name="preflight", task_run_name="preflight")
def preflight(cfg: Config) -> None:
    """Check that inputs exist and that MLflow answers.

    Raises:
        AaftError: a missing file or model, a hub id that dvc.yaml still lists as a file, or a
            tracking server that doesn't answer.
    """
    check_inputs(cfg, Path("dvc.yaml"))
    tracking.connect(Path.cwd(), cfg.registry.experiment)


def check_inputs(cfg: Config, pipeline: Path) -> None:
    """Check the inputs that params.yaml names; a path that exists is left to the stages."""
    locate_model(cfg.policy.model)
    locate_model(cfg.judges.embedder, key="judges.embedder")
    locate_model(cfg.judges.intent_embedder, key="judges.intent_embedder")
    if not Path(cfg.data.train).exists() and cfg.data.train.endswith((".jsonl", ".json")):
        raise AaftError(f"data.train: {cfg.data.train}: no such file; correct it in params.yaml")
    try:
        stages = pipeline.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AaftError(f"{pipeline}: no such file; run from the project's root") from None
    named: dict[str, str] = {}
    for key, value in {
        "data.train": cfg.data.train,
        "policy.model": cfg.policy.model,
        "judges.embedder": cfg.judges.embedder,
        "judges.intent_embedder": cfg.judges.intent_embedder,
    }.items():
        line = f"- ${{{key}}}"
        if line not in stages:
            continue
        if not Path(value).exists():
            raise AaftError(
                f"{key}: {value} is not a path here, and DVC hashes only files: for a hub id "
                f"delete every line `{line}` from {pipeline}"
            )
        if value in named:
            raise AaftError(
                f"{key}: {value} is {named[value]} too, and DVC refuses to name one path twice: "
                f"delete every line `{line}` from {pipeline}"
            )
        named[value] = key
