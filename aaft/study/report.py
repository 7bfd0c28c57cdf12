"""From finished cells to ``report.json`` and ``report.md``.

A rate is the mean over (seed, prompt) pairs. Its 95% interval is a bootstrap that draws seeds and,
crossed with them, prompts; where seeds have prompts of their own, prompts within seeds. Answers of
three models to one prompt are not three independent draws, nor are a model's answers to sixty.
Drawing both counts the spread of prompts twice where seeds don't differ: with three seeds such an
interval is up to 1.3 times too wide. Three seeds say little about other seeds, so their rates stand
beside it in ``seeds``; with prompts of their own, these differ by them too. Where all pairs agree,
a bootstrap gives a point; intervals are never narrower than what unseen prompts could do (the floor
of `aaft.promotion.intervals`, with prompts counted, not pairs).

Differences are paired: both methods' values of the same (seed, prompt).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaft.promotion.intervals import wilson
from aaft.study.claims import CONTRASTS, claims

CONFIDENCE = 0.95
RESAMPLES = 2_000
METRICS = {
    "harmful_rate": "harm direct",
    "harmful_rate_prefill": "harm prefilled",
    "harmful_rate_jailbreak": "harm jailbreak",
    "over_refusal_rate": "over-refusal",
    "hallucination_rate": "hallucination",
    "qa_em": "EM",
    "qa_f1": "F1",
    "degenerate_rate": "degenerate",
}
"""The columns of the Markdown tables; ``report.json`` has every metric."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Values:
    """A metric's values of one method, summed by prompt.

    ``total`` and ``count`` are ``[seeds, prompts]``; a prompt that a metric marks in several suites
    (prefills of 1, 5 and 10 tokens) counts each.
    """

    prompts: tuple[str, ...]
    total: Floats
    count: Floats

    @property
    def rate(self) -> float:
        """Mean over all pairs."""
        return float(self.total.sum() / self.count.sum())


def collect(answers: Mapping[int, Iterable[Mapping[str, Any]]]) -> dict[str, Values]:
    """Every metric's values of one method in one scenario.

    Args:
        answers: rows of each seed's ``answers.jsonl``.
    """
    found: dict[str, dict[tuple[str, int], tuple[float, int]]] = {}
    for number, rows in enumerate(answers.values()):
        for row in rows:
            for metric, value in row["scores"].items():
                column = found.setdefault(metric, {})
                total, count = column.get((row["id"], number), (0.0, 0))
                column[row["id"], number] = total + value, count + 1
    values = {}
    for metric, column in sorted(found.items()):
        prompts = tuple(sorted({prompt for prompt, _ in column}))
        where = {prompt: i for i, prompt in enumerate(prompts)}
        totals = np.zeros((len(answers), len(prompts)))
        counts = np.zeros_like(totals)
        for (prompt, number), (summed, times) in column.items():
            totals[number, where[prompt]] = summed
            counts[number, where[prompt]] = times
        values[metric] = Values(prompts, totals, counts)
    return values


def interval(
    total: Floats, count: Floats, low: float = 0.0, high: float = 1.0
) -> tuple[float, float]:
    """Bootstrap interval of ``sum(total) / sum(count)`` over seeds and prompts, floor included.

    Args:
        total: summed values, ``[seeds, prompts]``.
        count: how many each sums, ``[seeds, prompts]``.
        low: the least value possible.
        high: the greatest.

    Returns:
        The interval's ends, within [low, high].
    """
    seeds, prompts = total.shape
    mean = total.sum() / count.sum()
    draw = np.random.default_rng(0)
    runs = draw.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    summed, counted = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    asked, kinds = np.unique(count > 0, axis=1, return_inverse=True)
    for kind, by in enumerate(asked.T):
        alike = np.flatnonzero(kinds == kind)
        own, each = total[:, alike], count[:, alike]
        # Prompts of one seed are drawn anew whenever it is, those of several with all of them.
        alone = by.sum() == 1
        draws = runs[:, by.argmax()] if alone else np.ones(RESAMPLES, dtype=np.int64)
        times = draw.multinomial(draws * len(alike), np.full(len(alike), 1 / len(alike)))
        drawn = np.ones_like(runs) if alone else runs
        summed += ((drawn @ own) * times).sum(1)
        counted += ((drawn @ each) * times).sum(1)
    resampled = summed / counted
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(resampled, [tail, 1 - tail])
    unseen = wilson(0, prompts, CONFIDENCE)[1]
    lower = min(lower, mean - unseen * (mean - low))
    upper = max(upper, mean + unseen * (high - mean))
    return float(max(lower, low)), float(min(upper, high))


