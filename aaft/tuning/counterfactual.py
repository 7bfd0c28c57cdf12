"""Counterfactual abstention: which questions with a foreign passage are trained on.

A counterfactual (`aaft.scoring.counterfactual`) is worth learning from when the judges agree that
its passage doesn't answer the question: they reject the gold and accept the conservative response
to what failed. Then that response is the target and the gate is open, as for any record that
abstains. Two things differ:

- There are no rollouts, so none can be accepted. Under a foreign passage they would mostly be
  abstentions themselves, and a record that the reference gets right is the one that keeps it from
  forgetting how.
- There is no recovery. The gold answers another record's question and is no bad opening; a policy
  that turned back from it would do so after good answers too.

Where a prompt has the passage before the question, a counterfactual's begins as that of the record
whose passage it has got. Then that record is its host: both come into one step
(`aaft.tuning.windows`), and the passage is computed once (`aaft.tuning.objective.term_rows`).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from aaft.models.packed import shared_length
from aaft.tuning.examples import Example

AnyExample = TypeVar("AnyExample", bound=Example)


def kept_counterfactuals(
    examples: Sequence[AnyExample], records: Sequence[Example]
) -> list[AnyExample]:
    """Those that abstain, with their abstention; the judges don't agree on the others.

    Args:
        examples: counterfactuals with their scores.
        records: among which is the one that each has its passage from, its host.
    """
    ordered = sorted(records, key=lambda record: record.prompt)
    return [
        _hosted(
            replace(example, abstention=example.conservative, conservative=None, review=False),
            ordered,
        )
        for example in examples
        if example.conservative is not None
    ]


def _hosted(example: AnyExample, ordered: Sequence[Example]) -> AnyExample:
    """``example`` with the record whose prompt begins most like its own as host.

    Where the question stands before the passage, little is shared, and there is nothing to gain.

    Args:
        example: a counterfactual.
        ordered: records, sorted by their prompts: the nearest stand around its place.
    """
    place = bisect.bisect_left(ordered, example.prompt, key=lambda record: record.prompt)
    near = ordered[max(0, place - 1) : place + 1]
    if not near:
        return example
    host = max(near, key=lambda record: shared_length([record.prompt, example.prompt]))
    shared = shared_length([host.prompt, example.prompt])
    if 2 * shared < len(example.prompt):
        return example
    return replace(example, host=host.id, shared=shared)
