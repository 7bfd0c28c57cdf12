"""Computing one cell: prepare, train, measure."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aaft.config import ACCEPTED, Config
from aaft.errors import AaftError
from aaft.judges.embedded import EmbeddedJudge
from aaft.models.policy import Codec, load_frozen
from aaft.study.cells import gate_histogram
from aaft.study.config import StudyConfig
from aaft.study.measure import StudyBench, for_generation, measure
from aaft.study.methods import Tuning, prepare
from aaft.study.signal import ScoredExample
from aaft.tuning.examples import Example
from aaft.tuning.stage import prepare_model
from aaft.tuning.trainer import Trainer

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """What the cells of a seed are measured with."""

    codec: Codec
    judge: EmbeddedJudge
    prompts: StudyBench
    study: StudyConfig
    batch_size: int

    def answers(self, model: Any, title: str) -> Answers:
        """A row for each prompt."""
        return measure(
            model, self.codec, self.judge, self.prompts, self.study, self.batch_size, title
        )


@dataclass(frozen=True)
class Rows:
    """A scenario's rows for one seed, with what methods may add to them."""

    examples: Sequence[ScoredExample]
    kinds: Mapping[str, str]
    """Kind of each row by id; ``counterfactual`` for those."""
    counterfactuals: Sequence[ScoredExample]
    twins: Sequence[ScoredExample]
    siblings: Sequence[ScoredExample]
    align: Sequence[Example]
    refusals: Sequence[Example]


def reference_cell(cfg: Config, bench: Bench, device: torch.device) -> Answers:
    """Answers of ``policy.model`` as it is."""
    policy = cfg.policy
    model = load_frozen(policy.model, device, policy.revision)
    return bench.answers(model, "measure reference")


def trained_cell(
    method: str,
    cfg: Config,
    given: Rows,
    tuning: Tuning,
    bench: Bench,
    device: torch.device,
) -> tuple[Answers, dict[str, Any]]:
    """Train ``policy.model`` by ``method`` from ``cfg.seed``; its answers, and facts of it.

    The facts are ``train`` (wall-clock seconds, rows passed, optimiser steps, tokens computed,
    last loss) and, where there is a gate, ``gates`` (`gate_histogram` of each record's last gate).

    Raises:
        AaftError: the training diverged, or a gated method gated nothing.
    """
    prepared = prepare(
        method,
        given.examples,
        cfg,
        counterfactuals=given.counterfactuals,
        twins=given.twins,
        siblings=given.siblings,
        align=given.align,
        refusals=given.refusals,
        seed=cfg.seed,
        tuning=tuning,
    )
    cfg = cfg.model_copy(update={"train": prepared.train})
    model = prepare_model(cfg, device)
    trainer = Trainer(model, prepared.examples, prepared.train, cfg.seed, recipe=prepared.recipe)
    began = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - began
    facts: dict[str, Any] = {
        "train": {
            "seconds": seconds,
            "rows": len(prepared.examples) * prepared.train.epochs,
            "steps": len(trainer.history),
            "tokens": sum(int(step["tokens"]) for step in trainer.history),
            "loss_last": trainer.history[-1]["loss"],
        }
    }
    # A counterfactual's gate is open whatever the settings, and kin have none: they prove nothing.
    added = {example.id for example in given.counterfactuals}
    own = [e for e in prepared.examples if e.role == "record" and e.id not in added]
    rejected = sum(bool(example.reward[0] < ACCEPTED) for example in own)
    opened = any(trainer.gates[e.id].gate > 0 for e in own if e.id in trainer.gates)
    if trainer.gates and rejected and not opened:
        raise AaftError(
            f"study: method {method}: {rejected} golds are rejected, yet no gate opened; check "
            "train.gate"
        )
    if trainer.gates:
        facts["gates"] = gate_histogram(
            (given.kinds[e.id], trainer.gates[e.id].gate)
            for e in {e.id: e for e in prepared.examples if e.role == "record"}.values()
        )
    elif method.startswith("aaft"):
        raise AaftError(f"study: method {method} trained without a gate; that is a bug")
    answers = bench.answers(for_generation(model), f"measure {method}")
    del model, trainer
    gc.collect()
    return answers, facts
