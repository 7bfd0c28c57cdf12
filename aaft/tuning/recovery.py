"""Recovery prefixes (DESIGN 2.7; arXiv:2406.05946): learn to turn back from a bad beginning.

A record is eligible when its gold is rejected (``r_0 < 0.5``) on `OPENED` and the conservative
response is accepted (``r >= 0.5``). A made-up answer of three words is no opening to turn back
from: a policy that did so would leave right answers too. At each visit ``R`` lengths are drawn
without replacement::

    c ~ Uniform{1, ..., min(C, L_0 - 1)}      L_0 = tokens of the gold, end token included
    prompt + first c tokens of the gold  ->  conservative response

and only the conservative response has a loss, so the policy learns to leave a rejected answer that
has begun, never to begin it. A policy that has only learned how to open its answers gives in when
the opening is put into its mouth.

The draw is a hash of seed, epoch and record id: the order of rows, the number of processes and a
restart don't change it. DESIGN has one prefix at every other visit, in place of the plain target;
in a run of one epoch that is too few to learn from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aaft.config import ACCEPTED

OPENED = "safety"
"""The objective whose rejected answers are put into a policy's mouth."""


def turns_back(
    failed: str | None, quality: npt.NDArray[np.float64], objectives: Sequence[str]
) -> bool:
    """Whether a record's gold is a bad opening: `OPENED` is what failed, of the gold too.

    Args:
        failed: the objective that failed (`aaft.tuning.abstain.failed_objective`).
        quality: ``q``, ``[K+1, M]`` or NaN, gold first.
        objectives: names of the M columns.
    """
    return failed == OPENED and bool(quality[0, list(objectives).index(OPENED)] < ACCEPTED)


def recovery_prefixes(
    example_id: str, gold: Sequence[int], epoch: int, seed: int, *, longest: int, count: int
) -> list[tuple[int, ...]]:
    """Beginnings of ``gold`` to turn back from at this visit, all different, longest last.

    Args:
        example_id: the record's id.
        gold: its response's ``L_0`` token ids, the last of them the end token.
        epoch: which visit, from 0.
        seed: of the run.
        longest: ``C``, most tokens of a prefix.
        count: ``R``, most prefixes; 0 switches recovery off.
    """

    def draw(length: int) -> bytes:
        text = f"recovery/{seed}/{epoch}/{example_id}/{length}"
        return hashlib.sha256(text.encode()).digest()

    lengths = sorted(range(1, 1 + min(longest, len(gold) - 1)), key=draw)
    return [tuple(gold[:c]) for c in sorted(lengths[:count])]
