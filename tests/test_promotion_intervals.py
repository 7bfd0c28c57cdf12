"""Confidence intervals: slow versions, known values, invariants, coverage."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aaft.promotion.intervals import mean_interval, paired_difference, rate_interval, wilson

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
SCORES = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=40
)
PAIRS = st.one_of(BITS, SCORES)


def pairs_of(both, only_candidate, only_reference, neither):
    pairs = [(1, 1)] * both + [(1, 0)] * only_candidate
    pairs += [(0, 1)] * only_reference + [(0, 0)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def slow_wilson(successes, n, confidence):
    """All p whose score test does not reject the observed rate, by bisection."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n

    def rejected(p):
        return (rate - p) ** 2 > z * z * p * (1 - p) / n

    def edge(outside):
        inside = rate
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    return edge(0.0), edge(1.0)


def slow_newcombe(e, f, g, h, confidence):
    """Newcombe 1998, method 10, written out from the paper's cell letters."""
    n = e + f + g + h
    p1, p2 = (e + f) / n, (e + g) / n
    l1, u1 = slow_wilson(e + f, n, confidence)
    l2, u2 = slow_wilson(e + g, n, confidence)
    a = (e + f) * (g + h) * (e + g) * (f + h)
    b = e * h - f * g
    c = b - n / 2 if b > n / 2 else min(0, b)
    phi = c / math.sqrt(a) if a else 0
    delta = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    epsilon = math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    return p1 - p2, p1 - p2 - delta, p1 - p2 + epsilon


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 150), (7, 150), (75, 150), (150, 150)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_the_set_of_rates_that_the_score_test_accepts(successes, n, confidence):
    assert wilson(successes, n, confidence) == pytest.approx(
        slow_wilson(successes, n, confidence), abs=1e-9
    )


def test_wilson_known_value():
    # 10 of 20, a textbook case: 0.2993 to 0.7007.
    assert wilson(10, 20, 0.95) == pytest.approx((0.2993, 0.7007), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes of"):
        wilson(successes, n, 0.95)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),  # Cavo et al. 2012
        ((1, 1, 7, 12), (-0.2857, -0.5069, -0.0256)),  # Bentur et al. 2009
        ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),  # Newcombe 1998, table II
    ],
)
def test_paired_difference_matches_published_intervals(table, expected):
    assert paired_difference(*pairs_of(*table), 0.95) == pytest.approx(expected, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_paired_difference_matches_the_slow_version(table, confidence):
    slow = slow_newcombe(*table, confidence)
    clipped = (slow[0], max(slow[1], -1), min(slow[2], 1))
    assert paired_difference(*pairs_of(*table), confidence) == pytest.approx(clipped, abs=1e-7)


def test_paired_scores_use_students_t_interval():
    rng = random.Random(3)
    candidate = [rng.random() for _ in range(80)]
    reference = [rng.random() for _ in range(80)]
    test = stats.ttest_rel(candidate, reference).confidence_interval(0.95)
    expected = (statistics.fmean(candidate) - statistics.fmean(reference), test.low, test.high)
    assert paired_difference(candidate, reference, 0.95) == pytest.approx(expected, abs=1e-12)


def test_mean_interval_is_students_when_the_scores_vary():
    rng = random.Random(5)
    values = [rng.random() for _ in range(40)]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 5, 150])
def test_equal_scores_leave_room_for_unseen_ones(value, n):
    low, high = mean_interval([value] * n, 0.95)
    unseen = wilson(0, n, 0.95)[1]
    assert (low, high) == pytest.approx((value * (1 - unseen), value + (1 - value) * unseen))
    assert high - low == pytest.approx(unseen)


def test_almost_equal_scores_leave_room_too():
    low, high = mean_interval([0.5] * 9 + [0.5001], 0.95)
    assert high - low > 0.2


@pytest.mark.parametrize("value", [0, 1])
def test_mean_interval_of_equal_bits_is_wilsons(value):
    assert mean_interval([value] * 30, 0.95) == pytest.approx(wilson(30 * value, 30, 0.95))


