"""What the trainer promises a recipe, and what its history tells."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aaft.config import LoraSettings, ObjectiveSettings, TrainConfig
from aaft.errors import AaftError
from aaft.models.packed import PackedRow
from aaft.tuning.checkpoint import Checkpoints
from aaft.tuning.history import PARTS
from aaft.tuning.objective import supervised_terms
from aaft.tuning.recipe import GatedRecipe, Plan, SupervisedRecipe
from aaft.tuning.stage import add_lora
from aaft.tuning.trainer import Trainer, learning_rate_factor
from tests import tiny
from tests.test_tuning_trainer import example, same_bits


def mixed(count: int = 12) -> list:
    """Closed gates, open gates, an abstaining record, one that recovers and an anchor."""
    made = [example(i, [0.1, 0.9] if i % 2 else [0.99, 0.98]) for i in range(count - 2)]
    made.append(example(count - 2, [0.05, 0.1], abstention=[7, 8, 0], conservative=[7, 8, 0]))
    made.append(example(count - 1, [0.2, 0.9], conservative=[9, 9, 0]))
    made[0] = replace(made[0], role="anchor")
    return made


def trainer(examples, *, recipe=None, checkpoints=None, dropout=0.0, **changes) -> Trainer:
    cfg = TrainConfig(**{"rows_per_step": 4, "learning_rate": 1e-2} | changes)
    model = add_lora(tiny.policy(), LoraSettings(r=2, alpha=4), 0)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return Trainer(model, examples, cfg, 0, recipe=recipe, checkpoints=checkpoints)


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad}


class Recording(SupervisedRecipe):
    """Plain SFT that keeps what it was asked."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.norms: list[float] = []

    def plan(self, trainer, window, epoch) -> Plan:
        self.epochs.append(epoch)
        return super().plan(trainer, window, epoch)

    def before_step(self, parameters, step) -> None:
        assert step == len(self.norms) + 1
        self.norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)))


def test_a_recipe_is_asked_once_a_window_and_sees_whole_gradients() -> None:
    recipe = Recording()
    made = trainer(mixed(), recipe=recipe, epochs=2, tokens_per_batch=20)
    made.run()
    assert recipe.epochs == [0, 0, 0, 1, 1, 1]
    assert recipe.norms == pytest.approx([row["grad_norm"] for row in made.history], rel=1e-5)


def test_what_a_recipe_adds_to_the_gradients_is_stepped_with() -> None:
    class Pull(SupervisedRecipe):
        def plan(self, trainer, window, epoch) -> Plan:
            return Plan(supervised_terms(window, [1.0] * len(window)))

        def before_step(self, parameters, step) -> None:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)

    made = trainer(mixed(), recipe=Pull())
    before = weights(made)
    made.run()
    assert same_bits(weights(made), before)


def test_the_method_names_the_recipe() -> None:
    gated, named = trainer(mixed()), trainer(mixed(), recipe=GatedRecipe(TrainConfig()))
    plain, supervised = trainer(mixed(), method="sft"), trainer(mixed(), recipe=SupervisedRecipe())
    for made in (gated, named, plain, supervised):
        made.run()
    assert same_bits(weights(plain), weights(supervised))
    assert not same_bits(weights(gated), weights(plain))
    assert gated.gates
    assert not plain.gates


def test_closed_gates_are_plain_sft_to_the_bit_under_dropout_too() -> None:
    # The bad rollout makes the gate compute candidates; mu rates it out of sight.
    examples = [example(i, [0.99, 0.05]) for i in range(8)]
    for e in examples:
        e.logprob[:] = [-40.0 * len(e.candidates[0]), 0.0]
    gated, plain = (trainer(examples, dropout=0.3, method=method) for method in ("aaft", "sft"))
    still = trainer(examples, method="sft")
    for made in (gated, plain, still):
        made.run()
    assert same_bits(weights(gated), weights(plain))
    assert not same_bits(weights(plain), weights(still))


def test_a_resumed_run_draws_the_same_dropout(tmp_path: Path) -> None:
    class Stop(GatedRecipe):
        def before_step(self, parameters, step) -> None:
            if step == 4:
                raise KeyboardInterrupt

    cfg = TrainConfig(rows_per_step=4, learning_rate=1e-2, epochs=2)
    whole = trainer(mixed(), dropout=0.3, epochs=2)
    whole.run()
    checkpoints = Checkpoints(tmp_path, "run", 2)
    with pytest.raises(KeyboardInterrupt):
        trainer(mixed(), dropout=0.3, epochs=2, recipe=Stop(cfg), checkpoints=checkpoints).run()
    resumed = trainer(mixed(), dropout=0.3, epochs=2, checkpoints=checkpoints)
    resumed.run()
    assert same_bits(weights(resumed), weights(whole))
    assert resumed.history == whole.history
    gates = [[row.to_json() for row in made.gates.values()] for made in (resumed, whole)]
    assert gates[0] == gates[1]


class Broken(SupervisedRecipe):
    """A loss that is NaN, or whose gradient alone is, in the micro-batches holding a response."""

    def __init__(self, response: list[int], *, gradient_only: bool) -> None:
        self._response = torch.tensor(response)
        self._gradient_only = gradient_only

    def loss(self, model, batch, coefficients):
        loss, nll = super().loss(model, batch, coefficients)
        size = len(self._response)
        here = any(
            torch.equal(batch.labels[i : i + size], self._response)
            for i in range(len(batch.labels) - size + 1)
        )
        if here:
            zero = loss - loss.detach()
            # The square root has no slope at 0: the value stays, its gradient is not a number.
            loss = loss + (zero.abs().sqrt() if self._gradient_only else zero * math.nan)
        return loss, nll


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize(("tokens", "others"), [(1, 0), (10_000, 3)])
def test_what_is_not_finite_is_named_by_micro_batch(gradient_only, tokens, others) -> None:
    examples = mixed()
    bad = Broken(examples[5].candidates[0], gradient_only=gradient_only)
    made = trainer(examples, recipe=bad, tokens_per_batch=tokens)
    before = weights(made)
    with pytest.raises(AaftError, match=r"step \d: loss or gradient is not finite; ") as caught:
        made.run()
    named = str(caught.value).partition("records ")[2].partition(";")[0].split(", ")
    assert "r5" in named
    assert len(named) == 1 + others
    # What came before the bad step was finite.
    assert all(tensor.isfinite().all() for tensor in weights(made).values())
    assert before.keys() == weights(made).keys()


