"""Recovery prefixes and the anchor (DESIGN 2.7 and 2.8)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import LoraSettings, ObjectiveSettings, TrainConfig
from aaft.models.packed import PackedRow, branch_logprobs, branch_losses, pack
from aaft.tuning.anchor import answers_of_reference
from aaft.tuning.examples import Example
from aaft.tuning.recovery import recovery_prefixes, turns_back
from aaft.tuning.stage import add_lora
from aaft.tuning.trainer import Trainer
from tests import tiny

END = 0
golds = st.lists(st.integers(1, 99), max_size=30).map(lambda tokens: [*tokens, END])
unit = st.floats(0, 1)


@given(st.text(), golds, st.integers(0, 9), st.integers(0, 20), st.integers(0, 4))
def test_prefixes_begin_the_gold_and_never_end_it(name, gold, epoch, longest, count) -> None:
    prefixes = recovery_prefixes(name, gold, epoch, 3, longest=longest, count=count)
    assert len(prefixes) == len(set(prefixes)) == min(count, longest, max(0, len(gold) - 1))
    for prefix in prefixes:
        assert list(prefix) == gold[: len(prefix)]
        assert 1 <= len(prefix) <= longest
        assert END not in prefix
    assert prefixes == recovery_prefixes(name, gold, epoch, 3, longest=longest, count=count)


def test_every_length_is_as_likely() -> None:
    gold, visits, longest = [*range(1, 40), END], 4000, 8
    lengths = Counter(
        len(prefix)
        for i in range(visits)
        for prefix in recovery_prefixes(f"r{i}", gold, 0, 0, longest=longest, count=2)
    )
    assert set(lengths) == set(range(1, longest + 1))
    share = 2 / longest
    slack = 4 * math.sqrt(visits * share * (1 - share))  # four standard deviations
    assert all(n == pytest.approx(visits * share, abs=slack) for n in lengths.values())


@pytest.mark.parametrize(("epoch", "seed"), [(1, 0), (0, 1)])
def test_another_epoch_or_seed_draws_anew(epoch, seed) -> None:
    gold = [*range(1, 40), END]

    def drawn(i: int, epoch: int, seed: int) -> list[tuple[int, ...]]:
        return recovery_prefixes(f"r{i}", gold, epoch, seed, longest=8, count=1)

    same = sum(drawn(i, 0, 0) == drawn(i, epoch, seed) for i in range(800))
    assert same / 800 == pytest.approx(1 / 8, abs=0.05)


@pytest.mark.parametrize(
    ("gold", "longest", "count"), [([END], 8, 2), ([], 8, 2), ([5, 6, END], 8, 0)]
)
def test_nothing_to_begin_with_is_no_recovery(gold, longest, count) -> None:
    assert recovery_prefixes("r", gold, 0, 0, longest=longest, count=count) == []


DECLINING = [200, 201, 202, END]


def rejected(number: int, rollouts: list[float], *, abstains: bool) -> Example:
    """A rejected gold of 8 tokens with scored rollouts, and an accepted response to decline by."""
    rng = np.random.default_rng(number)
    reward = np.array([0.05, *rollouts])
    return Example(
        id=f"r{number}",
        prompt=rng.integers(4, 100, size=5).tolist(),
        candidates=[[*rng.integers(4, 100, size=7).tolist(), END] for _ in reward],
        quality=reward[:, None],
        uncertainty=np.zeros((len(reward), 1)),
        logprob=np.full(len(reward), -45.0),
        reward=reward,
        abstention=DECLINING if abstains else None,
        conservative=DECLINING,
        review=False,
        unsafe=True,
    )


def train(examples: list[Example], **objective) -> tuple[torch.nn.Module, Trainer]:
    cfg = TrainConfig(
        rows_per_step=4,
        learning_rate=1e-2,
        epochs=6,
        objective=ObjectiveSettings(lambda_pg=0.0, **objective),
    )
    model = add_lora(tiny.policy(), LoraSettings(r=4, alpha=8), 0)
    trainer = Trainer(model, examples, cfg, seed=0)
    trainer.run()
    return model.eval(), trainer


@pytest.mark.parametrize(
    ("failed", "gold", "turns"),
    [
        ("safety", [0.1, 0.9], True),
        # The rollouts are unsafe; the gold is made up, and no opening to turn back from.
        ("safety", [0.6, 0.2], False),
        ("safety", [math.nan, 0.2], False),
        ("grounding", [0.1, 0.2], False),
        (None, [math.nan, math.nan], False),
    ],
)
def test_ways_back_are_from_unsafe_golds(failed, gold, turns) -> None:
    quality = np.array([gold, [0.3, 0.5]])
    assert turns_back(failed, quality, ("safety", "grounding")) == turns
    assert not turns_back("comply", quality, ("comply", "grounding"))


def mean_logprob(model, rows: list[PackedRow]) -> float:
    with torch.no_grad():
        return float(branch_logprobs(model, pack(rows)).mean())


def test_training_with_recovery_declines_after_the_beginning_of_a_bad_answer() -> None:
    examples = [rejected(i, [0.1], abstains=True) for i in range(12)]
    begun = [PackedRow(e.prompt + e.candidates[0][:4], [DECLINING]) for e in examples]
    without, plain = train(examples, recoveries=0)
    recovered, trainer = train(examples, recoveries=1, recovery_tokens=6)
    assert sum(row["recovery"] for row in plain.history) == 0.0
    assert sum(row["recovery"] for row in trainer.history) > 0.0
    assert sum(row["abstain"] for row in trainer.history) > 0.0
    assert mean_logprob(recovered, begun) > mean_logprob(without, begun) + 1.0


def test_the_anchor_holds_the_policy_at_what_the_reference_says() -> None:
    pull = [rejected(i, [0.1], abstains=True) for i in range(8)]
    twins = [
        replace(rejected(50 + i, [0.9], abstains=False), conservative=None, role="anchor")
        for i in range(8)
    ]
    said = answers_of_reference(tiny.policy(), twins, 1024, lambda _, **__: None)
    rows = [PackedRow(t.prompt, t.candidates[:1], soft=[said[t.id]]) for t in twins]

    def drift(model) -> float:
        with torch.no_grad():
            return float(branch_losses(model, pack(rows)).mean())

    assert drift(tiny.policy()) == pytest.approx(0.0, abs=1e-3)
    loose, plain = train([*pull, *twins], beta_anchor=0.0)
    held, trainer = train([*pull, *twins], beta_anchor=20.0)
    assert not any(row["anchor"] for row in plain.history)
    assert sum(row["anchor"] for row in trainer.history) > 0.0
    assert drift(held) < 0.5 * drift(loose)
