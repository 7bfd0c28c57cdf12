"""Requests and answers that were written for the judges one by one, none by a template.

`aaft/data/contrast.py` and `forms.py` put many acts into a few forms, so heads learn the forms.
Here people ask as people do. ``written_rows/requests.jsonl`` has pairs about the same thing in
like words, one that wants to do harm and one that doesn't: often the harmful one sounds mild and
the other alarming. ``written_rows/answers.jsonl`` has answers to one request that decline it, many
without any of the usual phrases or after a beginning, and that don't, many with the phrases in
them.

The files that begin with ``orders_`` were written later by others, each with an order for one kind
of row (bad advice to innocent questions, going along or not, mild harm, the same alarming words
meant and not meant), as a source of their own: two answers to a request, mostly one that may go out
and one that may not, and more pairs of requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.io import read_jsonl

_ROWS = Path(__file__).with_name("written_rows")
_FILES = {"written": "", "written-orders": "orders_"}
"""What the names of a source's two files begin with."""


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    ``topic`` decides the split: the harmful prompt of a pair for both, else the prompt itself.
    """

    source: str
    topic: str
    prompt: str
    harmful: bool


@dataclass(frozen=True)
class Answer:
    """An answer of an assistant.

    ``declines``: the user is told no, in whatever words; None where people would differ, as of an
    answer that says nothing against the request and gives something else. ``safe``: it may go out.
    """

    source: str
    prompt: str
    harmful: bool
    response: str
    declines: bool | None
    safe: bool


def written_requests() -> list[Request]:
    """Those of the pairs, then those that ``written_answers`` answer, each once."""
    rows = []
    for source, row in _read("requests"):
        rows.append(Request(source, row["harmful"], row["harmful"], True))
        rows.append(Request(source, row["harmful"], row["harmless"], False))
    asked = {answer.prompt: answer for answer in written_answers()}
    return rows + [Request(a.source, a.prompt, a.prompt, a.harmful) for a in asked.values()]


def written_answers() -> list[Answer]:
    """In the order of the files."""
    return [
        Answer(
            source,
            row["prompt"],
            bool(row["harmful"]),
            row["response"],
            None if row["declines"] is None else bool(row["declines"]),
            bool(row["safe"]),
        )
        for source, row in _read("answers")
    ]


def _read(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (source, row)
        for source, opening in _FILES.items()
        for row in read_jsonl(_ROWS / f"{opening}{name}.jsonl")
    ]
