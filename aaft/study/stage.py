"""The study: methods x scenarios x seeds, cell by cell.

``python -m aaft study --preset small --out DIR`` writes ``DIR/start`` (the aligned start),
``DIR/cells`` (`aaft.study.cells`), ``trade-off``, ``gates`` and ``poison`` as PNG and SVG,
``report.md`` and, last, ``report.json``. Cells that are done are kept; a killed study that runs
again computes the others. Training times are facts of a run, so the report is not the same to the
byte each time; everything else in it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from aaft.config import Config
from aaft.errors import AaftError
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.features import Encoders
from aaft.judges.fitted import fitted_heads
from aaft.models import runtime
from aaft.models.fingerprint import library_versions, model_digest
from aaft.models.policy import Codec, load_codec, locate_policy
from aaft.progress import progress
from aaft.scoring.cache import open_cache
from aaft.study import start
from aaft.study.cells import Cell, cell_digest, code_digest, files_digest
from aaft.study.config import REFERENCE, StudyConfig, with_overrides
from aaft.study.gather import cell_of, write_report
from aaft.study.measure import load_study_bench, study_folder
from aaft.study.methods import Tuning
from aaft.study.rows import StudyData, load_study_data, of_kind
from aaft.study.running import Bench, Rows, reference_cell, trained_cell
from aaft.study.scenarios import SCENARIOS, Scenario, rows
from aaft.study.signal import (
    Panel,
    counterfactual_signal,
    kin_signal,
    load_panel,
    plain_examples,
    signal,
    with_noise,
)
from aaft.study.workers import spread

# Settings that change where and how fast something is computed, not what.
_SPEED = {"cache", "batch_size", "shard_rows", "engine", "workers"}
# A worker's item like a group of cells: the aligned start.
_START: tuple[str, ...] = ()
_PART = 2


def run(cfg: Config, study: StudyConfig, out: Path) -> dict[str, Any]:
    """Compute the cells that are not done, then report all of them.

    Args:
        cfg: models, data, judges and the settings that methods start from.
        study: which cells, and their size.
        out: the study's folder.

    Raises:
        AaftError: missing inputs, a training that diverged, or another study in ``out``.
    """
    with _alone(out):
        return _Study(cfg, study, out).run()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two studies in one folder would overwrite each other's cells."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise AaftError(
            f"{out}: another study is under way there; wait for it or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Task:
    """A cell and what it is computed from."""

    cell: Cell
    scenario: Scenario
    facts: Mapping[str, Any]
    """What it depends on beside what all cells do."""


@dataclass(frozen=True)
class _Worker:
    """Makes what a worker computes cells with."""

    cfg: Config
    study: StudyConfig
    out: Path

    def __call__(self) -> Callable[[Sequence[str]], Iterator[str]]:
        return _Study(self.cfg, self.study, self.out).cells


class _Study:
    """One run of a study; loads what is needed when a cell first needs it."""

    def __init__(self, cfg: Config, study: StudyConfig, out: Path) -> None:
        self._given, self._cfg = cfg, with_overrides(cfg, study)
        self._study, self._out = study, out
        try:
            self._tuning = Tuning(**study.tuning)  # type: ignore[arg-type]
        except TypeError:
            known = ", ".join(field.name for field in dataclasses.fields(Tuning))
            raise AaftError(f"study.tuning: known keys: {known}") from None

    def run(self) -> dict[str, Any]:
        locate_policy(self._cfg.policy.model)
        (self._out / "report.json").unlink(missing_ok=True)
        tasks = list(self._tasks())
        left = [task for task in tasks if not self._done(task)]
        print(f"study: {len(tasks)} cells, {len(tasks) - len(left)} done already", flush=True)
        with progress("study", len(tasks), "cells") as advance:
            advance(len(tasks) - len(left), reused=True)
            for number, said in enumerate(self._compute(left), start=1):
                print(f"study: {said} ({len(left) - number} left)", flush=True)
                advance(1)
        return write_report(self._study, self._out)

    def _done(self, task: _Task) -> bool:
        made = task.scenario.start == "unsafe" or self._start_made
        return made and task.cell.done(self._digest(task))

    def _compute(self, left: Sequence[_Task]) -> Iterator[str]:
        """Compute the cells, those that share their rows one after another in one process."""
        # Those that don't need the aligned start come first: it can be made meanwhile.
        free = _grouped(task for task in left if task.scenario.start == "unsafe")
        bound = _grouped(task for task in left if task.scenario.start != "unsafe")
        groups = [*free, *bound]
        workers = min(self._study.workers, len(groups))
        if workers < 2:
            return chain.from_iterable(map(self.cells, groups))
        # Once, here: each worker would fit and measure the judges, and two can't make one database.
        fitted_heads(self._cfg, self._device)
        load_panel(self._cfg)
        with open_cache(self._cfg.score.cache):
            pass
        items = [*in_parts(free), *in_parts(bound)]
        if bound and not self._start_made:
            # More than two workers have too few cores each, and would wait for it.
            if free and workers == 2:
                print("study: one worker makes the aligned start first", flush=True)
                items.insert(0, _START)
            else:
                start.run(self._given, self._start)
        return spread(_Worker(self._given, self._study, self._out), items, workers)

    def cells(self, names: Sequence[str]) -> Iterator[str]:
        """Compute the cells of one scenario and seed; yield a line about each.

        `_START` in place of their names makes the aligned start, which yields nothing.
        """
        # Prepared, and looked at, before anything is computed: code or data that change meanwhile
        # are not what these cells are made of.
        tasks = {task.cell.name: task for task in self._tasks()}
        device, _ = self._device, self._shared
        if names == _START:
            self._started("aligned")
        given: Rows | None = None
        for task in (tasks[name] for name in names):
            cell, digest = task.cell, self._digest(task)
            # Known only now, where the aligned start had to be made again.
            if cell.done(digest):
                yield f"{cell.name}: done already"
                continue
            cfg = self._started(task.scenario.start)
            facts: dict[str, Any] = {}
            if cell.method == REFERENCE:
                answers = reference_cell(cfg, self._bench(cell.seed), device)
            else:
                given = given or self._rows(task.scenario, cell.seed, cfg)
                answers, facts = trained_cell(
                    cell.method,
                    cfg.model_copy(update={"seed": cell.seed}),
                    given,
                    self._tuning,
                    self._bench(cell.seed),
                    device,
                )
            yield f"{cell.name}: {_line(cell.save(digest, answers, facts))}"

    def _rows(self, scenario: Scenario, seed: int, cfg: Config) -> Rows:
        chosen = rows(scenario, seed, self._data, self._study.rows)
        with open_cache(cfg.score.cache) as cache:
            home = Path(cfg.policy.model)
            examples = signal(cfg, chosen, home, cache, self._panel)
            swapped = counterfactual_signal(cfg, chosen, home, cache, self._panel, seed)
            if scenario.noise:
                examples = with_noise(examples, scenario.noise, seed)
                swapped = with_noise(swapped, scenario.noise, seed)
            twins, siblings = kin_signal(cfg, chosen, examples, home, cache, self._panel)
        if scenario.noise:
            twins = with_noise(twins, scenario.noise, seed)
            siblings = with_noise(siblings, scenario.noise, seed)
        align, codec = self._data.align, self._codec
        return Rows(
            examples,
            {row.id: row.kind for row in chosen} | {e.id: "counterfactual" for e in swapped},
            swapped,
            twins,
            siblings,
            plain_examples(align, codec),
            plain_examples(of_kind(align, "refusal"), codec),
        )

    def _tasks(self) -> Iterator[_Task]:
        """Every cell, the references of the starts first."""
        study = self._study
        scenarios = [SCENARIOS[name] for name in study.scenarios]
        if REFERENCE in study.methods:
            cells = {
                cell_of(study, self._out, scenario, REFERENCE, seed): scenario
                for scenario in scenarios
                for seed in study.seeds
            }
            for cell, scenario in cells.items():
                own = {"turn": cell.seed} if study.takes_turns else {}
                yield _Task(cell, scenario, own)
        for scenario in scenarios:
            for seed in study.seeds:
                for method in study.methods:
                    if method == REFERENCE:
                        continue
                    facts = {
                        "scenario": [scenario.poison, scenario.noise, scenario.domain],
                        "method": method,
                        "seed": seed,
                        "rows": study.rows,
                        "train": self._cfg.train.model_dump(mode="json"),
                        "tuning": dataclasses.asdict(self._tuning),
                    }
                    cell = Cell(self._out, scenario.name, method, seed)
                    yield _Task(cell, scenario, facts)

    def _digest(self, task: _Task) -> str:
        begun = self._start_digest(task.scenario.start)
        return cell_digest({**self._shared, "start": begun, **task.facts})

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What shapes every cell."""
        cfg, study = self._cfg, self._study
        return {
            "code": code_digest(),
            "packages": library_versions(),
            "data": files_digest(
                {
                    Path(cfg.data.train).parent,
                    cfg.data.bench,
                    cfg.data.judge,
                    study_folder(cfg),
                }
            ),
            "seed": cfg.seed,
            "max_tokens": cfg.policy.max_tokens,
            "judges": cfg.judges.model_dump(mode="json"),
            "models": [
                model_digest(cfg.judges.embedder, None, "judges.embedder"),
                model_digest(cfg.judges.intent_embedder, None, "judges.intent_embedder"),
                model_digest(cfg.judges.probe, None, "judges.probe"),
            ],
            "score": cfg.score.model_dump(mode="json", exclude=_SPEED),
            "measured": [
                *(study.split, study.bench_limit, study.questions, study.max_new_tokens),
                # Batches change the rounding of an answer (`greedy`).
                cfg.evaluate.batch_size,
            ],
        }

    def _start_digest(self, name: str) -> str:
        policy = self._started(name).policy
        return model_digest(policy.model, policy.revision, "policy.model")

    def _started(self, name: str) -> Config:
        """The configuration with that start as its policy."""
        if name == "unsafe":
            return self._cfg
        update = {"model": str(self._aligned), "revision": None}
        policy = self._cfg.policy.model_copy(update=update)
        return self._cfg.model_copy(update={"policy": policy})

    @cached_property
    def _device(self) -> torch.device:
        runtime.quiet_transformers()
        return runtime.prepare(self._cfg.seed)

    @property
    def _start(self) -> Path:
        return self._out / "start"

    @cached_property
    def _start_made(self) -> bool:
        """Whether the aligned start is there already."""
        return start.made(self._given, self._start)

    @cached_property
    def _aligned(self) -> Path:
        # Who needs it while another worker makes it waits.
        with FileLock(self._out / ".start.lock"):
            # Not with the study's own settings: tuning must not move where all methods start.
            start.run(self._given, self._start)
        return self._start

    @cached_property
    def _data(self) -> StudyData:
        return load_study_data(self._cfg)

    @cached_property
    def _panel(self) -> Panel:
        return load_panel(self._cfg)

    def _bench(self, seed: int) -> Bench:
        cfg = self._cfg
        return Bench(
            self._codec,
            self._judge,
            load_study_bench(cfg, self._study, self._codec, seed),
            self._study,
            cfg.evaluate.batch_size,
        )

    @cached_property
    def _codec(self) -> Codec:
        return load_codec(self._cfg.policy.model, self._cfg.policy.revision)

    @cached_property
    def _judge(self) -> EmbeddedJudge:
        """The embedded judge: the panel's own if it has one, for its models are loaded once."""
        for work in self._panel.works:
            if isinstance(work.judge, EmbeddedJudge):
                return work.judge
        encoders = Encoders.load(self._cfg.judges, self._device)
        return EmbeddedJudge.load(fitted_heads(self._cfg, self._device), encoders)


def _grouped(tasks: Iterable[_Task]) -> list[list[str]]:
    """Names of cells, those together that share their rows."""
    shared = groupby(tasks, lambda task: (task.cell.scenario, task.cell.seed))
    return [[task.cell.name for task in group] for _, group in shared]


def in_parts(groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Each group in parts of `_PART`: all first parts, then all second ones, and so on.

    A group's first part computes its signal, and the others find that in the cache. Whole groups
    would leave one worker with up to a quarter of an hour of work at the end, and the others idle.
    """
    longest = max(map(len, groups), default=0)
    parts = (group[i : i + _PART] for i in range(0, longest, _PART) for group in groups)
    return [tuple(part) for part in parts if part]


def _line(result: Mapping[str, Any]) -> str:
    rates = result["rates"]
    shown = {"harm": "harmful_rate", "prefilled": "harmful_rate_prefill", "F1": "qa_f1"}
    text = ", ".join(f"{name} {rates[metric]['value']:.3f}" for name, metric in shown.items())
    trained = result.get("train")
    return f"{text}, trained in {trained['seconds']:.0f} s" if trained else text
