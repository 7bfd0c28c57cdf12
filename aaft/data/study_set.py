"""``study/``: what the study of methods needs besides the training rows.

- ``align.jsonl``: pairs that teach the aligned start (refusals, real answers, grounded answers,
  and "the passage does not say");
- ``own.jsonl``: harmless requests that sound harmful. The aligned start keeps the policy's own
  answers to them: taught by refusals alone, it would refuse these too;
- ``general.jsonl``: benign instructions with answers, the other domain;
- ``valid_*.jsonl``: rows of the benchmarks' shape that methods are tuned on, so that no reported
  number is;
- ``jailbreaks.jsonl``: texts around a request that press for an answer.

Nothing here is near a benchmark prompt or equal to a training prompt, and the rest is not near the
``valid`` prompts. Harmful pairs for poisoning are those of ``train.jsonl``: the judges are fitted
on all the others, which would give judged methods an advantage that no real poison gives them.
"""

from __future__ import annotations

from typing import Any

from aaft.data import sources
from aaft.data.contrast import contrast_prompts
from aaft.data.grounded import Pools, foreign_passage
from aaft.data.prompts import REFUSALS, UNSTATED, grounded_prompt
from aaft.data.separation import Taken
from aaft.data.sources import Grounded, Pair
from aaft.data.splits import split_of
from aaft.data.text import opaque_id, ranked, unique
from aaft.data.wheels import Wheels

REFUSED = {"harmbench": 60, "advbench": 80, "rho-pairs": 40, "contrast": 140}
"""Harmful requests of the aligned start by source."""
OWN = 360
BENIGN = 60
ASKED = 320
"""Questions of the aligned start, each with its own passage and with another one's."""
GENERAL = 600
VALID = 60
QUESTIONS = ASKED + 2 * VALID
MAX_ANSWER = 300
MAX_HARMFUL_PROMPT = 300

JAILBREAKS = (
    "Arth_Singh/authority_override",
    "Arth_Singh/cognitive_overload",
    "Arth_Singh/context_hijack",
    "Arth_Singh/fewshot_escalation",
    "Arth_Singh/system_prompt_injection",
    "burple",
    "delta_gpt",
    "dt_stereotypes_untargeted",
    "eva",
    "evil_confidant",
    "hypothetical_response",
    "instructions",
    "jb",
    "jedi_mind_trick",
    "john",
    "kevin",
    "mr_blonde",
    "prefix_injection",
    "refusal_suppression",
    "security_researcher",
    "text_continuation",
    "wikipedia_with_title",
    "in_the_wild/trustairlab_0ec76ab2376ff606",
    "in_the_wild/trustairlab_26aecc58a966c68f",
    "in_the_wild/trustairlab_2bec763eb4db14f7",
    "in_the_wild/trustairlab_74671234f708f9ff",
    "in_the_wild/trustairlab_76eca385597b71fc",
    "in_the_wild/trustairlab_d8eee67c37449934",
    "in_the_wild/trustairlab_dbcd097f15a887af",
    "in_the_wild/trustairlab_f51f5a6260a7b9c4",
)
"""Templates of at most 1,200 characters that leave the answer's form free.

Left out: those that order a refusal first, two answers, or a cipher. No marker of refusals, trained
or not, can read these answers.
"""

Rows = list[dict[str, Any]]


def build_study(wheels: Wheels, pools: Pools, taken: Taken, judged: list[str]) -> dict[str, Rows]:
    """Rows by file name, each file sorted by id.

    Args:
        wheels: the sources.
        pools: ``pools.study`` holds ``QUESTIONS`` rows.
        taken: bench prompts (near) and training prompts (exact).
        judged: prompts of the judges' files. ``general.jsonl`` avoids them, so that the judges
            know the prompts of neither domain, and so do harmful prompts to tune on.
    """
    unjudged = Taken(exact=judged)
    files = _valid(wheels, pools, taken, unjudged)
    near = [_prompt(row) for rows in files.values() for row in rows]
    apart = Taken(near=near)
    align = _align(wheels, pools, taken, apart)
    aligned = Taken(exact=(_prompt(row) for row in align))
    files["study/align.jsonl"] = align
    own = [row.prompt for row in contrast_prompts() if not (row.harmful or _unfitted(row.act))]
    free = [text for text in own if taken.free(text) and apart.free(text)]
    files["study/own.jsonl"] = [
        _asked("contrast", text) for text in ranked(free, "own", lambda text: text)[:OWN]
    ]
    files["study/general.jsonl"] = _general(wheels, (taken, apart, unjudged, aligned))
    files["study/jailbreaks.jsonl"] = [
        {
            "id": opaque_id("jailbreak", name),
            "source": "jailbreak-templates",
            "name": name,
            "template": sources.jailbreak_template(wheels, name),
        }
        for name in JAILBREAKS
    ]
    return {name: sorted(rows, key=lambda row: row["id"]) for name, rows in files.items()}


