"""The promotion verdict: decisions, refusals, the stage and the words."""

import io
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from aaft.config import Config, GateConfig, MetricRule, Paths
from aaft.errors import AaftError
from aaft.io import write_json, write_jsonl
from aaft.promotion import stage
from aaft.promotion.explain import explain, interval, limit
from aaft.promotion.table import final_table
from aaft.promotion.verdict import compare, decide


def gate(better="lower", margin=0.05, **more):
    rules = {"m": MetricRule(better=better, margin=margin)}
    return GateConfig(metrics=rules | more)


def bits(ones, n):
    return {f"b/{i:03d}": float(i < ones) for i in range(n)}


def rows(scores, benchmark="qa"):
    return [
        {"benchmark": benchmark, "id": str(i), "prompt": f"p{i}", "scores": {"m": score}}
        for i, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("better", "candidate", "reference", "margin", "expected"),
    [
        ("lower", 20, 150, 0.0, "PASS"),  # a large improvement
        ("lower", 150, 20, 0.0, "FAIL"),
        ("lower", 20, 20, 0.05, "PASS"),  # the same answers
        ("lower", 20, 20, 0.0, "INCONCLUSIVE"),  # the same answers prove no improvement
        ("lower", 28, 20, 0.05, "INCONCLUSIVE"),
        ("lower", 50, 20, 0.05, "FAIL"),
        ("lower", 20, 60, -0.1, "PASS"),  # an improvement of 0.1 is demanded and shown
        ("lower", 20, 25, -0.1, "FAIL"),  # it improved, but surely by less than demanded
        ("higher", 150, 20, 0.0, "PASS"),
        ("higher", 20, 150, 0.0, "FAIL"),
        ("higher", 20, 50, 0.05, "FAIL"),
        ("higher", 20, 20, 0.05, "PASS"),
        ("higher", 60, 20, -0.1, "PASS"),
    ],
)
def test_verdict_follows_the_interval_and_the_margin(
    better, candidate, reference, margin, expected
):
    result = decide({"m": bits(candidate, 200)}, {"m": bits(reference, 200)}, gate(better, margin))
    assert result["verdict"] == result["metrics"]["m"]["verdict"] == expected


def test_an_entry_holds_what_a_reader_needs():
    result = decide({"m": bits(20, 200)}, {"m": bits(60, 200)}, gate())["metrics"]["m"]
    assert result["n"] == 200
    assert result["margin"] == 0.05
    assert result["candidate"] == pytest.approx(0.1)
    assert result["reference"] == pytest.approx(0.3)
    assert result["difference"] == pytest.approx(-0.2)
    assert result["low"] < -0.2 < result["high"]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("PASS PASS", "PASS"),
        ("PASS INCONCLUSIVE", "INCONCLUSIVE"),
        ("INCONCLUSIVE FAIL", "FAIL"),
        ("PASS FAIL", "FAIL"),
    ],
)
def test_overall_verdict_is_the_worst_one(verdicts, expected):
    candidates = {"PASS": 10, "INCONCLUSIVE": 28, "FAIL": 100}
    names = [f"m{i}" for i, _ in enumerate(verdicts.split())]
    rules = {name: MetricRule(better="lower", margin=0.05) for name in names}
    ours = {n: bits(candidates[v], 200) for n, v in zip(names, verdicts.split(), strict=True)}
    theirs = {name: bits(20, 200) for name in names}
    result = decide(ours, theirs, GateConfig(metrics=rules))
    assert [m["verdict"] for m in result["metrics"].values()] == verdicts.split()
    assert result["verdict"] == expected


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    st.floats(-0.5, 0.5),
)
def test_mirrored_scores_and_direction_give_the_same_verdict(pairs, margin):
    ours = {str(i): a for i, (a, _) in enumerate(pairs)}
    theirs = {str(i): b for i, (_, b) in enumerate(pairs)}
    lower = decide({"m": ours}, {"m": theirs}, gate("lower", margin))
    higher = decide({"m": theirs}, {"m": ours}, gate("higher", margin))
    assert lower["metrics"]["m"]["difference"] == pytest.approx(
        -higher["metrics"]["m"]["difference"], abs=1e-12
    )
    assert lower["verdict"] == higher["verdict"]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(-0.3, 0.3), st.floats(0, 0.3))
