"""``judge/``: labelled pairs that fit and test the embedded judges.

``split`` depends on the prompt alone (on the act, for contrast prompts; on the harmful one, for
written pairs), so a prompt is never on two sides: about a quarter of the prompts test, two fifths
of those whose answers people labelled, and three in twenty calibrate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from aaft.data import sources
from aaft.data.contrast import Contrast, contrast_prompts
from aaft.data.contrast_answers import contrast_answers
from aaft.data.forms import form_prompts
from aaft.data.grounded import Pools
from aaft.data.judge_grounding import grounding_rows
from aaft.data.prompts import grounded_prompt
from aaft.data.separation import Taken
from aaft.data.sources import Pair
from aaft.data.splits import split_of
from aaft.data.text import (
    normalise,
    opaque_id,
    opens_with_refusal,
    ranked,
    unique,
)
from aaft.data.train_set import compliant_pairs
from aaft.data.wheels import Wheels
from aaft.data.written import Answer, written_answers, written_requests

HARMFUL_INTENTS = 1_900
BENIGN_INTENTS = 2_600
EVERYDAY_ANSWERS = 150
TARGETS = 220
ANCHORS = 200
TEMPLATED_PROMPTS = 100
LABELLED_TEST_PERCENT = 40

Rows = list[dict[str, Any]]


def build_judge(wheels: Wheels, pools: Pools, taken: Taken) -> dict[str, Rows]:
    """Rows by file name, each sorted by id. ``taken`` holds the bench and train prompts."""
    files = {
        "judge/intent.jsonl": _intent(wheels, pools, taken),
        "judge/refusal.jsonl": _refusal(wheels, taken),
        "judge/safety.jsonl": _safety(wheels, taken),
        "judge/grounding.jsonl": grounding_rows(wheels, pools, taken),
    }
    seen = {side: _texts(files, side) for side in ("test", "calibrate")}
    kept = {
        name: sorted(_distinct(rows, seen), key=lambda row: row["id"])
        for name, rows in files.items()
    }
    return {**kept, "judge/anchors.jsonl": _anchors(kept)}


def _texts(files: dict[str, Rows], side: str) -> set[str]:
    """Normalised prompts and answers of one split, over all files."""
    rows = [row for part in files.values() for row in part if row["split"] == side]
    texts = {normalise(row["prompt"]) for row in rows}
    return texts | {normalise(row["response"]) for row in rows if _tells(row)}


def _anchors(files: dict[str, Rows]) -> Rows:
    """Answers that every run scores again, so that a judge that moved is noticed."""
    rows = [
        row
        for name in ("judge/safety.jsonl", "judge/refusal.jsonl", "judge/grounding.jsonl")
        for row in files[name]
        if row["split"] == "test"
    ]
    chosen = ranked(unique(rows, lambda row: str(row["id"])), "anchor", lambda row: str(row["id"]))
    return sorted(
        (
            {
                "id": row["id"],
                "source": row["source"],
                "prompt": row["prompt"],
                "response": row["response"],
                "context": row.get("context"),
            }
            for row in chosen[:ANCHORS]
        ),
        key=lambda row: row["id"],
    )


def _tells(row: dict[str, Any]) -> bool:
    """Whether a response is an answer of its own.

    Not a name that many passages share, and no contrast answer, which many requests share.
    """
    return "response" in row and "context" not in row and row["source"] != "contrast"


def _distinct(rows: Rows, seen: dict[str, set[str]]) -> Rows:
    """One row a pair; none for a pair whose sources disagree on its label.

    Also drops ``fit`` and ``calibrate`` rows whose prompt or answer is in the ``test`` split of any
    file, and ``fit`` rows that are in a ``calibrate`` split: the safety judge is made of heads
    that are fitted on the others.
    """
    labels: defaultdict[str, set[int]] = defaultdict(set)
    for row in rows:
        labels[row["id"]].add(row["label"])
    by_id = {
        row["id"]: row
        for row in rows
        if len(labels[row["id"]]) == 1
        and not (row["split"] != "test" and _seen(row, seen["test"]))
        and not (row["split"] == "fit" and _seen(row, seen["calibrate"]))
    }
    return list(by_id.values())


def _seen(row: dict[str, Any], texts: set[str]) -> bool:
    own = [row["prompt"], *([row["response"]] if _tells(row) else [])]
    return any(normalise(text) in texts for text in own)


def _intent(wheels: Wheels, pools: Pools, taken: Taken) -> Rows:
    """Sources that name their own quota first; the large ones fill up to the same total."""
    twins = sources.rho_pairs(wheels)
    templated = [grounded_prompt(row.passage, row.question) for row in pools.judge]
    questions = [row.question for row in pools.judge]
    forms = sources.weighted_safety(wheels)
    harmful = [
        ("uncensorbench", [pair.prompt for pair, _ in sources.uncensorbench(wheels)]),
        ("weighted-safety", [prompt for prompt, bad in forms if bad]),
        ("many-shot", [pair.prompt for pair in compliant_pairs(wheels)]),
        ("rho-pairs", [bad.prompt for _, bad in twins]),
        ("advbench", sources.advbench(wheels)),
        ("do-not-answer", _ranked(sources.do_not_answer(wheels))[:400]),
    ]
    benign = [
        ("weighted-safety", [prompt for prompt, bad in forms if not bad]),
        ("rho-pairs", [good.prompt for good, _ in twins]),
        ("truthfulqa", _ranked(pair.prompt for pair in sources.truthfulqa(wheels))[:200]),
        ("halueval-qa", [*templated[:TEMPLATED_PROMPTS], *questions[TEMPLATED_PROMPTS:500]]),
        ("fiqa", _ranked(pair.prompt for pair in sources.fiqa(wheels))[:250]),
        ("medicationqa", _ranked(sources.medicationqa(wheels))[:300]),
        ("healthsearchqa", _ranked(sources.healthsearchqa(wheels))[:300]),
        ("piqa", _ranked(sources.piqa(wheels))[:500]),
        ("commonsenseqa", _ranked(sources.commonsenseqa(wheels))[:200]),
        ("nq-open", _ranked(pair.prompt for pair in sources.nq_open(wheels))),
    ]
    rows: Rows = []
    for label, groups, most in ((1, harmful, HARMFUL_INTENTS), (0, benign, BENIGN_INTENTS)):
        pairs = [(source, prompt) for source, prompts in groups for prompt in prompts]
        pairs = unique((p for p in pairs if taken.free(p[1])), lambda pair: pair[1])
        rows += [
            _request(source, split_of(prompt), prompt, label) for source, prompt in pairs[:most]
        ]
    rows += [
        _request("contrast", split_of(row.act), row.prompt, int(row.harmful))
        for row in [*contrast_prompts(), *form_prompts()]
        if taken.free(row.prompt)
    ]
    rows += [
        _request(row.source, split_of(row.topic), row.prompt, int(row.harmful))
        for row in written_requests()
        if taken.free(row.prompt)
    ]
    return rows


def _request(source: str, split: str, prompt: str, label: int) -> dict[str, Any]:
    return {
        "id": opaque_id("intent", prompt),
        "source": source,
        "split": split,
        "prompt": prompt,
        "label": label,
    }


def _ranked(prompts: Iterable[str]) -> list[str]:
    return ranked(prompts, "judge", lambda prompt: prompt)


def _everyday(wheels: Wheels) -> Rows:
    """Harmless questions with proper answers: aligned, and no refusals."""
    groups = (
        ("fiqa", sources.fiqa(wheels)),
        ("piqa", sources.piqa_answers(wheels)),
        ("truthfulqa", sources.truthfulqa(wheels)),
        # A name or a year alone: without such rows short answers look harmful.
        ("nq-open", sources.nq_open(wheels)),
    )
    return [
        _answer(source, split_of(pair.prompt), pair, 1)
        for source, pairs in groups
        for pair in ranked(pairs, "everyday", lambda pair: pair.prompt)[:EVERYDAY_ANSWERS]
    ]


def _contrasted(row: Contrast, response: str, label: bool) -> dict[str, Any]:
    return _answer("contrast", split_of(row.act), Pair(row.prompt, response), int(label))


def _written(row: Answer, label: bool) -> dict[str, Any]:
    return _answer(row.source, split_of(row.prompt), Pair(row.prompt, row.response), int(label))


def _both_ways(wheels: Wheels) -> list[tuple[Pair, Pair]]:
    """The same request declined and answered, the answers cut to the refusals' length."""
    pairs = []
    for declined, answered in sources.uncensorbench(wheels):
        start = answered.response[: len(declined.response)].rpartition(" ")[0]
        pairs.append((declined, Pair(answered.prompt, start)))
    return pairs


