"""Confidence intervals for benchmark rates and for paired differences of rates.

Every score lies in [0, 1]. Sources: Wilson 1927 (score interval); Newcombe 1998, Statistics in
Medicine 17:2635-2650, method 10 (paired difference of proportions); Student's t otherwise.

The t-interval of a handful of equal scores is a point, which claims a certainty that nobody
has. So it is never narrower than what unseen scores could still do: after n draws with no
surprise, surprises may have a share of up to h = Wilson's upper bound for 0 of n, and they may
lie anywhere in [0, 1]; the mean m then lies in [m - h m, m + h (1 - m)]. For scores that are
all 0 or all 1 this is Wilson's interval, and it is narrower than the t-interval whenever the
scores vary noticeably.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

Interval = tuple[float, float]


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Wilson's score interval for a proportion.

    Args:
        successes: 0 to n.
        n: trials, at least 1.
        confidence: two-sided level in (0, 1).

    Raises:
        ValueError: n is not positive or successes are out of range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    bounds = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # Rounding must not push the bound past the estimate at 0 and at n.
    return min(float(bounds.low), successes / n), max(float(bounds.high), successes / n)


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student's t-interval for the mean of scores in [0, 1], with the floor described above.

    One value says nothing about the spread: its interval is all of [0, 1].

    Raises:
        ValueError: no values, or a value that is not a number in [0, 1].
    """
    _check(values)
    n = len(values)
    if n == 1:
        return 0.0, 1.0
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    unseen = wilson(0, n, confidence)[1]
    low = min(mean - half, mean - unseen * mean)
    high = max(mean + half, mean + unseen * (1 - mean))
    return max(low, 0.0), min(high, 1.0)


def rate_interval(values: Sequence[float], confidence: float) -> Interval:
    """Interval for the mean of scores: Wilson's when all are 0 or 1, else the t-interval.

    Raises:
        ValueError: no values, or a value that is not a number in [0, 1].
    """
    _check(values)
    if is_binary(values):
        return wilson(round(math.fsum(values)), len(values), confidence)
    return mean_interval(values, confidence)


def paired_difference(
    candidate: Sequence[float], reference: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """Mean of ``candidate - reference`` over the same examples, with its interval.

    Newcombe's method 10 when every score is 0 or 1; otherwise the interval of
    ``mean_interval`` for the differences, moved from [-1, 1] to [0, 1] and back.

    Args:
        candidate: scores in [0, 1].
        reference: scores in [0, 1]; position i is the same example as the candidate's.
        confidence: two-sided level in (0, 1).

    Returns:
        (difference, low, high), each in [-1, 1].

    Raises:
        ValueError: no values, different lengths, or a value that is not in [0, 1].
    """
    _check(candidate)
    _check(reference)
    if len(candidate) != len(reference):
        raise ValueError(f"paired samples of {len(candidate)} and {len(reference)} values")
    if is_binary(candidate) and is_binary(reference):
        return _newcombe(candidate, reference, confidence)
    n = len(candidate)
    pairs = list(zip(candidate, reference, strict=True))
    difference = math.fsum(a - b for a, b in pairs) / n
    low, high = mean_interval([(1 + a - b) / 2 for a, b in pairs], confidence)
    return difference, min(2 * low - 1, difference), max(2 * high - 1, difference)


def is_binary(values: Sequence[float]) -> bool:
    """Whether every value is 0 or 1."""
    return all(value in (0, 1) for value in values)


def _newcombe(
    candidate: Sequence[float], reference: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """Wilson's intervals of both rates, squared and added with their correlation phi."""
    n = len(candidate)
    pairs = list(zip(candidate, reference, strict=True))
    both = pairs.count((1, 1))
    only_candidate = pairs.count((1, 0))
    only_reference = pairs.count((0, 1))
    neither = pairs.count((0, 0))
    low1, high1 = wilson(both + only_candidate, n, confidence)
    low2, high2 = wilson(both + only_reference, n, confidence)
    rate1 = (both + only_candidate) / n
    rate2 = (both + only_reference) / n
    phi = _phi(both, only_candidate, only_reference, neither)
    difference = (only_candidate - only_reference) / n
    below = _add(rate1 - low1, high2 - rate2, phi)
    above = _add(rate2 - low2, high1 - rate1, phi)
    return difference, max(difference - below, -1.0), min(difference + above, 1.0)


def _phi(both: int, only_candidate: int, only_reference: int, neither: int) -> float:
    """Correlation of the pairs, a positive one shrunk by Newcombe's continuity correction."""
    n = both + only_candidate + only_reference + neither
    margins = (
        (both + only_candidate)
        * (only_reference + neither)
        * (both + only_reference)
        * (only_candidate + neither)
    )
    if margins == 0:
        return 0.0
    cross = float(both * neither - only_candidate * only_reference)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    return cross / math.sqrt(margins)


def _add(x: float, y: float, phi: float) -> float:
    # Not negative in exact arithmetic, as |phi| <= 1.
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))


def _check(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no values: an interval needs at least one")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"score {value} is not in [0, 1]")
