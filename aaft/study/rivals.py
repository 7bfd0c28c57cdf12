"""Rival methods, and the constant gate, as recipes of the same trainer.

``mu`` is the model before training: the base without its adapter. ``c`` is a branch's coefficient,
``1 / N`` with ``N`` the gold tokens of the window, as in plain supervised fine-tuning.

- `PenaltyRecipe`, SFT with a KL penalty over the whole vocabulary ``V`` at every gold token::

      sum_t c (-log pi(y_t|.) + beta sum_{v in V} mu(v|.) (log mu(v|.) - log pi(v|.)))

- `ConstrainedRecipe`, constrained SFT on the first tokens (arXiv:2406.05946)::

      sum_t c (2 / beta_t) (-log sigmoid(beta_t (log pi(y_t|.) - log mu(y_t|.))))
      beta_1 = 0.5    beta_t = 2 for 2 <= t <= 5    beta_t = 0.1 from there on

  Its gradient is ``2 sigmoid(-beta_t (log pi - log mu))`` times SFT's: SFT's own where the policy
  hasn't moved, smaller the more likely a token has become; ``beta_t -> 0`` is SFT.

- `LisaRecipe` (arXiv:2405.18641): phases of steps on alignment rows and on task rows in turn, each
  phase drawn towards the weights ``w_0`` that it began with by ``rho / 2 ||w - w_0||^2``, ``w``
  the trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from aaft.config import TrainConfig
from aaft.data.text import ranked
from aaft.errors import AaftError
from aaft.models.packed import PackedBatch, by_branch, label_logits, token_logprobs
from aaft.tuning.examples import Example, stack
from aaft.tuning.gate import gate, imitation
from aaft.tuning.objective import Term, supervised_terms
from aaft.tuning.recipe import GatedRecipe, Gating, Plan, SupervisedRecipe
from aaft.tuning.trainer import Trainer
from aaft.tuning.weights import candidate_weights, standing

FIRST, EARLY, LATER = 0.5, 2.0, 0.1
EARLY_TOKENS = 5
"""Tokens 2 to 5 of a response are the early ones."""


class PenaltyRecipe(SupervisedRecipe):
    """SFT with a KL penalty; ``beta`` is at least 0, and 0 is SFT."""

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def loss(
        self, model: Any, batch: PackedBatch, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood and divergence from ``mu``, token by token."""
        with reference(model), torch.no_grad():
            before = functional.log_softmax(label_logits(model, batch), dim=-1)
        now = functional.log_softmax(label_logits(model, batch), dim=-1)
        nll = -now.gather(1, batch.labels.to(now.device)[:, None])[:, 0]
        divergence = (before.exp() * (before - now)).sum(-1)
        return weighted(nll + self._beta * divergence, nll, batch, coefficients)


class ConstrainedRecipe(SupervisedRecipe):
    """Constrained SFT; ``scale`` multiplies the paper's betas."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def loss(
        self, model: Any, batch: PackedBatch, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token-wise loss above."""
        with reference(model), torch.no_grad():
            before = token_logprobs(model, batch)
        now = token_logprobs(model, batch)
        beta = self._scale * betas(batch.offset.to(now.device))
        per_token = 2.0 / beta * functional.softplus(-beta * (now - before))
        return weighted(per_token, -now, batch, coefficients)


