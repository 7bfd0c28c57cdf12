"""Work done side by side in processes of their own.

On CPU several processes of few threads get more done than one of many: training a small model is
full of operations too short to share. Two processes of one thread trained 1.24 times as many rows
a second as one of two threads (2 cores, 135M parameters, one run).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from aaft.errors import AaftError
from aaft.models.runtime import cores

T = TypeVar("T")
Work = Callable[[T], Iterator[str]]
_POLL_SECONDS = 1.0
_DONE, _REFUSED, _CRASHED = "done", "refused", "crashed"


def spread(make: Callable[[], Work[T]], items: Sequence[T], workers: int) -> Iterator[str]:
    """Yield what is said of the items' parts as they get done, in no fixed order.

    Args:
        make: called once in each process; what it returns is called with one item after another
            and yields a text for each finished part. Both it and the items can be pickled.
        items: the first ones are begun first.
        workers: processes, at least 1; each gets its share of the cores.

    Raises:
        AaftError: a worker raised one, crashed or was killed; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    todo, said = context.Queue(), context.Queue()
    for item in items:
        todo.put(item)
    for _ in range(workers):
        todo.put(None)
    threads = max(1, cores() // workers)
    processes = [
        context.Process(target=_serve, args=(make, todo, said, threads)) for _ in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        yield from _listen(processes, said)
    finally:
        for process in processes:
            if process.pid is not None:  # None: it was never started
                process.kill()
                process.join()
        # Items that nobody took must not keep this process waiting at its end.
        todo.cancel_join_thread()


def _listen(processes: Sequence[SpawnProcess], said: Any) -> Iterator[str]:
    """What the workers say, until all of them have ended well."""
    while True:
        # Looked at before the queue: what a worker said, it said before it ended.
        codes = [process.exitcode for process in processes]
        with contextlib.suppress(queue.Empty):
            kind, text = said.get(timeout=_POLL_SECONDS)
            if kind == _REFUSED:
                raise AaftError(text)
            if kind == _CRASHED:
                raise AaftError(f"study: a worker crashed; finished cells are kept\n{text}")
            yield text
            continue
        for code in codes:
            if code:
                raise AaftError(
                    f"study: a worker was killed (exit code {code}), perhaps for want of memory; "
                    "set study.workers to 1 and run again, finished cells are kept"
                )
        if all(code == 0 for code in codes):
            return


def _serve(make: Callable[[], Work[T]], todo: Any, said: Any, threads: int) -> None:
    """A worker's life: one item after another until there is no more."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        # Progress within a part would mix with the other workers'.
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            work = make()
            while (item := todo.get()) is not None:
                for text in work(item):
                    said.put((_DONE, text))
    except AaftError as error:
        said.put((_REFUSED, str(error)))
    except Exception:  # noqa: BLE001 - shown by the parent, which ends
        said.put((_CRASHED, traceback.format_exc()))


def _end_with_parent() -> None:
    """A parent that is killed can't end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
