"""What must hold for every input of the formulas of DESIGN 2.2 to 2.6, not only at examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import GateSettings
from aaft.tuning.abstain import abstains
from aaft.tuning.advantage import advantages
from aaft.tuning.gate import gate, imitation
from aaft.tuning.taper import Clips, clip_rates, push, taper
from aaft.tuning.weights import bounds, candidate_weights, standing

NAN = math.nan
DELTA, FLOOR = 0.05, 0.5
unit = st.floats(0, 1)
accepted = st.floats(FLOOR, 1)
ratios = st.lists(st.floats(-200, 200), min_size=1, max_size=5)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(*values) -> list[torch.Tensor]:
    return [f64([v]) for v in values]


def gate_of(value: float, doubt: float) -> float:
    return float(gate(*rows(value, doubt), GateSettings()))


def advantage_of(weights, quality) -> list[float]:
    return advantages(*rows(weights, quality), delta=DELTA, floor=FLOOR)[0].tolist()


@st.composite
def weighted(draw, quality=unit):
    """Normalised weights, as lopsided as the clip allows, and qualities ``[K+1, M]``."""
    count, objectives = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    drift = [draw(st.floats(-3, 3)) for _ in range(count)]
    weights = torch.softmax(3.0 * f64(drift), dim=0).tolist()
    return weights, [[draw(quality) for _ in range(objectives)] for _ in range(count)]


@given(ratios, st.floats(0, 5))
def test_weights_sum_to_one_and_rise_with_the_log_ratio(ratio, eta) -> None:
    weights = candidate_weights(*rows(ratio, [7.0] * len(ratio)), eta)[0].tolist()
    assert sum(weights) == pytest.approx(1.0)
    for a, b in zip(ratio, weights, strict=True):
        assert all(b >= w for r, w in zip(ratio, weights, strict=True) if a >= r)


@given(ratios)
def test_eta_zero_gives_every_candidate_the_same_weight(ratio) -> None:
    weights = candidate_weights(*rows(ratio, [3.0] * len(ratio)), 0.0)[0].tolist()
    assert weights == pytest.approx([1 / len(ratio)] * len(ratio))


@given(ratios, st.floats(0, 5))
def test_ess_lies_between_one_and_the_number_of_candidates(ratio, eta) -> None:
    weights = candidate_weights(*rows(ratio, [5.0] * len(ratio)), eta)
    scores = torch.full((1, len(ratio), 1), 0.5, dtype=torch.float64)
    assert 1 - 1e-9 <= float(standing(weights, scores, scores).ess) <= len(ratio) + 1e-9


@given(weighted())
def test_value_and_uncertainty_stay_within_their_bounds(table) -> None:
    weights, quality = table
    w, q = rows(weights, quality)
    state = standing(w, q, q)
    low, high = bounds(q, q)
    assert float(state.value) >= float(low) - 1e-12
    assert float(state.uncertainty) <= float(high) + 1e-12


@given(unit, unit, unit, unit)
def test_a_gate_closes_with_value_and_opens_with_doubt(v1, v2, u1, u2) -> None:
    (low, high), (sure, unsure) = sorted((v1, v2)), sorted((u1, u2))
    assert 0.0 <= gate_of(v1, u1) <= 1.0
    assert gate_of(high, u1) <= gate_of(low, u1)
    assert gate_of(v1, sure) <= gate_of(v1, unsure)


@given(st.floats(0, 0.5), unit)
def test_a_gate_is_exactly_one_up_to_half(value, doubt) -> None:
    assert gate_of(value, doubt) == 1.0


@given(st.floats(0.8501, 1))
def test_a_gate_is_exactly_zero_for_what_is_surely_aligned(value) -> None:
    assert gate_of(value, 0.0) == 0.0


@given(weighted(accepted), st.data())
def test_a_candidates_own_quality_does_not_move_its_baseline(table, data) -> None:
    weights, quality = table
    k = data.draw(st.integers(0, len(quality) - 1))
    m = data.draw(st.integers(0, len(quality[0]) - 1))
    before = advantage_of(weights, quality)[k]
    old, quality[k][m] = quality[k][m], data.draw(accepted)
    after = advantage_of(weights, quality)[k]
    assert after - before == pytest.approx((quality[k][m] - old) / len(quality[0]), abs=1e-6)


@given(weighted(), accepted)
def test_equal_qualities_have_the_slack_as_advantage_until_the_floor(table, level) -> None:
    weights, quality = table
    same = [[level] * len(quality[0]) for _ in quality]
    want = min(DELTA, level - FLOOR)
    assert advantage_of(weights, same) == pytest.approx([want] * len(same), abs=1e-6)


@given(weighted())
def test_an_answer_below_the_floor_never_has_a_positive_advantage(table) -> None:
    weights, quality = table
    for value, row in zip(advantage_of(weights, quality), quality, strict=True):
        assert -1.0 <= value <= 1.0
        assert value <= 0.0 or min(row) >= FLOOR


@given(weighted())
def test_a_candidate_without_a_score_has_no_advantage_and_changes_no_other(table) -> None:
    weights, quality = table
    padded = advantage_of([*weights, 0.3], [*quality, [NAN] * len(quality[0])])
    assert padded == pytest.approx([*advantage_of(weights, quality), 0.0], abs=1e-6)


@given(st.floats(0, 500), st.integers(1, 50))
def test_a_negative_has_full_weight_until_the_policy_falls_below_mu(ratio, tokens) -> None:
    assert float(taper(*rows([ratio], [tokens]), beta_n=1.0, trust=0.5)) == 1.0


@given(st.floats(0.501, 50), st.integers(1, 50))
def test_a_negative_past_the_trust_bound_has_no_weight(drop, tokens) -> None:
    assert float(taper(*rows([-drop * tokens], [tokens]), beta_n=1.0, trust=0.5)) == 0.0


@given(st.floats(-60, 60), st.floats(-60, 60), st.integers(1, 50), st.floats(0, 3))
def test_the_taper_lies_in_the_unit_interval_and_rises_with_the_ratio(a, b, n, beta_n) -> None:
    low, high = (
        float(taper(*rows([ratio], [n]), beta_n=beta_n, trust=0.5)) for ratio in sorted((a, b))
    )
    assert 0.0 <= low <= high <= 1.0


@given(st.floats(0, 1), st.floats(-60, 60))
def test_a_positive_advantage_is_never_tapered(advantage, ratio) -> None:
    got = push(*rows([advantage], [ratio], [4.0]), beta_n=1.0, trust=0.5)
    assert float(got) == advantage


def slow_clips(gates, advantage, ratio, tokens, trust) -> Clips:
    seen = clipped = negative = stopped = 0
    for i, g in enumerate(gates):
        for k in range(len(ratio[i])):
            if g == 0:
                continue
            drift = ratio[i][k] / tokens[i][k]
            seen += 1
            clipped += abs(drift) > 3
            if advantage[i][k] < 0:
                negative += 1
                stopped += -drift > trust
    return Clips(clipped / seen if seen else 0.0, stopped / negative if negative else 0.0)


@given(st.lists(st.sampled_from([0.0, 0.4, 1.0]), min_size=1, max_size=4), st.data())
def test_clip_rates_count_open_gates_only(gates, data) -> None:
    def table(values):
        return data.draw(st.lists(st.tuples(values, values, values), min_size=n, max_size=n))

    n = len(gates)
    advantage, ratio = table(st.floats(-1, 1)), table(st.floats(-40, 40))
    tokens = table(st.integers(1, 9))
    got = clip_rates(f64(gates), f64(advantage), f64(ratio), f64(tokens), trust=0.5)
    assert got == slow_clips(gates, advantage, ratio, tokens, 0.5)


@given(st.lists(unit, min_size=1, max_size=5), unit, st.floats(0, 0.5), st.data())
def test_a_better_answer_never_makes_a_record_abstain(reward, conservative, alpha, data) -> None:
    before = abstains(np.array(reward), conservative, alpha)
    k = data.draw(st.integers(0, len(reward) - 1))
    reward[k] = data.draw(st.floats(reward[k], 1))
    assert before or not abstains(np.array(reward), conservative, alpha)


@given(st.lists(unit, min_size=1, max_size=5), unit, st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_worse_judge_never_makes_a_record_stop_abstaining(reward, conservative, a, b) -> None:
    good, bad = sorted((a, b))
    if abstains(np.array(reward), conservative, good):
        assert abstains(np.array(reward), conservative, bad)


@given(st.lists(unit, min_size=1, max_size=5), unit, st.floats(0, 0.5))
def test_an_accepted_gold_or_a_rejected_refusal_never_abstains(reward, conservative, alpha) -> None:
    if reward[0] >= 0.5 or conservative < 0.5:
        assert not abstains(np.array(reward), conservative, alpha)


def imitation_of(reward, cfg=None) -> float:
    return float(imitation(f64([reward]), cfg or GateSettings()))


@pytest.mark.parametrize(
    ("reward", "want"),
    [
        (0.95, 1.0),
        (0.85, 1.0),
        (0.8, 1 - (1 - 0.8 - 0.15) / 0.35),
        (0.6, 1 - (1 - 0.6 - 0.15) / 0.35),  # accepted, so imitated, if less
        (0.5, 0.0),
        (0.05, 0.0),
        (NAN, 1.0),
    ],
)
def test_a_gold_is_imitated_by_its_own_score(reward, want) -> None:
    assert imitation_of(reward) == pytest.approx(want)


@given(st.floats(0, 0.499), st.floats(0, 0.5), st.floats(0.5, 2))
def test_a_rejected_gold_is_never_imitated_whatever_the_gate(reward, low, width) -> None:
    assert imitation_of(reward, GateSettings(low=low, width=width)) == 0.0


@given(unit, unit)
def test_imitation_rises_with_the_golds_reward(a, b) -> None:
    low, high = (imitation_of(reward) for reward in sorted((a, b)))
    assert 0.0 <= low <= high <= 1.0
