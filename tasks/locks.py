"""Locks between processes on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from aaft.errors import AaftError


@contextmanager
def exclusive(path: Path, what: str, wait_seconds: float) -> Iterator[None]:
    """Hold the lock file ``path``; it frees itself when the process dies, however it dies.

    Raises:
        AaftError: another process holds it for longer than ``wait_seconds``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait_seconds)
    try:
        lock.acquire()
    except Timeout:
        raise AaftError(f"{path}: {what} is under way in another process; wait for it") from None
    try:
        yield
    finally:
        lock.release()
