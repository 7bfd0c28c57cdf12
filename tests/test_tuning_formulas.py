"""Every formula of DESIGN 2.2 to 2.6 against a slow, obvious version, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import GateSettings
from aaft.data.records import Record
from aaft.scoring.conservative import REFUSALS, conservative_responses
from aaft.tuning import abstain
from aaft.tuning.advantage import advantages
from aaft.tuning.gate import always_closed, gate
from aaft.tuning.taper import push, taper
from aaft.tuning.trainer import learning_rate_factor
from aaft.tuning.weights import candidate_weights, standing

NAN = math.nan
unit = st.floats(0, 1)
maybe = st.one_of(unit, st.just(NAN))


@st.composite
def tables(draw):
    """(q, u, D, L) for one record: K+1 candidates, M objectives; q and u missing together."""
    k, m = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    q = [[draw(maybe) for _ in range(m)] for _ in range(k)]
    u = [[NAN if math.isnan(v) else draw(unit) for v in row] for row in q]
    ratio = [draw(st.floats(-40, 40)) for _ in range(k)]
    tokens = [draw(st.integers(1, 30)) for _ in range(k)]
    return q, u, ratio, tokens


def batch(*values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def slow_weights(ratio, tokens, eta):
    scores = [eta * min(3.0, max(-3.0, d / n)) for d, n in zip(ratio, tokens, strict=True)]
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def slow_standing(w, q, u):
    values = []
    for m in range(len(q[0])):
        have = [k for k in range(len(w)) if not math.isnan(q[k][m])]
        if have:
            values.append(sum(w[k] * q[k][m] for k in have) / sum(w[k] for k in have))
    have = [k for k in range(len(w)) if any(not math.isnan(x) for x in u[k])]
    if not values:
        return NAN, NAN
    worst = {k: max(x for x in u[k] if not math.isnan(x)) for k in have}
    return min(values), sum(w[k] * worst[k] for k in have) / sum(w[k] for k in have)


@given(tables(), st.floats(0, 5))
def test_weights_value_and_uncertainty_equal_the_slow_version(table, eta) -> None:
    q, u, ratio, tokens = table
    tq, tu, td, tl = batch(q, u, ratio, tokens)
    w = candidate_weights(td, tl, eta)
    assert w[0].tolist() == pytest.approx(slow_weights(ratio, tokens, eta), rel=1e-9)
    got = standing(w, tq, tu)
    value, doubt = slow_standing(w[0].tolist(), q, u)
    assert float(got.value) == pytest.approx(value, abs=1e-9, nan_ok=True)
    assert float(got.uncertainty) == pytest.approx(doubt, abs=1e-9, nan_ok=True)
    assert float(got.ess) == pytest.approx(1 / sum(x * x for x in w[0].tolist()))


def test_eta_zero_is_the_static_gate() -> None:
    w = candidate_weights(torch.tensor([[9.0, -9.0]]), torch.tensor([[1.0, 1.0]]), 0.0)
    assert w.tolist() == [[0.5, 0.5]]


@given(unit, unit)
def test_gate_equals_the_slow_version(value, doubt) -> None:
    slow = min(1.0, max(0.0, ((1 - value * (1 - 0.5 * doubt)) - 0.15) / 0.35))
    got = gate(*(torch.tensor([x], dtype=torch.float64) for x in (value, doubt)), GateSettings())
    assert float(got) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "doubt", "want"),
    [(1.0, 0.0, 0.0), (0.86, 0.0, 0.0), (0.5, 0.0, 1.0), (0.0, 1.0, 1.0), (0.9, 1.0, 1.0)],
)
def test_gate_is_closed_when_aligned_and_open_when_not(value, doubt, want) -> None:
    got = gate(torch.tensor([value]), torch.tensor([doubt]), GateSettings())
    assert float(got) == pytest.approx(want, abs=1e-6)


def test_an_unscored_record_trains_as_plain_sft() -> None:
    q = torch.full((1, 2, 2), NAN)
    state = standing(torch.tensor([[0.5, 0.5]]), q, q)
    assert math.isnan(float(state.value))
    assert float(gate(state.value, state.uncertainty, GateSettings())) == 0.0


@given(tables())
def test_a_gate_called_always_closed_is_closed_under_every_policy(table) -> None:
    q, u, ratio, tokens = table
    tq, tu, td, tl = batch(q, u, ratio, tokens)
    state = standing(candidate_weights(td, tl, 3.0), tq, tu)
    if bool(always_closed(tq, tu, GateSettings())):
        assert float(gate(state.value, state.uncertainty, GateSettings())) < 1e-9


def slow_advantages(w, q, delta, floor):
    k_all, m_all = range(len(w)), range(len(q[0]))
    out = []
    for k in k_all:
        gains = []
        for m in m_all:
            if math.isnan(q[k][m]):
                continue
            others = [j for j in k_all if j != k and not math.isnan(q[j][m])]
            baseline = floor
            if others:
                mean = sum(w[j] * q[j][m] for j in others) / sum(w[j] for j in others)
                baseline = max(mean - delta, floor)
            gains.append(q[k][m] - baseline)
        gain = sum(gains) / len(gains) if gains else 0.0
        rejected = any(not math.isnan(x) and x < floor for x in q[k])
        out.append(min(gain, 0.0) if rejected else gain)
    return out


@given(tables(), st.floats(0, 0.2), unit)
def test_advantages_equal_the_slow_version(table, delta, floor) -> None:
    q, _, ratio, tokens = table
    # Weights of ordinary size: with one of nearly 1 a difference of sums has few digits left.
    w = slow_weights([r / 40 for r in ratio], tokens, 1.0)
    tq, tw = batch(q, w)
    got = advantages(tw, tq, delta=delta, floor=floor)[0].tolist()
    assert got == pytest.approx(slow_advantages(w, q, delta, floor), abs=1e-6)


def test_an_only_candidate_is_measured_against_the_floor() -> None:
    got = advantages(torch.ones(1, 1), torch.tensor([[[0.9]]]), delta=0.05, floor=0.5)
    assert float(got) == pytest.approx(0.4)


@given(st.floats(-60, 60), st.integers(1, 40), st.floats(-1, 1))
def test_taper_and_push_equal_the_slow_version(ratio, tokens, advantage) -> None:
    slow = 0.0 if -ratio / tokens > 0.5 else 2 / (1 + math.exp(-1.0 * min(ratio, 0.0)))
    d, n, a = batch([ratio], [tokens], [advantage])
    got = float(taper(d, n, beta_n=1.0, trust=0.5))
    assert got == pytest.approx(slow, rel=1e-9, abs=1e-30)
    phi = float(push(a, d, n, beta_n=1.0, trust=0.5))
    assert phi == pytest.approx(max(advantage, 0) - max(-advantage, 0) * slow, abs=1e-9)


def test_negatives_fade_as_the_policy_moves_away_and_then_stop() -> None:
    ratios = torch.tensor([[0.0, -1.0, -2.0, -4.9, -5.1]])
    weights = taper(ratios, torch.full((1, 5), 10.0), beta_n=1.0, trust=0.5)[0].tolist()
    assert weights[0] == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0


@pytest.mark.parametrize("n", [1, 3, 5, 9])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 0.4])
def test_accepted_by_mistake_is_the_binomial_quantile(n, alpha) -> None:
    total, slow = 0.0, n
    for k in range(n + 1):
        total += math.comb(n, k) * alpha**k * (1 - alpha) ** (n - k)
        if total >= 0.95:
            slow = k
            break
    assert abstain.accepted_by_mistake(n, alpha) == slow


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20))
def test_need_falls_with_the_geometric_mean_of_token_probabilities(probabilities) -> None:
    slow = math.prod(p ** (1 / len(probabilities)) for p in probabilities)
    logprob = sum(math.log(p) for p in probabilities)
    found = abstain.need(logprob, len(probabilities))
    assert found == pytest.approx((1 - slow) ** 2, abs=1e-9)


def test_rounding_above_certainty_leaves_no_need() -> None:
    assert abstain.need(1e-6, 3) == 0.0


@pytest.mark.parametrize(
    ("reward", "conservative", "alpha", "want"),
    [
        ([0.1, 0.2, 0.1], 0.9, 0.01, True),
        ([0.1, 0.9, 0.1], 0.9, 0.01, False),
        ([0.1, 0.9, 0.1], 0.9, 0.10, True),
        ([0.9, 0.1, 0.1], 0.9, 0.10, False),  # an accepted gold is something to learn
        ([0.1, 0.1, 0.1], 0.2, 0.01, False),  # declining would be wrong too
        ([0.1], 0.9, 0.0, True),
        # The gold is known to be rejected: two of two accepted are more than mistakes of 0.15.
        ([0.1, 0.9, 0.9], 0.9, 0.15, False),
        ([0.1, 0.9, 0.1], 0.9, 0.15, True),
    ],
)
def test_abstains_when_everything_is_misaligned(reward, conservative, alpha, want) -> None:
    assert abstain.abstains(np.array(reward), conservative, alpha) is want


@pytest.mark.parametrize(
    ("quality", "want"),
    [
        ([[0.1, 0.9], [0.2, NAN]], "safety"),
        # The mean of comply is lower, but there the gold is accepted.
        ([[0.2, 0.9], [0.9, 0.5], [0.9, 0.1]], "safety"),
        ([[0.4, 0.4], [0.9, 0.1]], "comply"),
        ([[0.6, 0.9], [0.1, 0.9]], "safety"),
        ([[NAN, NAN], [0.9, 0.1]], "comply"),
        ([[NAN, NAN], [NAN, NAN]], None),
    ],
)
def test_the_failed_objective_has_the_lowest_mean_where_the_gold_is_rejected(quality, want) -> None:
    assert abstain.failed_objective(np.array(quality), ["safety", "comply"]) == want


def test_conservative_responses_depend_on_the_id_and_fit_the_record() -> None:
    def responses(number: int, context: str | None) -> dict[str, str]:
        record = Record(str(number), [{"role": "user", "content": "q"}], "a", context, "s")
        return {c.objective: c.text for c in conservative_responses(record)}

    picks = {responses(i, None)["safety"] for i in range(50)}
    assert picks == set(REFUSALS)
    assert set(responses(1, None)) == {"safety"}
    assert set(responses(1, "passage")) == {"safety", "grounding"}


def test_an_answer_rejected_on_one_objective_is_never_pushed_up() -> None:
    quality = torch.tensor([[[0.99, 0.45], [0.6, 0.45]]])
    got = advantages(torch.tensor([[0.5, 0.5]]), quality, delta=0.05, floor=0.5)
    assert float(got[0, 0]) <= 0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (10, 1), (75, 4), (20, 0)])
def test_every_step_learns_and_the_rate_rises_then_falls(steps, warmup) -> None:
    rates = [learning_rate_factor(step, warmup, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
