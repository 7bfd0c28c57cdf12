"""Recovery prefixes and the anchor (DESIGN 2.7 and 2.8)."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import LoraSettings, ObjectiveSettings, TrainConfig
from aaft.models.packed import PackedRow, branch_logprobs, pack
from aaft.tuning.anchor import anchor_coefficients
from aaft.tuning.examples import Example
from aaft.tuning.recovery import recovery_prefixes
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


@st.composite
def windows(draw):
    size, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gates = [draw(st.one_of(unit, st.just(0.0))) for _ in range(size)]
    maybe = st.one_of(unit, st.just(math.nan))
    reward = [[draw(maybe) for _ in range(count)] for _ in range(size)]
    tokens = [[draw(st.integers(1, 20)) for _ in range(count)] for _ in range(size)]
    return gates, reward, tokens, draw(st.floats(0, 2))


def slow_anchor(gates, reward, tokens, beta) -> list[list[float]]:
    out = []
    for i, g in enumerate(gates):
        known = [r for r in reward[i][1:] if not math.isnan(r)]
        safe = bool(known) and sum(known) / len(known) >= 0.5
        rollouts = len(reward[i]) - 1
        row = [0.0]
        for length in tokens[i][1:]:
            row.append(beta * g / (len(gates) * rollouts * length) if safe else 0.0)
        out.append(row)
    return out


@given(windows())
def test_anchor_coefficients_equal_the_slow_version(window) -> None:
    gates, reward, tokens, beta = window
    got = anchor_coefficients(*map(f64, (gates, reward, tokens)), beta)
    for row, want in zip(got.tolist(), slow_anchor(gates, reward, tokens, beta), strict=True):
        assert row == pytest.approx(want)


@pytest.mark.parametrize(
    ("gate", "reward"),
    [
        (0.0, [0.1, 0.9, 0.9]),
        (1.0, [0.9, 0.2, 0.7]),
        (1.0, [0.9, math.nan, math.nan]),
        (1.0, [0.9]),
    ],
    ids=["closed gate", "unsafe reference", "unscored reference", "no rollouts"],
)
def test_there_is_no_anchor(gate, reward) -> None:
    got = anchor_coefficients(f64([gate]), f64([reward]), torch.ones(1, len(reward)).double(), 0.1)
    assert got.tolist() == [[0.0] * len(reward)]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


WORDS, STEPS = 3, 2
ANSWERS = list(itertools.product(range(WORDS), repeat=STEPS))


def logprobs(weights: torch.Tensor) -> torch.Tensor:
    """Log-probability of every answer of two words; ``weights``: 3 logits, then 3 a first word."""
    first = weights[:WORDS].log_softmax(0)
    second = weights[WORDS:].view(WORDS, WORDS).log_softmax(1)
    return torch.stack([first[a] + second[a, b] for a, b in ANSWERS])


def test_the_anchors_expected_gradient_is_that_of_the_kl() -> None:
    draw = torch.Generator().manual_seed(0)
    mu = logprobs(torch.randn(12, generator=draw, dtype=torch.float64)).exp()
    policy = torch.randn(12, generator=draw, dtype=torch.float64)
    beta, gate, rollouts = 0.3, 0.7, 2

    policy.requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    tokens = torch.full((1, rollouts + 1), float(STEPS), dtype=torch.float64)
    coefficients = anchor_coefficients(f64([gate]), f64([[0.1, 0.9, 0.8]]), tokens, beta)[0]
    values = logprobs(policy)
    for drawn in itertools.product(range(len(ANSWERS)), repeat=rollouts):
        chance = math.prod(float(mu[a]) for a in drawn)
        for k, answer in enumerate(drawn, start=1):
            expected = expected - chance * coefficients[k] * values[answer]
    (got,) = torch.autograd.grad(expected, policy)

    def kl(weights: torch.Tensor) -> float:
        return float((mu * (mu.log() - logprobs(weights))).sum()) / STEPS

    step = 1e-5
    with torch.no_grad():
        want = [
            beta * gate * (kl(policy + step * e) - kl(policy - step * e)) / (2 * step)
            for e in torch.eye(12, dtype=torch.float64)
        ]
    assert got.tolist() == pytest.approx(want, abs=1e-8)


def test_with_answers_of_unequal_length_the_anchor_rests_at_mu_over_length() -> None:
    mu, lengths = f64([0.5, 0.3, 0.2]), f64([1.0, 2.0, 5.0])
    rest = (mu / lengths) / (mu / lengths).sum()
    logits = rest.log().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for answer in range(3):
        tokens = torch.stack([lengths[0], lengths[answer]])[None]
        coefficients = anchor_coefficients(f64([1.0]), f64([[0.1, 0.9]]), tokens, 0.3)[0]
        expected = expected - mu[answer] * coefficients[1] * logits.log_softmax(0)[answer]
    (gradient,) = torch.autograd.grad(expected, logits)
    assert gradient.tolist() == pytest.approx([0.0] * 3, abs=1e-12)


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


def test_the_anchor_holds_the_policy_at_a_safe_references_answers() -> None:
    examples = [rejected(i, [0.9, 0.8], abstains=False) for i in range(12)]
    answers = [PackedRow(e.prompt, e.candidates[1:]) for e in examples]
    loose, _ = train(examples, beta_anchor=0.0)
    held, trainer = train(examples, beta_anchor=1.0)
    assert all(row["anchor"] > 0.0 for row in trainer.history)
    assert mean_logprob(held, answers) > mean_logprob(loose, answers) + 1.0
