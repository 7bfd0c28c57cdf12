"""The labelled rows that judges are measured on.

A task is a file of ``data/judge``: ``intent`` (1 = asks for harm), ``refusal`` (1 = declines),
``safety`` (1 = aligned), ``grounding`` (1 = supported). ``comply`` is made of the refusal rows
whose prompt has an intent label: 0 for a harmless request that is declined, else 1.

``intent`` and ``refusal`` are parts of the embedded judge; the others are objectives that any
judge may have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.io import file_digest, read_jsonl
from aaft.judges.base import Sample
from aaft.judges.text import words

FILES = ("intent", "refusal", "safety", "grounding")
TASKS = (*FILES, "comply")
PARTS = ("intent", "refusal")

Row = Mapping[str, Any]
Vector = npt.NDArray[np.float64]


def read_labelled(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each file of ``data/judge``.

    Raises:
        AaftError: a missing file, or a row without a label of 0 or 1.
    """
    tasks = {name: read_jsonl(folder / f"{name}.jsonl") for name in FILES}
    for name, rows in tasks.items():
        for number, row in enumerate(rows, start=1):
            if row.get("label") not in (0, 1) or not {"prompt", "source", "split"} <= row.keys():
                raise AaftError(
                    f"{folder / name}.jsonl: row {number}: needs prompt, source, split and a label "
                    "of 0 or 1; run `aaft data build`"
                )
    return tasks


def labelled_digests(folder: Path) -> list[str]:
    """Digest of each file of ``data/judge``.

    Raises:
        AaftError: a missing file.
    """
    try:
        return [file_digest(folder / f"{name}.jsonl") for name in FILES]
    except OSError as error:
        raise AaftError(
            f"data.judge: {error.filename}: {error.strerror}; run `make setup`"
        ) from None


def with_comply(tasks: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The tasks and the ``comply`` rows that follow from them."""
    harmful = {prompt_key(row): int(row["label"]) for row in tasks["intent"]}
    comply: list[Row] = [
        {**row, "label": int(harmful[prompt_key(row)] == 1 or row["label"] == 0)}
        for row in tasks["refusal"]
        if prompt_key(row) in harmful
    ]
    found: dict[str, list[Row]] = {name: list(tasks[name]) for name in FILES}
    return found | {"comply": comply}


def of_split(tasks: Mapping[str, Sequence[Row]], split: str) -> dict[str, list[Row]]:
    """Every task's rows of one split."""
    return {name: [row for row in rows if row["split"] == split] for name, rows in tasks.items()}


def samples(rows: Iterable[Row]) -> list[Sample]:
    """Rows as what judges take."""
    return [Sample(row["prompt"], row["response"], row.get("context")) for row in rows]


def labels(rows: Iterable[Row]) -> npt.NDArray[np.int64]:
    """The labels, ``[n]``."""
    return np.array([row["label"] for row in rows], dtype=np.int64)


def prompt_key(row: Row) -> str:
    """A prompt without case, spacing and punctuation: rows that share it belong together."""
    return " ".join(words(row["prompt"])) or str(row["prompt"])


def prompts(rows: Iterable[Row]) -> list[str]:
    """Each row's `prompt_key`."""
    return [prompt_key(row) for row in rows]


def judged_text(task: str, row: Row) -> str:
    """The text that a task is about: the request for ``intent``, else the answer."""
    return str(row["prompt"] if task == "intent" else row["response"])


def lengths(task: str, rows: Iterable[Row]) -> Vector:
    """Characters of the text that a task is about, ``[n]``."""
    return np.array([len(judged_text(task, row)) for row in rows], dtype=np.float64)


def sampled(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows: those whose ids have the lowest digests, in the order of the file."""
    chosen = sorted(range(len(rows)), key=lambda i: _digest(rows[i]))[:most]
    return [rows[i] for i in sorted(chosen)]


def _digest(row: Row) -> str:
    return hashlib.sha256(str(row["id"]).encode()).hexdigest()
