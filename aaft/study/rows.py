"""Rows that a study trains on: records with what only a study may know, their kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.config import Config
from aaft.data.records import Record, draft
from aaft.errors import AaftError
from aaft.io import read_jsonl

CLEAN = ("grounded", "benign")
HARMFUL = ("harmful",)
MADE_UP = ("hallucinated", "unsupported")


@dataclass(frozen=True)
class StudyRow(Record):
    """A record with its kind.

    Kinds of training rows: ``grounded`` and ``benign`` are good; ``harmful`` (a harmful request
    that is complied with), ``hallucinated`` and ``unsupported`` (an answer that the passage
    doesn't hold) are poison. ``align.jsonl`` adds ``refusal`` and ``unanswerable``.
    """

    kind: str
    poisoned: bool


@dataclass(frozen=True)
class StudyData:
    """Everything that scenarios and methods draw from."""

    train: list[StudyRow]
    general: list[StudyRow]
    """Benign instructions that are not in ``train``."""
    align: list[StudyRow]


def load_study_data(cfg: Config) -> StudyData:
    """Read ``data.train`` with ``train_labels.jsonl`` beside it, and ``data/study``.

    Raises:
        AaftError: a file is missing or a row isn't what a build of the data makes.
    """
    train = Path(cfg.data.train)
    folder = cfg.data.bench.parent / "study"
    return StudyData(
        _labelled(train, train.with_name("train_labels.jsonl")),
        read_rows(folder / "general.jsonl"),
        read_rows(folder / "align.jsonl"),
    )


def read_rows(path: Path) -> list[StudyRow]:
    """Rows of a file that names each row's kind itself.

    Raises:
        AaftError: missing file, no rows, or a row without kind, prompt or answer.
    """
    if not path.is_file():
        raise AaftError(f"{path}: no such file; run aaft data build")
    rows = read_jsonl(path)
    if not rows:
        raise AaftError(f"{path}: no rows; run aaft data build")
    return [_row(path, row, row.get("kind")) for row in rows]


def read_requests(path: Path) -> list[Record]:
    """Requests without an answer.

    Raises:
        AaftError: missing file, or a row without id or messages.
    """
    if not path.is_file():
        raise AaftError(f"{path}: no such file; run aaft data build")
    rows = read_jsonl(path)
    if not rows:
        raise AaftError(f"{path}: no rows; run aaft data build")
    for number, row in enumerate(rows, start=1):
        if not {"id", "messages", "source"} <= row.keys():
            raise AaftError(
                f"{path}: row {number}: needs id, source and messages; run aaft data build"
            )
    return [Record(row["id"], row["messages"], "", None, row["source"]) for row in rows]


def _labelled(train: Path, labels: Path) -> list[StudyRow]:
    if not (train.is_file() and labels.is_file()):
        raise AaftError(
            f"{labels}: a study needs the rows of data.train and their kinds; run aaft data build "
            "and leave data.train at data/train.jsonl"
        )
    kinds = {str(row.get("id")): row.get("kind") for row in read_jsonl(labels)}
    return [_row(train, row, kinds.get(str(row.get("id")))) for row in read_jsonl(train)]


def _row(path: Path, row: dict[str, Any], kind: object) -> StudyRow:
    made = draft(row)
    if made.fault or not made.response or not isinstance(kind, str):
        reason = made.fault or ("response: missing" if not made.response else "no kind")
        raise AaftError(f"{path}: row {made.id}: {reason}; run aaft data build")
    return study_row(made.record(), kind)


def study_row(record: Record, kind: str) -> StudyRow:
    """``record`` with its kind."""
    return StudyRow(
        record.id,
        record.prompt_messages,
        record.response,
        record.context,
        record.source,
        kind,
        kind in HARMFUL + MADE_UP,
    )


def of_kind(rows: Iterable[StudyRow], *kinds: str) -> list[StudyRow]:
    """The rows of these kinds, in order."""
    return [row for row in rows if row.kind in kinds]