class LisaRecipe(SupervisedRecipe):
    """Alternates between alignment rows and task rows; it has a memory, so it can't be resumed.

    A phase has whole steps. In a step of an alignment phase the window's task rows are passed over
    and as many alignment rows take their place, so the number of steps is that of plain SFT.
    """

    def __init__(
        self,
        align: Sequence[Example],
        task: Sequence[Example],
        *,
        align_steps: int,
        task_steps: int,
        rho: float,
        seed: int,
    ) -> None:
        """Set the phases.

        Args:
            align: rows to align with, at least one unless ``align_steps`` is 0.
            task: rows to learn, each as often as it is to be seen.
            align_steps: of a phase; 0 leaves task rows and one unending phase.
            task_steps: of a phase, at least 1.
            rho: weight of the proximal term, at least 0.
            seed: decides the order of the alignment rows.
        """
        self._align = ranked(align, f"lisa/{seed}", lambda example: example.id)
        self._seen = list(task)
        self._task = {example.id: example for example in task}
        self._cycle = (align_steps, task_steps)
        self._rho = rho
        self._step = 0
        self._next = 0
        self._aligning: bool | None = None
        self._origin: list[torch.Tensor] | None = None

    def hollow(self) -> list[Example]:
        """What the trainer is to shuffle: the task rows without their prompts.

        A row of a window may turn into an alignment row, and it is the terms' prefixes that carry
        the prompts.
        """
        return [replace(example, prompt=[]) for example in self._seen]

    def plan(self, trainer: Trainer, window: Sequence[Example], epoch: int) -> Plan:  # noqa: ARG002
        """Plain supervised terms, of alignment rows in an alignment phase."""
        align_steps, task_steps = self._cycle
        aligning = self._step % (align_steps + task_steps) < align_steps
        if aligning != self._aligning:
            self._aligning, self._origin = aligning, None
        self._step += 1
        rows = [self._task[example.id] for example in window]
        if aligning:
            rows = [self._align[(self._next + i) % len(self._align)] for i in range(len(window))]
            self._next += len(rows)
        return Plan(
            [
                Term(term.example, term.response, term.parts, tuple(rows[term.example].prompt))
                for term in supervised_terms(rows, [1.0] * len(rows))
            ]
        )

    def before_step(self, parameters: Sequence[torch.nn.Parameter], step: int) -> None:  # noqa: ARG002
        """Add the proximal term's gradient, ``rho (w - w_0)``."""
        if self._origin is None:
            self._origin = [parameter.detach().clone() for parameter in parameters]
        if not self._rho:
            return
        for parameter, origin in zip(parameters, self._origin, strict=True):
            pull = self._rho * (parameter.detach() - origin)
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull


def mean_gate(examples: Sequence[Example], train: TrainConfig) -> float:
    """Mean gate in [0, 1] before the first step, of the records that don't abstain."""
    asked = [example for example in examples if example.abstention is None]
    if not asked:
        return 0.0
    scores = stack(asked)
    weights = candidate_weights(scores.logprob * 0, scores.tokens, train.gate.eta)
    state = standing(weights, scores.quality, scores.uncertainty)
    return float(gate(state.value, state.uncertainty, train.gate).mean())


class ConstantRecipe(GatedRecipe):
    """The gated objective with one gate for all records that don't abstain and are scored."""

    def __init__(self, train: TrainConfig, constant: float) -> None:
        # With low = 0 no gate is closed beforehand, so every row's candidates are computed.
        super().__init__(
            train.model_copy(update={"gate": train.gate.model_copy(update={"low": 0.0})})
        )
        self._constant, self._usual = constant, train.gate

    def measure(self, trainer: Trainer, window: Sequence[Example]) -> Gating:
        """As usual, with the gates replaced; golds are imitated as usual, when ``low`` isn't 0."""
        gating = super().measure(trainer, window)
        ungated = ~gating.recorded
        gates = torch.full_like(gating.gates, self._constant)
        gates = gates.masked_fill(gating.standing.value.isnan(), 0.0)
        gates = gates.masked_fill(gating.abstaining, 1.0).masked_fill(ungated, 0.0)
        imitated = imitation(gating.scores.reward[:, 0], self._usual)
        imitated = imitated.masked_fill(gating.abstaining | ungated, 0.0)
        return replace(gating, gates=gates, imitation=imitated)


def betas(offset: torch.Tensor) -> torch.Tensor:
    """``beta_t`` of tokens at these 0-based positions of their responses, same shape."""
    early = torch.where(offset < EARLY_TOKENS, EARLY, LATER)
    return torch.where(offset == 0, FIRST, early)


def reference(model: Any) -> Any:
    """Context in which ``model`` is the one before training.

    Raises:
        AaftError: it has no adapter to take off.
    """
    if not hasattr(model, "disable_adapter"):
        raise AaftError(
            "study: this method compares with the model before training, which only an adapter "
            "keeps; set train.lora"
        )
    return model.disable_adapter()


def weighted(
    per_token: torch.Tensor, nll: torch.Tensor, batch: PackedBatch, coefficients: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients times each branch's sum of ``per_token`` ``[T]``, and each branch's ``nll``."""
    loss = (coefficients * by_branch(per_token, batch)).sum()
    return loss, by_branch(nll.detach(), batch)
