"""The adaptive gate (DESIGN 2.3): how much of a sample's gradient is alignment.

::

    G = 1 - v (1 - a_u U)
    g = clip((G - low) / width, 0, 1)

With the defaults low = 0.15, width = 0.35 and a_u = 0.5 a certain, well-aligned sample has g
exactly 0 and costs plain supervised training; ``v <= 0.5`` gives g = 1. No gradient flows
through the gate.
"""

from __future__ import annotations

import torch

from aaft.config import GateSettings
from aaft.tuning.weights import bounds


def gate(value: torch.Tensor, uncertainty: torch.Tensor, cfg: GateSettings) -> torch.Tensor:
    """Gates in [0, 1], same shape as ``value`` and ``uncertainty``; 0 where those are NaN.

    A record that no judge could score has no alignment signal: it trains as plain SFT and is
    flagged by the trainer.
    """
    openness = 1.0 - value * (1.0 - cfg.uncertainty * uncertainty)
    return ((openness - cfg.low) / cfg.width).clamp(0.0, 1.0).nan_to_num(nan=0.0).detach()


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
