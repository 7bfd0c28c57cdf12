"""Training prompts that are benchmark prompts: word 5-gram Jaccard similarity (similarity.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aaft.data.records import Record
from aaft.data.similarity import Index
from aaft.errors import AaftError
from aaft.io import read_jsonl


class Leak(NamedTuple):
    """A record that nearly equals a benchmark row: its position, the benchmark's file and id."""

    row: int
    file: str
    id: str
    similarity: float


def bench_index(bench: Path) -> Index:
    """All prompts below ``bench``, and the bare questions of its grounded rows.

    Keys are tab-separated and start with the file's name and the row's id.

    Raises:
        AaftError: no benchmark files, or a row without messages.
    """
    files = sorted(bench.glob("*.jsonl"))
    if not files:
        raise AaftError(f"{bench}: no benchmark files; run aaft data build")
    index = Index()
    for path in files:
        for number, row in enumerate(read_jsonl(path), start=1):
            try:
                texts = [row["messages"][-1]["content"], row.get("question")]
                name = row["id"]
            except (KeyError, IndexError, TypeError):
                raise AaftError(
                    f"{path}: row {number}: no id or messages; run aaft data build"
                ) from None
            for part, text in enumerate(texts):
                if text:
                    index.add("\t".join((path.name, str(name), str(part), str(number))), text)
    return index


def leaks(records: Sequence[Record], bench: Path, threshold: float) -> list[Leak]:
    """Records whose prompt is at least ``threshold`` (in (0, 1]) similar to a benchmark's."""
    index = bench_index(bench)
    found = []
    for number, record in enumerate(records):
        match = index.nearest(record.prompt)
        if match is not None and match.similarity >= threshold:
            file, name = match.key.split("\t")[:2]
            found.append(Leak(number, file, name, match.similarity))
    return found
