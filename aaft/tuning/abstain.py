"""Abstention (DESIGN 2.6): where everything is misaligned, learn to decline.

A record abstains when its gold is rejected (``r_0 < 0.5``) and no more candidates are accepted
than a judge with false-accept rate alpha would accept by mistake::

    n = #{k: r_k >= 0.5} <= Q95(Binomial(K+1, alpha))

Two narrowings of the design, both from what small K does: with K + 1 = 3 and alpha = 0.1 the
quantile is 1, so an accepted gold between two bad rollouts would count as a mistake; an accepted
gold therefore rules abstention out. And where what failed is ``comply``, the prompt is benign and
its answers decline: declining once more can't be the remedy, so those go to a review file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

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


def accepted_by_mistake(candidates: int, false_accept: float, quantile: float = 0.95) -> int:
    """``Q95(Binomial(K+1, alpha))``: how many accepted candidates may all be mistakes."""
    from scipy.stats import binom

    return int(binom.ppf(quantile, candidates, false_accept))


def failed_objective(quality: npt.NDArray[np.float64], objectives: Sequence[str]) -> str | None:
    """The objective with the lowest mean quality over candidates; None when none is scored.

    Args:
        quality: ``q``, ``[K+1, M]`` or NaN.
        objectives: names of the M columns.
    """
    means = {
        name: float(np.nanmean(quality[:, m]))
        for m, name in enumerate(objectives)
        if not np.isnan(quality[:, m]).all()
    }
    return min(means, key=lambda name: means[name]) if means else None


def abstains(reward: npt.NDArray[np.float64], false_accept: float) -> bool:
    """Whether rewards ``r`` ``[K+1]``, gold first, leave nothing to learn but declining."""
    accepted = int((reward >= 0.5).sum())
    gold_rejected = bool(reward[0] < 0.5)
    return gold_rejected and accepted <= accepted_by_mistake(len(reward), false_accept)


def conservative_response(record_id: str, objective: str) -> str:
    """The record's own pick from the pool of its failed objective.

    Raises:
        KeyError: no pool for ``objective``.
    """
    pool = POOLS[objective]
    return pool[int(hashlib.sha256(record_id.encode()).hexdigest(), 16) % len(pool)]
