"""Alignment of a record under the current policy, without new generation (DESIGN 2.2).

With ``D_k = log pi(y_k|x) - log mu(y_k|x)`` and ``d_k = D_k / L_k``::

    w_k = softmax_k(eta clip(d_k, -3, 3))
    v_m = sum_k w_k q_km       v = min_m v_m
    U   = sum_k w_k max_m u_km
    ESS = 1 / sum_k w_k^2

``mu`` drew the rollouts, so re-weighting them by the policy's own preference tells how aligned
the policy is on this prompt now. ``eta = 0`` is the static gate. NaN is a missing score: its
candidate drops out of that objective and the weights there are renormalised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

CLIP = 3.0
"""Largest ``|d|`` that counts, in nats per token."""


class Standing(NamedTuple):
    """How aligned records are under the current policy, each ``[B]``; NaN where unscored."""

    value: torch.Tensor
    uncertainty: torch.Tensor
    ess: torch.Tensor


def candidate_weights(log_ratio: torch.Tensor, tokens: torch.Tensor, eta: float) -> torch.Tensor:
    """Self-normalised weights ``[B, K+1]`` of log-ratios ``D`` and token counts ``[B, K+1]``."""
    return torch.softmax(eta * (log_ratio / tokens).clamp(-CLIP, CLIP), dim=-1)


def standing(weights: torch.Tensor, quality: torch.Tensor, uncertainty: torch.Tensor) -> Standing:
    """Value, uncertainty and effective sample size of each record.

    Args:
        weights: ``[B, K+1]``, each row sums to 1.
        quality: ``q``, ``[B, K+1, M]`` in [0, 1] or NaN.
        uncertainty: ``u``, ``[B, K+1, M]`` in [0, 1] or NaN.
    """
    scored = ~quality.isnan()
    mass = weights[..., None] * scored
    per_objective = (mass * quality.nan_to_num()).sum(1) / mass.sum(1)
    value = per_objective.nan_to_num(nan=torch.inf).amin(-1)
    worst = uncertainty.nan_to_num(nan=-torch.inf).amax(-1)
    any_scored = scored.any(-1)
    kept = weights * any_scored
    doubt = (kept * worst.where(any_scored, torch.zeros_like(worst))).sum(-1) / kept.sum(-1)
    return Standing(value.where(value.isfinite(), torch.nan), doubt, 1.0 / weights.square().sum(-1))


def bounds(quality: torch.Tensor, uncertainty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest value and highest uncertainty ``[B]`` that any weights whatever can give.

    Both are weighted means over candidates, so they lie within the candidates' extremes. A gate
    that is closed at these bounds is closed under every policy.
    """
    low = quality.nan_to_num(nan=torch.inf).amin((1, 2))
    high = uncertainty.nan_to_num(nan=-torch.inf).amax((1, 2))
    return low.where(low.isfinite(), torch.nan), high.where(high.isfinite(), torch.nan)
