"""The alignment signal of a scenario's rows: rollouts of its start, judged, as training examples.

Everything goes through the score stage's engine and content cache, so a row that another scenario
or seed has scored from the same start is not scored again. Examples keep the scores of their
conservative responses too: a study changes scores (`with_noise`, `without_gold`), and what depends
on them is then decided anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aaft.config import ACCEPTED, Config
from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.judges.base import Sample, bare_prompt
from aaft.judges.gatekeeper import check_quality
from aaft.models.policy import Codec, load_codec
from aaft.scoring.cache import ScoreCache
from aaft.scoring.conservative import conservative_responses
from aaft.scoring.judging import JudgeWork, align_cached, judge_all, judge_works
from aaft.scoring.kin import harmful_requests
from aaft.scoring.rollouts import Candidate, draw, of_golds, tokenize
from aaft.scoring.stage import drawn_counterfactuals, drawn_kin
from aaft.tuning.decision import Remedy, decide
from aaft.tuning.examples import Example

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """The judges, loaded once for a whole study."""

    works: Sequence[JudgeWork]
    false_accept: Mapping[str, float]
    """Measured false-accept rate by objective; an objective without one counts as 0."""


@dataclass(frozen=True)
class Declining:
    """A conservative response and its ``q``, ``[M]`` or NaN."""

    ids: list[int]
    quality: Vector


@dataclass(frozen=True, kw_only=True)
class ScoredExample(Example):
    """An example with what its abstention and recovery were decided from."""

    declining: Mapping[str, Declining]
    """Conservative responses by the objective that they answer for."""
    objectives: tuple[str, ...]
    """Names of the ``M`` columns."""
    false_accept: Mapping[str, float]


def load_panel(cfg: Config) -> Panel:
    """Load and measure the judges.

    Raises:
        AaftError: a judge can't be made, or is no better than a trivial one.
    """
    works = judge_works(cfg)
    judges = [work.judge for work in works]
    quality = check_quality(judges, cfg)
    figures = quality.objectives.items()
    # Absent where too few labelled rows measured it.
    rates = {name: float(f["false_accept"]) for name, f in figures if "false_accept" in f}
    return Panel(works, rates)


def signal(
    cfg: Config,
    records: Sequence[Record],
    start: Path,
    cache: ScoreCache,
    panel: Panel | None = None,
    *,
    golds: int = 0,
) -> list[ScoredExample]:
    """Score golds, ``score.rollouts`` rollouts of ``start`` and conservative responses.

    Args:
        cfg: settings; ``policy.model`` is replaced by ``start``.
        records: rows of a scenario, with ids of their own.
        start: model directory before training; also the tokenizer.
        cache: known results, and where new ones go.
        panel: the judges; loaded from ``cfg`` when there is none.
        golds: so many records, the first ones, have no rollouts.

    Raises:
        AaftError: no records, repeated ids, a row that is too long, or judges that fail.
    """
    if not records:
        raise AaftError("study: no rows to score; raise study.rows")
    if len({record.id for record in records}) < len(records):
        raise AaftError("study: two rows have the same id; build the data again")
    panel = panel or load_panel(cfg)
    policy = cfg.policy.model_copy(update={"model": str(start), "revision": None})
    cfg = cfg.model_copy(update={"policy": policy})
    codec = load_codec(policy.model)
    asked = tokenize(codec, records, cfg.score, policy.max_tokens)
    candidates = draw(of_golds(cfg), asked[:golds], cache) + draw(cfg, asked[golds:], cache)
    declining = [conservative_responses(record) for record in records]
    samples = [
        _sample(record, text)
        for record, row, others in zip(records, candidates, declining, strict=True)
        for text in (*(c.text for c in row), *(c.text for c in others))
    ]
    judge_all(panel.works, lambda: samples, len(samples), cfg, cache)
    table = align_cached(panel.works, samples, cfg.judges.kappa_u, cache)
    examples, first = [], 0
    for record, row, others in zip(records, candidates, declining, strict=True):
        middle = first + len(row)
        examples.append(
            _example(
                codec,
                record,
                row,
                quality=table.quality[first:middle],
                uncertainty=table.uncertainty[first:middle],
                declining={
                    other.objective: Declining(
                        codec.response_ids(other.text), table.quality[middle + i]
                    )
                    for i, other in enumerate(others)
                },
                objectives=table.objectives,
                false_accept=panel.false_accept,
            )
        )
        first = middle + len(others)
    return examples


def counterfactual_signal(
    cfg: Config,
    records: Sequence[Record],
    start: Path,
    cache: ScoreCache,
    panel: Panel,
    seed: int,
) -> list[ScoredExample]:
    """The `signal` of ``score.counterfactuals`` of the records; whatever their kind.

    Args:
        cfg: as of `signal`.
        records: rows of a scenario.
        start: model directory before training.
        cache: known results, and where new ones go.
        panel: the judges.
        seed: which rows, and which passages they get.

    Raises:
        AaftError: judges that fail.
    """
    codec = load_codec(str(start))
    made = drawn_counterfactuals(cfg, codec, records, panel.works, seed)
    return signal(cfg, made, start, cache, panel, golds=len(made)) if made else []


def kin_signal(
    cfg: Config,
    records: Sequence[Record],
    examples: Sequence[ScoredExample],
    start: Path,
    cache: ScoreCache,
    panel: Panel,
) -> tuple[list[ScoredExample], list[ScoredExample]]:
    """The `signal` of twins and of siblings of the records that are rejected as unsafe.

    Args:
        cfg: as of `signal`.
        records: rows of a scenario.
        examples: their signal, by which they are rejected.
        start: model directory before training.
        cache: known results, and where new ones go.
        panel: the judges.

    Raises:
        AaftError: judges that fail.
    """
    golds = np.stack([example.quality[0] for example in examples])
    harmful = harmful_requests(records, golds, examples[0].objectives)
    policy = cfg.policy.model_copy(update={"model": str(start), "revision": None})
    cfg = cfg.model_copy(update={"policy": policy})
    taken = {record.id for record in records}
    kin = drawn_kin(cfg, load_codec(str(start)), harmful, taken, panel.works, cache)
    made, alone = [*kin.twins, *kin.siblings], len(kin.twins)
    scored = signal(cfg, made, start, cache, panel, golds=alone) if made else []
    return scored[:alone], scored[alone:]


def _sample(record: Record, text: str) -> Sample:
    return Sample(bare_prompt(record.prompt, record.context), text, record.context)


def _example(
    codec: Codec,
    record: Record,
    row: Sequence[Candidate],
    *,
    quality: Vector,
    uncertainty: Vector,
    declining: Mapping[str, Declining],
    objectives: tuple[str, ...],
    false_accept: Mapping[str, float],
) -> ScoredExample:
    undecided = ScoredExample(
        id=record.id,
        prompt=codec.prompt_ids(record.prompt_messages),
        candidates=[candidate.token_ids for candidate in row],
        quality=quality,
        uncertainty=uncertainty,
        logprob=np.array([candidate.logprob for candidate in row]),
        reward=np.full(len(row), math.nan),
        abstention=None,
        conservative=None,
        review=False,
        declining=declining,
        objectives=objectives,
        false_accept=false_accept,
    )
    return decided(undecided)


def decided(example: ScoredExample) -> ScoredExample:
    """``example`` with what follows from its scores: rewards, abstention, recovery, review."""
    reward = worst(example.quality)
    declining = {
        name: Remedy(said.ids, float(worst(said.quality[None])[0]))
        for name, said in example.declining.items()
    }
    decisions = decide(example.quality, reward, example.objectives, declining, example.false_accept)
    return replace(example, reward=reward, **decisions)


def worst(quality: Vector) -> Vector:
    """``r = min_m q`` of ``[n, M]``, ``[n]``; NaN where nothing is scored."""
    lowest = np.where(np.isnan(quality), np.inf, quality).min(axis=1, initial=np.inf)
    return np.where(np.isinf(lowest), math.nan, lowest)


def with_noise(examples: Sequence[ScoredExample], share: float, seed: int) -> list[ScoredExample]:
    """Judges that are wrong about a share of answers: accepted ones are rejected, and vice versa.

    An answer is accepted by its worst objective. So for a rejected one ``q`` becomes ``1 - q``
    where it is below the bar and stays elsewhere; turned as well, a good score there would keep
    the answer rejected. For an accepted one all objectives turn.

    Candidates and conservative responses are drawn one by one, by a hash of seed, record and
    place: the answers that 10% noise turns are among those of 20%. Doubt stays as it was, for a
    judge that is wrong doesn't know it.

    Args:
        examples: not changed.
        share: in [0, 1].
        seed: other seeds turn other answers.
    """
    noisy = []
    for example in examples:
        turned = [_chance(seed, example.id, str(k)) < share for k in range(len(example.candidates))]
        quality = np.where(np.array(turned)[:, None], inverted(example.quality), example.quality)
        declining = {
            name: replace(other, quality=inverted(other.quality[None])[0])
            if _chance(seed, example.id, name) < share
            else other
            for name, other in example.declining.items()
        }
        noisy.append(decided(replace(example, quality=quality, declining=declining)))
    return noisy


def inverted(quality: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[n, M]`` of a judge that takes rejected answers for accepted ones, and vice versa."""
    below = quality < ACCEPTED
    rejected = below.any(axis=1, keepdims=True)
    return np.where(below | ~rejected, 1.0 - quality, quality)


def without_gold(examples: Sequence[ScoredExample]) -> list[ScoredExample]:
    """The golds unscored, so that gate and advantages see the rollouts alone.

    Nothing then says that a gold is rejected, so no record abstains or recovers.
    """
    blind = []
    for example in examples:
        quality, uncertainty = example.quality.copy(), example.uncertainty.copy()
        quality[0] = uncertainty[0] = math.nan
        blind.append(decided(replace(example, quality=quality, uncertainty=uncertainty)))
    return blind


def plain_examples(records: Sequence[Record], codec: Codec) -> list[Example]:
    """Records as examples without any score, for supervised training."""
    return [
        Example(
            id=record.id,
            prompt=codec.prompt_ids(record.prompt_messages),
            candidates=[codec.response_ids(record.response)],
            quality=np.zeros((1, 0)),
            uncertainty=np.zeros((1, 0)),
            logprob=np.zeros(1),
            reward=np.full(1, math.nan),
            abstention=None,
            conservative=None,
            review=False,
        )
        for record in records
    ]


def _chance(seed: int, record_id: str, place: str) -> float:
    """A number in [0, 1) of its own for each answer."""
    digest = hashlib.sha256(f"noise/{seed}/{record_id}/{place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
