"""What a run tells of its steps: numbers that are the same in every run, so no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from aaft.config import ObjectiveSettings
from aaft.tuning.advantage import advantages
from aaft.tuning.examples import Example
from aaft.tuning.objective import Part
from aaft.tuning.recipe import Gating, Plan
from aaft.tuning.taper import clip_rates

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class GateRow:
    """The last gate of a record.

    ``v`` and ``uncertainty`` are NaN where no judge scored it, ``need`` where it doesn't abstain.
    """

    id: str
    gate: float
    v: float
    uncertainty: float
    abstain: bool
    need: float

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: None for NaN."""
        row = asdict(self)
        return {k: None if isinstance(x, float) and math.isnan(x) else x for k, x in row.items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> GateRow:
        """The inverse of `to_json`."""
        known: dict[str, Any] = {k: math.nan if x is None else x for k, x in row.items()}
        return cls(**known)


@dataclass(frozen=True)
class Losses:
    """A step's loss, and the parts it is the sum of for recipes without a loss of their own."""

    total: float
    parts: Mapping[Part, float]


def gate_rows(window: Sequence[Example], gating: Gating) -> dict[str, GateRow]:
    """Gate of each example of a window, by id."""
    return {
        example.id: GateRow(
            example.id,
            float(gating.gates[i]),
            float(gating.standing.value[i]),
            float(gating.standing.uncertainty[i]),
            example.abstention is not None,
            float(gating.need[i]),
        )
        for i, example in enumerate(window)
    }


def history_row(
    step: int, losses: Losses, plan: Plan, cfg: ObjectiveSettings
) -> dict[str, float | int]:
    """One line of the history.

    ``share_*`` is a part's share of the parts' absolute sum, 0 where all are 0. ``ratio_*`` is the
    mean ``d``, nats per token, and ``clip_*`` a share, each over candidates of open gates of
    records that don't abstain, ``ess`` a mean over these records; absent where there are none.
    Gates are those of records and counterfactuals: twins and siblings have none.
    """
    row: dict[str, float | int] = {"step": step, "loss": losses.total}
    row |= {str(part): loss for part, loss in losses.parts.items()}
    size = math.fsum(abs(loss) for loss in losses.parts.values())
    row |= {f"share_{k}": abs(x) / size if size else 0.0 for k, x in losses.parts.items()}
    row["responses"] = len(plan.terms)
    if plan.gating is not None:
        row |= _gate_numbers(plan.gating, cfg)
    return row


def _gate_numbers(gating: Gating, cfg: ObjectiveSettings) -> dict[str, float | int]:
    if not bool(gating.recorded.any()):
        return {}
    gates = gating.gates[gating.recorded]
    marks = torch.tensor([0.1, 0.5, 0.9], dtype=gates.dtype)
    p10, p50, p90 = gates.quantile(marks).tolist()
    row: dict[str, float | int] = {
        "gate_p10": p10,
        "gate_p50": p50,
        "gate_p90": p90,
        "gate_open_share": float((gates > 0).double().mean()),
    }
    weighed = gating.recorded & ~gating.abstaining
    if bool(weighed.any()):
        row["ess"] = float(gating.standing.ess[weighed].mean())
    return row | _candidate_numbers(gating, cfg)


def _candidate_numbers(gating: Gating, cfg: ObjectiveSettings) -> dict[str, float | int]:
    """How far the policy has moved on candidates of open gates; empty where none is open."""
    opened = gating.pushing > 0
    if not bool(opened.any()):
        return {}
    scores = gating.scores
    advantage = advantages(gating.weights, scores.quality, delta=cfg.delta, floor=cfg.floor)
    clips = clip_rates(gating.pushing, advantage, gating.log_ratio, scores.tokens, trust=cfg.trust)
    moved = (gating.log_ratio / scores.tokens)[opened]
    row: dict[str, float | int] = {
        "clip_ratio": clips.ratio,
        "clip_trust": clips.trust,
        "ratio_gold": float(moved[:, 0].mean()),
    }
    if moved.shape[1] > 1:
        row["ratio_rollouts"] = float(moved[:, 1:].mean())
    return row
