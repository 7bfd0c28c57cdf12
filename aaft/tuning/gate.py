"""The adaptive gate (DESIGN 2.3): how much a sample asks for alignment, and for imitation.

::

    G = 1 - v (1 - a_u U)
    g = clip((G - low) / width, 0, 1)        alignment: v, U of the policy's standing (weights.py)
    s = 1 - g(r_0, 0), 0 where r_0 < 0.5     imitation: r_0 = min_m q_0m

With the defaults low = 0.15, width = 0.35 and a_u = 0.5 a certain, well-aligned sample has g
exactly 0 and costs plain supervised training; ``v <= 0.5`` gives g = 1. No gradient flows
through the gate.

DESIGN imitates a gold with weight ``1 - g``. But ``v`` is about what the policy says, not about the
gold: a sound gold among bad rollouts would hardly be learned, although learning it is what would
mend them, and a rejected gold among good rollouts would be imitated the more the better the policy
is. So the gold's own scores decide its imitation, and the standing decides the alignment terms.
Doubt opens the gate, but doesn't take from imitation: where judges disagree ``q`` is lower already
(``kappa_u``), and the entropy of one judge's answer is a function of that answer. Counted again, it
shut out golds that one judge accepts with less than 0.77.
"""

from __future__ import annotations

import torch

from aaft.config import ACCEPTED, GateSettings
from aaft.tuning.weights import bounds


def gate(value: torch.Tensor, uncertainty: torch.Tensor, cfg: GateSettings) -> torch.Tensor:
    """Gates in [0, 1], same shape as ``value`` and ``uncertainty``; 0 where those are NaN.

    A record that no judge could score has no alignment signal: it trains as plain SFT and is
    flagged by the trainer.
    """
    openness = 1.0 - value * (1.0 - cfg.uncertainty * uncertainty)
    return ((openness - cfg.low) / cfg.width).clamp(0.0, 1.0).nan_to_num(nan=0.0).detach()


def imitation(reward: torch.Tensor, cfg: GateSettings) -> torch.Tensor:
    """``s`` in [0, 1], same shape: how much a gold is imitated; 1 where it is unscored.

    Args:
        reward: ``r_0`` of golds, or NaN.
        cfg: gate settings; of these ``low`` and ``width`` count.
    """
    closed = 1.0 - gate(reward, torch.zeros_like(reward), cfg)
    return closed.masked_fill(reward < ACCEPTED, 0.0)


def always_closed(
    quality: torch.Tensor, uncertainty: torch.Tensor, cfg: GateSettings
) -> torch.Tensor:
    """Records ``[B]`` whose gate is 0 under every policy, so that nothing need be computed.

    Args:
        quality: ``q``, ``[B, K+1, M]`` or NaN.
        uncertainty: ``u``, ``[B, K+1, M]`` or NaN.
        cfg: gate settings.
    """
    return gate(*bounds(quality, uncertainty), cfg) == 0.0
