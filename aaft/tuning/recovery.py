"""Recovery prefixes (DESIGN 2.7; arXiv:2406.05946): learn to turn back from a bad beginning.

A record is eligible when its gold is rejected (``r_0 < 0.5``) and the conservative response to what
failed is accepted (``r >= 0.5``). At each visit ``R`` beginnings are drawn, half of them, rounded
up, of the gold and the others of what the reference says to harmless requests (`openings`)::

    own       c ~ Uniform{1, ..., min(C, L_0 - 1)}, distinct      L_0 = tokens of the gold
    borrowed  an opening, then c ~ Uniform{1, ..., min(C, L)}              L = its tokens
    prompt + first c tokens  ->  conservative response

and only the conservative response has a loss, so the policy learns to leave an answer that has
begun, never to begin it. A policy that has only learned how to open its answers gives in when the
opening is put into its mouth.

Borrowed beginnings are our own. Rejected golds open like their authors, while the opening that an
attacker chooses is a helpful one, such as the model would give to a harmless request.

The draw is a hash of seed, epoch and record id: the order of rows, the number of processes and a
restart don't change it. DESIGN has one prefix at every other visit, in place of the plain target;
in a run of one epoch that is too few to learn from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from aaft.config import ACCEPTED
from aaft.tuning.examples import Example

Prefix = tuple[int, ...]


def openings(examples: Sequence[Example]) -> list[Prefix]:
    """Tokens of the reference's accepted answers to requests whose gold is accepted too.

    Without those about a passage, for an answer of two words is no opening, and without their last
    token, which may be the end of the answer.
    """
    return [
        tuple(candidate[:-1])
        for example in examples
        if not example.grounded and example.reward[0] >= ACCEPTED
        for candidate, reward in zip(example.candidates[1:], example.reward[1:], strict=True)
        if reward >= ACCEPTED and len(candidate) > 1
    ]


def recovery_prefixes(
    example_id: str,
    gold: Sequence[int],
    epoch: int,
    seed: int,
    *,
    longest: int,
    count: int,
    borrowed: Sequence[Prefix] = (),
) -> list[Prefix]:
    """Beginnings to turn back from at this visit, all different, those of ``gold`` first.

    Args:
        example_id: the record's id.
        gold: its response's ``L_0`` token ids, the last of them the end token.
        epoch: which visit, from 0.
        seed: of the run.
        longest: ``C``, most tokens of a prefix.
        count: ``R``, most prefixes; 0 switches recovery off.
        borrowed: of `openings`; without any, all prefixes are the gold's own.
    """

    def draw(what: object) -> int:
        text = f"recovery/{seed}/{epoch}/{example_id}/{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    foreign = count // 2 if borrowed and longest else 0
    lengths = sorted(range(1, 1 + min(longest, len(gold) - 1)), key=draw)
    prefixes = [tuple(gold[:c]) for c in sorted(lengths[: count - foreign])]
    for n in range(foreign):
        opening = borrowed[draw(f"opening/{n}") % len(borrowed)]
        prefixes.append(opening[: 1 + draw(f"length/{n}") % min(longest, len(opening))])
    return list(dict.fromkeys(prefixes))
