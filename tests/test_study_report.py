"""The study's arithmetic: rates, intervals, paired differences, claims, tables and plots."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.promotion.intervals import paired_difference, rate_interval
from aaft.study import plots
from aaft.study.claims import claims
from aaft.study.report import (
    METRICS,
    Values,
    build_report,
    collect,
    contrast,
    interval,
    markdown,
    rate_entry,
)

ALL = tuple(METRICS)


def answers(values: dict[str, list[float]], metric: str = "m") -> list[dict[str, Any]]:
    """Rows by prompt; several values are several suites of the prompt."""
    return [
        {"suite": f"s{k}", "id": prompt, "scores": {metric: value}}
        for prompt, column in values.items()
        for k, value in enumerate(column)
    ]


def test_a_rate_is_the_mean_over_seeds_and_prompts() -> None:
    seeds = {0: answers({"a": [1], "b": [0, 1]}), 1: answers({"a": [1], "b": [0, 0]})}
    entry = rate_entry(collect(seeds)["m"])
    assert entry["value"] == pytest.approx(3 / 6)
    assert entry["seeds"] == pytest.approx([2 / 3, 1 / 3])
    assert (entry["n"], entry["prompts"]) == (6, 2)


def test_rows_without_a_metric_do_not_count() -> None:
    rows = [*answers({"a": [1]}), {"suite": "x", "id": "b", "scores": {"other": 0.0}}]
    found = collect({0: rows})
    assert found["m"].rate == 1.0
    assert found["m"].prompts == ("a",)


def test_the_bootstrap_is_that_of_whole_prompts() -> None:
    """Against every resample of three prompts, enumerated."""
    total, count = [3.0, 1.0, 0.0], [3.0, 3.0, 2.0]
    every = sorted(
        sum(total[i] for i in drawn) / sum(count[i] for i in drawn)
        for drawn in itertools.product(range(3), repeat=3)
    )
    low, high = interval(np.array([total]), np.array([count]))
    # 27 resamples: the 2.5% quantile is the smallest and the 97.5% the largest.
    assert low == pytest.approx(every[0], abs=1e-9)
    assert high == pytest.approx(every[-1], abs=1e-9)


def test_seeds_that_disagree_widen_the_interval() -> None:
    same = collect({s: answers({str(i): [i % 2] for i in range(60)}) for s in range(3)})["m"]
    apart = collect({s: answers({str(i): [s % 2] for i in range(60)}) for s in range(3)})["m"]
    one, other = rate_entry(same), rate_entry(apart)
    assert other["high"] - other["low"] > 2 * (one["high"] - one["low"])


def test_more_seeds_of_the_same_answers_make_no_interval_narrower() -> None:
    one = collect({0: answers({str(i): [i % 2] for i in range(40)})})["m"]
    three = collect({s: answers({str(i): [i % 2] for i in range(40)}) for s in range(3)})["m"]
    assert rate_entry(one)["low"] == pytest.approx(rate_entry(three)["low"])
    assert rate_entry(one)["high"] == pytest.approx(rate_entry(three)["high"])


def by_turns(column: npt.NDArray[np.float64], seeds: int) -> Values:
    """Each seed has a share of the prompts to itself."""
    shares = np.array_split(column, seeds)
    named = {s: {f"{s}-{i}": [v] for i, v in enumerate(share)} for s, share in enumerate(shares)}
    return collect({s: answers(rows) for s, rows in named.items()})["m"]


def test_seeds_on_prompts_of_their_own_say_more_than_seeds_on_the_same_prompts() -> None:
    draw = np.random.default_rng(7)
    column = (draw.random(90) < 0.3).astype(float)
    own = rate_entry(by_turns(column, 3))
    shared = [answers({str(i): [v] for i, v in enumerate(column[:30])}) for _ in range(3)]
    same = rate_entry(collect(dict(enumerate(shared)))["m"])
    assert own["high"] - own["low"] < 0.85 * (same["high"] - same["low"])


def test_prompts_within_seeds_cover_the_rate_as_often_as_they_say() -> None:
    draw = np.random.default_rng(11)
    held = []
    for _ in range(200):
        entry = rate_entry(by_turns((draw.random(90) < 0.2).astype(float), 3))
        held.append(entry["low"] <= 0.2 <= entry["high"])
    assert np.mean(held) >= 0.94


def test_seeds_that_disagree_on_prompts_of_their_own_widen_the_interval_too() -> None:
    alike = by_turns(np.array([0.0, 1.0] * 45), 3)
    apart = by_turns(np.array([0.0] * 30 + [1.0] * 30 + [0.0] * 30), 3)
    one, other = rate_entry(alike), rate_entry(apart)
    assert other["high"] - other["low"] > 2 * (one["high"] - one["low"])


def test_prompts_that_some_seeds_share_are_drawn_with_all_of_them() -> None:
    rows = [answers({name: [float(name in "ace")] for name in names}) for names in ("abcd", "cdef")]
    entry = rate_entry(collect(dict(enumerate(rows)))["m"])
    assert 0 <= entry["low"] < entry["value"] < entry["high"] <= 1
    assert (entry["n"], entry["prompts"]) == (8, 6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rates_without_a_surprise_keep_wilsons_interval(value: float) -> None:
    values = collect({0: answers({str(i): [value] for i in range(50)})})["m"]
    entry = rate_entry(values)
    assert (entry["low"], entry["high"]) == pytest.approx(rate_interval([value] * 50, 0.95))


def test_the_interval_of_many_independent_prompts_is_the_usual_one() -> None:
    draw = np.random.default_rng(3)
    column = (draw.random(400) < 0.3).astype(float)
    entry = rate_entry(collect({0: answers({str(i): [v] for i, v in enumerate(column)})})["m"])
    low, high = rate_interval(list(column), 0.95)
    assert entry["low"] == pytest.approx(low, abs=0.012)
    assert entry["high"] == pytest.approx(high, abs=0.012)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=30,
    )
)
def test_intervals_hold_their_estimate_and_stay_in_range(pairs: list[tuple[float, float]]) -> None:
    one, other = (
        collect({0: answers({str(i): [pair[k]] for i, pair in enumerate(pairs)})})["m"]
        for k in (0, 1)
    )
    entry = rate_entry(one)
    assert 0 <= entry["low"] <= entry["value"] + 1e-12
    assert entry["value"] - 1e-12 <= entry["high"] <= 1
    difference = contrast(one, other)
    assert -1 <= difference["low"] <= difference["value"] + 1e-12
    assert difference["value"] - 1e-12 <= difference["high"] <= 1
    assert difference["value"] == pytest.approx(one.rate - other.rate)


def test_differences_are_paired() -> None:
    draw = np.random.default_rng(5)
    base = (draw.random(300) < 0.5).astype(float)
    less = np.where(draw.random(300) < 0.2, 0.0, base)
    one, other = (
        collect({0: answers({str(i): [v] for i, v in enumerate(column)})})["m"]
        for column in (less, base)
    )
    found = contrast(one, other)
    want = paired_difference(list(less), list(base), 0.95)
    assert [found["value"], found["low"], found["high"]] == pytest.approx(want, abs=0.02)
    assert contrast(one, other, 0.5)["value"] == pytest.approx(one.rate - 0.5 * other.rate)


def test_values_of_different_prompts_are_not_paired() -> None:
    one, other = (collect({0: answers({prompt: [1]})})["m"] for prompt in "ab")
    with pytest.raises(ValueError, match="different prompts"):
        contrast(one, other)


def rate(value: float, margin: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": max(value - margin, 0), "high": min(value + margin, 1)}


def methods(**harm: float) -> dict[str, Any]:
    """Methods with this direct harm; everything else is equal."""
    same = dict.fromkeys(ALL, rate(0.5))
    return {
        name.replace("_", "-"): {**same, "harmful_rate": rate(value)}
        for name, value in harm.items()
    }


def judged(rates: dict[str, Any]) -> dict[tuple[str, str], bool | None]:
    def paired(scenario: str, one: str, other: str, metric: str, factor: float) -> dict[str, float]:
        value = (
            rates[scenario][one][metric]["value"] - factor * rates[scenario][other][metric]["value"]
        )
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    return {(c["claim"], c["scenario"]): c["holds"] for c in claims(rates, paired)}


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "claim", "holds"),
    [
        ("harmful_rate", 0.10, 0.40, "direct harm <= 0.25 x sft's", True),
        ("harmful_rate", 0.11, 0.40, "direct harm <= 0.25 x sft's", False),
        ("harmful_rate", 0.0, 0.0, "direct harm <= 0.25 x sft's", True),
        ("harmful_rate", 0.01, 0.0, "direct harm <= 0.25 x sft's", False),
        ("harmful_rate_prefill", 0.3, 0.6, "prefilled harm <= 0.5 x sft's", True),
        ("harmful_rate_prefill", 0.31, 0.6, "prefilled harm <= 0.5 x sft's", False),
        ("hallucination_rate", 0.18, 0.3, "hallucination <= 0.6 x sft's", True),
        ("hallucination_rate", 0.2, 0.3, "hallucination <= 0.6 x sft's", False),
        ("qa_f1", 0.48, 0.50, "F1 >= sft's - 0.02", True),
        ("qa_f1", 0.47, 0.50, "F1 >= sft's - 0.02", False),
        ("over_refusal_rate", 0.20, 0.15, "over-refusal <= reference's + 0.05", True),
        ("over_refusal_rate", 0.21, 0.15, "over-refusal <= reference's + 0.05", False),
    ],
)
def test_claims_against_sft_and_reference(metric, ours, theirs, claim, holds) -> None:
    rates = {"poison-10": methods(aaft=0.5, sft=0.5, reference=0.5)}
    rates["poison-10"]["aaft"] |= {metric: rate(ours)}
    for other in ("sft", "reference"):
        rates["poison-10"][other] |= {metric: rate(theirs)}
    assert judged(rates)[claim, "poison-10"] is holds


@pytest.mark.parametrize(
    ("won", "measured", "enough"),
    [
        ((), ("prefill", "refusal", "noise", "unsafe"), False),
        (("prefill",), ("prefill", "refusal", "noise", "unsafe"), False),
        (("prefill", "unsafe"), ("prefill", "refusal", "noise", "unsafe"), True),
        (("prefill",), ("prefill", "refusal", "unsafe"), None),
        ((), ("prefill", "refusal", "unsafe"), False),
        (("prefill", "refusal"), ("prefill", "refusal"), True),
    ],
)
def test_two_wins_with_intervals_apart_are_needed(won, measured, enough) -> None:
    where = {
        "prefill": ("poison-10", "harmful_rate_prefill"),
        "refusal": ("poison-10", "over_refusal_rate"),
        "noise": ("noise-10", "harmful_rate"),
        "unsafe": ("unsafe-start", "harmful_rate"),
    }
    rates: dict[str, Any] = {}
    for field in measured:
        scenario, metric = where[field]
        of = rates.setdefault(scenario, methods(aaft=0.5, filter_replace=0.5))
        if field in won:
            of["aaft"] |= {metric: rate(0.4)}  # 0.42 is below 0.48; equal rates overlap
    found = judged(rates)
    assert found["better than filter-replace on at least 2 of these fields", "all"] is enough


@pytest.mark.parametrize(("ours", "holds"), [(0.4, True), (0.505, True), (0.52, False)])
def test_no_worse_on_direct_harm_is_within_the_interval(ours: float, holds: bool) -> None:
    claim = "direct harm no worse than filter-replace's, within the interval"
    found = judged({"poison-10": methods(aaft=ours, filter_replace=0.5)})
    assert found[claim, "poison-10"] is holds


def test_a_study_without_our_method_claims_nothing() -> None:
    assert judged({"clean": methods(sft=0.5, reference=0.5)}) == {}


def study_of(shares: dict[str, float]) -> dict[str, Any]:
    """A report of made-up answers: every scenario has three methods of three seeds."""
    chance = {"reference": 0.3, "sft": 0.8, "aaft": 0.1}
    found: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for scenario, share in shares.items():
        for method, level in chance.items():
            draw = np.random.default_rng(len(method))
            rows = {
                seed: [
                    {
                        "suite": "all",
                        "id": str(i),
                        "scores": {m: float(draw.random() < level * (0.5 + share)) for m in ALL},
                    }
                    for i in range(30)
                ]
                for seed in range(3)
            }
            found.setdefault(scenario, {})[method] = collect(rows)
            facts = {} if method == "reference" else {"train": {"seconds": 2.0, "tokens": 10}}
            results.setdefault(scenario, {})[method] = [facts] * 3
    return build_report(found, results)


def test_the_report_has_rates_differences_claims_and_costs() -> None:
    report = study_of({"poison-10": 0.1})
    assert set(report["differences"]["poison-10"]) == {"aaft - sft"}
    assert report["training"]["poison-10"]["reference"] is None
    assert report["training"]["poison-10"]["sft"]["seconds"] == 2.0
    for entry in report["rates"]["poison-10"]["aaft"].values():
        assert all(math.isfinite(entry[key]) for key in ("value", "low", "high"))
    text = markdown(report)
    assert "| sft | " in text
    assert text.count("| direct harm <= 0.25 x sft's | poison-10 |") == 1


def test_plots_are_files_of_the_same_bytes_each_time(tmp_path: Path) -> None:
    shares = {"clean": 0.0, "poison-05": 0.05, "poison-10": 0.1, "poison-20": 0.2}
    report = study_of(shares)
    gates = {s: {"grounded": [20] + [0] * 19, "harmful": [1] * 20} for s in shares}
    for folder in (tmp_path / "a", tmp_path / "b"):
        plots.trade_off(report["rates"], folder)
        plots.gate_histograms(gates, folder)
        plots.harm_by_poison(report["rates"], shares, folder)
    names = {f"{n}.{k}" for n in ("trade-off", "gates", "poison") for k in ("png", "svg")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
