"""The training loss as one coefficient per response (DESIGN 2.9).

Every part of the objective is a weight on what some response loses: its negative log-likelihood,
or its divergence from ``mu``. So a step is a list of (example, prefix, response, coefficient) and
its loss is their sum::

    loss = sum_i s_i NLL_i / N                          N = tokens of golds with weight
         + lambda_pg / B sum_{not abstaining i} g_i/(K+1) sum_k phi_ik NLL_ik / L_ik
         + 1 / B sum_{abstaining i} lambda_i h_i NLL_i' / L_i'
         + lambda_recovery / B sum_i 1/R_i sum_{prefixes p} NLL(conservative_i | p) / L_i'
         + beta / B sum_{twins i} 1/L_i sum_t KL(mu || pi) at the first L_i tokens of its answer

``lambda_i`` is ``lambda_refuse`` where what is declined is unsafe (``Example.unsafe``) and
``lambda_abstain`` elsewhere, ``h_i`` its need (`aaft.tuning.abstain`). ``B`` is the number of
examples in the accumulation window and ``N`` sums over it, so neither micro-batches nor their order
change the loss. With every gate at 0 and every ``s`` 1 what remains is, to the bit, plain
supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from aaft.config import ObjectiveSettings
from aaft.models.packed import PackedRow
from aaft.models.soft import SoftLabels
from aaft.tuning.advantage import advantages
from aaft.tuning.examples import Example, Scores
from aaft.tuning.taper import push

Part = Literal["sft", "pg", "abstain", "recovery", "anchor"]
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """``sum(parts.values())`` times what ``response`` loses, by its tokens or by ``soft``.

    The response follows the example's prompt and ``prefix``; only the response has a loss.
    """

    example: int
    response: list[int]
    parts: dict[Part, float]
    prefix: Prefix = ()
    soft: SoftLabels | None = None
    """What to predict at each token; None: that token."""

    @property
    def coefficient(self) -> float:
        """Weight of the loss summed over the response."""
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
    imitation: torch.Tensor,
    weights: torch.Tensor,
    log_ratio: torch.Tensor,
    cfg: ObjectiveSettings,
    prefixes: Sequence[Sequence[Prefix]],
    needs: Mapping[str, float],
    held: Mapping[str, SoftLabels],
) -> list[Term]:
    """All terms of one window, by example, its candidates before its conservative response.

    Args:
        examples: the window, ``B`` of them.
        scores: their stacked scores.
        gates: ``g`` of the policy gradient, ``[B]``; 0 where an example abstains.
        imitation: ``s``, ``[B]``; 0 where an example abstains.
        weights: candidate weights ``[B, K+1]``.
        log_ratio: ``D``, ``[B, K+1]``; anything where the gate is 0.
        cfg: settings of the objective.
        prefixes: of ``recovery_prefixes``, ``R_i`` of them an example; those of an example without
            an accepted conservative response don't count.
        needs: ``h`` of every abstaining example, by id.
        held: what ``mu`` says at each token of an anchor's answer, by id, of every anchor.
    """
    terms = {(t.example, 0): t for t in supervised_terms(examples, imitation.tolist())}
    pushes = _pg_coefficients(scores, gates, weights, log_ratio, cfg)
    for i, example in enumerate(examples):
        for k, value in enumerate(pushes[i].tolist()):
            if value:
                term = terms.setdefault((i, k), Term(i, example.candidates[k], {}))
                term.parts["pg"] = value
    for i, example in enumerate(examples):
        if example.role == "anchor":
            own = example.candidates[0]
            share = cfg.beta_anchor / (len(examples) * len(own))
            terms[i, 0] = Term(i, own, {"anchor": share}, soft=held[example.id])
    last = scores.tokens.shape[1]
    for i, (example, begun) in enumerate(zip(examples, prefixes, strict=True)):
        for n, target in enumerate(_declining(i, example, begun, needs, cfg, len(examples))):
            terms[i, last + n] = target
    return [term for _, term in sorted(terms.items()) if term.coefficient]


def term_rows(
    window: Sequence[Example], terms: Sequence[Term]
) -> dict[int, tuple[PackedRow, list[Term]]]:
    """One row for each example and those that it is host to, what their prompts share once.

    The rest of each prompt, and a term's prefix, are given beginnings of the branch.

    Args:
        window: the examples that ``Term.example`` counts in.
        terms: in any order; a row's branches are in the order of its terms.
    """
    at: dict[str | None, int] = {example.id: i for i, example in enumerate(window)}
    groups: dict[int, list[Term]] = {}
    for term in terms:
        home = at.get(window[term.example].host, term.example)
        groups.setdefault(home, []).append(term)
    rows = {}
    for i, own in groups.items():
        guests = [window[term.example] for term in own if term.example != i]
        stem = min((guest.shared for guest in guests), default=len(window[i].prompt))
        given = [[*window[term.example].prompt[stem:], *term.prefix] for term in own]
        branches = [[*before, *term.response] for before, term in zip(given, own, strict=True)]
        row = PackedRow(
            window[i].prompt[:stem],
            branches,
            [len(before) for before in given],
            [term.soft for term in own],
        )
        rows[i] = (row, own)
    return rows


def _pg_coefficients(
    scores: Scores,
    gates: torch.Tensor,
    weights: torch.Tensor,
    log_ratio: torch.Tensor,
    cfg: ObjectiveSettings,
) -> torch.Tensor:
    """Policy-gradient coefficients ``[B, K+1]``."""
    advantage = advantages(weights, scores.quality, delta=cfg.delta, floor=cfg.floor)
    phi = push(advantage, log_ratio, scores.tokens, beta_n=cfg.beta_n, trust=cfg.trust)
    share = cfg.lambda_pg * gates[:, None] * phi / scores.tokens
    return share / (len(gates) * scores.tokens.shape[1])


def _declining(
    i: int,
    example: Example,
    prefixes: Sequence[Prefix],
    needs: Mapping[str, float],
    cfg: ObjectiveSettings,
    size: int,
) -> list[Term]:
    """The conservative response as what to say, and as what to turn back to."""
    terms = []
    if example.abstention is not None:
        weight = cfg.lambda_refuse if example.unsafe else cfg.lambda_abstain
        share = weight * needs[example.id] / (size * len(example.abstention))
        terms.append(Term(i, example.abstention, {"abstain": share}))
    if example.conservative is not None and prefixes:
        share = cfg.lambda_recovery / (size * len(prefixes) * len(example.conservative))
        terms += [Term(i, example.conservative, {"recovery": share}, p) for p in prefixes]
    return terms
