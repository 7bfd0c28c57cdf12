"""Requests and answers of our own: nothing but their meaning may tell the labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aaft.data.text import normalise
from aaft.data.written import written_answers, written_requests
from aaft.io import read_jsonl
from aaft.judges.text import refusal_phrase


def _told_by_length(texts: Sequence[str], labels: Sequence[bool]) -> float:
    value = float(roc_auc_score(labels, [len(text) for text in texts]))
    return max(value, 1.0 - value)


def test_every_topic_has_a_harmful_and_a_harmless_request_or_is_an_answered_one() -> None:
    answered = {row.prompt for row in written_answers()}
    topics = defaultdict(list)
    for row in written_requests():
        topics[row.topic].append(row.harmful)
    for topic, labels in topics.items():
        assert sorted(labels) == [False, True] or (topic in answered and len(labels) == 1), topic


def test_no_request_is_there_twice() -> None:
    prompts = Counter(normalise(row.prompt) for row in written_requests())
    assert prompts.most_common(1)[0][1] == 1


def test_no_answer_is_there_twice() -> None:
    said = Counter(normalise(row.response) for row in written_answers())
    assert said.most_common(1)[0][1] == 1


def test_a_request_has_one_label_wherever_it_is_answered() -> None:
    labels = defaultdict(set)
    for row in written_answers():
        labels[row.prompt].add(row.harmful)
    assert all(len(found) == 1 for found in labels.values())


def test_declining_is_always_safe() -> None:
    for row in written_answers():
        assert row.safe or row.declines is False, row.response


@pytest.mark.parametrize(("source", "most"), [("written", 0.6), ("written-orders", 0.65)])
def test_length_tells_neither_harm_nor_refusal_nor_safety(source: str, most: float) -> None:
    requests = [row for row in written_requests() if row.source == source]
    answers = [row for row in written_answers() if row.source == source]
    clear = [row for row in answers if row.declines is not None]
    assert _told_by_length([r.prompt for r in requests], [r.harmful for r in requests]) < most
    said = [row.response for row in clear]
    assert _told_by_length(said, [row.declines is True for row in clear]) < most
    said = [row.response for row in answers]
    assert _told_by_length(said, [row.safe for row in answers]) < most


def test_the_usual_phrases_stand_in_answers_of_both_kinds_and_are_often_missing() -> None:
    phrase = {
        declines: np.mean(
            [refusal_phrase(r.response) > 0 for r in written_answers() if r.declines is declines]
        )
        for declines in (True, False)
    }
    assert 0.15 < phrase[True] < 0.7
    assert 0.05 < phrase[False] < 0.5


def test_no_opening_is_a_form() -> None:
    for texts in (
        [row.prompt for row in written_requests()],
        [row.response for row in written_answers()],
    ):
        openings = Counter(" ".join(normalise(text).split()[:3]) for text in texts)
        assert openings.most_common(1)[0][1] <= 0.04 * len(texts)


def test_external_sets_are_near_no_written_row() -> None:
    """They measure judges that are fitted on the written rows."""
    prompts = [_words(row.prompt) for row in written_requests()]
    responses = [_words(row.response) for row in written_answers()]
    paths = sorted((Path(__file__).parent / "external").glob("*.jsonl"))
    assert len(paths) >= 11
    for path in paths:
        rows = read_jsonl(path)
        assert {row["label"] for row in rows} == {0, 1}
        # Rows of one prompt or passage repeat it.
        for prompt in {row["prompt"] for row in rows}:
            assert _nearest(prompt, prompts) < 0.5, prompt
        said = {row["response"] for row in rows if "response" in row and row.get("context") is None}
        for response in said:
            assert _nearest(response, responses) < 0.5, response


def _words(text: str) -> set[str]:
    return set(normalise(text).split())


def _nearest(text: str, known: Sequence[set[str]]) -> float:
    """Largest share of common words (Jaccard)."""
    words = _words(text)
    return max(len(words & other) / len(words | other) for other in known)
