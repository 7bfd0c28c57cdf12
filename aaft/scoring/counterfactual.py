"""Counterfactuals: questions with a passage that can't answer them, made from the data itself.

Clean grounded rows are all answerable, so training on them teaches to answer always. A share of
them is scored once more with another record's passage in place of its own. Whether that passage
answers the question is for the judges to say: the trainer keeps only what they reject
(`aaft.tuning.counterfactual`). Our own; passages are exchanged at random, so these questions are
easier to recognise as unanswerable than near misses are.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from aaft.data.records import Record
from aaft.judges.base import bare_prompt
from aaft.judges.text import normalize_answer

AnyRecord = TypeVar("AnyRecord", bound=Record)

SUFFIX = "~swap"
# An answer like "it" stands in nearly every passage: its record is left out, not searched for ever.
_TRIES = 100


@dataclass
class _Passage:
    """A context with what decides which records may get it."""

    text: str
    place: int
    normalised: str
    questions: set[str] = field(default_factory=set)


def counterfactuals(records: Sequence[AnyRecord], share: float, seed: int) -> list[AnyRecord]:
    """A share of the records that have a context, with the passage of another one.

    Chosen by a hash of seed and id: other rows don't change which ones. The passage is the next one
    after a hash of seed and id on a ring of all passages that neither holds the record's response
    nor belongs to the same question. A record without such a passage, or whose passage does not
    stand exactly once in its last user message, is left out.

    Args:
        records: with ids of their own; not changed.
        share: in [0, 1].
        seed: others choose others.

    Returns:
        Records with the id ``<id>~swap``, the foreign passage as context and in the prompt, and
        the original response, which is now made up. In the order of ``records``.
    """
    chosen = [
        record
        for record in records
        if record.context and _place("choose", seed, record.id) < share * 2**64
    ]
    if not chosen:
        return []
    ring = _ring(records, seed)
    taken = {record.id for record in records}
    made = (_swapped(record, ring, seed) for record in chosen)
    return [record for record in made if record is not None and record.id not in taken]


def _ring(records: Sequence[Record], seed: int) -> list[_Passage]:
    """Every context once, in the order of a hash."""
    passages: dict[str, _Passage] = {}
    for record in records:
        if record.context:
            known = passages.get(record.context)
            if known is None:
                place = _place("passage", seed, record.context)
                known = _Passage(record.context, place, normalize_answer(record.context))
                passages[record.context] = known
            known.questions.add(_question(record))
    return sorted(passages.values(), key=lambda passage: (passage.place, passage.text))


def _swapped(record: AnyRecord, ring: Sequence[_Passage], seed: int) -> AnyRecord | None:
    own, answer, question = record.context, normalize_answer(record.response), _question(record)
    if not own or record.prompt.count(own) != 1:
        return None
    for passage in _from(ring, _place("draw", seed, record.id)):
        if own in passage.text or passage.text in own:
            continue
        if f" {answer} " in f" {passage.normalised} " or question in passage.questions:
            continue
        prompt = record.prompt.replace(own, passage.text)
        if own in prompt:  # joined anew from what stands around the passage
            continue
        return replace(
            record,
            id=f"{record.id}{SUFFIX}",
            prompt_messages=with_prompt(record.prompt_messages, prompt),
            context=passage.text,
        )
    return None


def _from(ring: Sequence[_Passage], place: int) -> Iterator[_Passage]:
    """The ring's next passages from ``place`` on, once around at most."""
    first = bisect.bisect_left(ring, place, key=lambda passage: passage.place)
    for step in range(min(_TRIES, len(ring))):
        yield ring[(first + step) % len(ring)]


def with_prompt(messages: Sequence[dict[str, str]], prompt: str) -> list[dict[str, str]]:
    """``messages`` with another last user message."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return [
        {**message, "content": prompt} if i == last else message
        for i, message in enumerate(messages)
    ]


def _question(record: Record) -> str:
    return normalize_answer(bare_prompt(record.prompt, record.context))


def _place(purpose: str, seed: int, text: str) -> int:
    """A place in [0, 2^64)."""
    digest = hashlib.sha256(f"counterfactual/{purpose}/{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
