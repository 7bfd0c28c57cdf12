"""The training loop: gate a window, lay out its terms, accumulate, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aaft.config import TrainConfig
from aaft.errors import AaftError
from aaft.models.packed import PackedRow, branch_logprobs, pack
from aaft.progress import progress
from aaft.tuning.examples import Example, Scores, stack
from aaft.tuning.gate import always_closed, gate
from aaft.tuning.objective import Part, Term, gated_terms, supervised_terms
from aaft.tuning.weights import Standing, candidate_weights, standing


@dataclass(frozen=True)
class Gating:
    """What the gate saw of a window under the current policy."""

    gates: torch.Tensor
    standing: Standing
    weights: torch.Tensor
    log_ratio: torch.Tensor


@dataclass(frozen=True)
class GateRow:
    """The last gate of a record."""

    id: str
    gate: float
    v: float
    uncertainty: float
    abstain: bool


class Trainer:
    """Trains ``model`` in place; ``history`` and ``gates`` fill as it goes."""

    def __init__(
        self, model: Any, examples: Sequence[Example], cfg: TrainConfig, seed: int
    ) -> None:
        self._model = model
        self._examples = examples
        self._cfg = cfg
        self._seed = seed
        self.history: list[dict[str, float | int]] = []
        self.gates: dict[str, GateRow] = {}

    def run(self) -> None:
        """Train for the configured epochs.

        Raises:
            AaftError: the loss or the gradient of a step is not finite; record ids are named.
        """
        cfg = self._cfg
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )
        per_epoch = math.ceil(len(self._examples) / cfg.rows_per_step)
        steps = per_epoch * cfg.epochs
        warmup = math.ceil(cfg.warmup_fraction * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, warmup, steps)
        )
        with progress("train", steps * cfg.rows_per_step, "rows") as advance:
            for step, window in enumerate(self._windows(), start=1):
                terms, gating = self._plan(window)
                losses = self._accumulate(window, terms)
                norm = float(torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm))
                if not math.isfinite(norm + sum(losses.values())):
                    ids = ", ".join(example.id for example in window)
                    raise AaftError(
                        f"train: step {step}: loss or gradient is not finite; records {ids}; "
                        "lower train.learning_rate or look at these records"
                    )
                lr = float(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                self.history.append(_history_row(step, losses, lr, norm, gating, terms))
                advance(len(window))

    def _windows(self) -> Iterator[list[Example]]:
        """Shuffled windows of ``rows_per_step`` examples."""
        for epoch in range(self._cfg.epochs):
            shuffle = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            order = torch.randperm(len(self._examples), generator=shuffle).tolist()
            for start in range(0, len(order), self._cfg.rows_per_step):
                yield [self._examples[i] for i in order[start : start + self._cfg.rows_per_step]]

    def _plan(self, window: Sequence[Example]) -> tuple[list[Term], Gating | None]:
        if self._cfg.method == "sft":
            return supervised_terms(window, [1.0] * len(window)), None
        scores = stack(window)
        gating = self.measure(window, scores)
        for i, example in enumerate(window):
            self.gates[example.id] = GateRow(
                example.id,
                float(gating.gates[i]),
                float(gating.standing.value[i]),
                float(gating.standing.uncertainty[i]),
                example.abstention is not None,
            )
        terms = gated_terms(
            window, scores, gating.gates, gating.weights, gating.log_ratio, self._cfg.objective
        )
        return terms, gating

    def measure(self, window: Sequence[Example], scores: Scores) -> Gating:
        """Gate ``window`` under the current policy.

        Candidates are computed only where the policy can matter: not where the gate is closed
        whatever the policy does.
        """
        cfg = self._cfg.gate
        closed = always_closed(scores.quality, scores.uncertainty, cfg)
        log_ratio = torch.zeros_like(scores.logprob)
        rows = {
            i: PackedRow(example.prompt, example.candidates)
            for i, example in enumerate(window)
            if not closed[i]
        }
        self._model.eval()  # a gate must not depend on dropout
        for batch in micro_batches(rows, self._cfg.tokens_per_batch):
            with torch.no_grad():
                logprobs = branch_logprobs(self._model, pack([rows[i] for i in batch]))
            candidates = logprobs.double().cpu().reshape(len(batch), -1)
            log_ratio[batch] = candidates - scores.logprob[batch]
        weights = candidate_weights(log_ratio, scores.tokens, cfg.eta)
        state = standing(weights, scores.quality, scores.uncertainty)
        gates = gate(state.value, state.uncertainty, cfg)
        abstaining = torch.tensor([example.abstention is not None for example in window])
        return Gating(gates.masked_fill(abstaining, 1.0), state, weights, log_ratio)

    def _accumulate(self, window: Sequence[Example], terms: Sequence[Term]) -> dict[Part, float]:
        """Backpropagate the window's loss in micro-batches; return its parts."""
        losses: dict[Part, float] = {"sft": 0.0, "pg": 0.0, "abstain": 0.0}
        self._model.train()
        chosen: dict[int, list[Term]] = {}
        for term in terms:
            chosen.setdefault(term.example, []).append(term)
        rows = {
            i: PackedRow(window[i].prompt, [term.response for term in own])
            for i, own in chosen.items()
        }
        for batch in micro_batches(rows, self._cfg.tokens_per_batch):
            flat = [term for i in batch for term in chosen[i]]
            nll = -branch_logprobs(self._model, pack([rows[i] for i in batch]))
            coefficients = torch.tensor([t.coefficient for t in flat], device=nll.device)
            (coefficients * nll).sum().backward()
            for term, value in zip(flat, nll.detach().tolist(), strict=True):
                for part, coefficient in term.parts.items():
                    losses[part] += coefficient * value
        return losses


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine, in (0, 1] for ``0 <= step < steps``.

    transformers' schedule of that name starts at 0 and so learns nothing from the first window;
    this one has no step without learning.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def micro_batches(rows: Mapping[int, PackedRow], tokens: int) -> Iterator[list[int]]:
    """Keys of ``rows`` in groups of near-equal length, longest first.

    A group holds at most ``tokens`` tokens, padding included, or a single longer row.
    """
    batch: list[int] = []
    width = 0
    for key in sorted(rows, key=lambda key: (-rows[key].length, key)):
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        if not batch:
            width = rows[key].length
        batch.append(key)
    if batch:
        yield batch


def _history_row(
    step: int,
    losses: dict[Part, float],
    lr: float,
    norm: float,
    gating: Gating | None,
    terms: Sequence[Term],
) -> dict[str, float | int]:
    row: dict[str, float | int] = {"step": step, "loss": sum(losses.values())}
    row |= {part: loss for part, loss in losses.items()}  # noqa: C416 - mypy: keys are literals
    row |= {"lr": lr, "grad_norm": norm, "responses": len(terms)}
    if gating is not None:
        p10, p50, p90 = gating.gates.quantile(
            torch.tensor([0.1, 0.5, 0.9], dtype=gating.gates.dtype)
        ).tolist()
        row |= {
            "gate_p10": p10,
            "gate_p50": p50,
            "gate_p90": p90,
            "gate_open_share": float((gating.gates > 0).double().mean()),
            "ess": float(gating.standing.ess.mean()),
        }
    return row
