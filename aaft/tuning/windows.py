"""Which examples come into one optimiser step.

A window of few rows drawn at random has now three siblings and now none, and so pulls one way and
the other. Each role's examples are therefore spread evenly over an epoch. A guest
(`aaft.tuning.hosts`) stays with its host, whose passage is then computed once for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aaft.tuning.examples import Example


def windows(examples: Sequence[Example], order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield windows of about ``size`` indices: exactly so where nothing has a guest.

    The ``n`` examples of a role come in their order, the ``j``-th at ``(j + 1/2) / n`` of the
    epoch. A window ends at a multiple of ``size``, or where that would part a host from its
    guests at the nearer side of them, and has half of ``size`` at least, but for the last one.

    Args:
        examples: to be visited.
        order: of their indices, all of them; with one role and no guests it stays as it is.
        size: rows of a window.
    """
    window: list[int] = []
    done, end = 0, size
    for unit in _evenly(examples, _units(examples, order)):
        after = done + len(unit)
        if end < after and end - done < after - end and 2 * len(window) >= size:
            yield window
            window, end = [], _next_end(done, size)
        window += unit
        done = after
        if done >= end:
            yield window
            window, end = [], _next_end(done, size)
    if window:
        yield window


def _next_end(done: int, size: int) -> int:
    """The next multiple of ``size`` that is half of it away or more."""
    return size * ((done + size // 2) // size + 1)


def _units(examples: Sequence[Example], order: Sequence[int]) -> list[list[int]]:
    """Every example alone, but for guests whose host is here too: these are behind it."""
    hosts = {examples[i].id for i in order if examples[i].host is None}
    guests: dict[str, list[int]] = {}
    free = []
    for i in order:
        host = examples[i].host
        if host in hosts:
            guests.setdefault(host, []).append(i)
        else:
            free.append(i)
    # An example may be there twice; its guests are behind the first.
    return [[i, *guests.pop(examples[i].id, [])] for i in free]


def _evenly(examples: Sequence[Example], units: Sequence[list[int]]) -> list[list[int]]:
    """The units of each role at equal distances."""
    roles: dict[str, list[list[int]]] = {}
    for unit in units:
        roles.setdefault(examples[unit[0]].role, []).append(unit)
    placed = [
        ((2 * j + 1) / len(own), role, unit)
        for role, own in roles.items()
        for j, unit in enumerate(own)
    ]
    return [unit for *_, unit in sorted(placed, key=lambda entry: entry[:2])]
