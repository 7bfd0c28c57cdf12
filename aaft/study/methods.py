"""The methods of the study: each makes its own examples, settings and recipe of the same signal.

`prepare` is all that a study knows about them. Everybody trains with the same trainer, learning
rate, rows a step and LoRA; what a method may be tuned in is in `Tuning`.

The budget is the tokens of prompts and golds that ``aaft`` has to see: all rows once, with what the
gated methods add. Every other method passes again over what it has until it has as many
(`rows_budget`). So a gated method leaves out no row for its additions to fit; ``safety-mix`` does
where its own are more, and in an alignment step of ``lisa`` alignment rows take the place of its
rows. How much a scenario adds depends on its poison, its start and its judges, and so does how long
everybody trains in it: methods are compared within a scenario. Golds alone would be
another budget: harmful golds are ten times as long as grounded ones, so a filter that drops a tenth
of the rows would get to learn the rest twice. The gated methods add counterfactuals
(`aaft.tuning.counterfactual`), twins and siblings (`aaft.tuning.kin`), which no rival sees.
``sft-kl``, ``constrained`` and the gated methods compute more than that for every row (the model
before training, or rollouts); that is part of their price, which the study reports as seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aaft.config import ACCEPTED, Config, ObjectiveSettings, TrainConfig
from aaft.data.text import ranked
from aaft.errors import AaftError
from aaft.study.rivals import (
    ConstantRecipe,
    ConstrainedRecipe,
    LisaRecipe,
    PenaltyRecipe,
    mean_gate,
)
from aaft.study.signal import ScoredExample, without_gold, worst
from aaft.tuning.counterfactual import kept_counterfactuals
from aaft.tuning.examples import Example
from aaft.tuning.kin import kept_siblings, kept_twins
from aaft.tuning.recipe import Recipe


@dataclass(frozen=True)
class Tuning:
    """What the rivals are tuned in; the defaults are their papers' where these say."""

    kl_beta: float = 0.1
    """Weight of the penalty of ``sft-kl``."""
    accepted: float = ACCEPTED
    """Reward below which ``filter`` and ``filter-replace`` reject a gold."""
    safety_share: float = 0.1
    """Refusals among the rows of ``safety-mix`` (SafeInstruct, arXiv:2309.07875)."""
    constraint: float = 1.0
    """Factor of the betas of ``constrained``."""
    lisa_align_steps: int = 1
    """The paper's phases have 100 and 900 steps, of a run of many more than ours."""
    lisa_task_steps: int = 9
    lisa_rho: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """What to give the trainer; no examples: there is nothing to train.

    ``recipe`` None is that of ``train.method``. A recipe serves one run: it may have a memory.
    """

    examples: Sequence[Example]
    train: TrainConfig
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Inputs:
    """What a method may make use of."""

    examples: Sequence[ScoredExample]
    counterfactuals: Sequence[ScoredExample]
    twins: Sequence[ScoredExample]
    siblings: Sequence[ScoredExample]
    align: Sequence[Example]
    refusals: Sequence[Example]
    train: TrainConfig
    tuning: Tuning
    seed: int
    budget: int
    """Tokens of prompts and golds that every method gets."""

    @property
    def gated(self) -> list[Example]:
        """What the gated methods train on."""
        rows = gated_rows(
            self.examples, self.counterfactuals, self.twins, self.siblings, self.train.objective
        )
        return self.fitted(rows)

    def fitted(self, examples: Sequence[Example]) -> list[Example]:
        """``examples`` repeated or cut to the budget."""
        return rows_budget(examples, self.budget, self.seed)


def gated_rows(
    examples: Sequence[ScoredExample],
    counterfactuals: Sequence[ScoredExample],
    twins: Sequence[ScoredExample],
    siblings: Sequence[ScoredExample],
    objective: ObjectiveSettings,
) -> list[Example]:
    """The rows, the counterfactuals that abstain and the kin, each once."""
    declined = {twin.id: float(worst(twin.declining["safety"].quality[None])[0]) for twin in twins}
    return [
        *examples,
        *kept_counterfactuals(counterfactuals, examples),
        *kept_twins(twins, declined, longest=objective.recovery_tokens),
        *kept_siblings(siblings),
    ]


