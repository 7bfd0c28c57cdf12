"""Our own requests for the intent head: what they begin with must not tell which are harmful."""

from __future__ import annotations

from collections import defaultdict

from aaft.data.contrast import contrast_prompts
from aaft.data.forms import form_prompts


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
