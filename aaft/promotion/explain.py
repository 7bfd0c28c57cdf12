"""A verdict in words: one sentence a metric, from the entries of ``verdict.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADLINES = {
    "PASS": "Every metric keeps within its margin: the candidate may be promoted.",
    "FAIL": "At least one metric is beyond its margin: the candidate is not promoted.",
    "INCONCLUSIVE": (
        "No metric is surely beyond its margin, but there are too few examples to be sure that "
        "all keep within it: the candidate is not promoted."
    ),
}


def explain(metric: str, result: Mapping[str, Any], confidence: float) -> str:
    """How one metric was decided, in one sentence."""
    rose = result["difference"] > 0
    if result["difference"] == 0:
        change = f"stayed at {result['candidate']:.3f}"
    else:
        change = (
            f"{'rose' if rose else 'fell'} from {result['reference']:.3f} "
            f"to {result['candidate']:.3f}"
        )
    return (
        f"{metric} {change} on the same {result['n']} examples ({result['better']} is better); "
        f"the {level(confidence)} interval of the change is {interval(result)}, and "
        f"{_rule(result)}, so {_conclusion(result)}: {result['verdict']}."
    )


def interval(result: Mapping[str, Any]) -> str:
    """``[low, high]`` with signs."""
    return f"[{signed(result['low'])}, {signed(result['high'])}]"


def signed(value: float) -> str:
    """Three decimals and a sign, but no sign for what rounds to zero."""
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}"


def level(confidence: float) -> str:
    """``0.95`` as ``95%``, ``0.975`` as ``97.5%``."""
    return f"{100 * confidence:.4g}%"


def limit(result: Mapping[str, Any]) -> float:
    """The margin as a limit on the difference: its maximum if lower is better, else its minimum."""
    margin = float(result["margin"])
    # Adding 0.0 turns the -0.0 of a zero margin into 0.0.
    return (margin if result["better"] == "lower" else -margin) + 0.0


def _rule(result: Mapping[str, Any]) -> str:
    side = "at most" if result["better"] == "lower" else "at least"
    return f"a change of {side} {signed(limit(result))} is required"


def _conclusion(result: Mapping[str, Any]) -> str:
    return {
        "PASS": "the whole interval is within the limit",
        "FAIL": "the whole interval is beyond the limit",
        "INCONCLUSIVE": "the limit lies inside the interval and the examples cannot decide",
    }[result["verdict"]]
