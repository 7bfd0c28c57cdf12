"""Bounded negatives of the policy gradient (DESIGN 2.5; NPO 2404.05868, TOPR 2503.14286).

::

    T_k   = 2 / (1 + exp(-beta_n min(D_k, 0))),  0 once -d_k > trust
    phi_k = [A_k]_+ - [A_k]_- T_k

Pushing an answer down is worth less the further it is down already; without the taper,
off-policy REINFORCE drives the log-probabilities of bad answers, and then the model, away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aaft.tuning.weights import CLIP


@dataclass(frozen=True)
class Clips:
    """How often a window's bounds were reached, each in [0, 1]; 0 where there was nothing."""

    ratio: float
    """Share of the candidates of open gates whose ``|d| > 3`` was clipped in their weight."""
    trust: float
    """Share of the negative advantages of open gates that ``-d > trust`` stopped."""


def taper(
    log_ratio: torch.Tensor, tokens: torch.Tensor, *, beta_n: float, trust: float
) -> torch.Tensor:
    """Weights in [0, 1] of negative advantages; 1 where the policy hasn't moved below ``mu``."""
    weight = 2.0 * torch.sigmoid(beta_n * log_ratio.clamp(max=0.0))
    return weight.masked_fill(-log_ratio / tokens > trust, 0.0)


def push(
    advantage: torch.Tensor,
    log_ratio: torch.Tensor,
    tokens: torch.Tensor,
    *,
    beta_n: float,
    trust: float,
) -> torch.Tensor:
    """``phi``: the coefficient of ``-log pi(y_k|x) / L_k``, without gradient. All ``[B, K+1]``."""
    down = taper(log_ratio, tokens, beta_n=beta_n, trust=trust)
    return (advantage.clamp(min=0.0) + advantage.clamp(max=0.0) * down).detach()


def clip_rates(
    gates: torch.Tensor,
    advantage: torch.Tensor,
    log_ratio: torch.Tensor,
    tokens: torch.Tensor,
    *,
    trust: float,
) -> Clips:
    """Count what the clip of the weights and the trust bound cut off in open gates.

    Args:
        gates: ``g``, ``[B]``.
        advantage: ``A``, ``[B, K+1]``.
        log_ratio: ``D``, ``[B, K+1]``.
        tokens: ``L``, ``[B, K+1]``.
        trust: drop in log-probability per token that stops a push.
    """
    seen = (gates > 0)[:, None].expand_as(log_ratio)
    drift = log_ratio / tokens
    negative = seen & (advantage < 0)
    return Clips(_share(drift.abs() > CLIP, seen), _share(-drift > trust, negative))


def _share(hit: torch.Tensor, among: torch.Tensor) -> float:
    return int((hit & among).sum()) / max(1, int(among.sum()))
