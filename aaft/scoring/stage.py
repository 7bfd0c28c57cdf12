"""The score stage: rollouts, judges and the alignment table.

``python -m aaft score`` reads ``build/validate/clean.jsonl`` and ``data/judge`` and writes
``build/score/``: ``judges/*.json``, ``counterfactuals.jsonl``, ``twins.jsonl``,
``siblings.jsonl``, ``candidates.jsonl``, ``conservative.jsonl``, ``alignment.parquet``,
``anchors.json``, ``report.json``. What is dear is kept in ``score.cache`` as soon as a shard is
done; the files are the same whether it was there before or not. Counterfactuals and twins, without
rollouts, and siblings follow the records in every file.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aaft.config import ACCEPTED, Config, Paths
from aaft.data.records import Record, read_clean
from aaft.errors import AaftError
from aaft.io import atomic_path, text_digest, write_json, write_jsonl
from aaft.judges.base import Sample, bare_prompt
from aaft.judges.drift import FILE as ANCHORS
from aaft.judges.drift import anchor_scores, read_anchors
from aaft.judges.fitted import fitted_heads
from aaft.judges.gatekeeper import check_quality
from aaft.models import runtime
from aaft.models.policy import Codec, load_codec, locate_policy
from aaft.scoring.alignment import Alignment
from aaft.scoring.cache import ScoreCache, open_cache
from aaft.scoring.conservative import Conservative, conservative_responses
from aaft.scoring.counterfactual import AnyRecord, counterfactuals
from aaft.scoring.judging import (
    Judged,
    JudgeWork,
    align_cached,
    judge_all,
    judge_works,
    number_or_none,
)
from aaft.scoring.kin import Kin, draw_kin, harmful_requests
from aaft.scoring.rollouts import Candidate, draw, fitting, of_golds, tokenize


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Score every training record with its rollouts, and what is made of some records.

    Raises:
        AaftError: missing inputs, a judge no better than a trivial one, too many missing answers,
            or an objective that scores every answer alike.
    """
    out = paths.stage("score")
    locate_policy(cfg.policy.model)
    given = read_clean(paths.stage("validate") / "clean.jsonl")
    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    asked = tokenize(codec, given, cfg.score, cfg.policy.max_tokens)
    anchors = read_anchors(cfg.data.judge)

    paths.report("score").unlink(missing_ok=True)
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    _keep(fitted_heads(cfg, device), out / "judges")
    works = judge_works(cfg)
    judges = [work.judge for work in works]
    quality = check_quality(judges, cfg)
    write_json(out / ANCHORS, anchor_scores(judges, anchors))
    swapped = drawn_counterfactuals(cfg, codec, given, works, cfg.seed)
    foreign = tokenize(codec, swapped, cfg.score, cfg.policy.max_tokens)
    records = [*given, *swapped]
    own = len(records)
    with open_cache(cfg.score.cache) as cache:
        candidates = draw(cfg, asked, cache) + draw(of_golds(cfg), foreign, cache)
        samples = _samples(records, candidates)
        judged = judge_all(works, lambda: samples, len(samples), cfg, cache)
        golds = [samples[i] for i in _golds(candidates)[: len(given)]]
        aligned = align_cached(works, golds, cfg.judges.kappa_u, cache)
        harmful = harmful_requests(given, aligned.quality, aligned.objectives)
        kin = drawn_kin(cfg, codec, harmful, {record.id for record in records}, works, cache)
        if kin.twins or kin.siblings:
            records += [*kin.twins, *kin.siblings]
            more = tokenize(codec, records[own:], cfg.score, cfg.policy.max_tokens)
            candidates += draw(of_golds(cfg), more[: len(kin.twins)], cache)
            # Rollouts tell which siblings the reference declines by itself.
            candidates += draw(cfg, more[len(kin.twins) :], cache)
            # All of them, for it is of all answers that a judge may miss a share.
            samples = _samples(records, candidates)
            judged = judge_all(works, lambda: samples, len(samples), cfg, cache)
        alignment = align_cached(works, samples, cfg.judges.kappa_u, cache)
        declining = [
            (record, response)
            # Of kin it must be known that declining is wrong, whatever its answer.
            for record in [*_rejected(records[:own], candidates[:own], alignment), *records[own:]]
            for response in conservative_responses(record)
        ]
        rewards = _declining_rewards(cfg, works, declining, cache)

    flat = [candidate for row in candidates for candidate in row]
    write_jsonl(out / "counterfactuals.jsonl", (record.row() for record in swapped))
    write_jsonl(out / "twins.jsonl", (record.row() for record in kin.twins))
    write_jsonl(out / "siblings.jsonl", (record.row() for record in kin.siblings))
    write_jsonl(
        out / "candidates.jsonl",
        (
            {"id": c.id, "candidate": c.candidate, "text": c.text, "token_ids": c.token_ids}
            for c in flat
        ),
    )
    write_jsonl(
        out / "conservative.jsonl",
        (
            {"id": c.id, "objective": c.objective, "text": c.text, "r": number_or_none(r)}
            for (_, c), r in zip(declining, rewards, strict=True)
        ),
    )
    table = alignment_table(flat, alignment)
    with atomic_path(out / "alignment.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    report = {
        "records": len(given),
        "counterfactuals": len(swapped),
        "twins": len(kin.twins),
        "siblings": len(kin.siblings),
        "candidates": len(flat),
        "rollouts": cfg.score.rollouts,
        # Of the data alone: every counterfactual's gold is meant to fail.
        "objectives": summarize(
            table[: sum(map(len, candidates[: len(given)]))], alignment.objectives
        ),
        **quality.section(),
        "panel": [_panel_entry(entry, len(flat)) for entry in judged],
        "judge_digests": [entry.digest for entry in judged],
    }
    write_json(paths.report("score"), report)
    return report


