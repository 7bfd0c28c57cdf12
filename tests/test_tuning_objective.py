"""The terms of a window against DESIGN 2.9 written out in loops, and the limits of the whole."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aaft.config import ObjectiveSettings
from aaft.models.packed import branch_losses, pack
from aaft.models.soft import SoftLabels, soften
from aaft.tuning.examples import Example, stack
from aaft.tuning.objective import gated_terms, supervised_terms, term_rows
from tests import tiny

NAN = math.nan
unit = st.floats(0, 1)
maybe = st.one_of(unit, unit, st.just(NAN))
tokens = st.lists(st.integers(4, 250), min_size=1, max_size=6)


@st.composite
def windows(draw, most=3):
    """(examples, gates, weights, log-ratios, prefixes) of one window."""
    size, k_all, m_all = (
        draw(st.integers(1, 4)),
        draw(st.integers(0, most)) + 1,
        draw(st.integers(1, 2)),
    )
    examples, gates, ratios, prefixes = [], [], [], []
    for i in range(size):
        quality = [[draw(maybe) for _ in range(m_all)] for _ in range(k_all)]
        candidates = [draw(tokens) for _ in range(k_all)]
        kind = draw(st.sampled_from(["plain", "recovers", "abstains", "anchor"]))
        declining = [*draw(tokens), 0]
        with np.errstate(all="ignore"):
            reward = np.fmin.reduce(np.array(quality), axis=1)
        examples.append(
            Example(
                id=f"r{i}",
                prompt=draw(tokens),
                candidates=candidates,
                quality=np.array(quality),
                uncertainty=np.array(quality),
                logprob=np.zeros(k_all),
                reward=reward,
                abstention=declining if kind == "abstains" else None,
                conservative=declining if kind in ("recovers", "abstains") else None,
                review=False,
                role="anchor" if kind == "anchor" else "record",
                unsafe=draw(st.booleans()),
            )
        )
        gate = 1.0 if kind == "abstains" else draw(st.one_of(unit, st.just(0.0)))
        gates.append(0.0 if kind == "anchor" else gate)
        ratios.append([draw(st.floats(-9, 3)) for _ in range(k_all)])
        cuts = draw(st.sets(st.integers(1, len(candidates[0])), max_size=2))
        prefixes.append([tuple(candidates[0][:c]) for c in sorted(cuts) if c < len(candidates[0])])
    weights = torch.softmax(3.0 * f64(ratios).clamp(-1, 1), dim=1).tolist()
    return examples, gates, weights, ratios, prefixes


def imitation(examples, gates) -> list[float]:
    """Any weights will do; these are 0 where there is nothing to imitate."""
    pairs = zip(examples, gates, strict=True)
    return [0.0 if e.abstention or e.role == "anchor" else 1 - g for e, g in pairs]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def soft_labels(example: Example) -> SoftLabels:
    """Others for each example and token."""
    own = torch.Generator().manual_seed(len(example.id) + len(example.candidates[0]))
    return soften(torch.randn(len(example.candidates[0]), 9, generator=own), 2)


def need(example: Example) -> float:
    """Another for each text: abstaining responses are weighed by it."""
    return (1 + sum(example.candidates[0]) % 8) / 8


def plan(window, cfg):
    examples, gates, weights, ratios, prefixes = window
    return gated_terms(
        examples,
        stack(examples),
        f64(gates),
        f64(imitation(examples, gates)),
        f64(weights),
        f64(ratios),
        cfg,
        prefixes,
        {e.id: need(e) for e in examples},
        {e.id: soft_labels(e) for e in examples},
    )


def made_up_nll(example: Example, prefix, response) -> float:
    """A likelihood for each text: the same wherever the text stands in a window."""
    digest = hashlib.sha256(f"{example.id} {prefix} {response}".encode()).digest()
    return 1.0 + digest[0] / 8


def total(examples, terms) -> float:
    return math.fsum(
        t.coefficient * made_up_nll(examples[t.example], t.prefix, t.response) for t in terms
    )


def slow_push(q, w, k, ratio, length, cfg) -> float:
    """``phi`` of candidate ``k``."""
    gains = []
    for m in range(len(q[0])):
        if math.isnan(q[k][m]):
            continue
        baseline = cfg.floor
        others = [j for j in range(len(q)) if j != k and not math.isnan(q[j][m])]
        if others:
            mean = sum(w[j] * q[j][m] for j in others) / sum(w[j] for j in others)
            baseline = max(mean - cfg.delta, cfg.floor)
        gains.append(q[k][m] - baseline)
    gain = sum(gains) / len(gains) if gains else 0.0
    if any(not math.isnan(x) and x < cfg.floor for x in q[k]):
        gain = min(gain, 0.0)
    fade = 0.0
    if -ratio / length <= cfg.trust:
        fade = 2 / (1 + math.exp(-cfg.beta_n * min(ratio, 0.0)))
    return max(gain, 0) - max(-gain, 0) * fade


def slow_loss(window, cfg) -> float:
    """DESIGN 2.9, part by part."""
    examples, gates, weights, ratios, prefixes = window
    size = len(examples)
    ungated = 0
    for e, g in zip(examples, gates, strict=True):
        if e.abstention is None and e.role == "record" and g < 1:
            ungated += len(e.candidates[0])
    loss = 0.0
    for i, (e, g) in enumerate(zip(examples, gates, strict=True)):

        def nll(response, prefix=(), e=e) -> float:
            return made_up_nll(e, prefix, response)

        if e.role == "anchor":
            loss += cfg.beta_anchor * nll(e.candidates[0]) / len(e.candidates[0]) / size
        elif e.abstention is None and g < 1:
            loss += (1 - g) * nll(e.candidates[0]) / ungated
        count = len(e.candidates)
        for k, response in enumerate(e.candidates):
            length = len(response)
            phi = slow_push(e.quality.tolist(), weights[i], k, ratios[i][k], length, cfg)
            loss += cfg.lambda_pg * g * phi * nll(response) / length / count / size
        for prefix in prefixes[i] if e.conservative is not None else []:
            value = nll(e.conservative, prefix) / len(e.conservative)
            loss += cfg.lambda_recovery * value / len(prefixes[i]) / size
        if e.abstention is not None:
            weight = cfg.lambda_refuse if e.unsafe else cfg.lambda_abstain
            loss += weight * need(e) * nll(e.abstention) / len(e.abstention) / size
    return loss


CFG = ObjectiveSettings(lambda_pg=0.7, lambda_abstain=1.3, lambda_refuse=2.1, beta_anchor=0.4)


@settings(max_examples=60)
@given(windows())
def test_the_terms_add_up_to_the_design_formula(window) -> None:
    assert total(window[0], plan(window, CFG)) == pytest.approx(slow_loss(window, CFG), abs=1e-6)


@settings(max_examples=40)
@given(windows(), st.randoms(use_true_random=False))
def test_the_order_of_a_window_does_not_change_its_loss(window, random) -> None:
    order = list(range(len(window[0])))
    random.shuffle(order)
    shuffled = tuple([column[i] for i in order] for column in window)
    want = total(window[0], plan(window, CFG))
    assert total(shuffled[0], plan(shuffled, CFG)) == pytest.approx(want, abs=1e-6)


@settings(max_examples=40)
@given(windows(most=0))
def test_without_rollouts_only_golds_and_conservative_responses_have_terms(window) -> None:
    examples = window[0]
    for term in plan(window, CFG):
        e = examples[term.example]
        assert term.response in (e.candidates[0], e.conservative)


@settings(max_examples=40)
@given(windows())
def test_with_lambdas_and_beta_zero_it_is_sft_weighted_by_imitation(window) -> None:
    weights = imitation(*window[:2])
    examples = window[0]
    cfg = ObjectiveSettings(
        lambda_pg=0.0, lambda_abstain=0.0, lambda_refuse=0.0, lambda_recovery=0.0, beta_anchor=0.0
    )
    assert plan(window, cfg) == supervised_terms(examples, weights)


@settings(max_examples=40)
@given(windows())
def test_closed_gates_leave_exactly_the_terms_of_plain_sft(window) -> None:
    examples, gates, weights, ratios, prefixes = window
    nothing = {"abstention": None, "conservative": None, "role": "record"}
    plain = [Example(**{**vars(e), **nothing}) for e in examples]
    closed = (plain, [0.0] * len(gates), weights, ratios, prefixes)
    assert plan(closed, CFG) == supervised_terms(plain, [1.0] * len(plain))


def one(quality, *, declining=None, abstains=False) -> Example:
    """One objective; candidate k is 3 + k tokens long."""
    return Example(
        id="r",
        prompt=[9, 8],
        candidates=[[10 + k] * (2 + k) + [0] for k in range(len(quality))],
        quality=np.array(quality)[:, None],
        uncertainty=np.zeros((len(quality), 1)),
        logprob=np.zeros(len(quality)),
        reward=np.array(quality),
        abstention=declining if abstains else None,
        conservative=declining,
        review=False,
    )


def parts(example: Example, gate: float, *prefixes):
    """What each response of a window of one example is there for."""
    flat = [[1 / len(example.candidates)] * len(example.candidates)]
    zeros = [[0.0] * len(example.candidates)]
    terms = plan(([example], [gate], flat, zeros, [prefixes]), ObjectiveSettings())
    return {(t.prefix, tuple(t.response)): set(t.parts) for t in terms}


def test_an_abstaining_record_declines_and_turns_back() -> None:
    e = one([0.1, 0.1, 0.2], declining=[7, 0], abstains=True)
    got = parts(e, 1.0, (10,), (10, 10))
    assert got[(), (7, 0)] == {"abstain"}
    assert got[(10,), (7, 0)] == got[(10, 10), (7, 0)] == {"recovery"}


def test_a_gated_record_recovers_beside_its_other_parts() -> None:
    e = one([0.1, 0.9, 0.9], declining=[7, 0])
    got = parts(e, 0.5, (10, 10))
    assert got.pop(((10, 10), (7, 0))) == {"recovery"}
    assert got == parts(e, 0.5)


def test_there_is_no_recovery_where_declining_is_not_accepted() -> None:
    assert {"recovery"} not in parts(one([0.1, 0.9]), 0.5, (10,)).values()


@pytest.mark.parametrize("gate", [0.4, 1.0])
def test_an_abstaining_record_never_learns_its_gold(gate) -> None:
    e = one([0.1, 0.1], declining=[7, 0], abstains=True)
    assert not any("sft" in which for which in parts(e, gate).values())


@settings(max_examples=40)
@given(windows())
def test_a_row_holds_the_prompt_once_and_every_term_behind_it(window) -> None:
    examples, terms = window[0], plan(window, CFG)
    rows = term_rows(examples, terms)
    assert [t for _, own in rows.values() for t in own] == sorted(terms, key=lambda t: t.example)
    for i, (row, own) in rows.items():
        assert row.prompt == examples[i].prompt
        assert row.branches == [[*t.prefix, *t.response] for t in own]
        assert row.given == [len(t.prefix) for t in own]
        assert {t.example for t in own} == {i}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.policy()


def test_rows_computed_apart_or_together_give_the_same_loss_and_gradient(
    model, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: torch.enable_grad())
    lone = one([0.1, 0.2, 0.1], declining=[6, 5, 0], abstains=True)
    guest = replace(lone, prompt=[9, 8, 11, 12], conservative=None, host="host", shared=2)
    examples = [
        replace(one([0.1, 0.9, 0.8], declining=[7, 0]), id="host", prompt=[9, 8, 13]),
        lone,
        one([0.95, 0.9, 0.4]),
        replace(one([0.95, 0.9, 0.4]), role="anchor"),
        guest,
    ]
    gates, flat = [0.6, 1.0, 0.0, 0.0, 1.0], [[1 / 3] * 3] * 5
    zeros = [[0.0] * 3] * 5
    prefixes = [[(10,)], [(10,), (10, 10)], [], [], []]
    terms = plan((examples, gates, flat, zeros, prefixes), CFG)
    rows = list(term_rows(examples, terms).values())
    strangers = [replace(example, host=None) for example in examples]
    apart = list(term_rows(strangers, terms).values())
    assert [len(rows), len(apart)] == [4, 5]
    assert rows[0][0].prompt == [9, 8]
    every = {"sft", "pg", "anchor", "abstain", "recovery"}
    assert {part for t in terms for part in t.parts} == every

    def step(groups) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = 0.0
        for group in groups:
            losses = branch_losses(model, pack([row for row, _ in group]))
            rates = torch.tensor([t.coefficient for _, own in group for t in own])
            part = (rates * losses).sum()
            part.backward()
            loss += float(part.detach())
        return loss, model.model.embed_tokens.weight.grad.clone()

    whole, gradient = step([rows])
    for groups in ([[row] for row in rows], [rows[3:], rows[:3][::-1]], [apart]):
        loss, other = step(groups)
        assert loss == pytest.approx(whole, abs=1e-4)
        assert torch.allclose(other, gradient, atol=1e-4)


def test_only_the_continuation_of_a_prefix_is_learned(model) -> None:
    e = one([0.1, 0.1], declining=[7, 0], abstains=True)
    terms = plan(([e], [1.0], [[0.5, 0.5]], [[-9.0, -9.0]], [[(10, 10)]]), CFG)
    row, own = term_rows([e], terms)[0]
    batch = pack([row])
    assert [set(t.parts) for t in own] == [{"abstain"}, {"recovery"}]
    assert batch.labels.tolist() == [7, 0, 7, 0]
    assert batch.ids[0].tolist() == [9, 8, 7, 0, 10, 10, 7, 0]
    assert bool(branch_losses(model, batch).isfinite().all())
