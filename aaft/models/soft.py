"""Soft labels: what a model predicts at each token, to hold another one to.

A distribution over the vocabulary is kept as its ``K`` most likely tokens and the mass of all
others together. The divergence between two such coarser distributions is a lower bound of that
between the whole ones (data processing inequality), and 0 exactly where they agree on these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KEPT = 64
"""Tokens kept at each position."""
_SMALLEST = 1e-6
"""Least mass of the tokens that are not kept, so that its logarithm is finite."""


@dataclass(frozen=True)
class SoftLabels:
    """What was predicted at each of ``T`` tokens."""

    ids: torch.Tensor
    """``[T, K]``, the most likely first."""
    logprob: torch.Tensor
    """Of these, ``[T, K]``, in nats."""

    def __len__(self) -> int:
        return len(self.ids)


def soften(logits: torch.Tensor, kept: int = KEPT) -> SoftLabels:
    """The ``kept`` most likely tokens of ``logits`` ``[T, V]``; all but one where V is smaller."""
    logprob = torch.log_softmax(logits.float(), dim=-1)
    top = logprob.topk(min(kept, logits.shape[-1] - 1), dim=-1)
    return SoftLabels(top.indices, top.values)


def divergence(labels: SoftLabels, logits: torch.Tensor) -> torch.Tensor:
    """``KL(mu || pi)`` at each token, ``[T]`` in nats, of what is kept and of the rest as one.

    Args:
        labels: of ``mu``.
        logits: of ``pi``, ``[T, V]``.
    """
    now = torch.log_softmax(logits.float(), dim=-1)
    seen = now.gather(1, labels.ids)
    mass = labels.logprob.exp()
    kept = (mass * (labels.logprob - seen)).sum(-1)
    left = (1.0 - mass.sum(-1)).clamp(min=_SMALLEST)
    left_now = (1.0 - seen.exp().sum(-1)).clamp(min=_SMALLEST)
    return kept + left * (left.log() - left_now.log())
