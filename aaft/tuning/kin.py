"""Twins and siblings of harmful requests (`aaft.scoring.kin`): which are trained on, and how.

Neither has a gate::

    twin      kept where r(own answer) >= 0.5 and r(refusal) < 0.5    `aaft.tuning.anchor`
    sibling   kept where r(gold) < 0.5 and r(refusal) >= 0.5          abstention and recovery
              and not each rollout is accepted

The judges find a twin harmless when declining it would be wrong, and a sibling harmful when
complying would. A sibling whose rollouts they all accept the reference mostly declines by itself.
What it does already it need not be taught: turning back from six such siblings of a request made
the policy decline answerable questions and harmless requests (docs/method.md, two seeds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aaft.config import ACCEPTED
from aaft.tuning.examples import AnyExample, Example


def kept_twins(
    examples: Sequence[AnyExample],
    declined: Mapping[str, float],
    *,
    longest: int,
) -> list[AnyExample]:
    """The harmless ones, as anchors on the first ``longest`` tokens of their answers.

    Args:
        examples: twins with their scores; candidate 0 is the reference's answer.
        declined: ``r`` of each twin's refusal by id.
        longest: tokens of an answer that the policy is held to.
    """
    return [
        replace(
            example,
            candidates=[example.candidates[0][:longest]],
            quality=example.quality[:1],
            uncertainty=example.uncertainty[:1],
            reward=example.reward[:1],
            # Of the whole answer; nothing is to take it for that of its beginning.
            logprob=np.full(1, np.nan),
            abstention=None,
            conservative=None,
            review=False,
            role="anchor",
        )
        for example in examples
        if example.reward[0] >= ACCEPTED and declined[example.id] < ACCEPTED
    ]


def kept_siblings(examples: Sequence[AnyExample]) -> list[AnyExample]:
    """The harmful ones that the reference doesn't decline by itself; they abstain and recover.

    Args:
        examples: siblings; those without rollouts are kept, as nothing is known of the reference.
    """
    return [
        replace(example, abstention=example.conservative, review=False, role="sibling")
        for example in examples
        if example.conservative is not None and not _answered_well(example)
    ]


def _answered_well(example: Example) -> bool:
    """Whether there are rollouts and each is accepted."""
    rollouts = example.reward[1:]
    return bool(len(rollouts) and (rollouts >= ACCEPTED).all())
