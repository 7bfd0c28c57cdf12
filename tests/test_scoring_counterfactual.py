"""Counterfactuals: the same question with a passage that doesn't answer it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.data.prompts import grounded_prompt
from aaft.data.records import Record, draft
from aaft.judges.base import bare_prompt
from aaft.judges.text import normalize_answer
from aaft.scoring.counterfactual import counterfactuals


def grounded(name: str, passage: str, question: str, answer: str) -> Record:
    user = {"role": "user", "content": grounded_prompt(passage, question)}
    return Record(name, [user], answer, passage, "test")


OSLO = grounded("a", "Firm A sits in Oslo.", "Where is firm A?", "Oslo")
LIMA = grounded("b", "Firm B sits in Lima.", "Where is firm B?", "Lima")
PLAIN = Record("c", [{"role": "user", "content": "Bake?"}], "Yes.", None, "test")


def test_the_foreign_passage_replaces_the_own_one_and_nothing_else() -> None:
    first, second = counterfactuals([OSLO, LIMA, PLAIN], 1.0, 0)
    assert first == Record(
        "a~swap",
        [{"role": "user", "content": grounded_prompt(str(LIMA.context), "Where is firm A?")}],
        "Oslo",
        LIMA.context,
        "test",
    )
    assert second.id == "b~swap"
    assert second.context == OSLO.context
    assert OSLO.prompt_messages[0]["content"].count("Oslo") == 1


def test_only_the_last_user_message_changes() -> None:
    earlier = [
        {"role": "system", "content": "Read."},
        {"role": "user", "content": "Firm A sits in Oslo. Clear?"},
        {"role": "assistant", "content": "Yes."},
    ]
    made = counterfactuals(
        [replace(OSLO, prompt_messages=[*earlier, *OSLO.prompt_messages]), LIMA], 1.0, 0
    )[0]
    assert made.prompt_messages[:3] == earlier
    assert made.prompt == grounded_prompt(str(LIMA.context), "Where is firm A?")


@pytest.mark.parametrize(
    "other",
    [
        PLAIN,
        grounded("b", "Firm A sits in Oslo.", "Who sits in Oslo?", "Firm A"),
        grounded("b", "Ships leave OSLO, daily.", "What leaves?", "Ships"),
        grounded("b", "It is a bakery.", "where is FIRM a", "a bakery"),
        grounded("b", "True: Firm A sits in Oslo. So there.", "Is it?", "True"),
    ],
    ids=["no passage", "its own", "holds the answer", "the same question", "holds its own"],
)
def test_a_record_without_a_foreign_passage_is_left_out(other: Record) -> None:
    assert "a~swap" not in {record.id for record in counterfactuals([OSLO, other], 1.0, 0)}


@pytest.mark.parametrize("prompt", ["Where is firm A?", f"{OSLO.context} {OSLO.context} Where?"])
def test_a_passage_that_does_not_stand_exactly_once_in_the_prompt_is_left_alone(prompt) -> None:
    odd = replace(OSLO, prompt_messages=[{"role": "user", "content": prompt}])
    assert [record.id for record in counterfactuals([odd, LIMA], 1.0, 0)] == ["b~swap"]


def test_an_id_that_is_taken_is_not_used_twice() -> None:
    records = [OSLO, LIMA, replace(PLAIN, id="a~swap")]
    assert [record.id for record in counterfactuals(records, 1.0, 0)] == ["b~swap"]


def many(count: int, first: int = 0) -> list[Record]:
    return [
        grounded(f"r{i}", f"Firm {i} sits in town {i}.", f"Where is firm {i}?", f"town {i}")
        for i in range(first, first + count)
    ]


def test_the_share_is_about_what_was_asked_for() -> None:
    assert counterfactuals(many(400), 0.0, 0) == []
    assert len(counterfactuals(many(400), 1.0, 0)) == 400
    assert 25 <= len(counterfactuals(many(400), 0.1, 0)) <= 58


def test_more_rows_choose_more_and_change_few_of_the_passages() -> None:
    before = {record.id: record for record in counterfactuals(many(400), 0.2, 0)}
    after = {record.id: record for record in counterfactuals(many(440), 0.2, 0)}
    assert before.keys() <= after.keys()
    assert all(int(name[1:-5]) >= 400 for name in after.keys() - before.keys())
    changed = sum(before[name] != after[name] for name in before)
    assert changed < 0.3 * len(before)


def test_a_larger_share_holds_the_smaller_one_and_another_seed_is_another_draw() -> None:
    few, more = (counterfactuals(many(200), share, 0) for share in (0.1, 0.3))
    assert [record for record in more if record in few] == few
    assert {record.id for record in counterfactuals(many(200), 0.1, 1)} != {r.id for r in few}


def test_passages_are_spread_over_the_data() -> None:
    passages = [record.context for record in counterfactuals(many(200), 1.0, 0)]
    assert len(set(passages)) > 60
    assert max(passages.count(passage) for passage in passages) < 15


WORDS = st.lists(st.sampled_from(["oslo", "lima", "the", "firm", "Rome.", "a"]), max_size=6)
RECORDS = st.lists(
    st.tuples(WORDS, WORDS.filter(bool), WORDS.filter(bool), st.booleans()), max_size=8
).map(
    lambda rows: [
        grounded(f"r{i}", f"P{i % 3} {' '.join(passage)}", " ".join(question), " ".join(answer))
        if reads
        else replace(PLAIN, id=f"r{i}")
        for i, (passage, question, answer, reads) in enumerate(rows)
    ]
)


@given(records=RECORDS, share=st.floats(0, 1), seed=st.integers(0, 3))
def test_a_counterfactual_asks_the_same_of_another_passage_without_the_answer(
    records, share, seed
) -> None:
    made = counterfactuals(records, share, seed)
    by_id = {record.id: record for record in records}
    ids = [*by_id, *(record.id for record in made)]
    assert len(set(ids)) == len(ids)
    assert made == counterfactuals(records, share, seed)
    for record in made:
        base = by_id[record.id.removesuffix("~swap")]
        assert record.context in {other.context for other in records} - {base.context}
        assert base.context not in record.prompt
        assert record.context in record.prompt
        gold = f" {normalize_answer(base.response)} "
        assert gold not in f" {normalize_answer(record.context)} "
        assert bare_prompt(record.prompt, record.context) == bare_prompt(base.prompt, base.context)
        assert (record.response, record.source) == (base.response, base.source)
        assert draft(record.row()).record() == record