def drawn_counterfactuals(
    cfg: Config,
    codec: Codec,
    records: Sequence[AnyRecord],
    works: Sequence[JudgeWork],
    seed: int,
) -> list[AnyRecord]:
    """``score.counterfactuals`` of the records, but for those that get too long.

    None where no judge reads passages: then nobody could tell that one doesn't answer.
    """
    if not any("grounding" in work.judge.objectives for work in works):
        return []
    made = counterfactuals(records, cfg.score.counterfactuals, seed)
    return fitting(codec, made, cfg.score, cfg.policy.max_tokens)


def drawn_kin(
    cfg: Config,
    codec: Codec,
    harmful: Sequence[Record],
    taken: Collection[str],
    works: Sequence[JudgeWork],
    cache: ScoreCache,
) -> Kin:
    """Twins and siblings of the harmful requests, but for those too long or with an id in use.

    None where no judge scores ``comply``: then nobody could tell that declining a twin is wrong.
    """
    if not any("comply" in work.judge.objectives for work in works):
        return Kin([], [])
    kin = draw_kin(cfg, harmful, cache)
    twins, siblings = (
        fitting(
            codec,
            [record for record in made if record.id not in taken],
            cfg.score,
            cfg.policy.max_tokens,
        )
        for made in (kin.twins, kin.siblings)
    )
    return Kin(twins, siblings)


def _keep(heads: Path, folder: Path) -> None:
    """Put the embedded judge's heads where the evaluate stage finds them, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(heads, partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _rejected(
    records: Sequence[Record], candidates: Sequence[Sequence[Candidate]], alignment: Alignment
) -> list[Record]:
    """Records whose gold is not accepted: only these can learn to decline instead."""
    golds = zip(records, alignment.reward[_golds(candidates)], strict=True)
    return [record for record, reward in golds if reward < ACCEPTED]


def _golds(candidates: Sequence[Sequence[Candidate]]) -> Any:
    """Where each record's gold stands among all candidates."""
    return np.cumsum([0, *map(len, candidates)])[:-1]


def _declining_rewards(
    cfg: Config,
    works: Sequence[JudgeWork],
    declining: Sequence[tuple[Record, Conservative]],
    cache: ScoreCache,
) -> Any:
    samples = [
        Sample(bare_prompt(record.prompt, record.context), response.text, record.context)
        for record, response in declining
    ]
    judge_all(works, lambda: samples, len(samples), cfg, cache)
    return align_cached(works, samples, cfg.judges.kappa_u, cache).reward


def _panel_entry(judged: Judged, asked: int) -> dict[str, Any]:
    return {
        "name": judged.name,
        "digest": judged.digest,
        "objectives": list(judged.objectives),
        "scored": asked - judged.failed,
        "missing": judged.failed,
    }


def alignment_table(candidates: list[Candidate], alignment: Alignment) -> pd.DataFrame:
    """One row per candidate: ids, digest, one column per objective, uncertainties, r, log-prob.

    ``<objective>`` is q and ``u_<objective>`` its uncertainty, both in [0, 1]; ``uncertainty`` is
    the largest of them, ``r`` the smallest q. Missing scores are null.
    """
    columns: dict[str, Any] = {
        "id": [c.id for c in candidates],
        "candidate": [c.candidate for c in candidates],
        "text_digest": [text_digest(c.text) for c in candidates],
    }
    for m, name in enumerate(alignment.objectives):
        columns[name] = alignment.quality[:, m]
        columns[f"u_{name}"] = alignment.uncertainty[:, m]
    columns["uncertainty"] = alignment.doubt
    columns["r"] = alignment.reward
    columns["logprob"] = [c.logprob for c in candidates]
    columns["tokens"] = [len(c.token_ids) for c in candidates]
    return pd.DataFrame(columns)


def summarize(table: pd.DataFrame, objectives: tuple[str, ...]) -> dict[str, Any]:
    """Per objective: how many are scored and how gold and rollouts spread.

    Raises:
        AaftError: an objective gives every answer the same score, so it can't steer anything.
    """
    summary = {}
    for name in objectives:
        scored = table[table[name].notna()]
        if len(scored) > 1 and float(np.ptp(scored[name])) < 1e-6:
            raise AaftError(
                f"score: objective {name} gives all {len(scored)} answers the same score; a judge "
                "that can't tell answers apart is of no use, check or remove it"
            )
        gold = scored["candidate"] == 0
        summary[name] = {
            "scored": len(scored),
            "gold_below_half": _share_below(scored[gold][name]),
            "rollouts_below_half": _share_below(scored[~gold][name]),
        }
    return summary


def _share_below(values: pd.Series) -> float | None:
    return round(float((values < 0.5).mean()), 4) if len(values) else None


def _samples(records: list[Record], candidates: list[list[Candidate]]) -> list[Sample]:
    return [
        Sample(bare_prompt(record.prompt, record.context), candidate.text, record.context)
        for record, row in zip(records, candidates, strict=True)
        for candidate in row
    ]
