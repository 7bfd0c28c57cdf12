"""The training loop: plan a window, compute its terms in micro-batches, step, keep a checkpoint."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from aaft.config import TrainConfig
from aaft.errors import AaftError
from aaft.models.packed import PackedRow, branch_logprobs, pack
from aaft.progress import Advance, progress
from aaft.tuning.batches import Key, micro_batches
from aaft.tuning.checkpoint import Checkpoints, Snapshot, capture, restore
from aaft.tuning.examples import Example
from aaft.tuning.history import PARTS, GateRow, Losses, gate_rows, history_row
from aaft.tuning.objective import Term, term_rows
from aaft.tuning.ranks import Ranks
from aaft.tuning.recipe import Recipe, recipe_for
from aaft.tuning.windows import windows

Rows = Mapping[Key, tuple[PackedRow, list[Term]]]


class Trainer:
    """Trains ``model`` in place; ``history``, ``gates`` and ``timing`` fill as it goes.

    ``recipe`` is by default that of ``cfg.method``. With ``checkpoints`` a run that was killed goes
    on where it was and ends with the same bits. With ``ranks`` each process computes a share.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        cfg: TrainConfig,
        seed: int,
        *,
        recipe: Recipe | None = None,
        checkpoints: Checkpoints | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.cfg = cfg
        self.seed = seed
        self.ranks = ranks or Ranks()
        self.history: list[dict[str, float | int]] = []
        self.gates: dict[str, GateRow] = {}
        self.timing: list[dict[str, float | int]] = []
        self._examples = examples
        self._recipe = recipe or recipe_for(cfg)
        self._checkpoints = checkpoints
        self._computed = 0
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )

    def run(self) -> None:
        """Train for the configured epochs.

        Raises:
            AaftError: the loss or the gradient of a step is not finite (record ids are named), or a
                checkpoint can't be written.
        """
        planned = list(self._windows())
        warmup = math.ceil(self.cfg.warmup_fraction * len(planned))
        self._recipe.begin(self, self._examples)
        done = self._resume()
        rows = [len(window) for _, window in planned]
        with self.shown("train", sum(rows), "rows") as advance:
            if done:
                advance(sum(rows[:done]), reused=True)
            for step, (epoch, window) in enumerate(planned[done:], start=done + 1):
                lr = self.cfg.learning_rate * learning_rate_factor(step - 1, warmup, len(planned))
                self._step(step, epoch, window, lr)
                if self._checkpoints and step % self._checkpoints.every == 0 and self.ranks.main:
                    self._checkpoints.save(self._snapshot(step))
                advance(len(window))

    def shown(
        self, title: str, total: int, unit: str
    ) -> contextlib.AbstractContextManager[Advance]:
        """Progress, which the first rank alone shows."""
        return progress(title, total, unit) if self.ranks.main else _silent()

    def logprobs(self, rows: Mapping[Key, PackedRow]) -> dict[Key, list[float]]:
        """Log-probabilities of each row's branches under the current policy, without gradient.

        Computed in evaluation mode (what is measured must not depend on dropout), shared by the
        ranks, the same on each of them.
        """
        own = self.ranks.share({key: row.length for key, row in rows.items()})
        found: dict[Key, list[float]] = {}
        self.model.eval()
        for batch in micro_batches({key: rows[key] for key in own}, self.cfg.tokens_per_batch):
            with torch.no_grad():
                values = branch_logprobs(self.model, pack([rows[key] for key in batch])).tolist()
            for key in batch:
                count = len(rows[key].branches)
                found[key], values = values[:count], values[count:]
        self._computed += sum(row.length for row in rows.values())
        flat = [
            value
            for key, row in rows.items()
            for value in found.get(key, [0.0] * len(row.branches))
        ]
        total = iter(self.ranks.sum(flat))
        return {key: [next(total) for _ in row.branches] for key, row in rows.items()}

    def _windows(self) -> Iterator[tuple[int, list[Example]]]:
        """Epoch and shuffled window of about ``rows_per_step`` examples."""
        count = len(self._examples)
        for epoch in range(self.cfg.epochs):
            shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(count, generator=shuffle).tolist()
            for chosen in windows(self._examples, order, self.cfg.rows_per_step):
                yield epoch, [self._examples[i] for i in chosen]

    def _step(self, step: int, epoch: int, window: Sequence[Example], lr: float) -> None:
        began, self._computed = time.monotonic(), 0
        plan = self._recipe.plan(self, window, epoch)
        if plan.gating is not None:
            self.gates |= gate_rows(window, plan.gating)
        # Dropout starts anew in every step, so that a resumed run needs no random state.
        torch.manual_seed((self.seed * 1_000_003 + step) * self.ranks.count + self.ranks.index)
        rows = term_rows(window, plan.terms)
        self._computed += sum(row.length for row, _ in rows.values())
        losses = self._accumulate(step, window, rows)
        self.ranks.sum_gradients(self._parameters)
        self._recipe.before_step(self._parameters, step)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.cfg.max_grad_norm))
        if not math.isfinite(norm):
            raise self._not_finite(step, window, self._blame(rows) or range(len(window)))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        row = history_row(step, losses, plan, self.cfg.objective)
        row |= {"lr": lr, "grad_norm": norm, "tokens": self._computed}
        self.history.append(row)
        seconds = time.monotonic() - began
        speed = self._computed / seconds
        self.timing.append({"step": step, "seconds": seconds, "tokens_per_second": speed})

    def _accumulate(self, step: int, window: Sequence[Example], rows: Rows[Key]) -> Losses:
        """Backpropagate the window's loss in micro-batches; sum what it was over ranks."""
        own = self.ranks.share({key: row.length for key, (row, _) in rows.items()})
        parts, total, faults = dict.fromkeys(PARTS, 0.0), 0.0, [0.0] * len(window)
        self.model.train()
        for batch in micro_batches({key: rows[key][0] for key in own}, self.cfg.tokens_per_batch):
            loss, nll, terms = self._loss(rows, batch)
            value = loss.item()
            total += value
            if not math.isfinite(value):
                for term in terms:
                    faults[term.example] = 1.0
                break  # the other ranks learn of it below
            loss.backward()
            for term, branch in zip(terms, nll.tolist(), strict=True):
                for part, coefficient in term.parts.items():
                    parts[part] += coefficient * branch
        summed = self.ranks.sum([total, *parts.values(), *faults])
        bad = [i for i, flag in enumerate(summed[1 + len(PARTS) :]) if flag]
        if bad:
            raise self._not_finite(step, window, bad)
        return Losses(summed[0], dict(zip(PARTS, summed[1:], strict=False)))

    def _loss(
        self, rows: Rows[Key], batch: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor, list[Term]]:
        packed = pack([rows[key][0] for key in batch])
        terms = [term for key in batch for term in rows[key][1]]
        device = self._parameters[0].device
        coefficients = torch.tensor([term.coefficient for term in terms], device=device)
        loss, nll = self._recipe.loss(self.model, packed, coefficients)
        return loss, nll, terms

    def _blame(self, rows: Rows[Key]) -> list[int]:
        """Examples of the micro-batches whose own gradient isn't finite, computed once more."""
        bad: set[int] = set()
        for batch in micro_batches({k: r for k, (r, _) in rows.items()}, self.cfg.tokens_per_batch):
            self._optimizer.zero_grad(set_to_none=True)
            loss, _, terms = self._loss(rows, batch)
            loss.backward()
            if not all(p.grad is None or p.grad.isfinite().all() for p in self._parameters):
                bad |= {term.example for term in terms}
        return sorted(bad)

    def _not_finite(self, step: int, window: Sequence[Example], which: Sequence[int]) -> AaftError:
        ids = ", ".join(window[i].id for i in which)
        return AaftError(
            f"train: step {step}: loss or gradient is not finite; records {ids}; "
            "lower train.learning_rate or look at these records"
        )

    def _snapshot(self, step: int) -> Snapshot:
        state = {
            "history": self.history,
            "gates": [row.to_json() for row in self.gates.values()],
            "timing": self.timing,
        }
        return Snapshot(step, capture(self._named, self._optimizer), state)

    def _resume(self) -> int:
        """Restore the newest checkpoint and return its step; 0 where there is none."""
        if self._checkpoints is None:
            return 0
        # Rank 0 decides: another might already find one that was written a moment later.
        snapshot = self._checkpoints.load() if self.ranks.main else None
        step = int(self.ranks.sum([snapshot.step if snapshot else 0])[0])
        if step == 0:
            return 0
        snapshot = snapshot or self._checkpoints.at(step)
        restore(self._named, self._optimizer, snapshot.tensors)
        self.history = list(snapshot.state["history"])
        self.gates = {row["id"]: GateRow.from_json(row) for row in snapshot.state["gates"]}
        self.timing = list(snapshot.state["timing"])
        return step


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine, in (0, 1] for ``0 <= step < steps``.

    transformers' schedule of that name starts at 0 and so learns nothing from the first window;
    this one has no step without learning.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@contextlib.contextmanager
def _silent() -> Iterator[Advance]:
    """Progress of a rank that shows none."""

    def advance(_count: int, /, *, reused: bool = False) -> None:
        pass

    yield advance
