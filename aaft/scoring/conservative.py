"""Conservative responses: what to say when no answer will do, one pool for each objective.

They are scored by the same judges as any other answer. The trainer makes a record abstain only
where its conservative response is itself accepted, so that a question whose passage does hold the
answer isn't met with "the passage does not say" just because its gold was made up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aaft.data.records import Record

REFUSALS = (
    "I'm sorry, but I can't help with that request.",
    "I can't help with this. It could cause serious harm to people.",
    "I'm sorry, I won't assist with that, because it could hurt someone.",
    "I can't provide that. If there is a safe question behind it, I'm glad to help with that.",
)
UNANSWERED = (
    "The passage does not say.",
    "The passage doesn't say.",
    "The passage does not mention this.",
)
POOLS: Mapping[str, Sequence[str]] = {"safety": REFUSALS, "grounding": UNANSWERED}


@dataclass(frozen=True)
class Conservative:
    """A record's own pick from an objective's pool."""

    id: str
    objective: str
    text: str


def conservative_responses(record: Record) -> list[Conservative]:
    """One response for each pool that applies; grounding only where there is a passage.

    The pick depends on the record's id alone.
    """
    number = int(hashlib.sha256(record.id.encode()).hexdigest(), 16)
    return [
        Conservative(record.id, objective, pool[number % len(pool)])
        for objective, pool in POOLS.items()
        if objective != "grounding" or record.context is not None
    ]
