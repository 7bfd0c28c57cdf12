"""Run the study in a process of its own and show its tables in the Prefect UI."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from aaft.errors import AaftError
from aaft.io import read_json
from tasks.process import stream
from tasks.stages import StageError, environment

_USER_ERROR = 2


@task(name="study", task_run_name="study {preset}")
def run_study(preset: str, out: Path, overrides: Sequence[str] = ()) -> Path:
    """``python -m aaft study`` in the working directory; return its report.

    What a killed study finished is kept: running again goes on.

    Raises:
        AaftError: the study refused its input; the message is its own.
        StageError: the study crashed or was killed.
    """
    command = [sys.executable, "-m", "aaft", "study", "--preset", preset, "--out", str(out)]
    for override in overrides:
        command += ["--set", override]
    logger = get_run_logger()
    code, errors = stream(command, Path.cwd(), environment(), logger.info, ("error: ",))
    said = [line.removeprefix("error: ") for line in errors if line.startswith("error: ")]
    if code == _USER_ERROR and said:
        raise AaftError(said[-1])
    if code:
        raise StageError(
            f"study: ended with code {code}; the log above says why; run again, finished cells "
            "are kept"
        )
    return out / "report.json"


@task(name="publish-study", task_run_name="publish study")
def publish_study(report: Path) -> None:
    """Create the artifact ``study-report``: the study's tables.

    Raises:
        AaftError: there is no report.
    """
    read_json(report)
    tables = report.with_suffix(".md").read_text(encoding="utf-8")
    create_markdown_artifact(
        key="study-report", markdown=tables, description="Methods by scenario, with intervals"
    )
