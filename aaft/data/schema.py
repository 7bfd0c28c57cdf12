"""The row schema (pandera): every fault of every row in one pass.

Two kinds of fault. *Structural*: the row isn't a training row at all (no response, a wrong type,
a repeated id, too long). *Content*: it is one, but a doubtful one. The validate stage stops at
any structural fault, and at content faults above a tolerated share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import pandera.pandas as pa

from aaft.config import ValidateConfig
from aaft.data.records import Draft

# Tab, newline and carriage return are ordinary; other control characters are not.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REPLACEMENT = "\ufffd"


class Fault(NamedTuple):
    """What is wrong with one row: its position, the field, and the reason in plain words."""

    row: int
    field: str
    reason: str
    structural: bool


class _Rule(NamedTuple):
    """A check on every value of a column. ``field`` is what the user calls the column."""

    column: str
    field: str
    reason: str
    structural: bool
    holds: Callable[[str], bool]

    @property
    def name(self) -> str:
        return f"{self.field}: {self.reason}"


def rules(cfg: ValidateConfig) -> list[_Rule]:
    """All checks of rows with a sound shape; structural ones first."""
    longest = {"prompt": cfg.max_prompt_chars, "response": cfg.max_response_chars}
    texts = ("prompt", "response")
    return [
        _Rule("response", "response", "missing", True, lambda text: text != ""),
        *(_longest(field, limit) for field, limit in longest.items()),
        _Rule("repeated_id", "id", "used before", True, lambda repeated: not repeated),
        _Rule(
            "repeated_text", "messages", "repeats an earlier row", False, lambda again: not again
        ),
        _Rule("echo", "response", "same as the prompt", False, lambda echo: not echo),
        _Rule("prompt", "prompt", "blank", False, lambda text: text.strip() != ""),
        # An empty response is "missing" already.
        _Rule("response", "response", "blank", False, lambda text: not text or not text.isspace()),
        *(
            _Rule(field, field, "control characters", False, lambda text: not _CONTROL.search(text))
            for field in texts
        ),
        *(
            _Rule(field, field, "undecodable characters", False, lambda t: _REPLACEMENT not in t)
            for field in texts
        ),
    ]


def _longest(field: str, limit: int) -> _Rule:
    return _Rule(
        field, field, f"longer than {limit} characters", True, lambda text: len(text) <= limit
    )


def frame(drafts: list[Draft]) -> pd.DataFrame:
    """One line a draft, in order, with the columns that the rules name."""
    ids = pd.Series([made.id for made in drafts], dtype=object)
    own = pd.Series([made.own_id for made in drafts], dtype=bool)
    prompts = ["\n".join(m["content"] for m in made.prompt_messages) for made in drafts]
    responses = [made.response or "" for made in drafts]
    pairs = list(zip(prompts, responses, strict=True))
    return pd.DataFrame(
        {
            "prompt": prompts,
            "response": responses,
            "repeated_id": (ids.duplicated() & own).tolist(),
            "repeated_text": (ids.duplicated() & ~own).tolist(),
            "echo": [
                response != "" and prompt.strip() == response.strip() for prompt, response in pairs
            ],
        },
        # pandas would make string columns of its own type; the checks expect plain objects.
        dtype=object,
    )


def schema(cfg: ValidateConfig) -> pa.DataFrameSchema:
    """The rules as a pandera schema, each check named as its fault is reported."""
    columns: dict[str, list[pa.Check]] = {}
    for rule in rules(cfg):
        check = pa.Check(rule.holds, element_wise=True, name=rule.name)
        columns.setdefault(rule.column, []).append(check)
    return pa.DataFrameSchema({name: pa.Column(object, found) for name, found in columns.items()})


def row_faults(drafts: list[Draft], cfg: ValidateConfig) -> list[Fault]:
    """Every fault of every draft, by row. A draft of unsound shape has that fault alone."""
    sound = [number for number, made in enumerate(drafts) if not made.fault]
    faults = []
    for number, made in enumerate(drafts):
        if made.fault:
            field, _, reason = made.fault.partition(": ")
            faults.append(Fault(number, field, reason, structural=True))
    by_name = {rule.name: rule for rule in rules(cfg)}
    try:
        schema(cfg).validate(frame([drafts[number] for number in sound]), lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        for name, index in zip(cases["check"], cases["index"], strict=True):
            rule = by_name[name]
            faults.append(Fault(sound[index], rule.field, rule.reason, rule.structural))
    return sorted(faults, key=lambda fault: (fault.row, not fault.structural, fault[1:3]))
