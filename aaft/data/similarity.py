"""Near-duplicate search by word 5-gram Jaccard similarity, with an inverted index.

``J(a, b) = |A & B| / |A | B|`` over the sets of normalised word 5-grams; a text of fewer than
five words is one gram. Only texts that share a gram are ever compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from aaft.data.text import normalise

N = 5


def grams(text: str) -> frozenset[str]:
    """The set of word 5-grams of the normalised text; empty for a text without words."""
    words = normalise(text).split()
    if not words:
        return frozenset()
    last = max(1, len(words) - N + 1)
    return frozenset(" ".join(words[start : start + N]) for start in range(last))


class Match(NamedTuple):
    """The most similar text: its key and the similarity in [0, 1]."""

    key: str
    similarity: float


class Index:
    """Texts by key, searchable for the nearest one."""

    def __init__(self, texts: Iterable[tuple[str, str]] = ()) -> None:
        self._sizes: dict[str, int] = {}
        self._postings: defaultdict[str, list[str]] = defaultdict(list)
        for key, text in texts:
            self.add(key, text)

    def add(self, key: str, text: str) -> None:
        """Add a text; keys must be unique (``ValueError``)."""
        if key in self._sizes:
            raise ValueError(f"duplicate key {key!r}")
        found = grams(text)
        self._sizes[key] = len(found)
        for gram in found:
            self._postings[gram].append(key)

    def nearest(self, text: str) -> Match | None:
        """The most similar text that shares a 5-gram, ties by key; None when none does."""
        query = grams(text)
        shared: Counter[str] = Counter()
        for gram in query:
            shared.update(self._postings.get(gram, ()))
        matches = (
            Match(key, count / (len(query) + self._sizes[key] - count))
            for key, count in shared.items()
        )
        return min(matches, key=lambda match: (-match.similarity, match.key), default=None)

    def similar(self, text: str, threshold: float) -> bool:
        """Whether some text is at least ``threshold`` similar."""
        match = self.nearest(text)
        return match is not None and match.similarity >= threshold
