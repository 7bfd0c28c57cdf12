"""What a person sees in the terminal beside Prefect's log."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from prefect.exceptions import TerminationSignal
from rich.console import Console
from rich.text import Text

from aaft.config import Paths
from aaft.errors import AaftError
from aaft.io import read_json
from aaft.promotion.table import final_table
from tasks.registry import Registration
from tasks.stages import StageError
from tasks.tracking import tracking_uri


def quiet_expected_errors() -> None:
    """Log errors that explain themselves without the traceback of Prefect's engine."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        # Adding the same filter again does nothing.
        logging.getLogger(name).addFilter(_drop_traceback)


@contextmanager
def exit_on_expected_errors() -> Iterator[None]:
    """End the process with one line for an expected error: code 2 for a wrong input, else 1.

    SIGTERM ends it too, with code 143. Prefect marks the run as crashed and then leaves the signal
    to who had it before; by default that kills on the spot, and its temporary server lives on. The
    signal counts once: a second one would cut short what ends the stage and that server.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    if home := os.environ.get("PREFECT_HOME"):
        # Prefect makes only the last folder of this path, and else waits for a server in vain.
        Path(home).mkdir(parents=True, exist_ok=True)
    quiet_expected_errors()
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        yield
        _end_log()
    except (AaftError, StageError) as error:
        _end_log()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, AaftError) else 1)
    except Exception as error:
        if not _came_of_sigterm(error):
            raise
        _exit_on_sigterm(signal.SIGTERM, None)
    finally:
        # All is done but Prefect's own shutdown. (It has put our handler back after calling it.)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def show_result(paths: Paths, report: Path, registration: Registration) -> None:
    """The final table, then where to look."""
    console = Console()
    console.print()
    console.print(final_table(read_json(paths.stage("gate") / "verdict.json")))
    docs = paths.stage("validate") / "data_docs/index.html"
    uri = tracking_uri(Path.cwd())
    mlflow = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
    for label, value in (
        ("registry", f"{registration.name} version {registration.candidate} is the candidate;"),
        ("", registration.reason),
        ("report", str(report)),
        ("data docs", str(docs)),
        ("mlflow", f"make ui, or {mlflow}" if uri.startswith("sqlite:") else mlflow),
        ("ask it", 'aaft ask "What is a leap year?" --model candidate'),
    ):
        console.print(Text.assemble((f"{label:<10}", "bold"), value), soft_wrap=True)


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)
    _end_log()
    print("error: stopped by SIGTERM", file=sys.stderr)
    sys.exit(128 + number)


def _came_of_sigterm(error: BaseException | None) -> bool:
    """Whether Prefect was handling SIGTERM: it fails to if its server was told to end as well."""
    while error is not None and not isinstance(error, TerminationSignal):
        error = error.__context__
    return error is not None


def _end_log() -> None:
    """Let our last words be the last: no message about Prefect's own shutdown after them."""
    logging.getLogger("prefect").setLevel(logging.WARNING)


def _drop_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (AaftError, StageError)):
        record.exc_info = record.exc_text = None
        record.msg, record.args = str(error), None
    return True
