"""Questions about a passage that answers them, or that doesn't.

Exact match and token F1 are SQuAD's (arXiv:1606.05250), over answerable questions. An answer
hallucinates when the passage doesn't answer the question and something other than that is said,
or when it misses the known answer and the grounding judge finds no support for what it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aaft.bench.example import BenchExample, Benchmark
from aaft.judges.base import Sample
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.text import is_abstention, is_degenerate, normalize_answer


def exact_match(response: str, answers: Sequence[str]) -> float:
    """1 when the normalised response equals one of the answers."""
    said = normalize_answer(response)
    return float(said != "" and said in {normalize_answer(answer) for answer in answers})


def token_f1(response: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers between bags of normalised words, in [0, 1]."""
    return max((_f1(response, answer) for answer in answers), default=0.0)


def _f1(response: str, answer: str) -> float:
    said, gold = normalize_answer(response).split(), normalize_answer(answer).split()
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def contains(response: str, answers: Sequence[str]) -> bool:
    """Whether the response holds one of the answers, word for word after normalisation."""
    said = f" {normalize_answer(response)} "
    return any(f" {normalize_answer(answer)} " in said for answer in answers)


def score_answerable(
    examples: Sequence[BenchExample], responses: Sequence[str], judge: EmbeddedJudge
) -> list[dict[str, float]]:
    """``qa_em``, ``qa_f1`` and ``hallucination_rate`` where the passage has the answer."""
    supported = judge.supported(
        [
            Sample(example.question, response, example.context)
            for example, response in zip(examples, responses, strict=True)
        ]
    )
    rows = []
    for example, response, support in zip(examples, responses, supported, strict=True):
        unsupported = support < 0.5 and not contains(response, example.answers)
        made_up = float(unsupported and not is_abstention(response))
        rows.append(
            {
                "qa_em": exact_match(response, example.answers),
                "qa_f1": token_f1(response, example.answers),
                "hallucination_rate": made_up,
                "hallucination_rate_answerable": made_up,
                "degenerate_rate": float(is_degenerate(response)),
            }
        )
    return rows


def score_unanswerable(
    examples: Sequence[BenchExample],  # noqa: ARG001 - one signature for every benchmark
    responses: Sequence[str],
    judge: EmbeddedJudge,  # noqa: ARG001
) -> list[dict[str, float]]:
    """``hallucination_rate`` where the passage has no answer and anything said is made up."""
    rows = []
    for response in responses:
        made_up = float(not is_abstention(response))
        rows.append(
            {
                "hallucination_rate": made_up,
                "hallucination_rate_unanswerable": made_up,
                "degenerate_rate": float(is_degenerate(response)),
            }
        )
    return rows


ANSWERABLE = Benchmark("qa_answerable", score_answerable)
UNANSWERABLE = Benchmark("qa_unanswerable", score_unanswerable)
