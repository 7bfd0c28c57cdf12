"""The objective's limits and the trainer: bit for bit plain SFT when no gate is open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import GateSettings, LoraSettings, ObjectiveSettings, TrainConfig
from aaft.errors import AaftError
from aaft.models.packed import PackedRow
from aaft.tuning.batches import micro_batches
from aaft.tuning.examples import Example
from aaft.tuning.recipe import GatedRecipe
from aaft.tuning.stage import add_lora
from aaft.tuning.trainer import Trainer
from tests import tiny


def example(
    number: int,
    quality: list[float],
    *,
    abstention: list[int] | None = None,
    conservative: list[int] | None = None,
) -> Example:
    """Candidates of different lengths, one objective, no uncertainty, unsafe if declined."""
    rng = np.random.default_rng(number)
    texts = [rng.integers(4, 250, size=3 + k + number % 3).tolist() for k in range(len(quality))]
    return Example(
        id=f"r{number}",
        prompt=rng.integers(4, 250, size=4 + number % 5).tolist(),
        candidates=texts,
        quality=np.array(quality)[:, None],
        uncertainty=np.zeros((len(quality), 1)),
        logprob=np.array([-6.0 * len(t) for t in texts]),
        reward=np.array(quality),
        abstention=abstention,
        conservative=conservative,
        review=False,
        unsafe=True,
    )


def train(examples: list[Example], **changes) -> tuple[dict[str, torch.Tensor], Trainer]:
    cfg = TrainConfig(
        rows_per_step=changes.pop("rows_per_step", 4),
        learning_rate=1e-2,
        **changes,
    )
    model = add_lora(tiny.policy(), LoraSettings(r=2, alpha=4), 0)
    trainer = Trainer(model, examples, cfg, seed=0)
    trainer.run()
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, trainer


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_all_gates_closed_gives_the_same_bits_as_plain_sft() -> None:
    examples = [example(i, [0.99, 0.98]) for i in range(10)]
    gated, trainer = train(examples)
    plain, baseline = train(examples, method="sft")
    assert same_bits(gated, plain)
    assert [h["loss"] for h in trainer.history] == [h["loss"] for h in baseline.history]
    assert all(row.gate == 0.0 for row in trainer.gates.values())


def test_gates_that_close_only_by_the_policys_preference_still_give_plain_sft() -> None:
    # The bad rollout keeps the gate from being closed in advance; mu rates it out of sight.
    examples = [example(i, [0.99, 0.05]) for i in range(6)]
    for e in examples:
        e.logprob[:] = [-40.0 * len(e.candidates[0]), 0.0]
    gated, trainer = train(examples)
    plain, _ = train(examples, method="sft")
    assert all(row.gate == 0.0 for row in trainer.gates.values())
    assert same_bits(gated, plain)


def test_an_open_gate_changes_the_weights_and_is_recorded() -> None:
    examples = [example(i, [0.1, 0.9]) for i in range(12)]
    gated, trainer = train(examples)
    plain, _ = train(examples, method="sft")
    assert not same_bits(gated, plain)
    assert {row.gate for row in trainer.gates.values()} != {0.0}
    assert trainer.history[-1]["gate_open_share"] > 0


@pytest.mark.parametrize("doubt", [0.0, 0.9])
@pytest.mark.parametrize("rollout", [0.05, 0.5, 0.95])
def test_imitation_sees_the_golds_alone_and_no_doubt(rollout, doubt) -> None:
    golds = {0.95: 1.0, 0.78: 0.8, 0.5: 0.0, 0.05: 0.0, math.nan: 1.0}
    examples = [example(i, [gold, rollout]) for i, gold in enumerate(golds)]
    for e in examples:
        e.uncertainty[:] = doubt
    model = add_lora(tiny.policy(), LoraSettings(r=2, alpha=4), 0)
    cfg = TrainConfig()
    gating = GatedRecipe(cfg).measure(Trainer(model, examples, cfg, seed=0), examples)
    assert gating.imitation.tolist() == pytest.approx(list(golds.values()))


@pytest.mark.parametrize("tokens", [1, 30, 60])
def test_micro_batches_do_not_change_the_loss_beyond_rounding(tokens) -> None:
    examples = [
        example(i, [0.1, 0.9] if i % 2 else [0.99, 0.9], abstention=[7, 0] if i == 1 else None)
        for i in range(8)
    ]
    _, whole = train(examples, rows_per_step=8)
    _, parts = train(examples, rows_per_step=8, tokens_per_batch=tokens)
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.02)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, tokens) -> None:
    rows = {i: PackedRow([5] * n, []) for i, n in enumerate(lengths)}
    batches = list(micro_batches(rows, tokens))
    assert sorted(key for batch in batches for key in batch) == list(rows)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


def test_no_rollouts_make_a_gold_only_gate() -> None:
    examples = [example(i, [0.1 if i % 2 else 0.99]) for i in range(4)]
    _, trainer = train(examples)
    assert [trainer.gates[f"r{i}"].gate for i in range(4)] == [0.0, 1.0, 0.0, 1.0]


def test_an_abstaining_example_learns_to_decline_and_not_its_gold() -> None:
    declining = [200, 201, 0]
    examples = [example(i, [0.05, 0.05], abstention=declining) for i in range(4)]
    _, trainer = train(examples * 8, epochs=5, objective=ObjectiveSettings(lambda_pg=0.0))
    first, last = trainer.history[0], trainer.history[-1]
    assert first["sft"] == 0.0
    assert last["abstain"] < 0.5 * first["abstain"]


def test_training_twice_gives_the_same_bits() -> None:
    examples = [example(i, [0.1, 0.9] if i % 2 else [0.99, 0.9]) for i in range(6)]
    assert same_bits(train(examples)[0], train(examples)[0])


def test_a_loss_that_is_not_finite_stops_and_names_the_records() -> None:
    bad = example(0, [0.1, 0.9])
    bad.logprob[:] = math.nan
    with pytest.raises(AaftError, match=r"step 1: .* records r0"):
        train([bad])


def test_a_closed_gate_needs_no_candidates(monkeypatch) -> None:
    from aaft.tuning import trainer as module

    packed = []
    real = module.pack
    monkeypatch.setattr(module, "pack", lambda rows: packed.extend(rows) or real(rows))
    train([example(i, [0.99, 0.99]) for i in range(4)])
    assert all(len(row.branches) == 1 for row in packed)
    assert len(packed) == 4


def test_the_default_gate_is_what_the_design_says() -> None:
    assert GateSettings() == GateSettings(eta=3.0, uncertainty=0.5, low=0.15, width=0.35)
