"""The anchor (DESIGN 2.8): stay near the reference where the reference is safe.

::

    beta g_i 1[mean_{k >= 1} r_ik >= 0.5] KL(mu || pi)        KL(mu || pi) = E_mu[log mu - log pi]

The rollouts are samples of ``mu``, so the mean over ``k >= 1`` of ``-D_ik / L_ik`` estimates the KL
per token, and its gradient is that of the rollouts' negative log-likelihood: the anchor is one more
coefficient on responses that the gate has already asked for, without another forward pass. An
unsafe reference is never an anchor.

Two things the estimate is not. Rollouts drawn at a temperature below 1 and cut after some tokens
are samples of a sharper ``mu``, and of the beginnings of its answers: what holds the policy is the
KL to that distribution, up to a constant. And since each rollout is divided by its own length, the
policy at rest is proportional to ``mu(y|x) / L_y``, a little shorter of breath than ``mu``; the two
agree where answers are of one length.
"""

from __future__ import annotations

import torch

from aaft.config import ACCEPTED


def anchor_coefficients(
    gates: torch.Tensor, reward: torch.Tensor, tokens: torch.Tensor, beta: float
) -> torch.Tensor:
    """Coefficients ``[B, K+1]`` of ``-log pi(y_k|x)``, at least 0; column 0, the gold's, is 0.

    Args:
        gates: ``g``, ``[B]`` in [0, 1].
        reward: ``r``, ``[B, K+1]`` in [0, 1], gold first; NaN is unscored and leaves the mean.
        tokens: ``L``, ``[B, K+1]``, at least 1.
        beta: weight of the anchor, at least 0.
    """
    rollouts = reward.shape[1] - 1
    coefficients = torch.zeros_like(tokens)
    if rollouts:
        # The mean of nothing is NaN, which is not >= 0.5: an unscored reference is no anchor.
        safe = reward[:, 1:].nanmean(1) >= ACCEPTED
        weight = beta * gates * safe / (len(reward) * rollouts)
        coefficients[:, 1:] = weight[:, None] / tokens[:, 1:]
    return coefficients
