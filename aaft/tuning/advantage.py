"""Leave-one-out advantages (DESIGN 2.4; RLOO, arXiv:2402.14740).

::

    b_km = max(sum_{j != k} w_j q_jm / sum_{j != k} w_j - delta, floor)
    A_k  = mean over scored m of (q_km - b_km),  at most 0 where min_m q_km < floor

The floor keeps the best of a bad lot from being rewarded. An answer is as aligned as its worst
objective (DESIGN 2.1), so one that is below the floor on any objective is never pushed up, however
well it does on the others: without that, the mean over objectives would reward it.
"""

from __future__ import annotations

import torch


def advantages(
    weights: torch.Tensor, quality: torch.Tensor, *, delta: float, floor: float
) -> torch.Tensor:
    """Advantages ``[B, K+1]`` in [-1, 1]; 0 for a candidate without any score.

    Args:
        weights: ``[B, K+1]``.
        quality: ``q``, ``[B, K+1, M]`` in [0, 1] or NaN.
        delta: slack below the others' mean.
        floor: least baseline.
    """
    scored = ~quality.isnan()
    filled = quality.nan_to_num()
    mass = weights[..., None] * scored
    others_mass = mass.sum(1, keepdim=True) - mass
    others = (mass * filled).sum(1, keepdim=True) - mass * filled
    # Subtracting can leave a rounding residue where no other candidate is scored.
    has_others = (scored.sum(1, keepdim=True) - scored.int()) > 0
    mean = torch.where(has_others, others / others_mass.clamp(min=1e-12), floor)
    baseline = (mean - delta).clamp(min=floor)
    gain = torch.where(scored, filled - baseline, 0.0)
    advantage = gain.sum(-1) / scored.sum(-1).clamp(min=1)
    rejected = (quality.nan_to_num(nan=1.0) < floor).any(-1)
    return torch.where(rejected, advantage.clamp(max=0.0), advantage)
