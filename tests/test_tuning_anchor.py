"""What the reference says to twins, which the policy is held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aaft.models import packed
from aaft.models.soft import SoftLabels, soften
from aaft.tuning.anchor import answers_of_reference
from aaft.tuning.examples import Example
from tests import tiny
from tests.test_tuning_trainer import example


def anchor(number: int) -> Example:
    return replace(example(number, [0.9]), role="anchor")


def held_to(model: torch.nn.Module, anchors: list[Example], tokens: int) -> dict[str, SoftLabels]:
    seen: list[int] = []
    held = answers_of_reference(model, anchors, tokens, lambda count, **_: seen.append(count))
    assert sum(seen) == len(held)
    return held


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_it_is_what_the_reference_predicts_at_each_token_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    # Without bfloat16, so that the likeliest tokens are the same on both sides.
    monkeypatch.setattr(packed, "compute_dtype", lambda _device: torch.float32)
    model = tiny.policy().eval()
    twins = [anchor(number) for number in range(5)]
    held = held_to(model, [*twins, twins[0]], tokens)
    assert held.keys() == {twin.id for twin in twins}
    for twin in twins:
        answer = twin.candidates[0]
        with torch.no_grad():
            logits = model(torch.tensor([twin.prompt + answer])).logits[0]
        wanted = soften(logits[len(twin.prompt) - 1 : -1])
        found = held[twin.id]
        assert len(found) == len(answer)
        assert torch.equal(found.ids[:, 0], wanted.ids[:, 0])
        assert torch.allclose(found.logprob, wanted.logprob, atol=1e-3)
        assert torch.allclose(found.rest, wanted.rest, atol=1e-3)


def test_nothing_to_hold_is_nothing_computed() -> None:
    assert held_to(tiny.policy(), [], 100) == {}
