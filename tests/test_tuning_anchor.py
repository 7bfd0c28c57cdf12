"""Which of what the reference says the policy is held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aaft.models.soft import soften
from aaft.tuning.anchor import answers_of_reference
from aaft.tuning.examples import Example
from tests import tiny
from tests.test_tuning_trainer import example

BEGUN = (40, 41, 42)


def greedy(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    said: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return said


def predicted(model: torch.nn.Module, before: list[int], answer: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]


def anchor(model: torch.nn.Module, number: int, *, declined: bool) -> Example:
    made = example(number, [0.9])
    before = [*made.prompt, *BEGUN] if declined else made.prompt
    answer = greedy(model, before, 3)
    return replace(made, candidates=[answer], role="anchor", begun=BEGUN)


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny.policy().eval()


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_the_policy_is_held_to_its_own_answers_as_it_gives_them(model, tokens) -> None:
    own = anchor(model, 1, declined=False)
    # One whose answers differ at once, with and without a beginning.
    mended = next(
        found
        for number in range(2, 40)
        for found in [anchor(model, number, declined=True)]
        if greedy(model, found.prompt, 1) != found.candidates[0][:1]
    )
    held = answers_of_reference(model, [own, mended], tokens)
    for twin, before in ((own, own.prompt), (mended, [*mended.prompt, *BEGUN])):
        wanted = soften(predicted(model, before, twin.candidates[0]))
        found = held[twin.id]
        assert len(found) == len(twin.candidates[0])
        assert torch.equal(found.ids[:, 0], torch.tensor(twin.candidates[0]))
        assert torch.allclose(found.logprob[:, 0], wanted.logprob[:, 0], atol=0.05)


def test_without_a_beginning_it_is_held_to_what_the_reference_would_say(model) -> None:
    twin = replace(example(1, [0.9]), role="anchor")
    held = answers_of_reference(model, [twin], 100)
    wanted = soften(predicted(model, twin.prompt, twin.candidates[0]))
    assert torch.equal(held[twin.id].ids[:, 0], wanted.ids[:, 0])


def test_nothing_to_hold_is_nothing_computed(model) -> None:
    assert answers_of_reference(model, [], 100) == {}
