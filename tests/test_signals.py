"""What SIGTERM does to a process that runs a stage, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import alive

ROOT = Path(__file__).resolve().parent.parent
STUBBORN = """
import os, signal, sys, time
def again(*_):
    os.kill(os.getppid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, again)
open(sys.argv[1], "w").write(str(os.getpid()))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(300)
"""
STREAM = f"""
import os, signal, sys
from pathlib import Path
from tasks import process
process._GRACE_SECONDS = 0.5
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
process.stream([sys.executable, "-c", {STUBBORN!r}, sys.argv[1]], Path.cwd(), os.environ, print)
"""
ENDED = """
import os, signal
from prefect.exceptions import TerminationSignal
from tasks.console import exit_on_expected_errors
with exit_on_expected_errors():
    {body}
print("after")
os.kill(os.getpid(), signal.SIGTERM)
print("end")
"""
AGAIN = """
import atexit, os, signal
from prefect.utilities.engine import capture_sigterm
from tasks.console import exit_on_expected_errors
from aaft.errors import AaftError

@atexit.register
def shutdown():
    os.kill(os.getpid(), signal.SIGTERM)
    print("server stopped")

with exit_on_expected_errors(), capture_sigterm():
    {body}
"""
SERVER_GONE = """
    try:
        raise TerminationSignal(signal.SIGTERM)
    except TerminationSignal:
        raise ConnectionError("no server to tell it to")
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_second_signal_does_not_save_a_stage_that_takes_its_time(tmp_path: Path) -> None:
    file = tmp_path / "stage.pid"
    done = run(STREAM, str(file))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not alive(int(file.read_text()))


@pytest.mark.parametrize(
    ("body", "code", "output", "message"),
    [
        ("pass", 0, "after\nend\n", []),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "", ["error: stopped by SIGTERM"]),
        (SERVER_GONE.strip(), 143, "", ["error: stopped by SIGTERM"]),
    ],
)
def test_a_signal_ends_a_flow_in_one_line_and_only_while_it_runs(
    body: str, code: int, output: str, message: list[str]
) -> None:
    done = run(ENDED.format(body=body))
    assert done.returncode == code, done.stderr
    assert done.stdout == output
    assert done.stderr.splitlines() == message


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "error: stopped by SIGTERM"),
        ("raise AaftError('no rows')", 2, "error: no rows"),
    ],
)
def test_a_signal_at_the_end_does_not_cut_prefects_shutdown_short(
    body: str, code: int, message: str
) -> None:
    done = run(AGAIN.format(body=body))
    assert done.returncode == code, done.stderr
    assert done.stdout == "server stopped\n"
    assert done.stderr.splitlines() == [message]


def test_a_bug_keeps_its_traceback() -> None:
    done = run(ENDED.format(body="1 / 0"))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
