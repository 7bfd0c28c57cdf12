"""Rival recipes: their formulas against slow versions, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aaft.config import LoraSettings, TrainConfig
from aaft.errors import AaftError
from aaft.models.packed import PackedBatch, PackedRow, label_logits, pack
from aaft.study.rivals import ConstrainedRecipe, LisaRecipe, PenaltyRecipe, betas
from aaft.tuning.examples import Example
from aaft.tuning.recipe import Plan, Recipe, SupervisedRecipe
from aaft.tuning.stage import add_lora
from aaft.tuning.trainer import Trainer
from tests import tiny

COEFFICIENTS = torch.tensor([0.25, 0.5, 0.125])


def example(number: int, name: str = "r") -> Example:
    rng = np.random.default_rng(number)
    return Example(
        id=f"{name}{number}",
        prompt=rng.integers(4, 250, size=4 + number % 3).tolist(),
        candidates=[[*rng.integers(4, 250, size=3 + number % 4).tolist(), 0]],
        quality=np.zeros((1, 0)),
        uncertainty=np.zeros((1, 0)),
        logprob=np.zeros(1),
        reward=np.full(1, math.nan),
        abstention=None,
        conservative=None,
        review=False,
    )


def lora(moved: float = 0.0):
    """A tiny policy with an adapter; ``moved`` away from where it began."""
    model = add_lora(tiny.policy(), LoraSettings(r=2, alpha=4), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += moved * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    rng = np.random.default_rng(0)
    return pack(
        [
            PackedRow(
                rng.integers(4, 250, size=5 + i).tolist(), [rng.integers(4, 250, size=n).tolist()]
            )
            for i, n in enumerate((8, 3, 6))
        ]
    )


def both_logits(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities over the vocabulary of policy and reference, ``[T, V]``."""
    with torch.no_grad():
        now = label_logits(model, batch).double().log_softmax(-1)
        with model.disable_adapter():
            before = label_logits(model, batch).double().log_softmax(-1)
    return now, before


def gradient(recipe: Recipe, model, batch) -> torch.Tensor:
    model.zero_grad()
    recipe.loss(model, batch, COEFFICIENTS)[0].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_betas_constrain_the_first_token_then_four_more() -> None:
    found = betas(torch.arange(8)).tolist()
    assert found == pytest.approx([0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1, 0.1])


def test_constrained_loss_is_the_papers_token_by_token(batch) -> None:
    model = lora(moved=0.2)
    now, before = both_logits(model, batch)
    want, nll = 0.0, [0.0, 0.0, 0.0]
    for t, (label, branch) in enumerate(
        zip(batch.labels.tolist(), batch.branch.tolist(), strict=True)
    ):
        place = batch.offset.tolist()[t]
        beta = 0.5 if place == 0 else 2.0 if place < 5 else 0.1
        ratio = float(now[t, label] - before[t, label])
        want += (
            COEFFICIENTS.tolist()[branch] * -2 / beta * math.log(1 / (1 + math.exp(-beta * ratio)))
        )
        nll[branch] -= float(now[t, label])
    loss, found = ConstrainedRecipe().loss(model, batch, COEFFICIENTS)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    assert found.tolist() == pytest.approx(nll, rel=1e-4)
    assert loss.requires_grad
    assert not found.requires_grad


def test_constrained_gradient_is_sfts_at_the_start_and_smaller_for_what_became_likely(
    batch,
) -> None:
    fresh = lora()
    torch.testing.assert_close(
        gradient(ConstrainedRecipe(), fresh, batch), gradient(SupervisedRecipe(), fresh, batch)
    )
    moved = lora(moved=0.2)
    limit, plain, papers = (
        gradient(recipe, moved, batch)
        for recipe in (ConstrainedRecipe(1e-4), SupervisedRecipe(), ConstrainedRecipe())
    )
    # Gradients pass through bfloat16.
    assert float((limit - plain).norm()) < 0.02 * float(plain.norm())
    assert float((papers - plain).norm()) > 0.1 * float(plain.norm())
    trained = [trained_nll(recipe) for recipe in (SupervisedRecipe(), ConstrainedRecipe())]
    assert trained[0] < trained[1]


def trained_nll(recipe: Recipe) -> float:
    _, trainer = train([example(i) for i in range(8)], recipe, epochs=12)
    return float(trainer.history[-1]["sft"])


def test_kl_penalty_is_the_sum_over_the_vocabulary(batch) -> None:
    model = lora(moved=0.2)
    now, before = both_logits(model, batch)
    want = 0.0
    for t, (label, branch) in enumerate(
        zip(batch.labels.tolist(), batch.branch.tolist(), strict=True)
    ):
        divergence = sum(
            math.exp(b) * (b - n) for n, b in zip(now[t].tolist(), before[t].tolist(), strict=True)
        )
        want += COEFFICIENTS.tolist()[branch] * (-float(now[t, label]) + 0.7 * divergence)
    loss, nll = PenaltyRecipe(0.7).loss(model, batch, COEFFICIENTS)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    plain, same = SupervisedRecipe().loss(model, batch, COEFFICIENTS)
    assert nll.tolist() == pytest.approx(same.tolist(), rel=1e-4)
    assert PenaltyRecipe(0.0).loss(model, batch, COEFFICIENTS)[0].item() == pytest.approx(
        plain.item(), rel=1e-5
    )
    assert loss.item() > plain.item() + 1e-3