def test_one_score_says_nothing_about_the_mean():
    assert mean_interval([0.4], 0.95) == (0.0, 1.0)
    assert paired_difference([0.4], [0.6], 0.95) == (pytest.approx(-0.2), -1.0, 1.0)


def test_rate_interval_is_wilsons_for_bits_and_students_for_scores():
    assert rate_interval([1, 0, 0, 1.0], 0.95) == wilson(2, 4, 0.95)
    assert rate_interval([1, 0, 0.5, 1.0], 0.95) == mean_interval([1, 0, 0.5, 1.0], 0.95)


@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [float("nan")], [float("inf"), 0]])
def test_scores_out_of_range_are_refused(values):
    for interval in (mean_interval, rate_interval):
        with pytest.raises(ValueError, match=r"no values|not in"):
            interval(values, 0.95)
    with pytest.raises(ValueError, match=r"no values|not in"):
        paired_difference(values, values, 0.95)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([0, 1], [0], 0.95)


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.floats(0.55, 0.98))
def test_interval_contains_the_difference_and_stays_in_range(pairs, confidence):
    candidate, reference = zip(*pairs, strict=True)
    difference, low, high = paired_difference(candidate, reference, confidence)
    expected = statistics.fmean(candidate) - statistics.fmean(reference)
    assert difference == pytest.approx(expected, abs=1e-9)
    assert -1 <= low <= difference <= high <= 1
    assert high - low > 1e-3


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.floats(0.55, 0.98))
def test_swapping_the_sides_negates_the_interval(pairs, confidence):
    candidate, reference = zip(*pairs, strict=True)
    difference, low, high = paired_difference(candidate, reference, confidence)
    assert paired_difference(reference, candidate, confidence) == pytest.approx(
        (-difference, -high, -low), abs=1e-9
    )


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.floats(0.55, 0.98), st.floats(0.005, 0.015))
def test_more_confidence_widens_the_interval(pairs, confidence, more):
    candidate, reference = zip(*pairs, strict=True)
    _, low, high = paired_difference(candidate, reference, confidence)
    _, lower, higher = paired_difference(candidate, reference, confidence + more)
    assert lower <= low + 1e-12
    assert higher >= high - 1e-12


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_matter(pairs, rng):
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    before = paired_difference(*zip(*pairs, strict=True), 0.95)
    assert paired_difference(*zip(*shuffled, strict=True), 0.95) == pytest.approx(before, abs=1e-12)


def bit_pair(rng):
    """Correlated bits: the reference is right half the time, the candidate copies it often."""
    reference = int(rng.random() < 0.5)
    candidate = reference if rng.random() < 0.7 else int(rng.random() < 0.1)
    return candidate, reference


def rare_bit_pair(rng):
    return int(rng.random() < 0.02), int(rng.random() < 0.03)


def f1_pair(rng):
    """Word-overlap scores: many zeros, many ones, some between."""

    def score(right):
        if rng.random() < 0.3:
            return rng.choice([0.25, 0.4, 0.5, 0.8])
        return float(rng.random() < right)

    return score(0.3), score(0.6)


@pytest.mark.parametrize(
    ("draw", "truth"), [(bit_pair, -0.12), (rare_bit_pair, -0.01), (f1_pair, -0.21)]
)
@pytest.mark.parametrize("n", [30, 150])
def test_a_95_percent_interval_covers_the_truth_about_95_percent_of_the_time(draw, truth, n):
    rng = random.Random(11)
    repeats = 1000
    covered = 0
    for _ in range(repeats):
        candidate, reference = zip(*(draw(rng) for _ in range(n)), strict=True)
        _, low, high = paired_difference(candidate, reference, 0.95)
        covered += low <= truth <= high
    # Three standard errors of 1,000 repeats below 0.95.
    assert covered / repeats >= 0.929
