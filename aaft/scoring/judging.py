"""Judging answers by the panel, through the engine and its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aaft.config import Config
from aaft.errors import AaftError
from aaft.judge_config import (
    CallableSpec,
    ClassifierSpec,
    EmbeddedSpec,
    EndpointSpec,
    GuardSpec,
    JudgesConfig,
    JudgeSpec,
)
from aaft.judges.base import Explains, Judge, Sample, Scores, Summarizes
from aaft.judges.panel import load_judge
from aaft.scoring.alignment import Alignment, combine_panel
from aaft.scoring.cache import ScoreCache
from aaft.scoring.engine import content_key, fill, read


class JudgeWork:
    """Work for the engine: one judge's probabilities, in the order of its objectives.

    A value is a list of probabilities, null where the judge has none for that objective, with the
    category (or null) at its end if that is asked for. No probability at all is a failure, which
    is not kept, unless the judge reads the passage and there is none: then there is nothing to
    score.
    """

    def __init__(
        self, spec: JudgeSpec, cfg: JudgesConfig, heads: Path, seed: int, *, explain: bool = False
    ) -> None:
        """``heads`` is read by an embedded judge only; ``explain`` asks for categories."""
        self._spec = spec
        self._cfg = cfg
        self._heads = heads
        self._seed = seed
        self._explain = explain

    @cached_property
    def judge(self) -> Judge:
        """The judge, made when first needed and once in each process."""
        return load_judge(self._spec, self._cfg, self._heads)

    @property
    def remote(self) -> bool:
        return isinstance(self._spec, EndpointSpec)

    @property
    def explains(self) -> bool:
        """Whether values end with a category."""
        return self._explain and isinstance(self.judge, Explains)

    def key(self, sample: Sample) -> bytes:
        return content_key(*self._identity, sample.prompt, sample.response, sample.context)

    def length(self, sample: Sample) -> int:
        return len(sample.prompt) + len(sample.response) + len(sample.context or "")

    def compute(self, samples: Sequence[Sample]) -> list[Any]:
        if not isinstance(self._spec, CallableSpec | EndpointSpec):
            # Torch is imported here, not when the judge is made: what is known needs none.
            from aaft.models import runtime

            runtime.prepare(self._seed)
            runtime.quiet_transformers()
        scores = self.judge.score(samples)
        notes: Sequence[str | None] = [None] * len(samples)
        if self.explains and isinstance(self.judge, Explains):
            notes = self.judge.explain(samples)
        values: list[Any] = []
        for i, sample in enumerate(samples):
            row = [number_or_none(scores[name][i]) for name in self.judge.objectives]
            nothing_to_score = self._reads_passage and sample.context is None
            if all(value is None for value in row) and not nothing_to_score:
                values.append(None)
            else:
                values.append([*row, notes[i]] if self.explains else row)
        return values

    def scores(self, values: Sequence[Any]) -> Scores:
        """Values as the judge itself would have returned them: NaN for missing."""
        width = len(self.judge.objectives)
        rows = [[math.nan] * width if value is None else value[:width] for value in values]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), width)
        return {name: table[:, m] for m, name in enumerate(self.judge.objectives)}

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process makes its own judge from them."""
        made = ("judge", "_identity", "_reads_passage")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    @cached_property
    def _identity(self) -> tuple[str, ...]:
        if not self.explains:
            return ("judge", self.judge.digest)
        from aaft.models.generate import decoded_by

        return ("judge", self.judge.digest, "explained", decoded_by())

    @cached_property
    def _reads_passage(self) -> bool:
        match self._spec:
            case ClassifierSpec():
                return "context" in self._spec.pair
            case EndpointSpec(template=str() as template):
                return "{context}" in template
            case GuardSpec() | EndpointSpec():
                return "context" in self._spec.messages.values()
            case _:
                return self.judge.objectives == ("grounding",)


@dataclass(frozen=True)
class Judged:
    """What a judge did: the same whether scores came from the cache or not."""

    name: str
    digest: str
    objectives: tuple[str, ...]
    failed: int
    """Answers without a score, of all that it was given."""


def judge_works(cfg: Config, *, explain: bool = False) -> list[JudgeWork]:
    """One piece of work a judge of the panel; heads are fitted first where they are missing.

    Raises:
        AaftError: a judge can't be made.
    """
    heads = Path()
    if any(isinstance(spec, EmbeddedSpec) for spec in cfg.judges.panel):
        from aaft.judges.fitted import fitted_heads

        heads = fitted_heads(cfg)
    return [
        JudgeWork(spec, cfg.judges, heads, cfg.seed, explain=explain) for spec in cfg.judges.panel
    ]


def judge_all(
    works: Sequence[JudgeWork],
    samples: Callable[[], Iterable[Sample]],
    total: int,
    cfg: Config,
    cache: ScoreCache,
) -> list[Judged]:
    """Have every judge score every sample into the cache.

    Args:
        works: the panel.
        samples: gives the samples from the start, each time that it is called.
        total: how many they are.
        cfg: settings of panel and engine.
        cache: where the scores go.

    Raises:
        AaftError: a judge failed on more than ``judges.max_missing``; its scores are kept.
    """
    done = []
    for work in works:
        name = work.judge.name
        filled = fill(
            work,
            samples(),
            total,
            cache,
            cfg.score,
            f"judge {name}",
            most_failed=cfg.judges.max_missing * total,
        )
        print(
            f"judge {name}: {filled.reused} of {total} known already, "
            f"{filled.computed} scored, {filled.failed} missing",
            flush=True,
        )
        asked = filled.computed + filled.failed
        summary = ""
        if asked and isinstance(work.judge, Summarizes) and (work.remote or filled.failed):
            summary = work.judge.summary()
            print(summary, flush=True)
        if filled.stopped:
            raise AaftError(
                f"judge {name}: {filled.reused + filled.computed} of {total} scored and kept, "
                f"{filled.failed} failed, more than judges.max_missing = "
                f"{cfg.judges.max_missing:g} of all{_because(summary)}; mend the cause and rerun "
                "to go on, or raise judges.max_missing"
            )
        missing = 0
        if filled.failed:
            missing = sum(value is None for value in read(work, samples(), cache))
        done.append(Judged(name, work.judge.digest, work.judge.objectives, missing))
    return done


def align_cached(
    works: Sequence[JudgeWork], samples: Sequence[Sample], kappa_u: float, cache: ScoreCache
) -> Alignment:
    """The panel's alignment of ``samples``, from what `judge_all` left in the cache."""
    scores = [work.scores(list(read(work, samples, cache))) for work in works]
    return combine_panel(scores, kappa_u)


def number_or_none(value: float) -> float | None:
    """``value`` as JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)


def _because(summary: str) -> str:
    return f" ({summary})" if summary else ""