def test_the_history_adds_up() -> None:
    made = trainer(mixed(), epochs=3, objective=ObjectiveSettings(beta_anchor=0.5))
    made.run()
    seen = {part for row in made.history for part in PARTS if row[part]}
    assert seen == set(PARTS)
    for row in made.history:
        parts = [row[part] for part in PARTS]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert sum(row[f"share_{part}"] for part in PARTS) == pytest.approx(1.0)
        size = sum(map(abs, parts))
        assert row["share_pg"] == pytest.approx(abs(row["pg"]) / size)
        assert 0 <= row["gate_p10"] <= row["gate_p50"] <= row["gate_p90"] <= 1
        assert 1 <= row["ess"] <= 2
    # Shares of candidates that are pushed; a window may have none.
    for name in ("clip_ratio", "clip_trust"):
        found = [row[name] for row in made.history if name in row]
        assert found
        assert all(0 <= share <= 1 for share in found)


def test_an_abstention_weighs_by_how_far_the_reference_is_from_it() -> None:
    """Before training and after, whatever the policy has learned of it."""
    said = [[7, 8, 0], [9, 0], [11, 12, 13, 14, 0]]
    examples = [example(i, [0.05, 0.1], abstention=said[i]) for i in range(3)]
    examples[1] = replace(examples[1], unsafe=False)
    cfg = ObjectiveSettings()
    recipe = GatedRecipe(TrainConfig())
    made = trainer(examples, recipe=recipe, rows_per_step=3, epochs=20)
    rows = {i: PackedRow(examples[i].prompt, [said[i]]) for i in range(3)}
    before = made.logprobs(rows)
    made.run()
    after = made.logprobs(rows)
    terms = recipe.plan(made, examples, 0).terms
    assert [term.response for term in terms] == said
    for i, term in enumerate(terms):
        size = len(said[i])
        assert after[i][0] > before[i][0]
        need = (1 - math.exp(before[i][0] / size)) ** 2
        weight = cfg.lambda_abstain if i == 1 else cfg.lambda_refuse
        assert term.parts == {"abstain": pytest.approx(weight * need / (3 * size), rel=1e-3)}
        assert made.gates[f"r{i}"].need == pytest.approx(need, rel=1e-3)


def test_an_abstaining_records_answers_are_neither_pushed_nor_computed(monkeypatch) -> None:
    examples = [example(0, [0.05, 0.9], abstention=[7, 8, 0]), example(1, [0.1, 0.9])]
    made = trainer(examples, rows_per_step=2)
    asked = []
    logprobs = made.logprobs
    monkeypatch.setattr(made, "logprobs", lambda rows: asked.append(set(rows)) or logprobs(rows))
    recipe = GatedRecipe(TrainConfig())
    recipe.begin(made, examples)
    plan = recipe.plan(made, examples, 0)
    assert asked == [{"r0"}, {1}]
    assert plan.gating is not None
    assert plan.gating.gates[0] == 1
    assert 0 < plan.gating.need[0] < 1
    assert plan.gating.need[1].isnan(), "it doesn't abstain"
    assert [set(term.parts) for term in plan.terms if term.example == 0] == [{"abstain"}]
    assert any("pg" in term.parts for term in plan.terms if term.example == 1)


def test_candidate_numbers_are_absent_where_no_gate_is_open() -> None:
    made = trainer([example(i, [0.99, 0.98]) for i in range(4)])
    made.run()
    assert made.history[0]["gate_open_share"] == 0
    assert not {"ratio_gold", "ratio_rollouts", "clip_trust"} & made.history[0].keys()


def test_the_mean_log_ratio_is_per_token_and_over_open_gates_only() -> None:
    examples = [example(0, [0.1, 0.9]), example(1, [0.99, 0.98])]
    made = trainer(examples, rows_per_step=2)
    gating = made._recipe.measure(made, examples)
    moved = (gating.log_ratio[0] / gating.scores.tokens[0]).tolist()
    made.run()
    assert [made.history[0][k] for k in ("ratio_gold", "ratio_rollouts")] == pytest.approx(moved)


def test_tokens_count_what_was_computed_whatever_the_batches(monkeypatch) -> None:
    from aaft.tuning import trainer as module

    counted = []
    real = module.pack
    monkeypatch.setattr(
        module, "pack", lambda rows: counted.append(sum(r.length for r in rows)) or real(rows)
    )

    class Counted(GatedRecipe):
        def begin(self, trainer, examples) -> None:
            """What is asked of the reference is no step's, or a resumed run's would differ."""
            super().begin(trainer, examples)
            assert counted
            counted.clear()

    made = trainer(mixed(), recipe=Counted(TrainConfig()), tokens_per_batch=30)
    made.run()
    assert sum(row["tokens"] for row in made.history) == sum(counted)


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate_factor(step, 3, 10) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.1
    made = trainer(mixed(), epochs=2, warmup_fraction=0.5)
    made.run()
    want = [1e-2 * learning_rate_factor(step, 3, 6) for step in range(6)]
    assert [row["lr"] for row in made.history] == want
