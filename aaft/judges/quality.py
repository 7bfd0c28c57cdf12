"""How good a judge is on labelled answers that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.judges.base import Sample
from aaft.judges.embedded import EmbeddedJudge, answerable_rows

Vector = npt.NDArray[np.float64]


def measure(scores: Vector, labels: npt.NDArray[np.int64]) -> dict[str, float | int]:
    """Accuracy, AUROC and error rates at 0.5, rounded to 4 digits.

    ``false_accept`` is the share of label 0 scored at or above 0.5, ``false_reject`` the share
    of label 1 scored below.
    """
    from sklearn.metrics import roc_auc_score

    accepted = scores >= 0.5
    return {
        "n": len(labels),
        "accuracy": round(float((accepted == (labels == 1)).mean()), 4),
        "auroc": round(float(roc_auc_score(labels, scores)), 4),
        "false_accept": round(float(accepted[labels == 0].mean()), 4),
        "false_reject": round(float((~accepted)[labels == 1].mean()), 4),
    }


def embedded_quality(
    judge: EmbeddedJudge, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, float | int]]:
    """Measure each head and the safety objective on the ``test`` split.

    ``*_length_only`` is the trivial baseline: the AUROC of the answer's length, either way round.

    Raises:
        AaftError: a head can't tell the classes apart (AUROC at or below 0.55).
    """
    test = {name: [r for r in part if r["split"] == "test"] for name, part in rows.items()}
    grounding = [Sample(r["prompt"], r["response"], r["context"]) for r in test["grounding"]]
    pairs, matched = answerable_rows(test["grounding"])
    safety = [Sample(r["prompt"], r["response"]) for r in test["safety"]]
    scored = {
        "intent": (judge.intent([r["prompt"] for r in test["intent"]]), _labels(test["intent"])),
        "refusal": (
            judge.refusal([r["response"] for r in test["refusal"]]),
            _labels(test["refusal"]),
        ),
        "safety": (judge.score(safety)["safety"], _labels(test["safety"])),
        "grounding": (judge.supported(grounding), _labels(test["grounding"])),
        "answerable": (judge.answerable(pairs), matched),
    }
    report = {name: measure(scores, labels) for name, (scores, labels) in scored.items()}
    for name in ("refusal", "safety", "grounding"):
        length = np.array([len(r["response"]) for r in test[name]], dtype=np.float64)
        auroc = measure(length, _labels(test[name]))["auroc"]
        report[name]["auroc_length_only"] = round(max(auroc, 1 - auroc), 4)
    for name, figures in report.items():
        # Written so that NaN, which a test split of one class gives, is refused too.
        if not figures["auroc"] > 0.55:
            raise AaftError(
                f"judge {name}: AUROC {figures['auroc']} on its test split, no better than chance; "
                f"check data/judge/{name}.jsonl"
            )
    return report


def _labels(rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.int64]:
    return np.array([row["label"] for row in rows], dtype=np.int64)
