"""Run pipeline stages through DVC, which decides whether there is anything to do."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect import get_run_logger, task
from prefect.states import Completed, State

from aaft.errors import AaftError
from tasks.process import stream

STAGES = ("validate", "score", "train", "evaluate", "gate")

_EXIT = re.compile(r"exited with (-?\d+)")
_USER_ERROR = 2
# What DVC tells people who drive it by hand, and errors that we report ourselves.
_HIDDEN = (
    "Running stage",
    "Stage '",
    "> ",
    "Updating lock file",
    "Generating lock file",
    "Verifying data sources",
    "Data and pipelines are up to date",
    "To track the changes",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
    "ERROR: failed to reproduce",
    "error: ",
    # No bad rows, nothing to review: the ordinary case.
    "WARNING: 'build/validate/quarantine.jsonl' is empty",
    "WARNING: 'build/train/review.jsonl' is empty",
)


class StageError(RuntimeError):
    """A stage died of something that isn't the user's input."""


@task(name="stage", task_run_name="{stage}")
def run_stage(stage: str) -> State:
    """Bring one stage up to date; the state is named "Cached" when there was nothing to do.

    Raises:
        AaftError: the stage refused its input; the message is the stage's own.
        StageError: the stage crashed or was killed.
    """
    logger = get_run_logger()
    if reproduce(stage, Path.cwd(), logger.info):
        return Completed(message=f"{stage}: done")
    logger.info("%s: up to date", stage)
    return Completed(name="Cached", message=f"{stage}: nothing changed")


def reproduce(stage: str, root: Path, on_line: Callable[[str], None]) -> bool:
    """``dvc repro --single-item stage`` in ``root``; returns False when nothing had changed.

    Raises:
        AaftError, StageError: as in `run_stage`.
    """
    changed = True

    def on_output(line: str) -> None:
        nonlocal changed
        if "didn't change, skipping" in line or "is cached - skipping run" in line:
            changed = False
        if line.strip() and not line.startswith(_HIDDEN):
            on_line(line)

    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    code, errors = stream(command, root, environment(), on_output, _HIDDEN)
    if code:
        raise explain_failure(stage, errors)
    return changed


def environment() -> dict[str, str]:
    """Our environment with this interpreter's folder first on PATH, and a shell DVC can use."""
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1"}


def explain_failure(stage: str, errors: Sequence[str]) -> Exception:
    """The exception for a failed ``dvc repro``, from what it and the stage wrote."""
    said = [line.removeprefix("error: ") for line in errors if line.startswith("error: ")]
    found = [int(match.group(1)) for line in errors if (match := _EXIT.search(line))]
    code = found[-1] if found else None
    if code == _USER_ERROR and said:
        return AaftError(f"{stage}: {said[-1]}")
    if code is None:
        # DVC itself failed: a missing dependency, a lock held by another process, a broken file.
        dvc = [line.removeprefix("ERROR: ") for line in errors if line.startswith("ERROR: ")]
        return AaftError(f"{stage}: dvc: {dvc[-1] if dvc else 'failed without a message'}")
    killed = -code if code < 0 else code - 128
    if killed in {number.value for number in signal.Signals}:
        name = signal.Signals(killed).name
        hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return StageError(f"{stage}: killed by {name}{hint}; run again, what is finished is kept")
    return StageError(f"{stage}: exited with code {code}; the log above says why")
