"""Cells computed side by side: nothing lost, nothing twice, and the end of one is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aaft.errors import AaftError
from aaft.models.runtime import cores
from aaft.study.stage import in_parts
from aaft.study.workers import spread
from tests.processes import alive

ROOT = Path(__file__).resolve().parent.parent


def parts(item: int) -> Iterator[str]:
    for part in "ab":
        yield f"{item}{part} {os.environ['OMP_NUM_THREADS']}"


def make_parts():
    return parts


def make_faulty():
    def work(item: str) -> Iterator[str]:
        if item == "refuse":
            raise AaftError("file x, row 3: no prompt; add one")
        if item == "crash":
            raise ZeroDivisionError("by nothing")
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        yield item

    return work


@pytest.mark.parametrize("workers", [1, 2])
def test_every_part_of_every_item_is_told_once(workers: int) -> None:
    threads = max(1, cores() // workers)
    said = list(spread(make_parts, [1, 2, 3], workers))
    assert sorted(said) == [f"{item}{part} {threads}" for item in (1, 2, 3) for part in "ab"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("refuse", "^file x, row 3: no prompt; add one$"),
        ("crash", "(?s)a worker crashed.*ZeroDivisionError: by nothing"),
        ("die", "killed .exit code -9.*study.workers to 1"),
    ],
)
def test_a_worker_that_fails_ends_the_others(item: str, message: str) -> None:
    with pytest.raises(AaftError, match=message):
        list(spread(make_faulty, [item, *["fine"] * 3], 2))


ENDLESS = """
import os, sys, time
from pathlib import Path
from aaft.study.workers import spread

def make():
    def work(item):
        Path(sys.argv[1], str(os.getpid())).touch()
        while True:
            time.sleep(0.1)
        yield item
    return work

if __name__ == "__main__":
    list(spread(make, [1, 2], 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script, seen = tmp_path / "endless.py", tmp_path / "seen"
    script.write_text(ENDLESS)
    seen.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(seen)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    def wait(met) -> None:
        end = time.monotonic() + 60
        while not met():
            assert time.monotonic() < end
            time.sleep(0.05)

    try:
        wait(lambda: len(list(seen.iterdir())) == 2)
        parent.kill()
        parent.wait()
        wait(lambda: not any(alive(int(path.name)) for path in seen.iterdir()))
    finally:
        parent.kill()
        for path in seen.iterdir():
            if alive(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ([], []),
        ([["a"]], [("a",)]),
        ([["a", "b", "c", "d"], ["e", "f", "g"]], [("a", "b"), ("e", "f"), ("c", "d"), ("g",)]),
        ([["a"], ["b", "c", "d"]], [("a",), ("b", "c"), ("d",)]),
    ],
)
def test_groups_come_in_parts_all_first_ones_first(groups, parts) -> None:
    assert in_parts(groups) == parts
