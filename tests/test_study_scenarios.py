"""A scenario's rows: the shares it names, other rows for other seeds, and nothing twice."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from aaft.config import Config
from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.study.config import SCENARIOS as NAMES
from aaft.study.rows import StudyData, StudyRow, load_study_data, study_row
from aaft.study.scenarios import SCENARIOS, Scenario, rows

COUNTS = {"grounded": 780, "benign": 204, "harmful": 96, "hallucinated": 60, "unsupported": 60}


def made(kind: str, count: int) -> list[StudyRow]:
    return [
        study_row(Record(f"{kind}{i}", [{"role": "user", "content": "q"}], "a", None, "x"), kind)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data() -> StudyData:
    train = [row for kind, count in COUNTS.items() for row in made(kind, count)]
    general = [study_row(row, "benign") for row in made("general", 600)]
    return StudyData(train, general, [])


def test_every_scenario_that_a_study_may_name_exists() -> None:
    assert set(SCENARIOS) == set(NAMES)
    assert all(name == scenario.name for name, scenario in SCENARIOS.items())


@pytest.mark.parametrize(
    ("name", "harmful", "made_up", "grounded", "benign"),
    [
        ("clean", 0, 0, 320, 80),
        ("poison-05", 10, 10, 304, 76),
        ("poison-10", 20, 20, 288, 72),
        ("poison-20", 40, 40, 256, 64),
        ("unsafe-start", 20, 20, 288, 72),
        ("noise-20", 20, 20, 288, 72),
        ("general", 40, 0, 0, 360),
    ],
)
def test_rows_have_the_scenarios_shares(data, name, harmful, made_up, grounded, benign) -> None:
    chosen = rows(SCENARIOS[name], 0, data, 400)
    kinds = Counter(row.kind for row in chosen)
    assert kinds["harmful"] == harmful
    assert kinds["hallucinated"] + kinds["unsupported"] == made_up
    assert (kinds["grounded"], kinds["benign"]) == (grounded, benign)
    assert sum(row.poisoned for row in chosen) == harmful + made_up
    assert len({row.id for row in chosen}) == len(chosen) == 400


def test_a_seed_draws_the_same_rows_again_and_others_draw_others(data) -> None:
    first, again, other = (rows(SCENARIOS["poison-10"], seed, data, 400) for seed in (0, 0, 1))
    assert first == again
    assert {row.id for row in first} != {row.id for row in other}


def test_less_poison_is_a_part_of_more_poison_in_the_same_order(data) -> None:
    few, many = (rows(SCENARIOS[f"poison-{share}"], 3, data, 400) for share in ("05", "20"))
    poison = [row.id for row in many if row.poisoned]
    assert {row.id for row in few if row.poisoned} < set(poison)
    clean = {row.id for row in many if not row.poisoned}
    assert clean < {row.id for row in few if not row.poisoned}
    both = {row.id for row in few} & {row.id for row in many}
    assert [r.id for r in few if r.id in both] == [r.id for r in many if r.id in both]


def test_poison_is_not_at_one_end(data) -> None:
    flags = [row.poisoned for row in rows(SCENARIOS["poison-20"], 0, data, 400)]
    assert 20 < sum(flags[:200]) < 60


def test_too_many_rows_name_the_kind_that_runs_out(data) -> None:
    with pytest.raises(AaftError, match=r"need 100 harmful ones and there are 96; lower"):
        rows(Scenario("much", poison=0.2), 0, data, 1000)


def write(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def config(folder) -> Config:
    return Config.model_validate(
        {"data": {"train": str(folder / "train.jsonl"), "bench": folder / "bench"}}
    )


PAIR = {"prompt": "What?", "response": "That."}
ROW = {"id": "c", "kind": "benign", **PAIR}
LABEL = {"id": "a", "kind": "benign"}


def test_data_joins_rows_with_their_labels(tmp_path) -> None:
    write(tmp_path / "train.jsonl", [{"id": "a", **PAIR}, {"id": "b", **PAIR}])
    labels = [{"id": "b", "kind": "harmful"}, {"id": "a", "kind": "x"}]
    write(tmp_path / "train_labels.jsonl", labels)
    for name in ("general", "align"):
        write(tmp_path / f"study/{name}.jsonl", [{"id": "c", "kind": "refusal", **PAIR}])
    data = load_study_data(config(tmp_path))
    assert [(row.id, row.kind, row.poisoned) for row in data.train] == [
        ("a", "x", False),
        ("b", "harmful", True),
    ]
    assert data.align[0].response == "That."


@pytest.mark.parametrize(
    ("label", "general", "error"),
    [
        ({**LABEL, "id": "z"}, [ROW], "row a: no kind"),
        (LABEL, [{"id": "c", **PAIR}], "row c: no kind"),
        (LABEL, [{"id": "c", "kind": "benign", "prompt": "Q"}], "response"),
        (LABEL, [], "no rows"),
        (LABEL, None, "no such file; run aaft data build"),
    ],
)
def test_data_that_no_build_made_is_one_line(tmp_path, label, general, error) -> None:
    write(tmp_path / "train.jsonl", [{"id": "a", **PAIR}])
    write(tmp_path / "train_labels.jsonl", [label])
    if general is not None:
        write(tmp_path / "study/general.jsonl", general)
    with pytest.raises(AaftError, match=error) as caught:
        load_study_data(config(tmp_path))
    assert "\n" not in str(caught.value)
