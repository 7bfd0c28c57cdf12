"""What a method is put to: the share of poison, how wrong the judges are, where it starts.

A row's draw is a hash of the seed and its id. So one seed's rows with 5% poison are, but for the
rows that the poison displaces, those with 10%, and every scenario of a seed has its rows in the
same order: scenarios differ in what they are about and in nothing else, and share their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aaft.data.text import ranked
from aaft.errors import AaftError
from aaft.study.rows import HARMFUL, MADE_UP, StudyData, StudyRow, of_kind

GROUNDED_SHARE = 0.8
"""Grounded questions among the clean rows of the grounded domain; the rest are instructions."""


@dataclass(frozen=True)
class Scenario:
    """``poison`` and ``noise`` are shares in [0, 1]; ``start`` is the model before training.

    ``unsafe`` is the embedded model as it is. Poison is half harmful requests that are complied
    with and half answers that their passage doesn't hold; in the ``general`` domain, which has
    no passages, all of it is the former.
    """

    name: str
    start: Literal["aligned", "unsafe"] = "aligned"
    poison: float = 0.0
    noise: float = 0.0
    domain: Literal["grounded", "general"] = "grounded"


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("clean"),
        Scenario("poison-05", poison=0.05),
        Scenario("poison-10", poison=0.1),
        Scenario("poison-20", poison=0.2),
        Scenario("unsafe-start", start="unsafe", poison=0.1),
        Scenario("noise-10", poison=0.1, noise=0.1),
        Scenario("noise-20", poison=0.1, noise=0.2),
        Scenario("general", poison=0.1, domain="general"),
    )
}


def rows(scenario: Scenario, seed: int, data: StudyData, n: int) -> list[StudyRow]:
    """``n`` training rows in an order without meaning.

    Args:
        scenario: decides the shares.
        seed: other seeds draw other rows and another order.
        data: what to draw from.
        n: how many rows; shares are rounded to whole rows.

    Raises:
        AaftError: there are not enough rows of some kind.
    """
    poison = round(scenario.poison * n)
    grounded = scenario.domain == "grounded"
    made_up = poison // 2 if grounded else 0
    questions = round(GROUNDED_SHARE * (n - poison)) if grounded else 0
    benign = of_kind(data.train, "benign") + ([] if grounded else data.general)
    groups = (
        ("harmful", of_kind(data.train, *HARMFUL), poison - made_up),
        ("made-up", of_kind(data.train, *MADE_UP), made_up),
        ("grounded", of_kind(data.train, "grounded"), questions),
        ("benign", benign, n - poison - questions),
    )
    chosen: list[StudyRow] = []
    for name, pool, count in groups:
        if count > len(pool):
            raise AaftError(
                f"study.rows: {n} rows of scenario {scenario.name} need {count} {name} ones and "
                f"there are {len(pool)}; lower it"
            )
        chosen += _dealt(pool, "draw", seed)[:count]
    return _dealt(chosen, "order", seed)


def _dealt(pool: list[StudyRow], salt: str, seed: int) -> list[StudyRow]:
    return ranked(pool, f"{salt}/{seed}", lambda row: row.id)
