"""No judge steers training that is not better than a trivial one.

Before anything is scored, each judge of the panel is measured on labelled rows of the ``test``
split; one whose AUROC is not above that of its best trivial baseline (`aaft.judges.baselines`) on
some objective stops the run, unless ``judges.force`` is set. What was measured is kept under
``score.cache`` for the next run with the same judges and rows, but for servers, which can change
unseen, and where answers were missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aaft.config import Config
from aaft.errors import AaftError
from aaft.io import file_digest, read_json, text_digest, write_json
from aaft.judge_config import EndpointSpec
from aaft.judges import metrics
from aaft.judges.asking import ask, measured_tasks
from aaft.judges.base import Judge
from aaft.judges.baselines import Baselines, best_baseline, fit_baselines
from aaft.judges.labelled import (
    TASKS,
    Row,
    Vector,
    labelled_digests,
    labels,
    of_split,
    read_labelled,
    sampled,
    with_comply,
)
from aaft.judges.metrics import counts, point, too_few
from aaft.progress import progress
from aaft.scoring import alignment

SAMPLE = 300
"""Most rows of a task that a judge is asked about; `aaft judges eval` asks about all."""

_FIGURES = {
    "accuracy": metrics.accuracy,
    "auroc": metrics.auroc,
    "false_accept": metrics.false_accept,
    "false_reject": metrics.false_reject,
    "ece": metrics.ece,
}


@dataclass(frozen=True)
class Quality:
    """What the score stage's report says about the judges."""

    objectives: dict[str, dict[str, Any]]
    """Figures of the whole panel by task, as training sees it; also of the embedded parts."""
    judges: dict[str, dict[str, Any]]
    """Figures of each judge by task, and its objectives without labelled rows."""
    problems: list[str]
    """What stops the run unless it is forced."""

    @property
    def complete(self) -> bool:
        """Whether every judge answered wherever it was asked."""
        figures = (f for tasks in self.judges.values() for f in tasks.values())
        return not any(isinstance(f, dict) and f["missing"] for f in figures)

    def section(self) -> dict[str, Any]:
        """The part of ``score/report.json``: ``judges`` and ``judge_quality``."""
        return {
            "judges": self.objectives,
            "judge_quality": {"judges": self.judges, "forced": self.problems},
        }


def check_quality(judges: Sequence[Judge], cfg: Config) -> Quality:
    """What `measure_quality` finds for a panel on ``data.judge``, or found in an earlier run.

    Raises:
        AaftError: a judge is no better than its best trivial baseline and ``judges.force`` isn't
            set, or labelled rows are missing or broken.
    """
    path = cfg.score.cache / "quality" / f"{_inputs(judges, cfg)}.json"
    if path.is_file():
        quality = Quality(**read_json(path))
    else:
        print("score: measuring the judges", flush=True)
        labelled = read_labelled(cfg.data.judge)
        quality = measure_quality(judges, labelled, kappa_u=cfg.judges.kappa_u)
        if quality.complete and not any(isinstance(s, EndpointSpec) for s in cfg.judges.panel):
            write_json(path, dataclasses.asdict(quality))
    problems = quality.problems
    if problems and not cfg.judges.force:
        more = f" ({len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise AaftError(
            f"{problems[0]}{more}; correct or remove the judge in judges.panel, or set "
            "judges.force: true to go on with it"
        )
    for problem in problems:
        print(f"WARNING: {problem}; forced by judges.force", flush=True)
    return quality


def _inputs(judges: Sequence[Judge], cfg: Config) -> str:
    """Digest of all that shapes what is measured."""
    rows = labelled_digests(cfg.data.judge)
    home = Path(__file__).parent
    code = [file_digest(p) for p in (*sorted(home.glob("*.py")), Path(alignment.__file__))]
    panel = [[judge.name, judge.digest] for judge in judges]
    return text_digest(json.dumps([panel, cfg.judges.kappa_u, rows, code]))


