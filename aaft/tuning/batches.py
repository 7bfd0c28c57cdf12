"""Rows of near-equal length computed together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

from aaft.models.packed import PackedRow

Key = TypeVar("Key", bound=Hashable)


def micro_batches(rows: Mapping[Key, PackedRow], tokens: int) -> Iterator[list[Key]]:
    """Keys of ``rows`` in groups of near-equal length, longest first.

    A group holds at most ``tokens`` tokens, padding included, or a single longer row. Rows of one
    length stay in the order of ``rows``.
    """
    batch: list[Key] = []
    width = 0
    for key in sorted(rows, key=lambda key: -rows[key].length):
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        if not batch:
            width = rows[key].length
        batch.append(key)
    if batch:
        yield batch