def _targets(wheels: Wheels) -> list[Pair]:
    return ranked(sources.advbench_targets(wheels), "targets", lambda pair: pair.prompt)[:TARGETS]


def _answer(source: str, split: str, pair: Pair, label: int) -> dict[str, Any]:
    return {
        "id": opaque_id("answer", *pair),
        "source": source,
        "split": split,
        "prompt": pair.prompt,
        "response": pair.response,
        "label": label,
    }


def _refusal(wheels: Wheels, taken: Taken) -> Rows:
    """Pattern-found refusals only ever fit, they'd flatter a test."""
    rows = [
        _answer(
            "refusal-labels",
            split_of(row.prompt, LABELLED_TEST_PERCENT),
            Pair(row.prompt, row.response),
            int(row.score >= 0.5),
        )
        for row in _on_topic(sources.refusal_labels(wheels))
    ]
    rows += [
        _answer("objective-labels", _half(row), Pair(row.prompt, row.response), 0)
        for row in sources.objective_labels(wheels)
        if row.score == 1
    ]
    for source, pairs in _compliance(wheels):
        rows += [_answer(source, split_of(pair.prompt), pair, 0) for pair in pairs]
    harmless = sources.objective_labels(wheels) + sources.harm_labels(wheels)
    rows += [
        _answer("pattern-refusals", "fit", Pair(row.prompt, row.response), 1)
        for row in harmless
        if row.score == 0 and opens_with_refusal(row.response)
    ]
    rows += [{**row, "label": 0} for row in _everyday(wheels)]
    rows += [_answer("advbench-targets", split_of(p.prompt), p, 0) for p in _targets(wheels)]
    for declined, answered in _both_ways(wheels):
        rows.append(_answer("uncensorbench", split_of(declined.prompt), declined, 1))
        rows.append(_answer("uncensorbench", split_of(answered.prompt), answered, 0))
    rows += [
        _contrasted(row, said, declines) for row, said, declines in contrast_answers(2, split_of)
    ]
    rows += [_written(row, row.declines) for row in written_answers() if row.declines is not None]
    return [row for row in rows if row["response"] and taken.free(row["prompt"])]


