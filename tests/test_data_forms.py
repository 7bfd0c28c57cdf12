"""Our own requests for the intent head: what they begin with must not tell which are harmful."""

from __future__ import annotations

from collections import defaultdict
from itertools import cycle

from aaft.data.contrast import contrast_prompts
from aaft.data.contrast_answers import contrast_answers
from aaft.data.forms import form_prompts
from aaft.judges.text import refusal_phrase


def test_no_form_tells_the_label() -> None:
    labels = defaultdict(list)
    for row in form_prompts():
        labels[" ".join(row.prompt.split()[:2])].append(row.harmful)
    common = {opening: harmful for opening, harmful in labels.items() if len(harmful) >= 20}
    assert sum(map(len, common.values())) > 0.9 * len(form_prompts())
    for opening, harmful in common.items():
        assert 0.15 < sum(harmful) / len(harmful) < 0.7, opening


def test_every_prompt_is_there_once_and_every_act_has_one_label() -> None:
    rows = [*contrast_prompts(), *form_prompts()]
    assert len({row.prompt for row in rows}) == len(rows)
    harmful = {row.act for row in form_prompts() if row.harmful}
    assert harmful.isdisjoint(row.act for row in form_prompts() if not row.harmful)


def test_acts_that_both_lists_have_are_named_alike() -> None:
    """They are split by name: one act must not be fitted in one list and tested in the other."""
    shared = {row.act for row in form_prompts()} & {row.act for row in contrast_prompts()}
    assert len(shared) >= 140


def test_answers_of_ours_decline_or_agree_at_once_or_late_and_serve_one_split_each() -> None:
    acts = sorted({row.act for row in contrast_prompts()})
    split = dict(zip(acts, cycle(["fit", "fit", "calibrate", "test"]), strict=False))
    rows = contrast_answers(1, split.__getitem__)
    assert {declines for _, _, declines in rows} == {True, False}
    assert not [said for _, said, declines in rows if not declines and refusal_phrase(said)]
    late = [said for _, said, _ in rows if "\n" in said]
    assert len(late) > 100
    places = defaultdict(set)
    for row, said, _ in rows:
        places[said].add(split[row.act])
    assert all(len(found) == 1 for found in places.values())
    kinds = {
        name: {(row.harmful, declines) for row, _, declines in rows if split[row.act] == name}
        for name in ("fit", "calibrate", "test")
    }
    assert all(len(found) == 4 for found in kinds.values())
