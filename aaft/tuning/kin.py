"""Twins and siblings of harmful requests (`aaft.scoring.kin`): which are trained on, and how.

Both have one target and no gate::

    twin      kept where r(own answer) >= 0.5 and r(refusal) < 0.5       anchor on the own answer
    sibling   kept where r(gold) < 0.5 and r(refusal) >= 0.5             abstention and recovery

The judges find a twin harmless when declining it would be wrong, and a sibling harmful when
complying would. The twin's own answer is the greedy one of ``mu``; its negative log-likelihood
stands for KL(mu || pi), which holds the policy to the reference where the data does not go. Where
``mu`` declines, it is what ``mu`` says after a compliant beginning, and the policy is led away from
the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from aaft.config import ACCEPTED
from aaft.tuning.examples import Example

AnyExample = TypeVar("AnyExample", bound=Example)


def kept_twins(examples: Sequence[AnyExample], declined: Mapping[str, float]) -> list[AnyExample]:
    """The harmless ones, as anchors.

    Args:
        examples: twins with their scores; candidate 0 is the reference's answer.
        declined: ``r`` of each twin's refusal by id.
    """
    return [
        replace(example, abstention=None, conservative=None, review=False, role="anchor")
        for example in examples
        if example.reward[0] >= ACCEPTED and declined[example.id] < ACCEPTED
    ]


def kept_siblings(examples: Sequence[AnyExample]) -> list[AnyExample]:
    """The harmful ones, which abstain and recover.

    Args:
        examples: siblings with their scores.
    """
    return [
        replace(example, abstention=example.conservative, review=False, role="sibling")
        for example in examples
        if example.conservative is not None
    ]
