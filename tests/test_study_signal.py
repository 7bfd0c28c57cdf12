"""A study's signal: the score stage's results without its files, and what noise makes of them."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aaft.config import Config
from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.io import write_jsonl
from aaft.models.policy import Codec, load_codec
from aaft.scoring.cache import open_cache
from aaft.scoring.conservative import UNANSWERED, conservative_responses
from aaft.scoring.judging import judge_works
from aaft.scoring.kin import Kin
from aaft.study import signal as module
from aaft.study.signal import (
    Declining,
    Panel,
    ScoredExample,
    counterfactual_signal,
    decided,
    inverted,
    kin_signal,
    plain_examples,
    signal,
    with_noise,
    without_gold,
    worst,
)
from aaft.tuning.counterfactual import kept_counterfactuals
from aaft.tuning.examples import load_examples
from aaft.tuning.kin import kept_siblings, kept_twins
from tests import tiny

OBJECTIVES = ("comply", "grounding", "safety")
ASKED: list[str] = []


def judge(rows):
    """Bad: what says "bad"; grounded: what is said about a passage, but for a made-up answer."""
    ASKED.extend(row["response"] for row in rows)
    return [
        {
            "safety": 0.1 if "bad" in row["response"] else 0.9,
            "grounding": None
            if row["context"] is None
            else (0.05 if "lie" in row["response"] else 0.95),
        }
        for row in rows
    ]


def asked() -> list[str]:
    """What the judge saw: it imports this module under its full name, and so once more."""
    seen: list[str] = importlib.import_module("tests.test_study_signal").ASKED
    return seen


def record(name: str, response: str, context: str | None = None) -> Record:
    user = {"role": "user", "content": f"{context or ''} {name}?"}
    return Record(name, [user], response, context, "test")


RECORDS = [
    record("r0", "good"),
    record("r1", "bad"),
    record("r2", "a lie", "The passage."),
    record("r3", "true", "Another one."),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return tiny.save_policy(tmp_path_factory.mktemp("start"))


@pytest.fixture
def cfg(tmp_path) -> Config:
    spec = {
        "kind": "callable",
        "target": "tests.test_study_signal:judge",
        "objectives": ["safety", "grounding"],
    }
    return Config.model_validate(
        {
            "judges": {"panel": [spec], "kappa_u": 0.0},
            "score": {"rollouts": 2, "max_new_tokens": 4, "cache": tmp_path / "cache"},
        }
    )


def scored(cfg: Config, start: Path, records=RECORDS) -> list[ScoredExample]:
    panel = Panel(judge_works(cfg), {"safety": 0.1, "grounding": 0.05})
    with open_cache(cfg.score.cache) as cache:
        return signal(cfg, records, start, cache, panel)


def test_every_row_gets_gold_rollouts_scores_and_conservative_responses(cfg, start) -> None:
    examples = {example.id: example for example in scored(cfg, start)}
    codec = load_codec(str(start))
    assert [len(e.candidates) for e in examples.values()] == [3] * 4
    assert examples["r1"].candidates[0] == codec.response_ids("bad")
    assert examples["r1"].reward[0] == pytest.approx(0.1)
    assert set(examples["r1"].declining) == {"safety"}
    assert set(examples["r3"].declining) == {"safety", "grounding"}
    refusal = {c.objective: c.text for c in conservative_responses(RECORDS[1])}["safety"]
    assert examples["r1"].declining["safety"].ids == codec.response_ids(refusal)
    assert examples["r1"].conservative == codec.response_ids(refusal)
    assert examples["r2"].reward[0] == pytest.approx(0.05)
    assert np.isfinite(examples["r0"].logprob).all()
    assert all(examples[name].conservative is None for name in ("r0", "r3"))


def test_what_another_scenario_scored_is_not_scored_again(cfg, start) -> None:
    first = scored(cfg, start)
    asked().clear()
    again = scored(cfg, start, RECORDS[::-1])
    assert asked() == []
    assert [e.id for e in again] == ["r3", "r2", "r1", "r0"]
    assert [e.candidates for e in again] == [e.candidates for e in first][::-1]
    more = scored(cfg, start, [*RECORDS, record("r4", "new")])
    assert "new" in asked()
    assert "bad" not in asked()
    assert len(more) == 5


def swapped(cfg: Config, start: Path, records=RECORDS, share: float = 1.0) -> list[ScoredExample]:
    cfg = cfg.model_copy(update={"score": cfg.score.model_copy(update={"counterfactuals": share})})
    panel = Panel(judge_works(cfg), {"safety": 0.1, "grounding": 0.05})
    with open_cache(cfg.score.cache) as cache:
        return counterfactual_signal(cfg, records, start, cache, panel, 0)


def test_rows_with_a_passage_are_scored_with_a_foreign_one_too(cfg, start) -> None:
    lie, true = swapped(cfg, start)
    codec = load_codec(str(start))
    assert (lie.id, true.id) == ("r2~swap", "r3~swap")
    assert lie.prompt == codec.prompt_ids([{"role": "user", "content": "Another one. r2?"}])
    assert lie.candidates[0] == codec.response_ids("a lie")
    (kept,) = kept_counterfactuals([lie, true], [])
    assert (kept.id, kept.host) == ("r2~swap", None)
    assert kept.abstention in [codec.response_ids(text) for text in UNANSWERED]
    assert swapped(cfg, start, share=0.0) == []
    assert swapped(cfg, start, RECORDS[:2]) == []


def test_there_are_no_counterfactuals_without_a_judge_that_reads_passages(cfg, start) -> None:
    (spec,) = cfg.judges.panel
    blind = spec.model_copy(update={"objectives": ("safety",)})
    judges = cfg.judges.model_copy(update={"panel": (blind,)})
    assert swapped(cfg.model_copy(update={"judges": judges}), start) == []


def test_kin_of_what_is_rejected_as_unsafe_are_scored_like_rows(cfg, start, monkeypatch) -> None:
    user = {"role": "user", "content": "How do I do it now?"}
    records = [*RECORDS, Record("harmful", [user], "bad", None, "test")]
    asked_for = []

    def drawn(cfg, codec, harmful, taken, works, cache) -> Kin:
        asked_for.append((cfg.policy.model, [r.id for r in harmful], taken))
        return Kin([replace(records[4], id="twin", response="good")], [replace(records[4], id="s")])

    monkeypatch.setattr(module, "drawn_kin", drawn)
    panel = Panel(judge_works(cfg), {})
    with open_cache(cfg.score.cache) as cache:
        examples = signal(cfg, records, start, cache, panel)
        (twin,), (sibling,) = kin_signal(cfg, records, examples, start, cache, panel)
    assert asked_for == [(str(start), ["harmful"], {r.id for r in records})]
    assert twin.reward[0] == pytest.approx(0.9)
    assert sibling.conservative == sibling.declining["safety"].ids
    refusals = {twin.id: float(worst(twin.declining["safety"].quality[None])[0])}
    assert kept_twins([twin], refusals, longest=4) == []
    # The reference's answers are accepted, as refusals of its own would be.
    assert kept_siblings([sibling]) == []
    answered = replace(sibling, reward=sibling.reward * [1, 0, 1])
    assert [kept.id for kept in kept_siblings([answered])] == ["s"]
    # A judge that is wrong about everything takes the harmful one for harmless.
    assert kept_siblings(with_noise([sibling], 1.0, 0)) == []
    # By its rollouts it is known whether the reference declines the sibling.
    assert [len(made.candidates) for made in (twin, sibling)] == [1, cfg.score.rollouts + 1]


def test_kept_counterfactuals_abstain_and_do_not_recover() -> None:
    kept = kept_counterfactuals(EXAMPLES, [])
    assert [e.id for e in kept] == [e.id for e in EXAMPLES if e.conservative is not None]
    assert 0 < len(kept) < len(EXAMPLES)
    for e in kept:
        assert e.abstention
        assert e.conservative is None
        assert e.reward[0] < 0.5


@pytest.mark.parametrize(
    ("records", "error"), [([], "no rows"), ([RECORDS[0], RECORDS[0]], "the same id")]
)
def test_rows_that_can_not_be_told_apart_are_refused(cfg, start, records, error) -> None:
    with pytest.raises(AaftError, match=error):
        scored(cfg, start, records)


def example(number: int, objectives=OBJECTIVES, candidates: int = 3) -> ScoredExample:
    rng = np.random.default_rng(number)
    quality = rng.uniform(size=(candidates, len(objectives)))
    quality[rng.uniform(size=quality.shape) < 0.2] = math.nan
    declining = {
        name: Declining([7, 8, number % 50 + 9], rng.uniform(size=len(objectives)))
        for name in ("safety", "grounding")[: 1 + number % 2]
    }
    return decided(
        ScoredExample(
            id=f"e{number}",
            prompt=[4, 5],
            candidates=[[6, 7, 0]] * candidates,
            quality=quality,
            uncertainty=rng.uniform(size=quality.shape),
            logprob=-rng.uniform(size=candidates),
            reward=np.zeros(candidates),
            abstention=None,
            conservative=None,
            review=False,
            declining=declining,
            objectives=objectives,
            false_accept={"safety": 0.1, "grounding": 0.02},
        )
    )


EXAMPLES = [example(i) for i in range(200)]


def slow_reward(quality) -> list[float]:
    return [
        min((q for q in row if not math.isnan(q)), default=math.nan) for row in quality.tolist()
    ]


def test_rewards_are_the_worst_objective() -> None:
    for e in EXAMPLES:
        np.testing.assert_array_equal(e.reward, slow_reward(e.quality))
    assert math.isnan(worst(np.array([[math.nan, math.nan]]))[0])
    assert math.isnan(worst(np.zeros((1, 0)))[0])


class FileCodec(Codec):
    """Tokens are the numbers in a text."""

    def prompt_ids(self, messages, prefill=""):
        return [4, 5]

    def response_ids(self, text):
        return [int(part) for part in text.split()]


def test_decisions_are_those_of_the_train_stage(tmp_path) -> None:
    """Every kind of decision occurs among these examples."""
    table, candidates, conservative = [], [], []
    for e in EXAMPLES:
        for k, ids in enumerate(e.candidates):
            row = {"id": e.id, "candidate": k, "r": e.reward[k], "logprob": e.logprob[k]}
            row |= dict(zip(OBJECTIVES, e.quality[k], strict=True))
            row |= {f"u_{n}": u for n, u in zip(OBJECTIVES, e.uncertainty[k], strict=True)}
            table.append(row)
            candidates.append({"id": e.id, "candidate": k, "token_ids": ids})
        for name, other in e.declining.items():
            text = " ".join(map(str, other.ids))
            r = slow_reward(other.quality[None])[0]
            conservative.append({"id": e.id, "objective": name, "text": text, "r": r})
    write_jsonl(tmp_path / "candidates.jsonl", candidates)
    write_jsonl(tmp_path / "conservative.jsonl", conservative)
    pd.DataFrame(table).to_parquet(tmp_path / "alignment.parquet")
    records = [record(e.id, "x") for e in EXAMPLES]
    found = load_examples(tmp_path, records, FileCodec(None), OBJECTIVES, EXAMPLES[0].false_accept)
    for want, e in zip(found, EXAMPLES, strict=True):
        assert (e.abstention, e.conservative, e.review) == (
            want.abstention,
            want.conservative,
            want.review,
        )
        np.testing.assert_array_equal(e.reward, want.reward)
    for name in ("abstention", "conservative", "review"):
        assert len({bool(getattr(e, name)) for e in EXAMPLES}) == 2


def test_no_noise_changes_nothing() -> None:
    for before, after in zip(EXAMPLES, with_noise(EXAMPLES, 0.0, 1), strict=True):
        np.testing.assert_array_equal(before.quality, after.quality)
        assert (before.abstention, before.conservative) == (after.abstention, after.conservative)


def test_all_noise_rejects_what_was_accepted_and_accepts_what_was_rejected() -> None:
    turned = with_noise(EXAMPLES, 1.0, 1)
    for before, after in zip(EXAMPLES, turned, strict=True):
        scored = ~np.isnan(before.reward)
        np.testing.assert_array_equal(after.uncertainty, before.uncertainty)
        np.testing.assert_array_equal(after.reward, slow_reward(after.quality))
        np.testing.assert_array_equal((after.reward >= 0.5)[scored], (before.reward < 0.5)[scored])
        for name, other in before.declining.items():
            was, now = (slow_reward(e.quality[None])[0] for e in (other, after.declining[name]))
            assert (was >= 0.5) != (now >= 0.5)
    assert any(a.abstention != b.abstention for a, b in zip(EXAMPLES, turned, strict=True))


@pytest.mark.parametrize(
    ("quality", "want"),
    [
        ([0.1, 0.95], [0.9, 0.95]),  # rejected by one objective alone
        ([0.2, 0.4], [0.8, 0.6]),
        ([0.7, 0.95], [0.3, 0.05]),
        ([0.1, math.nan], [0.9, math.nan]),
    ],
)
def test_a_wrong_judge_is_wrong_about_what_decides(quality, want) -> None:
    np.testing.assert_allclose(inverted(np.array([quality]))[0], want)


def turned_places(share: float, seed: int) -> set[tuple[str, int]]:
    return {
        (e.id, k)
        for e, before in zip(with_noise(EXAMPLES, share, seed), EXAMPLES, strict=True)
        for k in range(3)
        if not np.array_equal(e.quality[k], before.quality[k], equal_nan=True)
    }


def test_noise_turns_its_share_of_answers_and_more_noise_turns_those_too() -> None:
    few, many, others = turned_places(0.1, 0), turned_places(0.2, 0), turned_places(0.1, 1)
    assert few < many
    assert few != others
    assert 0.05 < len(few) / 600 < 0.15
    assert 0.14 < len(many) / 600 < 0.26
    assert few == turned_places(0.1, 0)


def test_noise_depends_on_the_record_not_on_its_neighbours() -> None:
    alone = [with_noise([e], 0.3, 0)[0].quality for e in EXAMPLES[:20]]
    for quality, e in zip(alone, with_noise(EXAMPLES, 0.3, 0), strict=False):
        np.testing.assert_array_equal(quality, e.quality)


def test_without_gold_nothing_rejects_a_gold() -> None:
    for before, after in zip(EXAMPLES, without_gold(EXAMPLES), strict=True):
        assert np.isnan(after.quality[0]).all()
        assert np.isnan(after.uncertainty[0]).all()
        np.testing.assert_array_equal(after.quality[1:], before.quality[1:])
        assert after.abstention is None
        assert after.conservative is None
        assert after.candidates == before.candidates
    assert not np.isnan(EXAMPLES[0].uncertainty[0]).all()


def test_a_gold_only_signal_can_lose_its_gold() -> None:
    blind = without_gold([example(3, candidates=1)])[0]
    assert math.isnan(blind.reward[0])
    assert not blind.review


def test_plain_examples_have_a_gold_and_no_signal() -> None:
    codec = Codec(tiny.tokenizer())
    made = plain_examples([record("a", "yes")], codec)[0]
    assert made.candidates == [codec.response_ids("yes")]
    assert made.quality.shape == (1, 0)
    assert math.isnan(made.reward[0])
    assert replace(made, prompt=[]).id == "a"
