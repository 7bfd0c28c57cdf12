"""The promotion verdict: is the candidate, example by example, no worse than allowed?

For each metric, worsening = candidate - reference where lower is better, and its negative where
higher is better. With the two-sided interval [low, high] of the mean worsening:

    PASS          high <= margin      even the worst plausible change is tolerated
    FAIL          low > margin        even the best plausible change is not
    INCONCLUSIVE  otherwise           this many examples cannot tell

Overall: FAIL if any metric fails, PASS if all pass, else INCONCLUSIVE. A PASS needs every
metric, so several metrics don't raise the chance of a wrong PASS above (1 - confidence) / 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aaft.config import GateConfig, MetricRule
from aaft.errors import AaftError
from aaft.promotion.intervals import paired_difference

Scores = Mapping[str, Mapping[str, float]]
"""metric -> example key -> score in [0, 1]"""


def compare(
    candidate_rows: Sequence[Mapping[str, Any]],
    reference_rows: Sequence[Mapping[str, Any]],
    gate: GateConfig,
) -> dict[str, Any]:
    """Verdict on two lists of result rows (the lines of ``results.jsonl``), one model each.

    The reference may come from another run, such as a registered champion's stored results;
    both must then have answered the same prompts.

    Raises:
        AaftError: a row lacks a field, an example occurs twice, the two sides answered
            different benchmarks, or any error of ``decide``.
    """
    candidate = _by_example(candidate_rows, "candidate")
    reference = _by_example(reference_rows, "reference")
    _require_same("examples", candidate, reference, "the benchmarks differ")
    for key in candidate:
        if candidate[key]["prompt"] != reference[key]["prompt"]:
            raise AaftError(
                f"the benchmarks differ: example {key} has another prompt for the candidate than "
                "for the reference; evaluate both on the same benchmark files"
            )
    return decide(_by_metric(candidate), _by_metric(reference), gate)


def decide(candidate: Scores, reference: Scores, gate: GateConfig) -> dict[str, Any]:
    """Verdict per metric of ``gate.metrics`` and overall, as written to ``verdict.json``.

    Raises:
        AaftError: no metric to decide on, a metric without scores, examples that only one side
            scored, or a score that is not a number in [0, 1].
    """
    if not gate.metrics:
        raise AaftError("gate.metrics: empty, and nothing cannot pass; name at least one metric")
    metrics = {
        metric: _decide_metric(metric, rule, candidate, reference, gate.confidence)
        for metric, rule in gate.metrics.items()
    }
    verdicts = {result["verdict"] for result in metrics.values()}
    if "FAIL" in verdicts:
        overall = "FAIL"
    elif verdicts == {"PASS"}:
        overall = "PASS"
    else:
        overall = "INCONCLUSIVE"
    return {"verdict": overall, "confidence": gate.confidence, "metrics": metrics}


def _decide_metric(
    metric: str, rule: MetricRule, candidate: Scores, reference: Scores, confidence: float
) -> dict[str, Any]:
    for side, scores in (("candidate", candidate), ("reference", reference)):
        if not scores.get(metric):
            raise AaftError(
                f"metric {metric}: the {side} has no scores; evaluate it, or drop it from "
                "gate.metrics"
            )
    _require_same(
        "scored examples", candidate[metric], reference[metric], f"metric {metric}: unpaired"
    )
    keys = sorted(candidate[metric])
    for side, scores in (("candidate", candidate), ("reference", reference)):
        for key in keys:
            _require_score(metric, side, key, scores[metric][key])
    ours = [float(candidate[metric][key]) for key in keys]
    theirs = [float(reference[metric][key]) for key in keys]
    difference, low, high = paired_difference(ours, theirs, confidence)
    worst, best = (high, low) if rule.better == "lower" else (-low, -high)
    if worst <= rule.margin:
        verdict = "PASS"
    elif best > rule.margin:
        verdict = "FAIL"
    else:
        verdict = "INCONCLUSIVE"
    return {
        "verdict": verdict,
        "candidate": sum(ours) / len(ours),
        "reference": sum(theirs) / len(theirs),
        "difference": difference,
        "low": low,
        "high": high,
        "better": rule.better,
        "margin": rule.margin,
        "n": len(keys),
    }


def _require_score(metric: str, side: str, key: str, score: Any) -> None:
    number = isinstance(score, (int, float))
    if not number or not 0 <= score <= 1:
        raise AaftError(
            f"metric {metric}: {side}, example {key}: score {score!r} is not a number in [0, 1]; "
            "fix the benchmark's scoring and evaluate again"
        )


def _by_example(rows: Iterable[Mapping[str, Any]], side: str) -> dict[str, Mapping[str, Any]]:
    """Rows by "benchmark/id": the same id may occur in two benchmarks (direct and prefilled)."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        for field in ("benchmark", "id", "prompt", "scores"):
            if field not in row:
                raise AaftError(f"{side} row {number}: no field {field!r}; evaluate again")
        if not isinstance(row["scores"], Mapping):
            raise AaftError(f"{side} row {number}: scores are no mapping; evaluate again")
        key = f"{row['benchmark']}/{row['id']}"
        if key in found:
            raise AaftError(f"{side} row {number}: example {key} occurs twice; evaluate again")
        found[key] = row
    return found


def _by_metric(examples: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for key, row in examples.items():
        for metric, score in row["scores"].items():
            metrics.setdefault(metric, {})[key] = score
    return metrics


def _require_same(
    what: str, candidate: Iterable[str], reference: Iterable[str], problem: str
) -> None:
    ours, theirs = set(candidate), set(reference)
    for side, extra in (("candidate", ours - theirs), ("reference", theirs - ours)):
        if extra:
            shown = ", ".join(sorted(extra)[:3])
            raise AaftError(
                f"{problem}: {len(extra)} {what} of the {side} alone ({shown}"
                f"{', ...' if len(extra) > 3 else ''}); evaluate both on the same benchmark files"
            )
