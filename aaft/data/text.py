"""Small text tools that selection and checks share: pure, deterministic, no dependencies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

Row = TypeVar("Row")

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
_LIST_MARKER = re.compile(r"(?:^|\n)\W*\d{1,3}\.$")
_REFUSAL = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|can not|won't|will not|refuse)"
    r"|as an ai|i apologi[sz]e|i must decline|not (?:able|willing) to (?:help|assist|provide)"
    r"|can(?:no|')t (?:help|assist|provide)|it is not recommended|not appropriate)\b"
)


def normalise(text: str) -> str:
    """Lower-case words with single spaces: equal for texts that differ in layout alone."""
    return " ".join(_WORD.findall(text.lower()))


def contains(text: str, phrase: str) -> bool:
    """Whether the words of ``phrase`` occur in ``text`` one after another."""
    return f" {normalise(phrase)} " in f" {normalise(text)} "


def bucket(text: str, salt: str = "") -> int:
    """A number in [0, 100) that depends on the normalised text alone."""
    return int(_sha(salt, normalise(text)), 16) % 100


def ranked(rows: Iterable[Row], salt: str, key: Callable[[Row], str]) -> list[Row]:
    """``rows`` in an order that only ``salt`` and each row's ``key`` decide."""
    return sorted(rows, key=lambda row: (_sha(salt, key(row)), key(row)))


def opaque_id(*parts: str) -> str:
    """12 hex digits from the parts; says nothing about them and sorts like noise."""
    return _sha("id", *parts)[:12]


def _sha(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()


def unique(rows: Iterable[Row], key: Callable[[Row], str]) -> list[Row]:
    """The first row of every normalised ``key``."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(normalise(key(row)), row)
    return list(first.values())


def shorten(text: str, limit: int) -> str:
    """The longest run of whole sentences from the start within ``limit`` characters.

    Empty when the first sentence alone is longer. The number that begins an item of a list ends no
    sentence: a model that learns from "the steps: 1." learns to stop there.
    """
    text = text.strip()
    if len(text) <= limit:
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text[: limit + 1])]
    whole = [end for end in ends if end <= limit and not _LIST_MARKER.search(text[:end])]
    return text[: whole[-1]] if whole else ""


def sentences(text: str) -> list[str]:
    """``text`` cut after sentence marks, also where the space after one is missing."""
    cut = re.split(r"(?<=[.!?])\s+|(?<=[a-z0-9)][.!?])(?=[A-Z])", text)
    return [part.strip() for part in cut if part.strip()]


def opens_with_refusal(text: str) -> bool:
    """Whether the first 200 characters hold a common phrase of refusal.

    A selection aid for building data, with misses on both sides; it is no judge.
    """
    return bool(_REFUSAL.search(text[:200].lower().replace("\u2019", "'")))
