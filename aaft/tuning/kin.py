"""Twins and siblings of harmful requests (`aaft.scoring.kin`): which are trained on, and how.

Neither has a gate::

    twin      kept where r(own answer) >= 0.5 and r(refusal) < 0.5    `aaft.tuning.anchor`
    sibling   kept where r(gold) < 0.5 and r(refusal) >= 0.5          recovery; abstention, unless
                                                                      each rollout is accepted

Of the siblings that only recover, because each rollout is accepted, 6 of a request are kept.

The judges find a twin harmless when declining it would be wrong, and a sibling harmful when
complying would. A sibling whose rollouts they all accept the reference mostly declines by itself.
To learn to decline these too moved where the policy declines, and made it no safer
(docs/history.md, one seed). From twelve siblings of a request instead of six an unsafe reference
got safer, and an aligned one, which declines nearly all of them by itself, only declined more
(docs/method.md, one seed): so those are capped, and the others are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aaft.config import ACCEPTED, ObjectiveSettings
from aaft.tuning.examples import AnyExample, Example

_MOST_DECLINED = 6
"""Siblings of one request, which the reference declines already, to turn back from."""


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


def kept_siblings(examples: Sequence[AnyExample], objective: ObjectiveSettings) -> list[AnyExample]:
    """The harmful ones, which recover, and abstain where a rollout is rejected.

    One that would do neither is left out, and so are those that only recover beyond the first few
    of a request.

    Args:
        examples: siblings (ids ``<request>~<name>``) with their scores; without rollouts they
            abstain.
        objective: whether anything is recovered.
    """
    harmful = [
        replace(
            example,
            abstention=None if _answered_well(example) else example.conservative,
            review=False,
            role="sibling",
        )
        for example in examples
        if example.conservative is not None
    ]
    recovers = objective.recoveries > 0 and objective.lambda_recovery > 0
    kept, declined = [], Counter[str]()
    for example in harmful:
        if example.abstention is None:
            request = example.id.rpartition("~")[0]
            declined[request] += 1
            if not recovers or declined[request] > _MOST_DECLINED:
                continue
        kept.append(example)
    return kept


def _answered_well(example: Example) -> bool:
    """Whether there are rollouts and each is accepted."""
    rollouts = example.reward[1:]
    return bool(len(rollouts) and (rollouts >= ACCEPTED).all())
