"""Attention of one query against torch's own, and what must not change a row's bits."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from aaft.models import attention, generate
from aaft.models.attention import decoding, one_query
from aaft.models.greedy import greedy
from tests.tiny import policy

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


def test_values_may_be_of_another_size() -> None:
    query, key, _, seen = given(3, 9, torch.float32)
    value = torch.randn(3, 2, 9, 5, generator=torch.Generator().manual_seed(1))
    found, _ = one_query(torch.nn.Module(), query, key, value, seen)
    wanted = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


def test_a_model_decodes_the_same_tokens_with_it_as_without(monkeypatch) -> None:
    model = policy(layers=3)
    model.set_attn_implementation("sdpa")
    prompts = [[5 + i, *range(10, 30 + i)] for i in range(9)]
    settings = {"end_id": 0, "max_new_tokens": 12, "batch_size": 4}
    calls = []
    monkeypatch.setattr(
        attention, "one_query", lambda *given, **more: calls.append(0) or one_query(*given, **more)
    )
    found = greedy(model, prompts, **settings)
    assert len(calls) >= 3 * 11
    monkeypatch.setattr(generate, "decoding", nullcontext)
    assert [done.ids for done in greedy(model, prompts, **settings)] == [d.ids for d in found]


def test_transformers_has_its_own_function_again_even_after_an_error() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def fail() -> None:
        with decoding():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is one_query
            raise KeyError("full")

    with pytest.raises(KeyError, match="full"):
        fail()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
