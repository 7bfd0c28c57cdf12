"""Leave-one-out advantages (DESIGN 2.4; RLOO, arXiv:2402.14740).

::

    b_km = max(sum_{j != k} w_j q_jm / sum_{j != k} w_j - delta, floor)
    A_k  = mean over scored m of (q_km - b_km)

The floor keeps the best of a bad lot from being rewarded: an answer counts as good only above it.
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
    return gain.sum(-1) / scored.sum(-1).clamp(min=1)