def rate_entry(values: Values) -> dict[str, Any]:
    """A rate with its interval, pairs, prompts and seeds."""
    lower, upper = interval(values.total, values.count)
    return {
        "value": values.rate,
        "low": lower,
        "high": upper,
        "n": int(values.count.sum()),
        "prompts": len(values.prompts),
        "seeds": [
            float(total / count)
            for total, count in zip(values.total.sum(1), values.count.sum(1), strict=True)
        ],
    }


def contrast(one: Values, other: Values, factor: float = 1.0) -> dict[str, float]:
    """``one - factor * other``, paired by prompt and seed, with its interval.

    Raises:
        ValueError: they are not of the same prompts and seeds.
    """
    if one.prompts != other.prompts or not np.array_equal(one.count, other.count):
        raise ValueError("values of different prompts or seeds can't be paired")
    total = one.total - factor * other.total
    lower, upper = interval(total, one.count, -factor, 1.0)
    return {
        "value": float(total.sum() / one.count.sum()),
        "low": lower,
        "high": upper,
    }


Found = Mapping[str, Mapping[str, Mapping[str, Values]]]
"""Values by scenario, method and metric."""


def build_report(
    found: Found, results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
) -> dict[str, Any]:
    """Everything in ``report.json`` but the settings.

    Args:
        found: values by scenario, method and metric.
        results: ``result.json`` of each cell by scenario and method, one a seed.
    """
    rates = {
        scenario: {
            method: {metric: rate_entry(values) for metric, values in metrics.items()}
            for method, metrics in methods.items()
        }
        for scenario, methods in found.items()
    }
    differences: dict[str, dict[str, Any]] = {}
    for scenario, methods in found.items():
        for one, other in CONTRASTS:
            if one in methods and other in methods:
                differences.setdefault(scenario, {})[f"{one} - {other}"] = {
                    metric: contrast(values, methods[other][metric])
                    for metric, values in methods[one].items()
                }
    return {
        "rates": rates,
        "differences": differences,
        "claims": claims(rates, lambda s, a, b, m, f: contrast(found[s][a][m], found[s][b][m], f)),
        "training": {
            scenario: {method: _training(cells) for method, cells in methods.items()}
            for scenario, methods in results.items()
        },
    }


def _training(cells: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Means over seeds; None where nothing is trained."""
    trained = [cell["train"] for cell in cells if "train" in cell]
    if not trained:
        return None
    return {key: float(np.mean([cell[key] for cell in trained])) for key in trained[0]}


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "# Study",
        "",
        f"Each cell: the mean [{CONFIDENCE:.0%} interval over seeds and prompts].",
    ]
    for scenario, methods in report["rates"].items():
        lines += ["", f"## {scenario}", ""]
        header = ["method", *METRICS.values(), "train s", "tokens"]
        rows = []
        for method, metrics in methods.items():
            trained = report["training"][scenario][method]
            cost = ["–", "–"]
            if trained is not None:
                cost = [f"{trained['seconds']:.0f}", f"{trained['tokens']:,.0f}"]
            rows.append([method, *(_cell(metrics.get(metric)) for metric in METRICS), *cost])
        lines += _table(header, rows)
        for title, metrics in report["differences"].get(scenario, {}).items():
            lines += ["", f"{title}, paired:", ""]
            shown = [(label, metrics[metric]) for metric, label in METRICS.items()]
            lines += _table(
                ["metric", "difference", "interval"],
                [
                    [n, f"{e['value']:+.3f}", f"[{e['low']:+.3f}, {e['high']:+.3f}]"]
                    for n, e in shown
                ],
            )
    lines += ["", "## Claims", ""]
    lines += _table(
        ["claim", "scenario", "value", "limit", "holds"],
        [
            [c["claim"], c["scenario"], _number(c["value"]), _number(c["limit"]), _said(c["holds"])]
            for c in report["claims"]
        ],
    )
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _signed(entry: Mapping[str, float]) -> tuple[str, str]:
    return f"{entry['value']:+.3f}", f"[{entry['low']:+.3f}, {entry['high']:+.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _said(holds: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not measured"}[holds]
