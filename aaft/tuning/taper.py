"""Bounded negatives of the policy gradient (DESIGN 2.5; NPO 2404.05868, TOPR 2503.14286).

::

    T_k   = 2 / (1 + exp(-beta_n min(D_k, 0))),  0 once -d_k > trust
    phi_k = [A_k]_+ - [A_k]_- T_k

Pushing an answer down is worth less the further it is down already; without the taper,
off-policy REINFORCE drives the log-probabilities of bad answers, and then the model, away.
"""

from __future__ import annotations

import torch


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
