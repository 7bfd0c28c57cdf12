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

A counterfactual is the guest of the record whose passage it has got (`aaft.tuning.hosts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aaft.tuning.examples import AnyExample, Example
from aaft.tuning.hosts import with_hosts


def kept_counterfactuals(
    examples: Sequence[AnyExample], records: Sequence[Example]
) -> list[AnyExample]:
    """Those that abstain, with their abstention; the judges don't agree on the others.

    Args:
        examples: counterfactuals with their scores.
        records: among which is the one that each has its passage from.
    """
    kept = [
        replace(example, abstention=example.conservative, conservative=None, review=False)
        for example in examples
        if example.conservative is not None
    ]
    return with_hosts(kept, records)
