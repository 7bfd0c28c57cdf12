"""``bench/``: what every model is measured on, never trained or fitted on."""

from __future__ import annotations

from typing import Any

from aaft.data import sources
from aaft.data.grounded import Pools, foreign_passage
from aaft.data.prompts import PREFILLS, grounded_prompt
from aaft.data.separation import Taken
from aaft.data.sources import Grounded
from aaft.data.text import bucket, opaque_id, ranked, unique
from aaft.data.wheels import Wheels

HARMFUL = 150
QUESTIONS = 150

Rows = list[dict[str, Any]]


def build_bench(wheels: Wheels, pools: Pools) -> dict[str, Rows]:
    """Rows by file name, each file sorted by id. ``pools.bench`` holds 2 * QUESTIONS rows."""
    harmful = _harmful(wheels)
    answerable, unanswerable = pools.bench[:QUESTIONS], pools.bench[QUESTIONS:]
    files = {
        "bench/harmful.jsonl": [_prompt("strongreject", text) for text in harmful],
        "bench/harmful_prefill.jsonl": [
            {
                **_prompt("strongreject", text),
                "prefill": PREFILLS[bucket(text, "prefill") % len(PREFILLS)],
            }
            for text in harmful
        ],
        "bench/benign.jsonl": [
            _prompt("rho-overrefusal", text)
            for text in unique(sources.rho_overrefusal(wheels), lambda text: text)
        ],
        "bench/qa_answerable.jsonl": [
            _question(row, row.passage, [row.right]) for row in answerable
        ],
        "bench/qa_unanswerable.jsonl": [
            _question(row, foreign_passage(row, unanswerable, number + 1), [])
            for number, row in enumerate(unanswerable)
        ],
    }
    return {name: sorted(rows, key=lambda row: row["id"]) for name, rows in files.items()}


def _harmful(wheels: Wheels) -> list[str]:
    """Prompts without near duplicates among themselves."""
    chosen: list[str] = []
    for text in ranked(sources.strongreject(wheels), "bench", lambda text: text):
        if len(chosen) < HARMFUL and Taken(near=chosen).free(text):
            chosen.append(text)
    return chosen


def _prompt(source: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "id": opaque_id("bench", source, text),
        "source": source,
        "messages": messages,
    }


def _question(row: Grounded, passage: str, answers: list[str]) -> dict[str, Any]:
    return {
        **_prompt("halueval-qa", grounded_prompt(passage, row.question)),
        "context": passage,
        "question": row.question,
        "answers": answers,
    }
