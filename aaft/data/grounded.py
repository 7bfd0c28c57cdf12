"""Disjoint pools of grounded questions, and the ways to spoil a pair."""

from __future__ import annotations

from dataclasses import dataclass

from aaft.data.separation import Taken
from aaft.data.sources import Grounded
from aaft.data.text import contains, normalise, ranked, sentences, unique

MAX_PASSAGE = 280


@dataclass(frozen=True)
class Pools:
    """Rows for each use, disjoint by question and by passage. ``spare`` rows lend passages."""

    bench: list[Grounded]
    train: list[Grounded]
    spare: list[Grounded]
    judge: list[Grounded]
    study: list[Grounded]


def split_pools(
    rows: list[Grounded], bench: int, train: int, spare: int, judge: int, study: int = 0
) -> Pools:
    """Deal usable rows into pools of the given sizes (rows).

    A usable row has a passage of at most ``MAX_PASSAGE`` characters with the right answer in it,
    and that isn't a bare yes or no. Nothing near a bench question or passage gets into another
    pool.
    """
    usable = [row for row in rows if _usable(row)]
    usable = unique(unique(usable, lambda row: row.passage), lambda row: row.question)
    usable = ranked(usable, "grounded", lambda row: row.question)
    for_bench, rest = usable[:bench], usable[bench:]
    questions = Taken(near=(row.question for row in for_bench))
    passages = Taken(near=(row.passage for row in for_bench))
    rest = [row for row in rest if questions.free(row.question) and passages.free(row.passage)]
    parts = []
    for size in (train, spare, judge, study):
        parts.append(rest[:size])
        rest = rest[size:]
    return Pools(for_bench, *parts)


def _usable(row: Grounded) -> bool:
    return (
        len(row.passage) <= MAX_PASSAGE
        and normalise(row.right) not in ("", "yes", "no")
        and contains(row.passage, row.right)
    )


def lies(row: Grounded) -> bool:
    """Whether the made-up answer is really wrong: it doesn't contain the right one."""
    return not contains(row.wrong, row.right)


def foreign_passage(row: Grounded, others: list[Grounded], start: int) -> str:
    """The first passage of ``others`` from ``start`` on that doesn't contain the answer.

    ``others`` is walked as a ring; ``ValueError`` when every passage contains it.
    """
    for other in others[start:] + others[:start]:
        if other.passage != row.passage and not contains(other.passage, row.right):
            return other.passage
    raise ValueError(f"every passage contains {row.right!r}")


def foreign_answer(row: Grounded, others: list[Grounded], start: int) -> str:
    """The first right answer of ``others`` from ``start`` on that isn't in the row's passage."""
    for other in others[start:] + others[:start]:
        if not contains(row.passage, other.right):
            return other.right
    raise ValueError("every answer is in the passage")


def supporting_sentence(row: Grounded) -> str | None:
    """The passage's sentence with the right answer, unless it is the answer itself."""
    for sentence in sentences(row.passage):
        if contains(sentence, row.right) and normalise(sentence) != normalise(row.right):
            return sentence
    return None
