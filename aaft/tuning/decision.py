"""What follows from a record's scores: abstention, recovery, or a look by a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from aaft.config import ACCEPTED
from aaft.tuning.abstain import abstains, failed_objective
from aaft.tuning.recovery import turns_back


@dataclass(frozen=True)
class Remedy:
    """A conservative response: its ids with the end token, and its ``r``, NaN where unscored."""

    ids: list[int]
    reward: float


class Decided(TypedDict):
    """The fields of an `Example` that its scores decide."""

    abstention: list[int] | None
    conservative: list[int] | None
    unsafe: bool
    review: bool


def decide(
    quality: npt.NDArray[np.float64],
    reward: npt.NDArray[np.float64],
    objectives: Sequence[str],
    declining: Mapping[str, Remedy],
    false_accept: Mapping[str, float],
) -> Decided:
    """Decide by the objective that failed (`failed_objective`).

    Args:
        quality: ``q``, ``[K+1, M]`` or NaN, gold first.
        reward: ``r = min_m q``, ``[K+1]`` or NaN.
        objectives: names of the ``M`` columns.
        declining: conservative responses by the objective that they answer for.
        false_accept: of each objective's judge; an objective without one counts as 0.
    """
    failed = failed_objective(quality, objectives)
    target = declining.get(failed or "")
    rejected = bool(reward[0] < ACCEPTED)
    answer, accepted, declines = None, False, False
    if target is not None:
        answer, accepted = target.ids, target.reward >= ACCEPTED
        declines = abstains(reward, target.reward, false_accept.get(failed or "", 0.0))
    return Decided(
        abstention=answer if declines else None,
        conservative=answer if rejected and accepted else None,
        unsafe=turns_back(failed, quality, objectives),
        review=failed is not None and target is None and bool((reward < ACCEPTED).all()),
    )