def test_kl_penalty_has_no_gradient_where_the_policy_is_the_reference(batch) -> None:
    model = lora()
    torch.testing.assert_close(
        gradient(PenaltyRecipe(10.0), model, batch),
        gradient(SupervisedRecipe(), model, batch),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_large_penalty_keeps_the_policy_near_the_reference(batch) -> None:
    distances = []
    for beta in (0.0, 50.0):
        model, _ = train([example(i) for i in range(8)], PenaltyRecipe(beta), epochs=8)
        now, before = both_logits(model, batch)
        distances.append(float((before.exp() * (before - now)).sum(-1).mean()))
    assert distances[1] < 0.2 * distances[0]


@pytest.mark.parametrize("recipe", [PenaltyRecipe(1.0), ConstrainedRecipe()])
def test_a_model_without_adapter_has_no_reference(recipe, batch) -> None:
    with pytest.raises(AaftError, match=r"set train\.lora"):
        recipe.loss(tiny.policy(), batch, COEFFICIENTS)


def train(examples, recipe: Recipe | None, epochs: int = 1, weight: float = 1e-2):
    cfg = TrainConfig(rows_per_step=4, learning_rate=weight, method="sft", epochs=epochs)
    model = lora()
    trainer = Trainer(model, examples, cfg, seed=0, recipe=recipe)
    trainer.run()
    return model, trainer


def weights(model) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]


TASK = [example(i) for i in range(12)]
ALIGN = [example(100 + i, "a") for i in range(5)]


def lisa(align_steps: int, task_steps: int, rho: float = 0.0) -> LisaRecipe:
    return LisaRecipe(ALIGN, TASK, align_steps=align_steps, task_steps=task_steps, rho=rho, seed=0)


def test_lisa_without_alignment_and_pull_is_sft_to_the_bit() -> None:
    recipe = lisa(0, 3)
    found, trainer = train(recipe.hollow(), recipe, epochs=2)
    want, baseline = train(TASK, None, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(want), strict=True))
    assert [h["loss"] for h in trainer.history] == [h["loss"] for h in baseline.history]


class Spy(LisaRecipe):
    """Notes what each step trained on."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        self.seen: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []

    def plan(self, trainer, window, epoch) -> Plan:
        plan = super().plan(trainer, window, epoch)
        self.seen.append([(term.prefix, tuple(term.response)) for term in plan.terms])
        return plan


def test_lisa_alternates_phases_and_goes_through_all_alignment_rows() -> None:
    recipe = Spy(ALIGN, TASK, align_steps=1, task_steps=2, rho=0.1, seed=0)
    train(recipe.hollow(), recipe, epochs=3)
    align = {(tuple(e.prompt), tuple(e.candidates[0])) for e in ALIGN}
    task = {(tuple(e.prompt), tuple(e.candidates[0])) for e in TASK}
    phases = [set(step) <= align for step in recipe.seen]
    assert phases == [True, False, False] * 3
    assert all(set(step) <= task for step in recipe.seen if not set(step) <= align)
    assert {
        pair
        for step, aligning in zip(recipe.seen, phases, strict=True)
        if aligning
        for pair in step
    } == align


def test_lisas_pull_is_the_gradient_of_half_rho_squared_distance_to_the_phases_start() -> None:
    recipe = lisa(1, 2, rho=0.3)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    bare = torch.nn.Parameter(torch.tensor([4.0]))
    starts = []
    for step in range(1, 7):
        recipe.plan(None, TASK[:2], 0)
        if (step - 1) % 3 in (0, 1):  # phases of 1 and 2 steps begin here
            starts.append((weight.detach().clone(), bare.detach().clone()))
        weight.grad, bare.grad = torch.tensor([0.5, 0.5]), None
        recipe.before_step([weight, bare], step)
        probe = weight.detach().clone().requires_grad_()
        (0.15 * (probe - starts[-1][0]).square().sum()).backward()
        torch.testing.assert_close(weight.grad, probe.grad + 0.5)
        torch.testing.assert_close(bare.grad, 0.3 * (bare.detach() - starts[-1][1]))
        with torch.no_grad():
            weight += step
            bare -= step


def test_lisas_pull_keeps_the_weights_near_their_start() -> None:
    distances = []
    for rho in (0.0, 100.0):
        recipe = lisa(0, 3, rho)
        model, _ = train(recipe.hollow(), recipe, epochs=4, weight=1e-3)
        distances.append(
            sum(float((a - b).norm()) for a, b in zip(weights(model), weights(lora()), strict=True))
        )
    assert distances[1] < 0.7 * distances[0]
