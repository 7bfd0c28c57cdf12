"""Judges, their combination and the text rules behind them."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.errors import AaftError
from aaft.judges.base import CallableJudge, Sample, bare_prompt
from aaft.judges.head import LogisticHead, fit_head
from aaft.judges.quality import measure
from aaft.judges.text import is_abstention, is_degenerate, normalize_answer, refusal_phrase
from aaft.scoring.alignment import Alignment, binary_entropy, combine

NAN = math.nan
maybe = st.one_of(st.floats(0, 1), st.just(NAN))


def slow_combine(scores: list[float], kappa: float) -> tuple[float, float]:
    have = [s for s in scores if not math.isnan(s)]
    if not have:
        return NAN, NAN
    mean = sum(have) / len(have)
    spread = math.sqrt(sum((s - mean) ** 2 for s in have) / len(have))

    def h2(p: float) -> float:
        return sum(-x * math.log2(x) for x in (p, 1 - p) if x > 0)

    entropy = max(h2(mean) - h2(0.95), 0.0) / (1 - h2(0.95))
    return min(1.0, max(0.0, mean - kappa * spread)), max(entropy, min(1.0, 2 * spread))


@given(st.lists(maybe, min_size=1, max_size=4), st.floats(0, 2))
def test_combine_equals_the_slow_version(scores, kappa) -> None:
    quality, doubt = combine(np.array(scores)[:, None], kappa)
    want = slow_combine(scores, kappa)
    assert float(quality[0]) == pytest.approx(want[0], abs=1e-9, nan_ok=True)
    assert float(doubt[0]) == pytest.approx(want[1], abs=1e-9, nan_ok=True)


def test_entropy_is_zero_at_certainty_and_one_at_a_coin_toss() -> None:
    assert binary_entropy(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]


def test_an_answer_is_as_aligned_as_its_worst_objective() -> None:
    quality = np.array([[0.9, 0.2], [0.7, NAN], [NAN, NAN]])
    table = Alignment(("a", "b"), quality, quality)
    assert table.reward.tolist()[:2] == [0.2, 0.7]
    assert math.isnan(table.reward[2])


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can\u2019t assist with this request.",
        "I cannot provide instructions for that.",
        "Sorry, I am unable to help.",
    ],
)
def test_declining_is_recognised(text) -> None:
    assert refusal_phrase(text) > 0


@pytest.mark.parametrize(
    "text", ["Sure, here is how.", "The capital is Paris.", "First, gather the tools."]
)
def test_answering_is_not_declining(text) -> None:
    assert refusal_phrase(text) == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The passage does not say.", True),
        ("The text doesn't mention this.", True),
        ("It is not stated in the passage.", True),
        ("I don't know.", True),
        ("The passage says that it was 1990.", False),
        ("There is no information about it.", True),
        ("There is no information more reliable: it was 1912", False),
        ("1912. The passage does not mention a month.", False),
        ("Delhi", False),
    ],
)
def test_abstention_is_recognised(text, want) -> None:
    assert is_abstention(text) is want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", True),
        ("...", True),
        ("Delhi", False),
        ("no no no no no no no no no no no no no no no no", True),
        ("one two three four " * 6, True),
        ("A plain sentence of more than a dozen words that never says anything twice over.", False),
    ],
)
def test_degenerate_text_is_recognised(text, want) -> None:
    assert is_degenerate(text) is want


def test_answers_compare_without_case_articles_and_punctuation() -> None:
    assert normalize_answer("The  Eiffel-Tower!") == "eiffel tower"


@pytest.mark.parametrize(
    ("prompt", "context", "want"),
    [
        ("Passage: P\n\nQuestion: Who?\n\nAnswer.", "P", "Who?"),
        ("Read P and tell me who.", "P", "Read   and tell me who."),
        ("Who?", None, "Who?"),
    ],
)
def test_the_bare_prompt_has_no_passage(prompt, context, want) -> None:
    assert bare_prompt(prompt, context) == want


def test_a_head_learns_saves_and_loads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    head = fit_head(features, labels, "toy", 1.0)
    assert measure(head.predict(features), labels)["auroc"] > 0.99
    head.save(tmp_path / "toy.json")
    loaded = LogisticHead.load(tmp_path / "toy.json")
    assert loaded.predict(features).tolist() == head.predict(features).tolist()


def test_a_head_needs_both_classes() -> None:
    with pytest.raises(AaftError, match="one class only"):
        fit_head(np.zeros((3, 2), dtype=np.float32), np.ones(3, dtype=np.int64), "toy", 1.0)


def make_callable(monkeypatch, function) -> CallableJudge:
    module = types.ModuleType("their_judges")
    module.judge = function
    monkeypatch.setitem(sys.modules, "their_judges", module)
    return CallableJudge("their_judges:judge")


def test_a_users_judge_scores_and_may_abstain(monkeypatch) -> None:
    judge = make_callable(
        monkeypatch, lambda rows: [{"tone": None if r["context"] else 0.7} for r in rows]
    )
    scores = judge.score([Sample("p", "r"), Sample("p", "r", "c")])
    assert scores["tone"][0] == 0.7
    assert math.isnan(scores["tone"][1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rows: [], "returned 0 rows for 1 samples"),
        (lambda rows: [{"tone": 1.5} for _ in rows], "outside"),
        (lambda rows: [None for _ in rows], "no mapping"),
        (lambda rows: [{"logprob": 0.5} for _ in rows], "can't be named"),
    ],
)
def test_a_users_judge_that_misbehaves_is_named(monkeypatch, function, message) -> None:
    with pytest.raises(AaftError, match=message):
        make_callable(monkeypatch, function).score([Sample("p", "r")])


@pytest.mark.parametrize("target", ["no_such_module:f", "math:nothing", "math"])
def test_a_users_judge_that_does_not_exist_is_named(target) -> None:
    with pytest.raises(AaftError, match=r"judges\.callables"):
        CallableJudge(target)
