"""Each method gets what its name says, and all of them the same budget."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import Config, LoraSettings
from aaft.errors import AaftError
from aaft.study.config import METHODS as NAMES
from aaft.study.methods import METHODS, Prepared, Tuning, cost, prepare, rows_budget
from aaft.study.rivals import ConstantRecipe, mean_gate
from aaft.study.signal import Declining, ScoredExample, decided
from aaft.tuning.examples import Example
from aaft.tuning.recipe import GatedRecipe
from aaft.tuning.stage import add_lora
from aaft.tuning.trainer import Trainer
from tests import tiny

TRAINED = [name for name in METHODS if name != "reference"]
CFG = Config.model_validate({"train": {"rows_per_step": 4, "learning_rate": 1e-2}})


def scored(number: int, quality: list[float], accepted: float = 0.9) -> ScoredExample:
    """One objective, gold first; ``accepted`` is the quality of the refusal."""
    rng = np.random.default_rng(number)
    texts = [[*rng.integers(4, 250, size=3 + k + number % 3).tolist(), 0] for k in range(3)]
    return decided(
        ScoredExample(
            id=f"r{number}",
            prompt=rng.integers(4, 250, size=4 + number % 5).tolist(),
            candidates=texts[: len(quality)],
            quality=np.array(quality)[:, None],
            uncertainty=np.zeros((len(quality), 1)),
            logprob=np.array([-6.0 * len(t) for t in texts[: len(quality)]]),
            reward=np.zeros(len(quality)),
            abstention=None,
            conservative=None,
            review=False,
            declining={"safety": Declining([20, 21, 22, 0], np.array([accepted]))},
            objectives=("safety",),
            false_accept={"safety": 0.0},
        )
    )


GOOD = [scored(i, [0.97, 0.98, 0.6]) for i in range(9)]
BAD = [scored(10 + i, [0.1, 0.2, 0.3]) for i in range(3)]
MIXED = [scored(20 + i, [0.1, 0.9, 0.8]) for i in range(2)]
HOPELESS = [scored(30, [0.1, 0.2, 0.3], accepted=0.1)]
EXAMPLES = [*GOOD, *BAD, *MIXED, *HOPELESS]


def plain(number: int) -> Example:
    return Example(
        id=f"a{number}",
        prompt=[30, 31, 32],
        candidates=[[40 + number, 41, 0]],
        quality=np.zeros((1, 0)),
        uncertainty=np.zeros((1, 0)),
        logprob=np.zeros(1),
        reward=np.full(1, math.nan),
        abstention=None,
        conservative=None,
        review=False,
    )


ALIGN = [plain(i) for i in range(6)]


SWAPPED = [
    *(scored(60 + i, [0.1, 0.2, 0.3]) for i in range(3)),
    scored(70, [0.97, 0.2, 0.3]),
    scored(71, [0.1, 0.2, 0.3], accepted=0.1),
]


TWINS = [scored(80 + i, [0.9, 0.9, 0.9], accepted=0.1) for i in range(2)]
TWINS += [scored(84, [0.2, 0.9, 0.9], accepted=0.1), scored(85, [0.9, 0.9, 0.9], accepted=0.9)]
SIBLINGS = [*(scored(90 + i, [0.1, 0.2, 0.3]) for i in range(2)), scored(94, [0.9, 0.9, 0.9])]
KIN = {"twins": TWINS, "siblings": SIBLINGS}


def made(
    method: str,
    examples=EXAMPLES,
    align=ALIGN,
    counterfactuals=(),
    twins=(),
    siblings=(),
    **tuning: float,
) -> Prepared:
    return prepare(
        method,
        examples,
        CFG,
        counterfactuals=counterfactuals,
        twins=twins,
        siblings=siblings,
        align=align,
        refusals=align[:3],
        seed=0,
        tuning=Tuning(**tuning),
    )


def trained(prepared: Prepared) -> Trainer:
    model = add_lora(tiny.policy(), LoraSettings(r=2, alpha=4), 0)
    trainer = Trainer(model, prepared.examples, prepared.train, 0, recipe=prepared.recipe)
    trainer.run()
    return trainer


def spent(prepared: Prepared) -> int:
    return sum(map(cost, prepared.examples))


def test_there_is_a_method_for_every_name_that_a_study_may_use() -> None:
    assert set(METHODS) == set(NAMES)


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_and_only_aaft_gates(method) -> None:
    trainer = trained(made(method))
    assert math.isfinite(trainer.history[-1]["loss"])
    assert bool(trainer.gates) == method.startswith("aaft")


def test_the_reference_has_nothing_to_train() -> None:
    assert list(made("reference").examples) == []


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(AaftError, match="no method 'magic'; one of reference"):
        made("magic")


def test_filter_keeps_what_the_judges_accept() -> None:
    prepared = made("filter")
    assert {e.id for e in prepared.examples} == {e.id for e in GOOD}
    with pytest.raises(AaftError, match="filter has no rows left"):
        made("filter", BAD)


def test_filter_replace_answers_conservatively_where_that_is_accepted() -> None:
    prepared = made("filter-replace")
    golds = {e.id: e.candidates[0] for e in prepared.examples}
    assert set(golds) == {e.id for e in [*GOOD, *BAD, *MIXED]}
    assert all(golds[e.id] == [20, 21, 22, 0] for e in [*BAD, *MIXED])
    assert all(golds[e.id] == e.candidates[0] for e in GOOD)


def test_an_unscored_gold_is_not_filtered() -> None:
    examples = [*GOOD, scored(40, [math.nan, 0.9, 0.9])]
    for method in ("filter", "filter-replace"):
        assert "r40" in {e.id for e in made(method, examples).examples}


def test_without_rejected_golds_filtering_is_plain_sft() -> None:
    for method in ("filter", "filter-replace"):
        assert list(made(method, GOOD).examples) == GOOD


def test_safety_mix_adds_its_share_of_refusals() -> None:
    examples = [scored(100 + i, [0.97, 0.98, 0.6]) for i in range(400)]
    prepared = made("safety-mix", examples, safety_share=0.2)
    names = Counter(e.id[0] for e in prepared.examples)
    assert names["a"] / (names["a"] + names["r"]) == pytest.approx(0.2, abs=0.05)
    assert {e.id for e in prepared.examples if e.id[0] == "a"} <= {"a0", "a1", "a2"}


@pytest.mark.parametrize("method", ["safety-mix", "lisa"])
def test_a_rival_without_its_rows_says_so(method) -> None:
    with pytest.raises(AaftError, match=f"{method} needs"):
        made(method, align=[])


def hosted(number: int) -> ScoredExample:
    """A counterfactual whose prompt begins as that of a row of `MANY` does."""
    asked = scored(250 + number, [0.1])
    return replace(asked, prompt=[*MANY[-1 - number].prompt, 7])


MANY = [*EXAMPLES, *(scored(100 + i, [0.97, 0.98, 0.6]) for i in range(60))]
ADDED = {"counterfactuals": [*SWAPPED, *map(hosted, range(5))], **KIN}
FEW = EXAMPLES[:6]


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("method", [name for name in TRAINED if name != "lisa"])
def test_every_method_gets_as_many_tokens_as_aaft_which_sees_everything_once(method, rows) -> None:
    most = made("aaft", rows, **ADDED)
    names = [e.id for e in most.examples]
    assert len(set(names)) == len(names)
    assert set(names) >= {e.id for e in rows} | {"r60", "r61", "r62", "r80", "r81", "r90", "r91"}
    assert sum(e.host is not None for e in most.examples) == (5 if rows is MANY else 0)
    prepared = made(method, rows, **ADDED)
    longest = max(map(cost, [*rows, *ALIGN]))
    assert abs(spent(prepared) - spent(most)) <= longest / 2 + 1


def test_no_rival_leaves_out_a_row_that_it_does_not_reject() -> None:
    everything = {e.id for e in MANY}
    accepted = everything - {e.id for e in [*BAD, *MIXED, *HOPELESS]}
    for method in ("sft", "sft-kl", "constrained"):
        assert {e.id for e in made(method, MANY, **ADDED).examples} == everything
    assert {e.id for e in made("filter", MANY, **ADDED).examples} == accepted
    replaced = {e.id for e in made("filter-replace", MANY, **ADDED).examples}
    assert replaced == everything - {e.id for e in HOPELESS}


def test_safety_mix_leaves_out_rows_where_aaft_adds_less_than_it() -> None:
    names = {e.id for e in made("safety-mix", MANY).examples}
    assert not {e.id for e in MANY} <= names
    assert spent(made("safety-mix", MANY)) <= spent(made("sft", MANY)) + 10


def test_lisa_has_the_rows_and_the_steps_of_sft() -> None:
    sft, lisa = (made(name, MANY, **ADDED) for name in ("sft", "lisa"))
    assert [e.id for e in lisa.examples] == [e.id for e in sft.examples]
    assert len(lisa.examples) > len(MANY)
    assert len(trained(lisa).history) == len(trained(sft).history)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    tokens=st.integers(0, 300),
    seed=st.integers(0, 3),
)
def test_a_budget_is_met_within_half_a_row_and_evenly(sizes, tokens, seed) -> None:
    examples = [scored(i, [0.9] * 3) for i in sizes]
    rows = [
        Example(**{**vars(plain(0)), "id": f"{i}", "prompt": e.prompt, "candidates": e.candidates})
        for i, e in enumerate(examples)
    ]
    chosen = rows_budget(rows, tokens, seed)
    longest = max(map(cost, rows))
    assert abs(sum(map(cost, chosen)) - tokens) <= longest / 2
    counts = Counter(e.id for e in chosen)
    turns = [counts[e.id] for e in rows]
    assert max(turns) - min(turns) <= 1
    assert chosen == rows_budget(rows, tokens, seed)


def test_a_guest_costs_what_it_does_not_share_and_is_drawn_with_its_host() -> None:
    hosts = [replace(scored(i, [0.9]), conservative=None) for i in range(20)]
    asked = [scored(50 + i, [0.1]) for i in range(20)]
    guests = [
        replace(e, prompt=[*host.prompt, 5, 6], host=host.id, shared=len(host.prompt))
        for e, host in zip(asked, hosts, strict=True)
    ]
    guests = [replace(e, abstention=e.conservative, conservative=None) for e in guests]
    assert {cost(guest) for guest in guests} == {2 + len([20, 21, 22, 0])}
    rows = [*hosts, *guests]
    chosen = rows_budget(rows, sum(map(cost, rows)) // 2, 0)
    names = [e.id for e in chosen]
    assert 0 < len(chosen) < len(rows)
    together = [guest.host in names for guest in guests if guest.id in names]
    assert together.count(False) <= 1


def test_a_budget_that_fits_changes_nothing() -> None:
    assert rows_budget(GOOD, sum(map(cost, GOOD)), 0) == GOOD
    assert rows_budget([], 10, 0) == []


WITHOUT = ("aaft-nogold", "aaft-noabstain")


@pytest.mark.parametrize("method", TRAINED)
def test_gated_methods_alone_learn_from_counterfactuals(method) -> None:
    prepared = made(method, MANY, counterfactuals=SWAPPED)
    swapped = {e.id: e for e in prepared.examples if e.id in {e.id for e in SWAPPED}}
    if not method.startswith("aaft") or method in (*WITHOUT, "aaft-nocounterfactual"):
        assert not swapped
        return
    assert swapped.keys() == {"r60", "r61", "r62"}
    assert all(e.abstention == [20, 21, 22, 0] for e in swapped.values())
    assert all(e.conservative is None for e in swapped.values())


@pytest.mark.parametrize("method", TRAINED)
def test_gated_methods_alone_learn_from_kin(method) -> None:
    prepared = made(method, MANY, **KIN)
    names = {e.id for e in [*TWINS, *SIBLINGS]}
    kin = {e.id: e.role for e in prepared.examples if e.id in names}
    wanted = {"r80": "anchor", "r81": "anchor", "r90": "sibling", "r91": "sibling"}
    if not method.startswith("aaft") or method in WITHOUT:
        wanted = {}
    if method == "aaft-noanchor":
        wanted = {name: role for name, role in wanted.items() if role != "anchor"}
    if method == "aaft-nosibling":
        wanted = {name: role for name, role in wanted.items() if role != "sibling"}
    assert kin == wanted


def test_a_sibling_that_the_reference_declines_is_left_out() -> None:
    declined = made("aaft", siblings=[scored(95, [0.1, 0.9, 0.9])]).examples
    assert {e.id for e in declined} == {e.id for e in EXAMPLES}


def test_a_sibling_costs_what_it_is_to_say() -> None:
    said = [20, 21, 22, 0]
    sibling = replace(scored(96, [0.1, 0.2, 0.2]), role="sibling", abstention=said)
    assert cost(sibling) == len(sibling.prompt) + 4


def test_without_counterfactuals_that_abstain_rows_stay_as_they_are() -> None:
    assert list(made("aaft", counterfactuals=SWAPPED[3:]).examples) == EXAMPLES


def objective(method: str):
    return made(method).train.objective


def test_ablations_switch_off_one_part_each() -> None:
    base = made("aaft").train
    assert made("aaft-static").train.gate == base.gate.model_copy(update={"eta": 0.0})
    assert objective("aaft-norecovery") == base.objective.model_copy(update={"recoveries": 0})
    naive = objective("aaft-naive")
    assert (naive.beta_n, naive.trust) == (0.0, math.inf)
    for method in ("aaft-noabstain", "aaft-nogold"):
        assert made(method).train == base
        assert all(e.abstention is None for e in made(method).examples)
    assert any(e.abstention for e in made("aaft").examples)
    assert all(e.conservative for e in made("aaft-noabstain").examples if e.id in {"r10", "r20"})
    assert all(np.isnan(e.quality[0]).all() for e in made("aaft-nogold").examples)


def parts(method: str) -> set[str]:
    """Parts of the loss that are ever present, with gates that open."""
    history = trained(made(method, MANY, **KIN)).history
    names = ("sft", "pg", "abstain", "recovery", "anchor")
    return {name for name in names if any(step[name] for step in history)}


def test_a_part_that_is_off_is_absent_and_all_others_are_there() -> None:
    everything = {"sft", "pg", "abstain", "recovery", "anchor"}
    assert parts("aaft") == everything
    assert parts("aaft-norecovery") == everything - {"recovery"}
    assert parts("aaft-noanchor") == everything - {"anchor"}
    assert "abstain" not in parts("aaft-noabstain")
    assert parts("aaft-nogold") & {"abstain", "recovery"} == set()
    assert parts("sft") == {"sft"}


def test_the_constant_gate_is_the_mean_of_the_usual_ones_at_the_start() -> None:
    constant = mean_gate(EXAMPLES, CFG.train)
    assert 0 < constant < 1
    gates = trained(made("aaft-constant")).gates
    for example in EXAMPLES:
        want = 1.0 if example.abstention is not None else constant
        assert gates[example.id].gate == pytest.approx(want)


def test_the_constant_gate_changes_no_golds_imitation() -> None:
    trainer = trained(made("aaft-constant"))
    constant, usual = (
        recipe.measure(trainer, EXAMPLES)
        for recipe in (ConstantRecipe(CFG.train, 0.4), GatedRecipe(CFG.train))
    )
    assert constant.imitation.tolist() == usual.imitation.tolist()
    assert constant.gates.tolist() != usual.gates.tolist()


def test_an_unscored_record_stays_ungated_under_a_constant_gate() -> None:
    examples = [*EXAMPLES, scored(50, [math.nan] * 3)]
    assert trained(made("aaft-constant", examples)).gates["r50"].gate == 0.0


def test_twins_hold_the_policy_under_a_constant_gate_too() -> None:
    prepared = made("aaft-constant", MANY, **KIN)
    twins = [e for e in prepared.examples if e.role == "anchor"]
    assert all(e.quality.shape == (1, 1) for e in twins)
    history = trained(prepared).history
    assert twins
    assert sum(row["anchor"] for row in history) > 0


def test_preparing_changes_no_example() -> None:
    before = [(e.id, e.candidates, e.abstention, e.quality.tolist()) for e in EXAMPLES]
    for method in METHODS:
        made(method)
    assert before == [(e.id, e.candidates, e.abstention, e.quality.tolist()) for e in EXAMPLES]
