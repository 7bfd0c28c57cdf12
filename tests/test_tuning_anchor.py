"""Which of what the reference says the policy is held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aaft.models import packed
from aaft.models.soft import soften
from aaft.tuning.anchor import Held, answers_of_reference
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


def held_to(model: torch.nn.Module, anchors: list[Example], tokens: int = 100) -> dict[str, Held]:
    seen: list[int] = []
    held = answers_of_reference(model, anchors, tokens, lambda count, **_: seen.append(count))
    assert sum(seen) == len(held) == len({a.id for a in anchors})
    return held


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """One whose likeliest tokens are the same in and out of training."""
    monkeypatch.setattr(packed, "compute_dtype", lambda _device: torch.float32)
    return tiny.policy().eval()


def declined(model: torch.nn.Module, *, same_first: bool) -> Example:
    """A twin that the reference answers otherwise at once, from the first token on or later."""
    for number in range(2, 400):
        found = anchor(model, number, declined=True)
        answer, plain = found.candidates[0], greedy(model, found.prompt, 3)
        if answer != plain and (answer[0] == plain[0]) == same_first:
            return found
    raise LookupError("no such twin among 400")


@pytest.mark.parametrize("tokens", [1, 10_000])
@pytest.mark.parametrize("same_first", [True, False])
def test_the_policy_is_held_to_its_own_answers_as_it_gives_them(model, tokens, same_first) -> None:
    own, mended = anchor(model, 1, declined=False), declined(model, same_first=same_first)
    held = held_to(model, [own, mended, own], tokens)
    assert [held[twin.id].mended for twin in (own, mended)] == [False, True]
    for twin, before in ((own, own.prompt), (mended, [*mended.prompt, *BEGUN])):
        wanted = soften(predicted(model, before, twin.candidates[0]))
        found = held[twin.id].labels
        assert len(found) == len(twin.candidates[0])
        assert torch.equal(found.ids[:, 0], torch.tensor(twin.candidates[0]))
        assert torch.allclose(found.logprob[:, 0], wanted.logprob[:, 0], atol=1e-3)
        assert torch.allclose(found.rest, wanted.rest, atol=1e-3)


def test_nothing_to_hold_is_nothing_computed(model) -> None:
    assert held_to(model, []) == {}
