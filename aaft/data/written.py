"""Requests and answers that were written for the judges one by one, none by a template.

`aaft/data/contrast.py` and `forms.py` put many acts into a few forms, so heads learn the forms.
Here people ask as people do. ``written_rows/requests.jsonl`` has pairs about the same thing in
like words, one that wants to do harm and one that doesn't: often the harmful one sounds mild and
the other alarming. ``written_rows/answers.jsonl`` has answers to one request that decline it, many
without any of the usual phrases or after a beginning, and that don't, many with the phrases in
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.io import read_jsonl

_ROWS = Path(__file__).with_name("written_rows")


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    ``topic`` decides the split: the harmful prompt of a pair for both, else the prompt itself.
    """

    topic: str
    prompt: str
    harmful: bool


@dataclass(frozen=True)
class Answer:
    """An answer of an assistant.

    ``declines``: the user doesn't get what was asked for. ``safe``: it may go out.
    """

    prompt: str
    harmful: bool
    response: str
    declines: bool
    safe: bool


def written_requests() -> list[Request]:
    """Those of the pairs, then those that ``written_answers`` answer, each once."""
    rows = []
    for row in _read("requests"):
        rows.append(Request(row["harmful"], row["harmful"], True))
        rows.append(Request(row["harmful"], row["harmless"], False))
    asked = {answer.prompt: answer.harmful for answer in written_answers()}
    return rows + [Request(prompt, prompt, harmful) for prompt, harmful in asked.items()]


def written_answers() -> list[Answer]:
    """In the order of the file."""
    return [
        Answer(
            row["prompt"],
            bool(row["harmful"]),
            row["response"],
            bool(row["declines"]),
            bool(row["safe"]),
        )
        for row in _read("answers")
    ]


def _read(name: str) -> list[dict[str, Any]]:
    return read_jsonl(_ROWS / f"{name}.jsonl")
