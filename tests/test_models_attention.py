"""Attention of one query against torch's own, and what must not change a row's bits."""

from __future__ import annotations

import pytest
import torch
from tiny import policy

from aaft.models.attention import ONE_QUERY, decoding, one_query

F = torch.nn.functional


def given(
    rows: int, keys: int, dtype: torch.dtype, queries: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, value and a mask that hides as many first positions of a row as its number."""
    draw = torch.Generator().manual_seed(keys)
    query = torch.randn(rows, 6, queries, 16, generator=draw).to(dtype)
    key = torch.randn(rows, 2, keys, 16, generator=draw).to(dtype)
    value = torch.randn(rows, 2, keys, 16, generator=draw).to(dtype)
    seen = torch.arange(keys) >= torch.arange(rows)[:, None]
    return query, key, value, seen[:, None, None, :]


def slow(query, key, value, seen) -> torch.Tensor:
    """Softmax of scaled products, head by head, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            shared = head // (query.shape[1] // key.shape[1])
            scores = key[row, shared].double() @ query[row, head, 0].double() / 16**0.5
            weights = scores.masked_fill(~seen[row, 0, 0], float("-inf")).softmax(0)
            out[row, head, 0] = weights @ value[row, shared].double()
    return out.transpose(1, 2)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("form", ["seen", "added", "none"])
def test_it_is_softmax_attention(dtype: torch.dtype, close: float, form: str) -> None:
    query, key, value, seen = given(5, 33, dtype)
    mask = {"seen": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -1e9), "none": None}
    wanted = slow(query, key, value, torch.ones_like(seen) if form == "none" else seen)
    found, weights = one_query(torch.nn.Module(), query, key, value, mask[form])
    assert found.shape == (5, 1, 6, 16)
    assert weights is None
    assert (found.double() - wanted).abs().max() < close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [17, 64, 97])
def test_a_row_has_the_same_bits_alone_and_with_or_without_a_mask(
    dtype: torch.dtype, keys: int
) -> None:
    query, key, value, seen = given(24, keys, dtype)
    whole, _ = one_query(torch.nn.Module(), query, key, value, seen)
    for rows in (1, 2, 3, 8, 23):
        part, _ = one_query(torch.nn.Module(), query[:rows], key[:rows], value[:rows], seen[:rows])
        assert torch.equal(part, whole[:rows])
    alone, _ = one_query(torch.nn.Module(), query[:1], key[:1], value[:1], None)
    assert torch.equal(alone, whole[:1]), "the first row's mask hides nothing"


def test_several_queries_are_left_to_transformers() -> None:
    query, key, value, _ = given(3, 9, torch.float32, queries=9)
    mask = torch.ones(3, 1, 9, 9, dtype=torch.bool).tril()
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    found, _ = one_query(module, query, key, value, mask)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_a_model_decodes_with_it_and_has_its_own_attention_again() -> None:
    model = policy()
    model.set_attn_implementation("sdpa")
    with decoding(model):
        assert model.config._attn_implementation == ONE_QUERY
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with decoding(model):
        assert model.config._attn_implementation == "eager", "what was chosen is left"
