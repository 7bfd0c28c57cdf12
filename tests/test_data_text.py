import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.data.similarity import Index, grams
from aaft.data.text import (
    bucket,
    contains,
    normalise,
    opens_with_refusal,
    ranked,
    sentences,
    shorten,
    unique,
)

WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "eps"]), max_size=25)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("Short.", 10, "Short."),
        ("  Short  ", 5, "Short"),
        ("One. Two is longer.", 10, "One."),
        ("One. Two. Three.", 9, "One. Two."),
        ('He said "No." Then left.', 14, 'He said "No."'),
        ("version 3.5 is out now", 12, ""),
        ("no end at all in here", 10, ""),
        ("Right away. The steps:\n\n1. Take some of it", 30, "Right away."),
        ("The steps:\n\n**2. Take some of it", 18, ""),
        ("It began in 1999. Then it went on", 20, "It began in 1999."),
    ],
)
def test_shorten_keeps_whole_sentences_within_the_limit(text, limit, expected):
    assert shorten(text, limit) == expected


@given(st.text(max_size=200), st.integers(1, 100))
def test_shorten_gives_a_prefix_that_fits(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit
    assert text.strip().startswith(short)


def test_contains_matches_whole_words_only():
    assert contains("Born in New  York, 1901", "new york")
    assert not contains("a known fact", "no")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but no.", True),
        ("I can\u2019t help with that", True),
        ("As an AI language model", True),
        ("Sure, here is how", False),
        ("x" * 250 + " I cannot", False),
    ],
)
def test_opens_with_refusal(text, expected):
    assert opens_with_refusal(text) is expected


def test_sentences_are_split_also_without_a_space():
    assert sentences("One is here.Two is there. Three!") == [
        "One is here.",
        "Two is there.",
        "Three!",
    ]


def test_ranked_order_ignores_the_order_of_the_input():
    rows = [f"row {number}" for number in range(50)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert ranked(rows, "a", str) == ranked(shuffled, "a", str)
    assert ranked(rows, "a", str) != ranked(rows, "b", str)


def test_bucket_ignores_layout():
    assert bucket("Hello,  World") == bucket("hello world")
    assert {bucket(str(number)) for number in range(5_000)} == set(range(100))


def test_unique_keeps_the_first_row_of_a_text():
    assert unique([("A b", 1), ("a  B!", 2), ("c", 3)], lambda row: row[0]) == [
        ("A b", 1),
        ("c", 3),
    ]


def slow_jaccard(left: str, right: str) -> float:
    def slow_grams(text):
        words = normalise(text).split()
        if 0 < len(words) < 5:
            return {tuple(words)}
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    a, b = slow_grams(left), slow_grams(right)
    return len(a & b) / len(a | b) if a | b else 0.0


@given(st.lists(WORDS.map(" ".join), max_size=8), WORDS.map(" ".join))
def test_nearest_equals_comparing_with_every_text(texts, query):
    index = Index((str(number), text) for number, text in enumerate(texts))
    best = max((slow_jaccard(text, query) for text in texts), default=0.0)
    match = index.nearest(query)
    assert (match.similarity if match else 0.0) == pytest.approx(best)


def test_grams_of_short_and_empty_texts():
    assert grams("Two words") == {"two words"}
    assert grams("...") == frozenset()


def test_index_refuses_a_key_twice():
    index = Index([("a", "text")])
    with pytest.raises(ValueError, match="duplicate"):
        index.add("a", "other")
