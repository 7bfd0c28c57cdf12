"""What distinguishes one way of training from another; the loop around it is the trainer's.

A recipe says which responses of a window get which coefficients (`Recipe.plan`) and what is
computed from what is predicted at their tokens (`Recipe.loss`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from aaft.config import TrainConfig
from aaft.models.packed import PackedBatch, PackedRow, branch_losses
from aaft.models.soft import SoftLabels
from aaft.tuning.abstain import need
from aaft.tuning.anchor import answers_of_reference
from aaft.tuning.examples import Example, Scores, stack
from aaft.tuning.gate import always_closed, gate, imitation
from aaft.tuning.objective import Term, gated_terms, supervised_terms
from aaft.tuning.recovery import recovery_prefixes
from aaft.tuning.weights import Standing, candidate_weights, standing

if TYPE_CHECKING:
    from aaft.tuning.trainer import Trainer


@dataclass(frozen=True)
class Gating:
    """What the gate saw of a window of ``B`` examples under the current policy."""

    scores: Scores
    gates: torch.Tensor
    """``g``, ``[B]``; 1 where an example abstains, 0 for twins and siblings."""
    abstaining: torch.Tensor
    """``[B]``: these have one target, so their candidates are neither pushed nor computed."""
    recorded: torch.Tensor
    """``[B]``: false for twins and siblings, which have no gate."""
    imitation: torch.Tensor
    """``s``, ``[B]``: weight of each gold's imitation."""
    standing: Standing
    weights: torch.Tensor
    """Candidate weights, ``[B, K+1]``."""
    log_ratio: torch.Tensor
    """``D``, ``[B, K+1]``; 0 where nothing was computed."""
    need: torch.Tensor
    """``h``, ``[B]``: what abstaining weighs; NaN where an example doesn't."""

    @property
    def pushing(self) -> torch.Tensor:
        """Gates ``[B]`` of the policy gradient: 0 where an example abstains."""
        return self.gates.masked_fill(self.abstaining, 0.0)


@dataclass(frozen=True)
class Plan:
    """A window's terms, and how they came about where there is a gate."""

    terms: list[Term]
    gating: Gating | None = None


