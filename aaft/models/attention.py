"""Attention of one query a row, which is what decoding asks for, on CPU.

torch's fused kernel is made for many queries: of a decoding step of 64 rows it took more than half.
Two batched products and a softmax between them are some ten times as fast, and give a row the same
bits whatever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ONE_QUERY = "aaft_one_query"
"""Name of `one_query` among transformers' attention implementations."""

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
    """Attention by transformers' convention; several queries go to its ``sdpa``.

    Query heads that share a key head are rows of one product. Scores have the inputs' dtype, the
    softmax is in float32, as in transformers' ``eager``.

    Args:
        module: the attention layer.
        query: ``[B, H, 1, D]``.
        key: ``[B, H / G, T, D]``.
        value: like ``key``.
        attention_mask: None, or ``[B, 1, 1, T]``: True where a position is seen, or what to add.
        scaling: of the scores; 1 / sqrt(D) by default.
        **kwargs: passed on.

    Returns:
        ``[B, 1, H, D]`` and None.
    """
    heads = 1 if attention_mask is None else attention_mask.shape[1]
    special = any(kwargs.get(name) is not None for name in _SPECIAL)
    if query.shape[2] > 1 or heads > 1 or special:
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
    return (weights @ value).reshape(rows, 1, count, size), None


@contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Let ``model`` decode with `one_query` meanwhile: on CPU, if its attention is ``sdpa``."""
    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ONE_QUERY, one_query)
    AttentionMaskInterface.register(ONE_QUERY, sdpa_mask)
    model.set_attn_implementation(ONE_QUERY)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