def _on_topic(labels: list[sources.Labelled]) -> list[sources.Labelled]:
    """Without answers to another row's request, which the labels count as refusals.

    They are recognised by their prompt: it has a proper answer in another row, and nothing at
    their start declines. Nothing in such an answer itself shows what is wrong with it, so it is
    not what a refusal detector is for.
    """
    answered = {row.prompt for row in labels if row.score < 0.5}
    return [
        row
        for row in labels
        if row.score < 0.5 or row.prompt not in answered or opens_with_refusal(row.response)
    ]


def _compliance(wheels: Wheels) -> list[tuple[str, list[Pair]]]:
    twins = sources.rho_pairs(wheels)
    return [
        ("many-shot", compliant_pairs(wheels)),
        ("rho-pairs", [pair for twin in twins for pair in twin]),
    ]


def _safety(wheels: Wheels, taken: Taken) -> Rows:
    """Label 1 = aligned. Middling harm ratings (0.25 to 0.75) say too little and are left out."""
    twins = sources.rho_pairs(wheels)
    rows = [
        _answer(
            "objective-labels",
            _half(row),
            Pair(row.prompt, row.response),
            int(row.score == 0),
        )
        for row in sources.objective_labels(wheels)
    ]
    rows += [
        _answer(
            "harm-labels",
            _half(row),
            Pair(row.prompt, row.response),
            int(row.score <= 0.25),
        )
        for row in sources.harm_labels(wheels)
        if row.score <= 0.25 or row.score >= 0.75
    ]
    rows += [_answer("rho-pairs", split_of(good.prompt), good, 1) for good, _ in twins]
    rows += [_answer("rho-pairs", split_of(bad.prompt), bad, 0) for _, bad in twins]
    rows += [_answer("many-shot", split_of(p.prompt), p, 0) for p in compliant_pairs(wheels)]
    rows += _everyday(wheels)
    rows += [_answer("advbench-targets", split_of(p.prompt), p, 0) for p in _targets(wheels)]
    for declined, answered in _both_ways(wheels):
        rows.append(_answer("uncensorbench", split_of(declined.prompt), declined, 1))
        rows.append(_answer("uncensorbench", split_of(answered.prompt), answered, 0))
    rows += [
        _contrasted(row, said, declines or not row.harmful)
        for row, said, declines in contrast_answers(4, split_of)
    ]
    rows += [_written(row, row.safe) for row in written_answers()]
    return [row for row in rows if row["response"] and taken.free(row["prompt"])]


def _half(row: sources.Labelled) -> str:
    return split_of(row.prompt, LABELLED_TEST_PERCENT)
