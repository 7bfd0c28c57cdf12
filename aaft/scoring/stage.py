"""The score stage: judges, rollouts and the alignment table.

``python -m aaft score`` reads ``build/validate/clean.jsonl`` and ``data/judge`` and writes
``build/score/``: ``judges/*.json``, ``candidates.jsonl``, ``conservative.jsonl``,
``alignment.parquet``, ``report.json``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from aaft.config import Config, Paths
from aaft.data.records import Record, read_clean
from aaft.errors import AaftError
from aaft.io import atomic_path, read_jsonl, text_digest, write_json, write_jsonl
from aaft.judges.base import CallableJudge, Judge, Sample, bare_prompt
from aaft.judges.embedded import fit
from aaft.judges.encoder import Encoder
from aaft.judges.quality import embedded_quality
from aaft.models import runtime
from aaft.models.packed import check_logits
from aaft.models.policy import load_codec, load_policy, locate_policy
from aaft.scoring.alignment import Alignment, align
from aaft.scoring.conservative import conservative_responses
from aaft.scoring.rollouts import Candidate, check_lengths, roll_out

JUDGE_FILES = ("intent", "refusal", "safety", "grounding")


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Score every training record and its rollouts.

    Raises:
        AaftError: missing inputs, a judge no better than chance, or an objective that scores
            every answer alike.
    """
    out = paths.stage("score")
    locate_policy(cfg.policy.model)
    records = read_clean(paths.stage("validate") / "clean.jsonl")
    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    check_lengths(codec, records, cfg.score, cfg.policy.max_tokens)
    labelled = {name: read_jsonl(cfg.data.judge / f"{name}.jsonl") for name in JUDGE_FILES}

    paths.report("score").unlink(missing_ok=True)
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    print("score: fitting the judges", flush=True)
    embedded = fit(labelled, Encoder(cfg.judges.embedder, device, cfg.judges.batch_size))
    quality = embedded_quality(embedded, labelled)
    embedded.save(out / "judges")
    judges: list[Judge] = [embedded, *map(CallableJudge, cfg.judges.callables)]

    dtype = torch.bfloat16
    reference = load_policy(cfg.policy.model, device, dtype, cfg.policy.revision)
    check_logits(reference)
    candidates = roll_out(reference, codec, records, cfg.score, cfg.seed)
    print("score: judging the candidates", flush=True)
    flat = [candidate for row in candidates for candidate in row]
    alignment = align(judges, _samples(records, candidates), cfg.judges.kappa_u)

    write_jsonl(
        out / "candidates.jsonl",
        (
            {"id": c.id, "candidate": c.candidate, "text": c.text, "token_ids": c.token_ids}
            for c in flat
        ),
    )
    declining = [response for record in records for response in conservative_responses(record)]
    rewards = align(judges, _declining_samples(records), cfg.judges.kappa_u).reward
    write_jsonl(
        out / "conservative.jsonl",
        (
            {"id": c.id, "objective": c.objective, "text": c.text, "r": float(r)}
            for c, r in zip(declining, rewards, strict=True)
        ),
    )
    table = alignment_table(flat, alignment)
    with atomic_path(out / "alignment.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    report = {
        "records": len(records),
        "candidates": len(flat),
        "rollouts": cfg.score.rollouts,
        "objectives": summarize(table, alignment.objectives),
        "judges": quality,
        "judge_digests": [judge.digest for judge in judges],
    }
    write_json(paths.report("score"), report)
    return report


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


def _declining_samples(records: list[Record]) -> list[Sample]:
    return [
        Sample(bare_prompt(record.prompt, record.context), response.text, record.context)
        for record in records
        for response in conservative_responses(record)
    ]