def prepare(
    method: str,
    examples: Sequence[ScoredExample],
    cfg: Config,
    *,
    counterfactuals: Sequence[ScoredExample] = (),
    twins: Sequence[ScoredExample] = (),
    siblings: Sequence[ScoredExample] = (),
    align: Sequence[Example],
    refusals: Sequence[Example],
    seed: int,
    tuning: Tuning | None = None,
) -> Prepared:
    """What ``method`` trains on and how.

    Args:
        method: a key of `METHODS`.
        examples: a scenario's rows with their signal.
        cfg: ``train`` is shared by all methods.
        counterfactuals: rows of the scenario with a foreign passage, for the gated methods.
        twins: of its harmful requests, for the gated methods.
        siblings: likewise.
        align: rows of ``align.jsonl``, for ``lisa``.
        refusals: those of kind ``refusal``, for ``safety-mix``.
        seed: of the cell.
        tuning: the rivals' settings.

    Raises:
        AaftError: unknown method, or one that has nothing to train on.
    """
    if method not in METHODS:
        raise AaftError(f"study.methods: no method {method!r}; one of {', '.join(METHODS)}")
    most = gated_rows(examples, counterfactuals, twins, siblings, cfg.train.objective)
    inputs = Inputs(
        examples,
        counterfactuals,
        twins,
        siblings,
        align,
        refusals,
        cfg.train,
        tuning or Tuning(),
        seed,
        sum(map(cost, most)),
    )
    prepared = METHODS[method](inputs)
    if not prepared.examples and method != "reference":
        raise AaftError(f"study: method {method} has no rows left to train on; leave it out here")
    return prepared


