"""Batches whose padded width is a property of each row, so that neighbours change nothing.

A forward pass on CPU in bfloat16 gives a row the same bits whatever the batch's size, the row's
place and its neighbours, as long as the padded width is the same. So a row is padded to its own
length rounded up, and only rows of equal width share a batch: what a row scores then depends on
that row alone, not on what else was asked for. Layers that see one row a text need `ROWS` of them
at a time for that (`filled`): a product of few rows rounds differently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

ROWS = 4
"""Products of a multiple of this many rows gave each row the same bits, on 1 to 8 threads.

In float32 1 to 3, and on some numbers of threads 5 to 7 and 9 to 11, did not; in bfloat16 1 and 2.
"""


def filled(batch: Sequence[int]) -> list[int]:
    """A non-empty ``batch``, its first row repeated until there is a multiple of `ROWS`."""
    return [*batch, *[batch[0]] * (-len(batch) % ROWS)]


def width(length: int, multiple: int) -> int:
    """Padded width of a row of ``length`` tokens: rounded up to a multiple, at least one."""
    return max(1, -(-length // multiple)) * multiple


def width_batches(
    lengths: Sequence[int], batch_size: int, multiple: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield ``(padded width, indices)`` for rows of ``lengths`` tokens, each row once.

    Narrow rows first; rows of equal width stay in input order; at most ``batch_size`` a batch.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[width(length, multiple)].append(index)
    for padded in sorted(groups):
        rows = groups[padded]
        for start in range(0, len(rows), batch_size):
            yield padded, rows[start : start + batch_size]