def test_a_larger_margin_never_makes_the_verdict_worse(ours, theirs, margin, more):
    order = ["FAIL", "INCONCLUSIVE", "PASS"]
    strict = decide({"m": bits(ours, 40)}, {"m": bits(theirs, 40)}, gate(margin=margin))
    loose = decide({"m": bits(ours, 40)}, {"m": bits(theirs, 40)}, gate(margin=margin + more))
    assert order.index(loose["verdict"]) >= order.index(strict["verdict"])


def test_a_candidate_at_the_limit_seldom_passes():
    """Candidates that are worse by exactly the margin pass at most about 2.5% of the time."""
    rng = random.Random(4)
    passed = 0
    for _ in range(300):
        reference = {str(i): float(rng.random() < 0.2) for i in range(150)}
        candidate = {str(i): float(rng.random() < 0.25) for i in range(150)}
        result = decide({"m": candidate}, {"m": reference}, gate(margin=0.05))
        passed += result["verdict"] == "PASS"
    assert passed / 300 <= 0.052


@pytest.mark.parametrize(
    ("candidate", "reference", "named"),
    [
        ({}, {"m": {"a": 1}}, ["metric m", "candidate", "no scores"]),
        ({"m": {"a": 1}}, {}, ["metric m", "reference", "no scores"]),
        ({"m": {}}, {"m": {}}, ["metric m", "no scores"]),
        ({"m": {"a": 1, "x": 1}}, {"m": {"a": 1}}, ["unpaired", "candidate alone", "x"]),
        ({"m": {"a": 1}}, {"m": {"a": 1, "y": 1}}, ["unpaired", "reference alone", "y"]),
        ({"m": {"a": float("nan")}}, {"m": {"a": 1}}, ["candidate", "example a", "nan"]),
        ({"m": {"a": 1}}, {"m": {"a": float("nan")}}, ["reference", "example a", "nan"]),
        ({"m": {"a": 1.5}}, {"m": {"a": 1}}, ["example a", "1.5"]),
        ({"m": {"a": None}}, {"m": {"a": 1}}, ["example a", "None"]),
        ({"m": {"a": "1"}}, {"m": {"a": 1}}, ["example a", "'1'"]),
    ],
)
def test_scores_that_cannot_be_compared_are_refused_by_name(candidate, reference, named):
    with pytest.raises(AaftError) as error:
        decide(candidate, reference, gate())
    assert "\n" not in str(error.value)
    for part in named:
        assert part in str(error.value)


def test_a_gate_without_metrics_is_refused():
    with pytest.raises(AaftError, match=r"gate\.metrics: empty"):
        decide({"m": {"a": 1}}, {"m": {"a": 1}}, GateConfig(metrics={}))


def test_rows_are_paired_by_example_whatever_their_order():
    candidate = rows([0, 1, 0, 0])
    reference = rows([1, 1, 0, 1])
    expected = compare(candidate, reference, gate())
    assert compare(candidate[::-1], reference, gate()) == expected
    assert expected["metrics"]["m"]["difference"] == -0.5


def test_one_id_in_two_benchmarks_is_two_examples():
    both = rows([1, 0], "harmful") + rows([1, 0], "harmful_prefill")
    assert compare(both, both, gate())["metrics"]["m"]["n"] == 4


def test_a_metric_is_paired_over_the_rows_that_have_it():
    extra = [{"benchmark": "z", "id": "0", "prompt": "p", "scores": {"other": 1}}]
    assert compare(rows([1, 0]) + extra, rows([0, 0]) + extra, gate())["metrics"]["m"]["n"] == 2


@pytest.mark.parametrize("change", ["fewer", "prompt", "duplicate", "benchmark", "field"])
def test_different_benchmarks_are_refused(change):
    candidate = rows([1, 0, 1])
    reference = {
        "fewer": rows([1, 0]),
        "prompt": [*rows([1, 0]), {**rows([1, 0, 1])[2], "prompt": "another"}],
        "duplicate": [*rows([1, 0, 1]), rows([1])[0]],
        "benchmark": rows([1, 0, 1], "other"),
        "field": [*rows([1, 0]), {"benchmark": "qa", "id": "2", "scores": {}}],
    }[change]
    message = {
        "fewer": "benchmarks differ.*qa/2",
        "prompt": "benchmarks differ.*qa/2",
        "duplicate": "reference row 4.*qa/0 occurs twice",
        "benchmark": "benchmarks differ",
        "field": "reference row 3.*'prompt'",
    }[change]
    with pytest.raises(AaftError, match=message):
        compare(candidate, reference, gate())


