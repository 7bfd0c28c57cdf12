"""Hosts and guests: examples whose prompts begin alike, so that the beginning is computed once.

Where a prompt has a passage before its question, two questions to one passage share most of it.
One example is then the host of the other: both come into one step (`aaft.tuning.windows`) and one
row (`aaft.tuning.objective.term_rows`).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

from aaft.models.packed import shared_length
from aaft.tuning.examples import AnyExample, Example


def with_hosts(examples: Sequence[AnyExample], records: Sequence[Example]) -> list[AnyExample]:
    """Each example as the guest of the record whose prompt begins most like its own.

    One that shares less than half of its prompt with it has no host: nothing is to gain.

    Args:
        examples: guests to be.
        records: hosts to be.
    """
    ordered = sorted(records, key=lambda record: record.prompt)
    return [_with_host(example, ordered) for example in examples]


def _with_host(example: AnyExample, ordered: Sequence[Example]) -> AnyExample:
    """``example`` with its host among records that are sorted by prompt: one around its place."""
    place = bisect.bisect_left(ordered, example.prompt, key=lambda record: record.prompt)
    near = ordered[max(0, place - 1) : place + 1]
    if not near:
        return example
    host = max(near, key=lambda record: shared_length([record.prompt, example.prompt]))
    shared = shared_length([host.prompt, example.prompt])
    if 2 * shared < len(example.prompt):
        return example
    return replace(example, host=host.id, shared=shared)
