"""Greedy answers to many prompts: row by row the same whatever else is asked, or several times as
fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from aaft.models.batching import width_batches
from aaft.models.generate import (
    MULTIPLE,
    Completion,
    complete,
    prefill,
    prompt_batches,
    read_start,
)

# Up to these widths of their prompts the batches are full: those that read prompts, which fill a
# processor with fewer rows, and those that decode.
_READ_WIDTH = 96
_FULL_WIDTH = 256


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
    independent: bool = True,
) -> list[Completion]:
    """Greedy completions of ``prompts``, in their order.

    With ``independent`` False batches are filled, whatever their prompts' widths, and what all
    prompts begin with is computed once, which is several times as fast on CPU. Equal prompts in
    equal batches still give equal answers, but another prompt among them may change the rounding,
    and with it a word, of its neighbours'.
    """
    if not prompts:
        return []
    # A window would count the padding between what is shared, or narrower, and what follows.
    apart = not independent and _remembers_all(model)
    shared = common_start(prompts) if apart else 0
    start = read_start(model, prompts[0][:shared]) if shared else None
    results: dict[int, Completion] = {}
    batches = prompt_batches(prompts, batch_size)
    if not independent:
        batches = _full(prompts, batch_size, _FULL_WIDTH if apart else _READ_WIDTH)
    for batch in batches:
        parts = list(_parts(prompts, batch, batch_size, shared)) if apart else [batch]
        ids, mask, cache = _joined(
            [prefill(model, [prompts[i] for i in part], start) for part in parts]
        )
        done = complete(
            model,
            ids,
            mask,
            cache,
            end_id=end_id,
            max_new_tokens=max_new_tokens,
            independent=independent,
        )
        order = [i for part in parts for i in part]
        results.update(zip(order, (row[0] for row in done), strict=True))
        advance(len(batch))
    return [results[i] for i in range(len(prompts))]


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all ``prompts`` have in common, at least two short of the shortest."""
    longest = min(map(len, prompts)) - 2
    same = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return max(0, min(longest, sum(takewhile(bool, same))))


def _full(prompts: Sequence[Sequence[int]], batch_size: int, full: int) -> Iterator[list[int]]:
    """Indices in batches, longest first; those of prompts wider than ``full`` are smaller."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        widest = len(prompts[batch[0]]) if batch else 0
        if batch and len(batch) >= _rows_at(widest, batch_size, full):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _parts(
    prompts: Sequence[Sequence[int]], batch: Sequence[int], batch_size: int, shared: int
) -> Iterator[list[int]]:
    """A batch of `_full` in parts of one width each: what is padded costs as much as what isn't."""
    lengths = [len(prompts[i]) - shared for i in batch]
    for own, rows in width_batches(lengths, batch_size, MULTIPLE):
        size = _rows_at(shared + own, batch_size, _READ_WIDTH)
        for first in range(0, len(rows), size):
            yield [batch[row] for row in rows[first : first + size]]


def _rows_at(widest: int, batch_size: int, full: int) -> int:
    """How many rows of a width a batch has that is full up to the width ``full``."""
    return min(batch_size, max(1, batch_size * full // widest))


def _remembers_all(model: Any) -> bool:
    """Whether each layer's cache holds all keys and values, not those of a sliding window, say.

    Of windows that are made by a mask alone (GPT-Neo's) a cache doesn't tell.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _joined(
    read: Sequence[tuple[torch.Tensor, torch.Tensor, Any]],
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """What `prefill` gave for parts of a batch, as if for all of it; their caches are used up.

    A decoding step costs nearly as much for few rows as for many. Narrow rows get more padding on
    the left.
    """
    if len(read) == 1:
        return read[0]
    widest = max(ids.shape[1] for ids, _, _ in read)

    def stacked(tensors: Sequence[torch.Tensor], size: int, dim: int) -> torch.Tensor:
        after = (0, 0) * (-dim - 1)
        return torch.cat([pad(t, (*after, size - t.shape[dim], 0)) for t in tensors])

    cache = read[0][2]
    for layers in zip(*(cache.layers for _, _, cache in read), strict=True):
        layers[0].keys = stacked([layer.keys for layer in layers], widest - 1, -2)
        layers[0].values = stacked([layer.values for layer in layers], widest - 1, -2)
        for layer in layers[1:]:
            layer.reset()  # or there were two of everything
    ids = stacked([ids for ids, _, _ in read], widest, -1)
    mask = stacked([mask for _, mask, _ in read], widest, -1)
    return ids, mask, cache
