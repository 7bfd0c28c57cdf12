"""Keep the splits apart: what selection must avoid, and the check that it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aaft.data.similarity import Index
from aaft.data.text import normalise
from aaft.errors import AaftError

NEAR = 0.6
"""Word 5-gram Jaccard similarity from which two prompts count as the same."""


class Taken:
    """Prompts already used elsewhere: ``near`` ones exclude look-alikes, ``exact`` ones twins.

    Texts are compared in normalised form.
    """

    def __init__(self, near: Iterable[str] = (), exact: Iterable[str] = ()) -> None:
        near = {normalise(text) for text in near}
        self._exact = {normalise(text) for text in exact} | near
        self._index = Index((text, text) for text in sorted(near))

    def free(self, prompt: str) -> bool:
        """Whether ``prompt`` may still be used."""
        return normalise(prompt) not in self._exact and not self._index.similar(prompt, NEAR)


def check_disjoint(
    bench: Mapping[str, Iterable[str]],
    train: Iterable[str],
    judge: Mapping[str, Iterable[str]],
) -> None:
    """Prompts by file name (bench, judge) and of ``train.jsonl``.

    Raises:
        AaftError: a train or judge prompt nearly equals a bench prompt, or a judge prompt equals
            a train prompt. Selection avoids both, so this means a fault in the build.
    """
    train = list(train)
    exact = {normalise(text): "train.jsonl" for text in train}
    index = Index()
    for file, prompts in bench.items():
        for number, text in enumerate(prompts):
            index.add(f"{file}#{number}", text)
    for file, prompts in {"train.jsonl": train, **judge}.items():
        for text in prompts:
            match = index.nearest(text)
            if match is not None and match.similarity >= NEAR:
                raise _overlap(file, match.key.partition("#")[0], text)
            if file != "train.jsonl" and normalise(text) in exact:
                raise _overlap(file, "train.jsonl", text)


def _overlap(file: str, other: str, text: str) -> AaftError:
    return AaftError(f"{file}: prompt {text[:60]!r} is also in {other}; fix the build's selection")
