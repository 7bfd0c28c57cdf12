"""Soft labels: what is kept of a distribution, and how far another one is from it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aaft.models.packed import PackedRow, branch_logprobs, branch_losses, pack
from aaft.models.soft import divergence, soften
from tests import tiny

# No two alike: which of them is kept would be a matter of taste.
logits = st.lists(st.integers(-80, 80), min_size=6, max_size=6, unique=True).map(
    lambda values: [value / 10 for value in values]
)


def slow(mu: list[float], pi: list[float], kept: int) -> float:
    """The divergence of the ``kept`` most likely tokens of ``mu`` and of all others as one."""

    def softmax(values):
        total = math.fsum(math.exp(v) for v in values)
        return [math.exp(v) / total for v in values]

    p, q = softmax(mu), softmax(pi)
    top = sorted(range(len(p)), key=lambda v: -p[v])[:kept]
    rest = [v for v in range(len(p)) if v not in top]
    groups = [[v] for v in top] + [rest]
    pairs = [(math.fsum(p[v] for v in g), math.fsum(q[v] for v in g)) for g in groups]
    return math.fsum(a * math.log(a / b) for a, b in pairs)


@given(logits, logits, st.integers(1, 5))
# What is not kept has next to no mass under the policy, and counts for most of the divergence.
@example([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], [8.0, -8.0, -7.9, -7.8, -7.7, -7.6], 1)
def test_it_is_the_divergence_of_what_is_kept_and_the_rest(mu, pi, kept) -> None:
    labels = soften(torch.tensor([mu]), kept)
    (found,) = divergence(labels, torch.tensor([pi])).tolist()
    assert found == pytest.approx(slow(mu, pi, kept), abs=2e-4, rel=1e-3)


@given(logits, logits, st.integers(1, 4))
def test_it_is_never_negative_and_grows_with_what_is_kept(mu, pi, kept) -> None:
    a, b = torch.tensor([mu]), torch.tensor([pi])
    some, more, whole = (float(divergence(soften(a, k), b)) for k in (kept, kept + 1, 5))
    assert -1e-5 <= some <= more + 1e-4 <= whole + 2e-4


def test_at_the_model_itself_it_is_0_and_pulls_nowhere() -> None:
    here = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = divergence(soften(here.detach(), 8), here).sum()
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert here.grad is not None
    assert float(here.grad.abs().max()) < 1e-6


def test_a_vocabulary_smaller_than_what_is_kept_is_enough() -> None:
    assert soften(torch.zeros(2, 5)).ids.shape == (2, 4)


def test_it_pulls_where_next_to_nothing_is_left_of_what_is_not_kept() -> None:
    now = torch.tensor([[30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    divergence(soften(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 1), now).sum().backward()
    assert now.grad is not None
    left = 3 / (3 + math.e)
    assert now.grad[0].tolist() == pytest.approx([left, *[-left / 3] * 3], abs=1e-5)


def test_branches_with_soft_labels_lose_their_divergence_and_others_their_likelihood() -> None:
    model = tiny.policy()
    other = torch.randn(2, 260, generator=torch.Generator().manual_seed(1))
    soft = soften(other)
    rows = [
        PackedRow([5, 6, 7], [[8, 9], [10, 11, 12]], [0, 1], [None, soft]),
        PackedRow([9], [[4]]),
    ]
    with torch.no_grad():
        found = branch_losses(model, pack(rows)).tolist()
        plain = (-branch_logprobs(model, pack(rows))).tolist()
        alone = model(torch.tensor([[5, 6, 7, 10, 11, 12]])).logits[0, 3:5]
    assert [found[0], found[2]] == pytest.approx([plain[0], plain[2]], rel=1e-5)
    assert found[1] == pytest.approx(float(divergence(soft, alone).sum()), rel=0.03)
    assert found[1] != pytest.approx(plain[1], rel=0.1)


def test_soft_labels_of_several_branches_are_each_at_its_own_tokens() -> None:
    model = tiny.policy()
    prompts, answers = [[5, 6, 7], [9, 20]], [[[8, 30, 31, 32], [10]], [[4, 33]]]
    softs = [[soften(torch.randn(len(a), 260)) for a in row] for row in answers]
    rows = [PackedRow(p, a, [], s) for p, a, s in zip(prompts, answers, softs, strict=True)]
    with torch.no_grad():
        found = branch_losses(model, pack(rows)).tolist()
        alone = [
            float(branch_losses(model, pack([PackedRow(p, [a], [], [s])])))
            for p, own, soft in zip(prompts, answers, softs, strict=True)
            for a, s in zip(own, soft, strict=True)
        ]
    assert found == pytest.approx(alone, rel=0.03)


@pytest.mark.parametrize("given_tokens", [0, 2])
def test_as_many_soft_labels_as_tokens_to_predict(given_tokens: int) -> None:
    row = PackedRow([5], [[8, 9, 10]], [given_tokens], [soften(torch.zeros(2, 9))])
    with pytest.raises(ValueError, match=f"2 soft labels for {3 - given_tokens} tokens"):
        pack([row])
