"""What every benchmark shares: an example, and a benchmark as three plain attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aaft.errors import AaftError
from aaft.io import read_jsonl
from aaft.judges.embedded import EmbeddedJudge


@dataclass(frozen=True)
class BenchExample:
    """One prompt, and what is needed to mark its answer."""

    id: str
    messages: list[dict[str, str]]
    prefill: str = ""
    context: str | None = None
    question: str = ""
    answers: list[str] = field(default_factory=list)

    @property
    def request(self) -> str:
        """What is asked: the last message, which judges read."""
        return self.messages[-1]["content"]


Scorer = Callable[[Sequence[BenchExample], Sequence[str], EmbeddedJudge], list[dict[str, float]]]


@dataclass(frozen=True)
class Benchmark:
    """``file`` under ``data/bench`` and how its answers are marked.

    ``score`` gives one ``{metric: value in [0, 1]}`` per example; a metric's rate is the mean over
    the examples that have it.
    """

    name: str
    score: Scorer

    @property
    def file(self) -> str:
        """File name of its examples."""
        return f"{self.name}.jsonl"


def load_bench(folder: Path, benchmark: Benchmark, limit: int | None) -> list[BenchExample]:
    """Read a benchmark's examples, the first ``limit`` of them.

    Raises:
        AaftError: missing file, a missing field, or no examples at all.
    """
    path = folder / benchmark.file
    rows = read_jsonl(path)[:limit]
    if not rows:
        raise AaftError(f"{path}: no examples; rebuild it with `aaft data build`")
    return [_example(path, number, row) for number, row in enumerate(rows, start=1)]


def _example(path: Path, number: int, row: dict[str, Any]) -> BenchExample:
    fields = {key: row[key] for key in BenchExample.__dataclass_fields__ if key in row}
    try:
        return BenchExample(**fields)
    except TypeError:
        raise AaftError(f"{path}: line {number}: a row needs `id` and `messages`") from None
