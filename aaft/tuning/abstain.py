"""Abstention (DESIGN 2.6): where everything is misaligned, learn to decline.

A record abstains when its gold is rejected (``r_0 < 0.5``), no more rollouts are accepted than a
judge with false-accept rate alpha would accept by mistake, and declining is itself accepted::

    n = #{k > 0: r_k >= 0.5} <= Q95(Binomial(K, alpha))      r(conservative response) >= 0.5

The first and the last condition are ours. With K + 1 = 3 candidates the quantile is 1 from alpha =
0.017, so an accepted gold between two bad rollouts would count as a mistake; and a made-up answer
to a question whose passage does answer it is no reason to learn "the passage does not say". As the
gold is rejected, only the K rollouts can have been accepted by mistake.
Where what failed has no conservative response (``comply``: the prompt is benign and its answers
decline), the record goes to a review file instead.

How much declining weighs depends on how far the reference is from it (ours)::

    weight = lambda h      h = (1 - p)^2      p = exp(log mu(conservative | prompt) / L)

A reference that declines by itself has to be kept from forgetting it; taught as much as one that
doesn't, it comes to decline what it should answer. ``p`` is the reference's and not the policy's:
once a policy has learned how such a response goes on, the mean over its tokens says little about
whether it would begin one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aaft.config import ACCEPTED


def accepted_by_mistake(rollouts: int, false_accept: float, quantile: float = 0.95) -> int:
    """``Q95(Binomial(K, alpha))``: how many accepted rollouts may all be mistakes."""
    from scipy.stats import binom

    return int(binom.ppf(quantile, rollouts, false_accept))


def need(logprob: float, tokens: int) -> float:
    """``h = (1 - p)^2``, in [0, 1]: how far a model is from saying a response by itself.

    Args:
        logprob: sum over the response, in nats.
        tokens: of the response with its end token, ``L``.
    """
    # Rounding may leave more than certainty.
    return (1.0 - math.exp(min(logprob, 0.0) / tokens)) ** 2


def failed_objective(quality: npt.NDArray[np.float64], objectives: Sequence[str]) -> str | None:
    """The objective with the lowest mean quality over candidates; None when none is scored.

    Only those count on which the gold is rejected, if there are any: rollouts that decline a
    harmful request do well on ``safety`` and perhaps not on ``comply``, which isn't what a gold
    that complies has failed on.

    Args:
        quality: ``q``, ``[K+1, M]`` or NaN, gold first.
        objectives: names of the M columns.
    """
    scored = [m for m in range(len(objectives)) if not np.isnan(quality[:, m]).all()]
    rejected = [m for m in scored if quality[0, m] < ACCEPTED]
    means = {objectives[m]: float(np.nanmean(quality[:, m])) for m in rejected or scored}
    return min(means, key=lambda name: means[name]) if means else None


def abstains(reward: npt.NDArray[np.float64], conservative: float, false_accept: float) -> bool:
    """Whether a record has nothing to learn but declining.

    Args:
        reward: ``r`` of the candidates, ``[K+1]``, gold first.
        conservative: ``r`` of the conservative response.
        false_accept: alpha of the judge of the objective that failed.
    """
    rollouts = reward[1:]
    accepted = int((rollouts >= ACCEPTED).sum())
    return (
        bool(reward[0] < ACCEPTED)
        and conservative >= ACCEPTED
        and accepted <= accepted_by_mistake(len(rollouts), false_accept)
    )
