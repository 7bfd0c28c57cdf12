"""The training loss as one coefficient per response (DESIGN 2.9).

Every part of the objective is a weight on some response's negative log-likelihood, so a step is
a list of (example, response, coefficient) and its loss is their sum::

    loss = sum_i (1 - g_i) NLL_i / N                    N = tokens of golds with weight
         + lambda_pg / B sum_i g_i/(K+1) sum_k phi_ik NLL_ik / L_ik
         + lambda_abstain / B sum_{abstaining i} NLL_i' / L_i'

``B`` is the number of examples in the accumulation window and ``N`` sums over it, so neither
micro-batches nor their order change the loss. With every gate at 0 what remains is, to the bit,
plain supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from aaft.config import ObjectiveSettings
from aaft.tuning.advantage import advantages
from aaft.tuning.examples import Example, Scores
from aaft.tuning.taper import push

Part = Literal["sft", "pg", "abstain"]


@dataclass(frozen=True)
class Term:
    """``sum(parts.values())`` times the negative log-likelihood of ``response``."""

    example: int
    response: list[int]
    parts: dict[Part, float]

    @property
    def coefficient(self) -> float:
        """Weight of the response's summed negative log-likelihood."""
        return sum(self.parts.values())


def supervised_terms(examples: Sequence[Example], weights: Sequence[float]) -> list[Term]:
    """Golds weighted by ``weights`` ``[B]``, normalised by the tokens of those above 0."""
    total = sum(len(e.candidates[0]) for e, w in zip(examples, weights, strict=True) if w > 0)
    return [
        Term(i, example.candidates[0], {"sft": weight / total})
        for i, (example, weight) in enumerate(zip(examples, weights, strict=True))
        if weight > 0
    ]


def gated_terms(
    examples: Sequence[Example],
    scores: Scores,
    gates: torch.Tensor,
    weights: torch.Tensor,
    log_ratio: torch.Tensor,
    cfg: ObjectiveSettings,
) -> list[Term]:
    """All terms of one window.

    Args:
        examples: the window, ``B`` of them.
        scores: their stacked scores.
        gates: ``g``, ``[B]``; 1 where an example abstains.
        weights: candidate weights ``[B, K+1]``.
        log_ratio: ``D``, ``[B, K+1]``; anything where the gate is 0.
        cfg: settings of the objective.
    """
    sft = [
        0.0 if example.abstention is not None else 1.0 - g
        for example, g in zip(examples, gates.tolist(), strict=True)
    ]
    terms = {(t.example, 0): t for t in supervised_terms(examples, sft)}
    advantage = advantages(weights, scores.quality, delta=cfg.delta, floor=cfg.floor)
    phi = push(advantage, log_ratio, scores.tokens, beta_n=cfg.beta_n, trust=cfg.trust)
    share = cfg.lambda_pg * gates[:, None] * phi / scores.tokens
    share = share / (len(examples) * scores.tokens.shape[1])
    for i, example in enumerate(examples):
        for k, value in enumerate(share[i].tolist()):
            if value:
                term = terms.setdefault((i, k), Term(i, example.candidates[k], {}))
                term.parts["pg"] = value
        if example.abstention is not None:
            rate = cfg.lambda_abstain / (len(examples) * len(example.abstention))
            terms[i, -1] = Term(i, example.abstention, {"abstain": rate})
    return [term for _, term in sorted(terms.items()) if term.coefficient]
