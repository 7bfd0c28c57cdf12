"""The HTML page: whole, safe, the same every time, and honest about what is missing."""

import json
import random
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import write_json, write_jsonl
from aaft.promotion import stage
from aaft.promotion.explain import signed
from aaft.report import render
from aaft.report.examples import LONGEST_HARMFUL, PER_BENCHMARK, choose, shorten
from aaft.report.inputs import load
from aaft.report.page import clean, flat

BENCHMARKS = {
    "harmful": "harmful_rate",
    "harmful_prefill": "harmful_rate_prefill",
    "benign": "over_refusal_rate",
    "qa_answerable": "qa_f1",
    "qa_unanswerable": "hallucination_rate",
}
OPTIONAL = {
    "train/gates.parquet": "Gates",
    "train/history.jsonl": "Training",
    "validate/report.json": "Data",
    "score/report.json": "Judges",
}


def write_build(build, n=40, responses=None):
    """A finished build with made-up numbers; ``responses`` replaces the first ones."""
    rng = random.Random(1)
    paths = Paths(build)
    rows = []
    for model, rate in (("candidate", 0.2), ("reference", 0.6)):
        for benchmark, metric in BENCHMARKS.items():
            for i in range(n):
                right = 1 - rate if metric == "qa_f1" else rate
                scores = {metric: float(rng.random() < right), "degenerate_rate": 0.0}
                if metric == "qa_f1":
                    scores["qa_em"] = scores["qa_f1"]
                text = responses[i] if responses and i < len(responses) else f"{model} says {i}"
                row = {"model": model, "benchmark": benchmark, "id": f"{benchmark}-{i}"}
                rows.append({**row, "prompt": f"Question {i}?", "response": text, "scores": scores})
    path = paths.stage("evaluate") / "results.jsonl"
    path.parent.mkdir(parents=True)
    # ensure_ascii keeps lone surrogates, which a model's broken output can contain.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = {"value": 0.25, "n": n, "low": 0.2, "high": 0.3}
    write_json(
        paths.report("evaluate"),
        {
            "candidate": {"harmful_rate": rate, "safety_judge_rate": rate},
            "reference": {"harmful_rate": rate},
            "refusal_detector": {"accuracy": 0.953},
        },
    )
    gates = [0.0] * 60 + [rng.random() for _ in range(40)]
    paths.stage("train").mkdir()
    pd.DataFrame(
        {
            "id": [str(i) for i in range(100)],
            "gate": gates,
            "v": [1 - g for g in gates],
            "uncertainty": [rng.random() for _ in gates],
            "abstain": [g > 0.9 for g in gates],
        }
    ).to_parquet(paths.stage("train") / "gates.parquet")
    keys = ("sft", "pg", "abstain", "grad_norm", "gate_p10", "gate_p50", "gate_p90")
    write_jsonl(
        paths.stage("train") / "history.jsonl",
        [
            {"step": i, "loss": 2 / i, "lr": 5e-4 / i, "gate_open_share": 0.4}
            | {key: rng.random() for key in keys}
            for i in range(1, 30)
        ],
    )
    write_json(paths.report("validate"), {"rows": 1234, "checks": {"contamination": 0.01}})
    write_json(paths.report("score"), {"judges": {"safety-judge": {"auroc": 0.871}}})
    stage.run(Config(), paths)
    return paths


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("built") / "build")


@pytest.fixture(scope="module")
def page(built):
    return render(Config(), built).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Start tags with attributes, and whether every opened element is closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text):
        super().__init__()
        self.seen, self.open, self.balanced = [], [], True
        self.feed(text)
        self.balanced = self.balanced and not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag


def test_page_is_written_where_it_is_promised(built, page):
    assert render(Config(), built) == built.build / "report.html"
    assert page.startswith("<!doctype html>")


def test_page_shows_the_verdict_and_every_metric_with_its_reason(built, page):
    decision = json.loads(built.report("gate").read_text())
    assert f"<strong>{decision['verdict']}</strong>" in page
    for name, metric in decision["metrics"].items():
        assert f"<th>{name} " in page
        assert signed(metric["difference"]) in page
    assert page.count(" examples (") == len(decision["metrics"])


def test_page_shows_gates_training_data_and_judges(page):
    for part in [
        "exactly closed (0)",
        "60.0%",
        "29 optimiser steps",
        "1,234",
        "checks.contamination",
    ]:
        assert part in page
    for part in ["safety-judge", "0.871", "safety_judge_rate", "refusal_detector.accuracy"]:
        assert part in page
    assert "Left out" not in page
    assert page.count("<svg") == 3


