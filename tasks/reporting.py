"""The HTML report, from the files that the stages left."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from aaft.config import Config, Paths


@task(name="report", task_run_name="report")
def write_report(cfg: Config, paths: Paths) -> Path:
    """Render the report and return its path."""
    from aaft.report import render

    return render(cfg, paths)