class Recipe(Protocol):
    """A way of training. What it remembers from step to step is lost where a run is resumed."""

    def begin(self, trainer: Trainer, examples: Sequence[Example]) -> None:
        """Called before the first step, and in a run that is resumed: the model is ``mu``."""
        ...

    def plan(self, trainer: Trainer, window: Sequence[Example], epoch: int) -> Plan:
        """The terms of a window under the current policy; the same on every rank."""
        ...

    def loss(
        self, model: Any, batch: PackedBatch, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A micro-batch's loss, and each branch's negative log-likelihood for the history.

        Args:
            model: what is trained.
            batch: a branch a term.
            coefficients: of the terms, ``[branches]``.

        Returns:
            The loss, a differentiable scalar that sums over micro-batches, and ``[branches]``
            without gradient (of one with soft labels, its divergence).
        """
        ...

    def before_step(self, parameters: Sequence[torch.nn.Parameter], step: int) -> None:
        """Called with the gradients of step ``step`` (from 1) before they are clipped."""
        ...


class SupervisedRecipe:
    """Plain supervised fine-tuning."""

    def begin(self, trainer: Trainer, examples: Sequence[Example]) -> None:
        """Nothing to prepare."""

    def plan(self, trainer: Trainer, window: Sequence[Example], epoch: int) -> Plan:  # noqa: ARG002
        """Every gold, with equal weight a token."""
        return Plan(supervised_terms(window, [1.0] * len(window)))

    def loss(
        self, model: Any, batch: PackedBatch, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients times negative log-likelihoods, or divergences from soft labels."""
        losses = branch_losses(model, batch)
        return (coefficients * losses).sum(), losses.detach()

    def before_step(self, parameters: Sequence[torch.nn.Parameter], step: int) -> None:
        """Nothing to add."""


class GatedRecipe(SupervisedRecipe):
    """The gated objective of docs/method.md. It needs `begin`, as it compares with ``mu``."""

    def __init__(self, cfg: TrainConfig) -> None:
        self._cfg = cfg
        self._held: Mapping[str, SoftLabels] = {}
        self._needs: Mapping[str, float] = {}

    def begin(self, trainer: Trainer, examples: Sequence[Example]) -> None:
        """Ask ``mu`` how likely it abstains, and what it says to the twins."""
        self._needs = _needs(trainer, examples)
        # One may be there twice.
        anchors = list({e.id: e for e in examples if e.role == "anchor"}.values())
        if not anchors:
            return
        with trainer.shown("reference", len(anchors), "twins") as advance:
            self._held = answers_of_reference(
                trainer.model, anchors, self._cfg.tokens_per_batch, advance
            )

    def plan(self, trainer: Trainer, window: Sequence[Example], epoch: int) -> Plan:
        """Gate the window, then weigh golds, candidates, conservative responses and recoveries."""
        gating = self.measure(trainer, window)
        cfg = self._cfg.objective
        prefixes = [
            []
            if example.conservative is None or not example.unsafe
            else recovery_prefixes(
                example.id,
                example.candidates[0],
                epoch,
                trainer.seed,
                longest=cfg.recovery_tokens,
                count=cfg.recoveries,
            )
            for example in window
        ]
        terms = gated_terms(
            window,
            gating.scores,
            gating.pushing,
            gating.imitation,
            gating.weights,
            gating.log_ratio,
            cfg,
            prefixes,
            self._needs,
            self._held,
        )
        return Plan(terms, gating)

    def measure(self, trainer: Trainer, window: Sequence[Example]) -> Gating:
        """Gate ``window`` under the current policy.

        Candidates are computed only where the policy can matter: not where the gate is closed
        whatever the policy does.
        """
        cfg, scores = self._cfg.gate, stack(window)
        closed = always_closed(scores.quality, scores.uncertainty, cfg).tolist()
        ungated = torch.tensor([example.role != "record" for example in window])
        abstaining = torch.tensor([example.abstention is not None for example in window])
        log_ratio = torch.zeros_like(scores.logprob)
        rows = {
            i: PackedRow(example.prompt, example.candidates)
            for i, example in enumerate(window)
            if not (closed[i] or ungated[i] or abstaining[i])
        }
        for i, logprobs in trainer.logprobs(rows).items():
            log_ratio[i] = torch.tensor(logprobs, dtype=torch.float64) - scores.logprob[i]
        weights = candidate_weights(log_ratio, scores.tokens, cfg.eta)
        state = standing(weights, scores.quality, scores.uncertainty)
        gates = gate(state.value, state.uncertainty, cfg)
        return Gating(
            scores,
            gates.masked_fill(abstaining, 1.0).masked_fill(ungated, 0.0),
            abstaining,
            ~ungated,
            imitation(scores.reward[:, 0], cfg).masked_fill(abstaining | ungated, 0.0),
            state,
            weights,
            log_ratio,
            torch.tensor([self._needs.get(e.id, math.nan) for e in window], dtype=torch.float64),
        )


def _needs(trainer: Trainer, examples: Sequence[Example]) -> dict[str, float]:
    """`need` of each response to abstain with, by the example's id, under the current policy."""
    declining = {e.id: (e.prompt, e.abstention) for e in examples if e.abstention is not None}
    rows = {name: PackedRow(prompt, [said]) for name, (prompt, said) in declining.items()}
    found = trainer.logprobs(rows)
    return {name: need(found[name][0], len(said)) for name, (_, said) in declining.items()}


def recipe_for(cfg: TrainConfig) -> Recipe:
    """The recipe that ``cfg.method`` names."""
    return SupervisedRecipe() if cfg.method == "sft" else GatedRecipe(cfg)