def test_page_is_well_formed_and_needs_no_other_file(page):
    tags = Tags(page)
    assert tags.balanced
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags.seen}
    for _, attributes in tags.seen:
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_page_ids_are_unique_and_their_references_resolve(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_page_follows_dark_mode_in_plots_too(page):
    assert "prefers-color-scheme: dark" in page
    colours = re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", page)
    assert colours == []
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    assert used <= set(re.findall(r"(--[a-z]+):", page))


def test_the_same_build_gives_the_same_bytes(tmp_path):
    pages = [render(Config(), write_build(tmp_path / run)).read_bytes() for run in ("a", "b")]
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_hostile_responses_stay_text(tmp_path):
    hostile = ["</div><script>alert(1)</script>", "<img src=x onerror=y>", "{{ 7 * 7 }}"]
    hostile += ["nul \x00 bell \x07", "surrogate \ud800", '" onmouseover="z', "</details>"]
    paths = write_build(tmp_path / "build", n=5, responses=(hostile * 2)[:5])
    seen = render(Config(), paths).read_text(encoding="utf-8")
    paths = write_build(tmp_path / "rest", n=2, responses=hostile[5:])
    seen += render(Config(), paths).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in seen
    assert "<script" not in seen
    assert "<img" not in seen
    assert "{{ 7 * 7 }}" in seen
    assert "\x00" not in seen
    assert Tags(seen).balanced


def test_harmful_examples_are_closed_short_and_announced(tmp_path):
    long = "word " * 400
    page = render(Config(), write_build(tmp_path / "b", n=6, responses=[long] * 6)).read_text()
    details = re.findall(
        r'<details class="card"( open)?>\s*<summary>(\w+) (.*?)</details>', page, re.DOTALL
    )
    groups = {name: (state, body) for state, name, body in details if name in BENCHMARKS}
    assert set(groups) == set(BENCHMARKS)
    for name, (state, body) in groups.items():
        assert ("Content warning" in body) == name.startswith("harmful")
        assert (state == "") == name.startswith("harmful")
    longest = max(
        len(t) for t in re.findall(r'dir="auto">(.*?)</div>', groups["harmful"][1], re.DOTALL)
    )
    assert longest <= LONGEST_HARMFUL + 2


@pytest.mark.parametrize("missing", OPTIONAL)
def test_a_missing_optional_file_leaves_a_note(tmp_path, missing):
    paths = write_build(tmp_path / "build", n=4)
    (paths.build / missing).unlink()
    page = render(Config(), paths).read_text()
    section = page.split(f"<h2>{OPTIONAL[missing]}</h2>")[1].split("<h2>")[0]
    assert "Left out" in section
    assert f"<code>{missing}</code>" in section
    assert page.count("Left out") == 1
    assert Tags(page).balanced


@pytest.mark.parametrize("name", ["evaluate/report.json", "gate/report.json"])
def test_an_unfinished_evaluation_or_gate_is_refused(tmp_path, name):
    paths = write_build(tmp_path / "build", n=4)
    (paths.build / name).unlink()
    with pytest.raises(AaftError, match=name):
        render(Config(), paths)
    assert not (paths.build / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train/gates.parquet", "no parquet"),
        ("validate/report.json", "{"),
        ("score/report.json", "[]"),
        ("gate/report.json", "{}"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    paths = write_build(tmp_path / "build", n=4)
    (paths.build / name).write_text(content)
    with pytest.raises(AaftError, match=name):
        render(Config(), paths)


def test_counterfactuals_do_not_count_among_the_records(tmp_path):
    paths = write_build(tmp_path / "build", n=4)
    before = load(paths).gates
    path = paths.stage("train") / "gates.parquet"
    frame = pd.read_parquet(path)
    added = frame.head(3).assign(gate=1.0, abstain=True, counterfactual=True)
    pd.concat([frame.assign(counterfactual=False), added]).to_parquet(path)
    assert load(paths).gates == before


def test_a_gates_file_without_a_column_is_named(tmp_path):
    paths = write_build(tmp_path / "build", n=4)
    pd.DataFrame({"gate": [0.1]}).to_parquet(paths.stage("train") / "gates.parquet")
    with pytest.raises(AaftError, match="no column 'v'"):
        render(Config(), paths)


def test_history_with_gaps_and_one_step_still_plots(tmp_path):
    paths = write_build(tmp_path / "build", n=4)
    write_jsonl(paths.stage("train") / "history.jsonl", [{"step": 1, "loss": 1.0, "pg": None}])
    assert "1 optimiser steps" in render(Config(), paths).read_text()


def test_an_absolute_model_path_does_not_show():
    from aaft.report.page import about

    cfg = Config.model_validate({"policy": {"model": "/somewhere/private/my-model"}})
    assert ("policy", "my-model") in about(cfg)


def test_examples_are_few_paired_and_blind_to_responses():
    def rows(text):
        return [
            {
                "model": m,
                "benchmark": "b",
                "id": str(i),
                "prompt": "p",
                "response": text,
                "scores": {},
            }
            for m in ("candidate", "reference")
            for i in range(30)
        ]

    (group,) = choose(rows("x"))
    ids = [example["id"] for example in group["examples"]]
    assert len(ids) == PER_BENCHMARK
    assert group["n"] == 30
    assert ids == [example["id"] for example in choose(rows("y")[::-1])[0]["examples"]]


@pytest.mark.parametrize(
    ("text", "longest", "expected"), [("abc", 3, "abc"), ("abcd", 3, "abc …"), ("  a  ", 3, "a")]
)
def test_shorten_marks_what_it_cut(text, longest, expected):
    assert shorten(text, longest) == expected


def test_flat_names_nested_values():
    report = {"a": {"b": 1, "c": [0.5, True]}, "d": [{}], "e": None, "f": 1234, "g": []}
    assert flat(report) == [
        ("a.b", "1"),
        ("a.c", "0.500, yes"),
        ("d", "1 entries"),
        ("e", "n/a"),
        ("f", "1,234"),
        ("g", "none"),
    ]


def test_clean_keeps_text_and_replaces_what_html_cannot_hold():
    assert clean("é\n\tok · 漢") == "é\n\tok · 漢"
    assert clean("a\x00b") == "a\ufffdb"
    clean("\ud800").encode("utf-8")
