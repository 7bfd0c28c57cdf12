"""What the trainer learns from: records joined with their candidates and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.io import read_jsonl
from aaft.models.policy import Codec
from aaft.tuning.abstain import POOLS, abstains, conservative_response, failed_objective


@dataclass(frozen=True)
class Example:
    """A record ready to train on; candidate 0 is the gold, K the number of rollouts."""

    id: str
    prompt: list[int]
    candidates: list[list[int]]
    quality: npt.NDArray[np.float64]
    """``q``, ``[K+1, M]`` or NaN."""
    uncertainty: npt.NDArray[np.float64]
    """``u``, ``[K+1, M]`` or NaN."""
    logprob: npt.NDArray[np.float64]
    """``log mu(y_k|x)``, ``[K+1]``."""
    abstention: list[int] | None
    """Conservative response to learn instead, or None."""
    review: bool
    """Misaligned throughout, yet on a benign prompt: for a person to look at."""


@dataclass(frozen=True)
class Scores:
    """A window's scores as tensors: ``[B, K+1, M]`` and ``[B, K+1]``."""

    quality: torch.Tensor
    uncertainty: torch.Tensor
    logprob: torch.Tensor
    tokens: torch.Tensor


def stack(examples: Sequence[Example]) -> Scores:
    """Stack examples' scores; every example has the same K and M."""
    return Scores(
        torch.tensor(np.stack([e.quality for e in examples])),
        torch.tensor(np.stack([e.uncertainty for e in examples])),
        torch.tensor(np.stack([e.logprob for e in examples])),
        torch.tensor([[len(c) for c in e.candidates] for e in examples], dtype=torch.float64),
    )


def load_examples(
    folder: Path,
    records: Sequence[Record],
    codec: Codec,
    objectives: Sequence[str],
    false_accept: Mapping[str, float],
    max_tokens: int,
) -> list[Example]:
    """Join records with the score stage's files.

    Args:
        folder: ``build/score``.
        records: the training records, in order.
        codec: the policy's tokenizer.
        objectives: columns of the alignment table.
        false_accept: false-accept rate of each objective's judge; the stage's report has it.
        max_tokens: longest prompt plus response.

    Raises:
        AaftError: a record has no scores, or none of the records fits into ``max_tokens``.
    """
    texts = {
        (r["id"], r["candidate"]): r["token_ids"] for r in read_jsonl(folder / "candidates.jsonl")
    }
    groups = dict(iter(pd.read_parquet(folder / "alignment.parquet").groupby("id")))
    examples = []
    for record in records:
        if record.id not in groups:
            raise AaftError(
                f"{folder / 'alignment.parquet'}: no scores for record {record.id}; rerun the "
                "score stage"
            )
        scored = groups[record.id].sort_values("candidate")
        prompt = codec.prompt_ids(record.prompt_messages)
        candidates = [texts[record.id, k] for k in scored["candidate"]]
        if len(prompt) + max(map(len, candidates)) > max_tokens:
            raise AaftError(
                f"record {record.id}: prompt of {len(prompt)} tokens leaves no room for its "
                f"responses in policy.max_tokens = {max_tokens}; raise it or shorten the record"
            )
        quality = scored[list(objectives)].to_numpy(dtype=np.float64)
        declines = _decline(record.id, quality, scored["r"].to_numpy(), objectives, false_accept)
        examples.append(
            Example(
                record.id,
                prompt,
                candidates,
                quality,
                scored[[f"u_{name}" for name in objectives]].to_numpy(dtype=np.float64),
                scored["logprob"].to_numpy(dtype=np.float64),
                codec.response_ids(declines) if declines else None,
                declines == "",
            )
        )
    return examples


def _decline(
    record_id: str,
    quality: npt.NDArray[np.float64],
    reward: npt.NDArray[np.float64],
    objectives: Sequence[str],
    false_accept: Mapping[str, float],
) -> str | None:
    """A conservative response; empty when a person must look instead; None to train as usual."""
    failed = failed_objective(quality, objectives)
    if failed is None or not abstains(reward, false_accept.get(failed, 0.0)):
        return None
    return conservative_response(record_id, failed) if failed in POOLS else ""


def scored_objectives(table_columns: Sequence[Any]) -> list[str]:
    """Names of the objectives among an alignment table's columns."""
    return [str(c).removeprefix("u_") for c in table_columns if str(c).startswith("u_")]