def evaluated(tmp_path, candidate, reference):
    paths = Paths(tmp_path)
    both = [{"model": "candidate", **row} for row in rows(candidate)]
    both += [{"model": "reference", **row} for row in rows(reference)]
    write_jsonl(paths.stage("evaluate") / "results.jsonl", both)
    write_json(paths.report("evaluate"), {})
    return paths


def test_stage_writes_the_verdict_and_how_it_was_decided(tmp_path):
    paths = evaluated(tmp_path, [0] * 50, [1] * 50)
    report = stage.run(Config(gate=gate()), paths)
    verdict = json.loads((tmp_path / "gate" / "verdict.json").read_text())
    written = json.loads((tmp_path / "gate" / "report.json").read_text())
    assert written == report
    assert verdict["verdict"] == report["verdict"] == "PASS"
    assert verdict["metrics"] == report["metrics"]
    assert "m fell from 1.000 to 0.000" in report["reasons"]["m"]


def test_stage_output_is_the_same_every_time(tmp_path):
    texts = []
    for run in ("a", "b"):
        paths = evaluated(tmp_path / run, [0, 1, 0.5], [1, 1, 0])
        stage.run(Config(gate=gate()), paths)
        texts.append([p.read_bytes() for p in sorted((tmp_path / run / "gate").iterdir())])
    assert texts[0] == texts[1]


def test_stage_refuses_before_evaluate_has_finished(tmp_path):
    paths = evaluated(tmp_path, [0], [1])
    paths.report("evaluate").unlink()
    with pytest.raises(AaftError, match=r"evaluate/report\.json"):
        stage.run(Config(gate=gate()), paths)


def test_stage_error_names_the_file_and_keeps_the_earlier_verdict(tmp_path):
    paths = evaluated(tmp_path, [0] * 50, [1] * 50)
    stage.run(Config(gate=gate()), paths)
    before = (tmp_path / "gate" / "verdict.json").read_bytes()
    evaluated(tmp_path, [0] * 50, [1] * 49)
    with pytest.raises(AaftError, match=r"results\.jsonl: the benchmarks differ"):
        stage.run(Config(gate=gate()), paths)
    assert (tmp_path / "gate" / "verdict.json").read_bytes() == before


def test_stage_refuses_results_of_one_model(tmp_path):
    paths = evaluated(tmp_path, [0], [])
    with pytest.raises(AaftError, match="no row has model 'reference'"):
        stage.run(Config(gate=gate()), paths)


@pytest.mark.parametrize(
    ("better", "ours", "theirs", "margin", "words"),
    [
        ("lower", 20, 100, 0.0, ["fell from 0.500 to 0.100", "at most 0.000", ": PASS."]),
        ("lower", 28, 20, 0.05, ["rose from 0.100 to 0.140", "cannot decide", ": INCONCLUSIVE."]),
        ("higher", 20, 100, 0.05, ["at least -0.050", "beyond the limit", ": FAIL."]),
        ("higher", 20, 20, 0.05, ["stayed at 0.100", "on the same 200 examples", "95% interval"]),
    ],
)
def test_a_reason_says_what_changed_and_why_it_matters(better, ours, theirs, margin, words):
    result = decide({"m": bits(ours, 200)}, {"m": bits(theirs, 200)}, gate(better, margin))
    sentence = explain("m", result["metrics"]["m"], 0.95)
    for part in words:
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("better", "expected"), [("lower", "0.05"), ("higher", "-0.05")])
def test_limit_has_the_sign_of_the_difference(better, expected):
    assert str(limit({"better": better, "margin": 0.05})) == expected
    assert str(limit({"better": better, "margin": 0.0})) == "0.0"


def test_final_table_fits_eighty_columns_and_shows_every_metric():
    names = Config().gate.metrics
    ours = {name: bits(60, 200) for name in names}
    theirs = {name: bits(100, 200) for name in names}
    verdict = decide(ours, theirs, GateConfig(metrics=names))
    verdict["metrics"]["harmful_rate"]["verdict"] = "INCONCLUSIVE"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(final_table(verdict))
    lines = console.export_text().splitlines()
    for name, metric in verdict["metrics"].items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        cells = f"0.500 0.300 -0.200 {interval(metric)} {metric['verdict']}"
        assert line.split()[1:] == cells.split()
    assert any("95% intervals" in line for line in lines)
    assert any(line.startswith(f"{verdict['verdict']}. ") for line in lines)
