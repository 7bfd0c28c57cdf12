"""Which examples come into one step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.tuning.examples import Example
from aaft.tuning.windows import windows
from tests.test_tuning_trainer import example

ROLES = st.sampled_from(["record", "anchor", "sibling"])


@st.composite
def epochs(draw) -> tuple[list[Example], list[int], int]:
    """Examples of all roles, some of them guests, some twice, in any order."""
    made: list[Example] = []
    for i, role in enumerate(draw(st.lists(ROLES, min_size=1, max_size=20))):
        records = [e.id for e in made if e.role == "record" and e.host is None]
        host = draw(st.sampled_from([None, "away", *records])) if role == "record" else None
        made.append(replace(example(i, [0.9, 0.9]), role=role, host=host))
    made += draw(st.lists(st.sampled_from(made), max_size=5))
    order = draw(st.permutations(range(len(made))))
    return made, order, draw(st.integers(1, 6))


@given(epochs())
def test_every_example_comes_once_and_guests_right_behind_their_host(epoch) -> None:
    examples, order, size = epoch
    made = list(windows(examples, order, size))
    assert all(made)
    assert sorted(i for window in made for i in window) == sorted(order)
    assert len(made) <= -(-len(order) // size)
    assert all(2 * len(window) >= size for window in made[:-1])
    hosts = {e.id for e in examples if e.host is None}
    for window in made:
        for place, i in enumerate(window):
            host = examples[i].host
            if host in hosts:
                before = [examples[j] for j in window[:place]]
                last = max(n for n, e in enumerate(before) if e.id == host)
                assert all(e.host == host for e in before[last + 1 :])


@given(st.permutations(range(11)), st.integers(1, 12))
def test_without_kin_and_guests_they_are_cuts_of_the_order(order, size) -> None:
    examples = [example(i, [0.9, 0.9]) for i in order]
    cuts = [list(order[i : i + size]) for i in range(0, len(order), size)]
    assert list(windows(examples, order, size)) == cuts


@pytest.mark.parametrize("size", [4, 8])
def test_each_window_has_its_part_of_every_role(size: int) -> None:
    roles = ["record"] * 24 + ["anchor"] * 16 + ["sibling"] * 8
    examples = [replace(example(i, [0.9, 0.9]), role=role) for i, role in enumerate(roles)]
    order = sorted(range(len(roles)), key=lambda i: (i * 29) % 48)
    made = list(windows(examples, order, size))
    assert [len(window) for window in made] == [size] * (48 // size)
    whole = Counter(roles)
    for window in made:
        for role, count in Counter(examples[i].role for i in window).items():
            assert abs(count - whole[role] * size / 48) < 1.01
    for role in whole:
        own = [i for window in made for i in window if examples[i].role == role]
        assert own == [i for i in order if examples[i].role == role]
