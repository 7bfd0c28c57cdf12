"""Attention of one query a row, which is what decoding asks for, on CPU.

torch's fused kernel is made for many queries: of a decoding step of 64 rows it took more than half.
Two batched products and a softmax between them are some ten times as fast, and give a row the same
bits whatever rows are beside it. Models whose attention is not transformers' ``sdpa`` keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_REPLACED = "sdpa"
# What transformers may pass that only its own functions understand.
_SPECIAL = ("softcap", "position_bias", "cache", "s_aux")


def one_query(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by transformers' convention; what isn't one query on CPU goes to its ``sdpa``.

    Query heads that share a key head are rows of one product. Scores have the inputs' dtype, the
    softmax is in float32, as in transformers' ``eager``.

    Args:
        module: the attention layer.
        query: ``[B, H, 1, D]``.
        key: ``[B, H / G, T, D]``.
        value: ``[B, H / G, T, E]``.
        attention_mask: None, or ``[B, 1, 1, T]``: True where a position is seen, or what to add.
        scaling: of the scores; 1 / sqrt(D) by default.
        **kwargs: passed on.

    Returns:
        ``[B, 1, H, E]`` and None.
    """
    heads = 1 if attention_mask is None else attention_mask.shape[1]
    special = any(kwargs.get(name) is not None for name in _SPECIAL)
    if query.shape[2] > 1 or heads > 1 or special or query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        given: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return given
    rows, count, _, size = query.shape
    packed = query.reshape(rows, key.shape[1], count // key.shape[1], size)
    scores = packed @ key.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).reshape(rows, 1, count, value.shape[-1]), None


@contextmanager
def decoding() -> Iterator[None]:
    """Let models whose attention is ``sdpa`` decode with `one_query` meanwhile.

    The function behind the name is exchanged, not the name: models ask whether it is that one.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[_REPLACED] = one_query
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_REPLACED]
