"""Run a command, pass its output on line by line, keep its progress bars on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_GRACE_SECONDS = 10


def stream(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    hidden: tuple[str, ...] = (),
) -> tuple[int, list[str]]:
    """Run ``command``; return its exit code and the lines of its standard error.

    Lines of standard output go to ``on_line`` as they come, and those of standard error too,
    unless our own standard error is a terminal: then the command gets a terminal as well and its
    bytes are passed through, so that progress bars show. Lines of standard error that start with
    one of ``hidden`` are returned but not shown. ``on_line`` is called from one thread at a time.
    If we are interrupted, the command and its children are stopped first.
    """
    lock = threading.Lock()
    errors: list[str] = []

    def emit(line: str) -> None:
        with lock:
            on_line(line)

    def keep(line: str) -> None:
        errors.append(line)
        if not terminal and not line.startswith(hidden):
            emit(line)

    terminal = sys.stderr.isatty()
    read_end, write_end = _terminal() if terminal else os.pipe()
    # A session of its own: an interrupt can then stop the shell and the stage below it together.
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=write_end,
        start_new_session=True,
    )
    os.close(write_end)
    stderr = threading.Thread(target=_read, args=(read_end, keep, terminal, hidden), daemon=True)
    stderr.start()
    try:
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        for raw in process.stdout:
            emit(_clean(raw))
        code = process.wait()
    except BaseException:
        _stop(process)
        raise
    finally:
        stderr.join()
        os.close(read_end)
    return code, errors


def _terminal() -> tuple[int, int]:
    """A pseudo-terminal of the same size as ours: (our end, the command's end)."""
    ours, theirs = pty.openpty()
    size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    return ours, theirs


def _read(
    handle: int, keep: Callable[[str], None], passthrough: bool, hidden: tuple[str, ...]
) -> None:
    """Collect lines until the last writer is gone; with ``passthrough`` also show them."""
    rest, shown = b"", 0
    while True:
        try:
            chunk = os.read(handle, 65536)
        except OSError:  # Linux says EIO when the last writer of a pseudo-terminal is gone.
            chunk = b""
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest.strip():
            lines, rest = [*lines, rest], b""
        for line in lines:
            keep(_clean(line))
            if passthrough and (shown or not _clean(line).startswith(hidden)):
                os.write(sys.stderr.fileno(), line[shown:] + b"\n")
            shown = 0
        # A bar redraws its line without ever ending it; plain text waits for the line's end.
        if passthrough and rest.startswith((b"\r", b"\x1b")):
            os.write(sys.stderr.fileno(), rest[shown:])
            shown = len(rest)
        if not chunk:
            return


def _clean(raw: bytes) -> str:
    """Text of a line as a terminal would leave it: after the last carriage return, no colours."""
    text = _ANSI.sub("", raw.decode("utf-8", errors="replace"))
    return text.rstrip().rpartition("\r")[2]


def _stop(process: subprocess.Popen[bytes]) -> None:
    with _deaf_to_sigterm():
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(_GRACE_SECONDS)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return


@contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """A second SIGTERM must not leave the command alive. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
