"""``judge/grounding.jsonl``: answers that a passage bears out, and others."""

from __future__ import annotations

from typing import Any

from aaft.data import sources
from aaft.data.grounded import (
    Pools,
    foreign_answer,
    foreign_passage,
    lies,
    supporting_sentence,
)
from aaft.data.separation import Taken
from aaft.data.sources import Grounded
from aaft.data.splits import split_of
from aaft.data.text import opaque_id
from aaft.data.wheels import Wheels

GROUNDING_QUESTIONS = 550
SENTENCES = (
    "The answer is {}.",
    "According to the passage, it is {}.",
    "It is {}.",
    "The passage says that it was {}.",
    "{} is the answer to the question.",
)

Rows = list[dict[str, Any]]


def grounding_rows(wheels: Wheels, pools: Pools, taken: Taken) -> Rows:
    """Up to seven answers a question, long and short ones on both sides of the label."""
    rows: Rows = []
    for split in ("fit", "calibrate", "test"):
        chosen = pools.judge[:GROUNDING_QUESTIONS]
        side = [row for row in chosen if split_of(row.question) == split]
        for number, row in enumerate(side):
            if taken.free(row.question):
                rows += _grounding_pairs(row, side, number, split)
    for row in sources.factual_summary_pairs(wheels):
        split = split_of(row.passage)
        for response, label in ((row.right, 1), (row.wrong, 0)):
            rows.append(
                _grounded("factual-summary-pairs", split, row, row.passage, response, label)
            )
    return rows


def _grounded(
    source: str, split: str, row: Grounded, context: str, response: str, label: int
) -> dict[str, Any]:
    return {
        "id": opaque_id("grounding", row.question, context, response),
        "source": source,
        "split": split,
        "prompt": row.question,
        "context": context,
        "response": response,
        "label": label,
    }


def _grounding_pairs(row: Grounded, side: list[Grounded], number: int, split: str) -> Rows:
    """Passages and answers are borrowed within the split, so no passage is on both sides.

    Right and borrowed answers also come in a sentence of the same words: neither length nor being
    a verbatim piece of the passage tells the labels apart.
    """
    foreign = foreign_answer(row, side, number + 1)
    wrap = SENTENCES[number % len(SENTENCES)]
    pairs = [
        (row.passage, row.right, 1),
        (row.passage, wrap.format(row.right), 1),
        (row.passage, foreign, 0),
        (row.passage, wrap.format(foreign), 0),
        (foreign_passage(row, side, number + 1), row.right, 0),
    ]
    if lies(row):
        pairs.append((row.passage, row.wrong, 0))
    sentence = supporting_sentence(row)
    if sentence is not None:
        pairs.append((row.passage, sentence, 1))
    return [
        _grounded("halueval-qa", split, row, context, response, label)
        for context, response, label in pairs
    ]
