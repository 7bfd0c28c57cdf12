"""Soft labels: what a model predicts at each token, to hold another one to.

A distribution over the vocabulary is kept as its ``K`` most likely tokens and the mass of all
others together. The divergence between two such coarser distributions is a lower bound of that
between the whole ones (data processing inequality), and 0 where the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KEPT = 64
"""Tokens kept at each position."""


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What was predicted at each of ``T`` tokens."""

    ids: torch.Tensor
    """``[T, K]``, the most likely first."""
    logprob: torch.Tensor
    """Of these, ``[T, K]``, in nats."""
    rest: torch.Tensor
    """Of all others together, ``[T]``, in nats."""

    def __len__(self) -> int:
        return len(self.ids)


def soften(logits: torch.Tensor, kept: int = KEPT) -> SoftLabels:
    """The ``kept`` most likely tokens of ``logits`` ``[T, V]``; all but one where V is smaller."""
    logprob = torch.log_softmax(logits.float(), dim=-1)
    top = logprob.topk(min(kept, logits.shape[-1] - 1), dim=-1)
    return SoftLabels(top.indices, top.values, _others(logprob, top.indices))


def divergence(labels: SoftLabels, logits: torch.Tensor) -> torch.Tensor:
    """``KL(mu || pi)`` at each token, ``[T]`` in nats, of what is kept and of the rest as one.

    Args:
        labels: of ``mu``.
        logits: of ``pi``, ``[T, V]``.
    """
    now = torch.log_softmax(logits.float(), dim=-1)
    kept = (labels.logprob.exp() * (labels.logprob - now.gather(1, labels.ids))).sum(-1)
    return kept + labels.rest.exp() * (labels.rest - _others(now, labels.ids))


def _others(logprob: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log of the mass of all but ``ids``, ``[T]``; one minus the sum of these would cancel."""
    return logprob.scatter(1, ids, float("-inf")).logsumexp(-1)
