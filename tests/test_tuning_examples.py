"""Records joined with the score stage's files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.io import write_jsonl
from aaft.models.policy import Codec
from aaft.tuning.examples import load_examples, stack
from tests import tiny

DECLINING = "No."


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tiny.tokenizer())


def record(name: str) -> Record:
    return Record(name, [{"role": "user", "content": "q"}], "gold", None, "s")


def load(folder, codec, rewards, conservative=None, false_accept=0.0, objective="safety"):
    """Load one record scored on one objective with these rewards, the gold's first."""
    write_jsonl(
        folder / "candidates.jsonl",
        (
            {"id": "a", "candidate": k, "text": "", "token_ids": [5] * (k + 1), "logprob": -1.0}
            for k in range(len(rewards))
        ),
    )
    rows = [] if conservative is None else [conservative]
    write_jsonl(
        folder / "conservative.jsonl",
        ({"id": "a", "objective": objective, "text": DECLINING, "r": r} for r in rows),
    )
    # The table's rows stand in no order that could be relied on.
    pd.DataFrame(
        [
            {"id": "a", "candidate": k, "r": r, "logprob": -2.0}
            | {objective: r, f"u_{objective}": 0.1}
            for k, r in reversed(list(enumerate(rewards)))
        ]
    ).to_parquet(folder / "alignment.parquet")
    alpha = {objective: false_accept}
    (example,) = load_examples(folder, [record("a")], codec, [objective], alpha)
    return example


@pytest.mark.parametrize(("objective", "recovers"), [("safety", True), ("grounding", False)])
def test_only_from_unsafe_answers_is_there_a_way_back(tmp_path, codec, objective, recovers) -> None:
    example = load(tmp_path, codec, [0.1, 0.2], conservative=0.9, objective=objective)
    assert example.unsafe == recovers
    assert example.conservative == codec.response_ids(DECLINING)


@pytest.mark.parametrize("rewards", [[0.2, 0.9, 0.4], [0.9]], ids=["two rollouts", "none"])
def test_scores_stand_in_the_order_of_the_candidates(tmp_path, codec, rewards) -> None:
    example = load(tmp_path, codec, rewards)
    assert example.reward.tolist() == rewards
    assert example.quality.tolist() == [[r] for r in rewards]
    scores = stack([example, example])
    assert scores.reward.tolist() == [rewards, rewards]
    assert scores.tokens.tolist() == [[float(k + 1) for k in range(len(rewards))]] * 2


def test_what_has_no_rollouts_is_stacked_with_what_has(tmp_path, codec) -> None:
    full = load(tmp_path, codec, [0.2, 0.9, 0.4])
    scores = stack([load(tmp_path, codec, [0.9]), full])
    assert scores.reward.tolist() == [[0.9] * 3, [0.2, 0.9, 0.4]]
    assert scores.quality.shape == scores.uncertainty.shape == (2, 3, 1)
    assert scores.tokens.tolist() == [[1.0] * 3, [1.0, 2.0, 3.0]]
    assert scores.logprob.tolist() == [[-2.0] * 3] * 2


@pytest.mark.parametrize(
    ("rewards", "conservative", "recovers", "abstains"),
    [
        ([0.2, 0.9, 0.9], 0.8, True, False),
        ([0.2, 0.1, 0.1], 0.8, True, True),
        ([0.2], 0.8, True, True),
        ([0.9, 0.1, 0.1], 0.8, False, False),
        ([np.nan, 0.1, 0.1], 0.8, False, False),
        ([0.2, 0.1, 0.1], 0.4, False, False),
        ([0.2, 0.1, 0.1], None, False, False),
    ],
)
def test_a_rejected_gold_recovers_with_an_accepted_response(
    tmp_path, codec, rewards, conservative, recovers, abstains
) -> None:
    example = load(tmp_path, codec, rewards, conservative)
    response = codec.response_ids(DECLINING)
    assert example.conservative == (response if recovers else None)
    assert example.abstention == (response if abstains else None)


def test_what_has_no_conservative_response_goes_to_review(tmp_path, codec) -> None:
    assert load(tmp_path, codec, [0.1, 0.2]).review
    assert not load(tmp_path, codec, [0.1, 0.2], conservative=0.1).review


def test_a_record_without_scores_is_an_error(tmp_path, codec) -> None:
    load(tmp_path, codec, [0.9])
    with pytest.raises(AaftError, match="no scores for record b; rerun the score stage"):
        load_examples(tmp_path, [record("b")], codec, ["safety"], {})