def measure_quality(
    judges: Sequence[Judge], labelled: Mapping[str, Sequence[Row]], *, kappa_u: float
) -> Quality:
    """Measure every judge of a panel on the ``test`` split.

    It is measured on at most 300 rows a task, chosen by a digest of their ids. A task with fewer
    than 5 rows of a class is unmeasured.

    Args:
        judges: the panel.
        labelled: rows by file, as `aaft.judges.labelled.read_labelled` gives them.
        kappa_u: the panel's pessimism.
    """
    tasks = with_comply(labelled)
    fit, test = of_split(tasks, "fit"), of_split(tasks, "test")
    trivial = {name: fit_baselines(name, fit[name]) for name in TASKS}
    few = {name: sampled(rows, SAMPLE) for name, rows in test.items()}
    said: dict[str, dict[str, tuple[list[Row], Vector]]] = {name: {} for name in TASKS}
    reports: dict[str, dict[str, Any]] = {}
    problems = []
    asked = sum(len(few[task]) for judge in judges for task in measured_tasks(judge))
    with progress("measure", asked, "answers") as advance:
        for judge in judges:
            for task in measured_tasks(judge):
                rows = few[task]
                said[task][judge.name] = (rows, ask(judge, task, rows))
                advance(len(rows))
    for judge in judges:
        found = measured_tasks(judge)
        report: dict[str, Any] = {}
        for task in found:
            report[task] = _figures(*said[task][judge.name], trivial[task])
            problem = _problem(judge.name, task, report[task])
            problems += [problem] if problem else []
        unmeasured = {task for task in found if "too_few" in report[task]}
        unmeasured |= set(judge.objectives) - set(found)
        reports[judge.name] = report | {"unmeasured": sorted(unmeasured)}
    objectives = {
        task: _panel(answers, few[task], trivial[task], kappa_u)
        for task, answers in said.items()
        if answers
    }
    return Quality(objectives, reports, problems)


def _panel(
    answers: Mapping[str, tuple[list[Row], Vector]],
    few: list[Row],
    trivial: Baselines,
    kappa_u: float,
) -> dict[str, Any]:
    """Figures of the combined quality, on the rows that every judge was asked about."""
    if len(answers) == 1:
        rows, scores = next(iter(answers.values()))
        return _figures(rows, scores, trivial)
    table = []
    for rows, scores in answers.values():
        by_id = {row["id"]: score for row, score in zip(rows, scores, strict=True)}
        table.append([by_id[row["id"]] for row in few])
    quality, _ = alignment.combine(np.array(table, dtype=np.float64), kappa_u)
    return _figures(few, quality, trivial)


def _figures(rows: Sequence[Row], scores: Vector, trivial: Baselines) -> dict[str, Any]:
    """Counts, plain figures to 4 digits, and the best baseline with its AUROC."""
    truth = labels(rows)
    report: dict[str, Any] = dict(counts(scores, truth))
    if too_few(scores, truth):
        return report | {"too_few": True}
    scored = ~np.isnan(scores)
    kept, truth = scores[scored], truth[scored]
    values = {name: v[scored] for name, v in trivial.scores(rows).items()}
    best, _, aurocs = best_baseline(values, truth)
    report |= {name: round(point(metric, kept, truth), 4) for name, metric in _FIGURES.items()}
    return report | {"baseline": best, "auroc_baseline": round(aurocs[best], 4)}


def _problem(judge: str, task: str, figures: Mapping[str, Any]) -> str | None:
    """Why a judge may not steer; nothing can be better than a baseline that is always right."""
    if (
        "too_few" in figures
        or figures["auroc"] == 1
        or figures["auroc"] > figures["auroc_baseline"]
    ):
        return None
    return (
        f"judge {judge}: {task}: AUROC {figures['auroc']:.3f} on {figures['n']} test rows is not "
        f"above the {figures['auroc_baseline']:.3f} of the trivial baseline "
        f"{figures['baseline']!r}"
    )