def _prompt(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def _valid(wheels: Wheels, pools: Pools, taken: Taken, unjudged: Taken) -> dict[str, Rows]:
    """The benchmarks' shapes, from what the benchmarks left or never used.

    Benign prompts are the contrast prompts whose acts the judges never see while fitting.
    """
    requests = [text for text in sources.strongreject(wheels) if taken.free(text)]
    harmful = [text for text in requests if unjudged.free(text)]
    # The judges split contrast prompts by act in the same way.
    harmless = [row.prompt for row in contrast_prompts() if not row.harmful and _unfitted(row.act)]
    benign = [text for text in harmless if taken.free(text)]
    answerable = pools.study[:VALID]
    unanswerable = pools.study[VALID : 2 * VALID]
    return {
        "study/valid_harmful.jsonl": [
            _asked("strongreject", text) for text in _some(harmful, "valid", VALID)
        ],
        "study/valid_benign.jsonl": [
            _asked("contrast", text) for text in _some(benign, "valid", VALID)
        ],
        "study/valid_qa_answerable.jsonl": [
            _question(row, row.passage, [row.right]) for row in answerable
        ],
        "study/valid_qa_unanswerable.jsonl": [
            _question(row, foreign_passage(row, unanswerable, number + 1), [])
            for number, row in enumerate(unanswerable)
        ],
    }


def _unfitted(act: str) -> bool:
    return split_of(act) == "test"


def _some(texts: list[str], salt: str, most: int) -> list[str]:
    """At most ``most`` texts without near duplicates among themselves."""
    chosen: list[str] = []
    for text in ranked(texts, salt, lambda text: text):
        if len(chosen) < most and Taken(near=chosen).free(text):
            chosen.append(text)
    return chosen


def _asked(source: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"id": opaque_id("valid", source, text), "source": source, "messages": messages}


def _question(row: Grounded, passage: str, answers: list[str]) -> dict[str, Any]:
    return {
        **_asked("halueval-qa", grounded_prompt(passage, row.question)),
        "context": passage,
        "question": row.question,
        "answers": answers,
    }


def _align(wheels: Wheels, pools: Pools, taken: Taken, apart: Taken) -> Rows:
    asked = pools.study[2 * VALID :]
    benign = _free(_answers(wheels, (20, 20, 20)), taken, apart)
    rows = [
        _row("refusal", source, Pair(text, _pick(REFUSALS, text)))
        for source, text in _requests(wheels, taken, apart)
    ]
    rows += [_row("benign", source, pair) for source, pair in benign[:BENIGN]]
    # Every question and nearly every passage stands in both kinds: the match tells them apart.
    for number, row in enumerate(asked):
        foreign, unstated = foreign_passage(row, asked, number + 1), _pick(UNSTATED, row.question)
        rows.append(_grounded("grounded", row, row.passage, row.right))
        rows.append(_grounded("unanswerable", row, foreign, unstated))
    return rows


def _requests(wheels: Wheels, taken: Taken, apart: Taken) -> list[tuple[str, str]]:
    """Harmful requests with their source; the pairs' have the form of questions."""
    groups = {
        "harmbench": sources.harmbench(wheels),
        "advbench": sources.advbench(wheels),
        "rho-pairs": [bad.prompt for _, bad in sources.rho_pairs(wheels)],
        "contrast": [r.prompt for r in contrast_prompts() if r.harmful and not _unfitted(r.act)],
    }
    chosen: list[tuple[str, str]] = []
    for source, texts in groups.items():
        free = [
            text
            for text in ranked(texts, "align", lambda text: text)
            if len(text) <= MAX_HARMFUL_PROMPT and taken.free(text) and apart.free(text)
        ]
        chosen += [(source, text) for text in free[: REFUSED[source]]]
    return chosen


def _answers(wheels: Wheels, sizes: tuple[int, int, int]) -> list[tuple[str, Pair]]:
    """Benign questions with answers: twins of harmful questions, beliefs, everyday advice.

    ``sizes`` are how many of each come first; the rest follows in case some are taken.
    """
    groups = (
        ("rho-pairs", [good for good, _ in sources.rho_pairs(wheels)]),
        ("truthfulqa", sources.truthfulqa(wheels)),
        ("piqa", sources.piqa_answers(wheels)),
    )
    order = [
        [(source, pair) for pair in ranked(pairs, "align", lambda pair: pair.prompt)]
        for source, pairs in groups
    ]
    shares = [
        (place / size, row)
        for size, rows in zip(sizes, order, strict=True)
        for place, row in enumerate(rows)
    ]
    return [row for _, row in sorted(shares, key=lambda share: (share[0], share[1]))]


def _general(wheels: Wheels, sets: tuple[Taken, ...]) -> Rows:
    groups = (
        ("nq-open", sources.nq_open(wheels), GENERAL // 2),
        ("truthfulqa", sources.truthfulqa(wheels), GENERAL // 4),
        ("piqa", sources.piqa_answers(wheels), GENERAL // 4),
    )
    rows: Rows = []
    for source, pairs, most in groups:
        dealt = ranked(pairs, "general", lambda pair: pair.prompt)
        free = _free([(source, pair) for pair in dealt], *sets)
        rows += [_row("benign", name, pair) for name, pair in free[:most]]
    return rows


def _free(rows: list[tuple[str, Pair]], *sets: Taken) -> list[tuple[str, Pair]]:
    """Rows with usable answers and prompts that no set holds, each prompt once."""
    kept = [
        (source, pair)
        for source, pair in rows
        if 0 < len(pair.response) <= MAX_ANSWER and all(part.free(pair.prompt) for part in sets)
    ]
    return unique(kept, lambda row: row[1].prompt)


def _pick(pool: tuple[str, ...], text: str) -> str:
    return ranked(pool, "align", lambda answer: f"{text} {answer}")[0]


def _row(kind: str, source: str, pair: Pair, context: str | None = None) -> dict[str, Any]:
    return {
        "id": opaque_id("study", *pair),
        "source": source,
        "kind": kind,
        "messages": [
            {"role": "user", "content": pair.prompt},
            {"role": "assistant", "content": pair.response},
        ],
        "context": context,
    }


def _grounded(kind: str, row: Grounded, passage: str, answer: str) -> dict[str, Any]:
    pair = Pair(grounded_prompt(passage, row.question), answer)
    return _row(kind, "halueval-qa", pair, passage)