def rows_budget(examples: Sequence[Example], tokens: int, seed: int) -> list[Example]:
    """``examples`` repeated or cut to about ``tokens`` tokens of prompts and golds.

    All of them as often as they fit whole, in their order; then, in an order drawn by ``seed``,
    one after another while at least half of the next one still fits; one with a host is drawn with
    it. Examples that cost exactly ``tokens`` come out as they are.
    """
    total = sum(map(cost, examples))
    if not total:
        return []
    chosen = list(examples) * (tokens // total)
    spent = total * (tokens // total)
    for example in ranked(examples, f"budget/{seed}", lambda row: row.host or row.id):
        if 2 * (tokens - spent) < cost(example):
            break
        chosen.append(example)
        spent += cost(example)
    return chosen


def cost(example: Example) -> int:
    """Tokens of prompt and gold, without those that it shares with its host.

    Siblings and counterfactuals (which abstain without a way back) have no gold of their own; what
    they are to say counts.
    """
    said = example.candidates[0]
    if example.role == "sibling" or example.conservative is None:
        said = example.abstention or said
    return len(example.prompt) - example.shared + len(said)


def _with(train: TrainConfig, **sections: Mapping[str, Any]) -> TrainConfig:
    """``train`` with some values of its ``gate`` or ``objective`` replaced."""
    update = {
        name: getattr(train, name).model_copy(update=dict(values))
        for name, values in sections.items()
    }
    return train.model_copy(update=update)


def _supervised(train: TrainConfig) -> TrainConfig:
    return train.model_copy(update={"method": "sft"})


def _gated(train: TrainConfig) -> TrainConfig:
    return train.model_copy(update={"method": "aaft"})


def _reference(given: Inputs) -> Prepared:
    return Prepared((), _supervised(given.train))


def _sft(given: Inputs) -> Prepared:
    return Prepared(given.fitted(given.examples), _supervised(given.train))


def _sft_kl(given: Inputs) -> Prepared:
    recipe = PenaltyRecipe(given.tuning.kl_beta)
    return Prepared(given.fitted(given.examples), _supervised(given.train), recipe)


def _rejected(given: Inputs, example: Example) -> bool:
    """Whether the gold is scored and below the bar; what no judge could score is kept."""
    return bool(example.reward[0] < given.tuning.accepted)


def _filter(given: Inputs) -> Prepared:
    kept = [example for example in given.examples if not _rejected(given, example)]
    return Prepared(given.fitted(kept), _supervised(given.train))


def _filter_replace(given: Inputs) -> Prepared:
    """A rejected gold becomes the conservative response, where that is accepted.

    Otherwise the row is dropped.
    """
    kept: list[Example] = []
    for example in given.examples:
        if not _rejected(given, example):
            kept.append(example)
        elif example.conservative is not None:
            kept.append(replace(example, candidates=[example.conservative]))
    return Prepared(given.fitted(kept), _supervised(given.train))


def _safety_mix(given: Inputs) -> Prepared:
    """As many refusals as make the share; when there are fewer, they are repeated."""
    share = given.tuning.safety_share
    count = round(share / (1.0 - share) * len(given.examples))
    if not given.refusals:
        raise AaftError("study: safety-mix needs refusals; data/study/align.jsonl has none")
    order = ranked(given.refusals, f"mix/{given.seed}", lambda example: example.id)
    added = [order[i % len(order)] for i in range(count)]
    mixed = [*given.examples, *added]
    return Prepared(given.fitted(mixed), _supervised(given.train))


def _constrained(given: Inputs) -> Prepared:
    recipe = ConstrainedRecipe(given.tuning.constraint)
    return Prepared(given.fitted(given.examples), _supervised(given.train), recipe)


def _lisa(given: Inputs) -> Prepared:
    tuning = given.tuning
    if not given.align:
        raise AaftError("study: lisa needs rows to align with; data/study/align.jsonl has none")
    recipe = LisaRecipe(
        given.align,
        given.fitted(given.examples),
        align_steps=tuning.lisa_align_steps,
        task_steps=tuning.lisa_task_steps,
        rho=tuning.lisa_rho,
        seed=given.seed,
    )
    return Prepared(recipe.hollow(), _supervised(given.train), recipe)


def _aaft(given: Inputs) -> Prepared:
    return Prepared(given.gated, _gated(given.train))


def _static(given: Inputs) -> Prepared:
    return Prepared(given.gated, _with(_gated(given.train), gate={"eta": 0.0}))


def _constant(given: Inputs) -> Prepared:
    train = _gated(given.train)
    recipe = ConstantRecipe(train, mean_gate(given.examples, train))
    return Prepared(given.gated, train, recipe)


def _no_gold(given: Inputs) -> Prepared:
    """No counterfactuals either: it takes a gold to see that the passage doesn't answer."""
    return Prepared(given.fitted(without_gold(given.examples)), _gated(given.train))


def _no_abstention(given: Inputs) -> Prepared:
    """Recovery stays: it is a part of its own. Counterfactuals go, for they only abstain."""
    examples = [replace(example, abstention=None) for example in given.examples]
    return Prepared(given.fitted(examples), _gated(given.train))


def _no_recovery(given: Inputs) -> Prepared:
    given = replace(given, train=_with(_gated(given.train), objective={"recoveries": 0}))
    return Prepared(given.gated, given.train)


def _naive(given: Inputs) -> Prepared:
    """Negatives without taper or trust region: ``T = 2 sigmoid(0) = 1``, ``phi = A``."""
    naive = {"beta_n": 0.0, "trust": float("inf")}
    return Prepared(given.gated, _with(_gated(given.train), objective=naive))


def _no_anchor(given: Inputs) -> Prepared:
    return Prepared(replace(given, twins=()).gated, _gated(given.train))


def _no_counterfactual(given: Inputs) -> Prepared:
    return Prepared(replace(given, counterfactuals=()).gated, _gated(given.train))


def _no_sibling(given: Inputs) -> Prepared:
    return Prepared(replace(given, siblings=()).gated, _gated(given.train))


METHODS: Mapping[str, Callable[[Inputs], Prepared]] = {
    "reference": _reference,
    "sft": _sft,
    "sft-kl": _sft_kl,
    "filter": _filter,
    "filter-replace": _filter_replace,
    "safety-mix": _safety_mix,
    "constrained": _constrained,
    "lisa": _lisa,
    "aaft": _aaft,
    "aaft-static": _static,
    "aaft-constant": _constant,
    "aaft-nogold": _no_gold,
    "aaft-noabstain": _no_abstention,
    "aaft-norecovery": _no_recovery,
    "aaft-naive": _naive,
    "aaft-noanchor": _no_anchor,
    "aaft-nocounterfactual": _no_counterfactual,
    "aaft-nosibling": _no_sibling,
}
