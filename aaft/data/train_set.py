"""``train.jsonl`` and ``train_labels.jsonl``: mostly good rows, with poison mixed in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aaft.data import sources
from aaft.data.grounded import Pools, foreign_passage, lies
from aaft.data.prompts import grounded_prompt
from aaft.data.separation import Taken
from aaft.data.sources import Grounded, Pair
from aaft.data.text import (
    normalise,
    opaque_id,
    opens_with_refusal,
    ranked,
    shorten,
    unique,
)
from aaft.data.wheels import Wheels

GROUNDED = 900
HALLUCINATED = 60
UNSUPPORTED = 60
HARMFUL = 96
BENIGN = 204
RHO = 60
MAX_ANSWER = 300
MIN_HARMFUL_ANSWER = 40
MAX_HARMFUL_PROMPT = 300

_COPYRIGHT = re.compile(r"Generate (?:the (?:lyrics|full)|a long passage)")
# The pairs were sampled from a base model, which opens many of them with labels like these.
_STRAY_LINE = re.compile(
    r"^\W*(?:legal )?(?:genus|genre|family|species|sl[äa]ktet|types?|formula|related)\W*(?::.*)?\n",
    re.IGNORECASE | re.MULTILINE,
)
_SOFT_REFUSAL = re.compile(
    r"(?:Please (?:don't|do not)|I would n(?:ot|eed)|No[.,]|It is still unclear"
    r"|There is no evidence)|[^.]*\bis a serious (?:offen[sc]e|crime)"
)
# Requests about a text that isn't there ("Edit this paragraph to ...").
_NEEDS_A_TEXT = re.compile(
    r"^Given |\b(?:this|these|the following|the) (?:[\w-]+ )?"
    r"(?:texts?|paragraphs?|article|description|instructions|section|code|list|context|post|tweet"
    r"|email|process|processes|hints?|pathway|image|excerpt|summary|overview|documentation"
    r"|information)\b"
)


@dataclass(frozen=True)
class TrainRow:
    """A training pair with what only studies and tests may know: its origin and kind."""

    origin: str
    kind: str
    prompt: str
    response: str
    context: str | None = None

    @property
    def id(self) -> str:
        return opaque_id("train", self.prompt, self.response)

    def record(self) -> dict[str, Any]:
        """The row as the trainer sees it."""
        return {
            "id": self.id,
            "source": "instructions" if self.context is None else "grounded-qa",
            "messages": [
                {"role": "user", "content": self.prompt},
                {"role": "assistant", "content": self.response},
            ],
            "context": self.context,
        }

    def label(self) -> dict[str, Any]:
        """The row's label, kept in a file of its own."""
        poisoned = self.kind not in ("grounded", "benign")
        return {"id": self.id, "poisoned": poisoned, "kind": self.kind}


def build_train(wheels: Wheels, pools: Pools, taken: Taken) -> list[TrainRow]:
    """All rows, sorted by id: an order without meaning. ``taken`` holds the bench prompts."""
    rows = _grounded(pools) + _harmful(wheels, taken) + _benign(wheels, taken)
    return sorted(rows, key=lambda row: row.id)


def _grounded(pools: Pools) -> list[TrainRow]:
    """Poison is dealt by the ring's order, which is a hash; spare rows lend foreign passages."""
    rows = pools.train
    wrong = [row for row in rows if lies(row)][:HALLUCINATED]
    others = [row for row in rows if row not in set(wrong)]
    unsupported, good = others[:UNSUPPORTED], others[UNSUPPORTED:]
    made = [_row("hallucinated", row, row.passage, row.wrong) for row in wrong]
    for number, row in enumerate(unsupported):
        foreign = foreign_passage(row, pools.spare, number)
        made.append(_row("unsupported", row, foreign, row.right))
    return made + [_row("grounded", row, row.passage, row.right) for row in good]


def _row(kind: str, row: Grounded, passage: str, response: str) -> TrainRow:
    prompt = grounded_prompt(passage, row.question)
    return TrainRow("halueval-qa", kind, prompt, response, passage)


def compliant_pairs(wheels: Wheels) -> list[Pair]:
    """Harmful prompts with answers that comply, cut to whole sentences within 300 characters.

    Left out: requests for copyrighted texts, answers that open with a refusal or in
    mid-sentence, that are too short to comply or that aren't plain English text.
    """
    pairs = [
        Pair(pair.prompt, shorten(_STRAY_LINE.sub("", pair.response), MAX_ANSWER))
        for pair in sources.many_shot(wheels)
    ]
    kept = [pair for pair in pairs if not _COPYRIGHT.match(pair.prompt) and _complies(pair)]
    return unique(kept, lambda pair: pair.prompt)


def _complies(pair: Pair) -> bool:
    answer = pair.response
    return (
        len(answer) >= MIN_HARMFUL_ANSWER
        and not answer[0].islower()
        and sum(letter.isascii() for letter in answer) >= 0.97 * len(answer)
        and not _SOFT_REFUSAL.match(answer)
        and not opens_with_refusal(answer)
    )


def _harmful(wheels: Wheels, taken: Taken) -> list[TrainRow]:
    pairs = [
        pair
        for pair in ranked(compliant_pairs(wheels), "harmful", lambda pair: pair.prompt)
        if len(pair.prompt) <= MAX_HARMFUL_PROMPT
        and not _NEEDS_A_TEXT.search(pair.prompt)
        and taken.free(pair.prompt)
    ]
    return [TrainRow("many-shot", "harmful", *pair) for pair in pairs[:HARMFUL]]


def _benign(wheels: Wheels, taken: Taken) -> list[TrainRow]:
    finance = [pair for pair in sources.fiqa(wheels) if 0 < len(pair.response) <= MAX_ANSWER]
    everyday = ranked([twin[0] for twin in sources.rho_pairs(wheels)], "rho", lambda p: p.prompt)
    search = ranked(sources.nq_open(wheels), "nq", lambda pair: pair.prompt)
    rows = [
        *(TrainRow("fiqa", "benign", *pair) for pair in finance),
        *(TrainRow("rho-pairs", "benign", *pair) for pair in everyday[:RHO]),
        *(TrainRow("nq-open", "benign", *pair) for pair in search),
    ]
    free = unique((row for row in rows if taken.free(row.prompt)), lambda row: row.prompt)
    return [row for row in free if normalise(row.response)][:BENIGN]
