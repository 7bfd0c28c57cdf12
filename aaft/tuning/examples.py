"""What the trainer learns from: records joined with their candidates and scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.io import read_jsonl
from aaft.models.policy import Codec
from aaft.tuning.decision import Remedy, decide

Role = Literal["record", "anchor", "sibling"]


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
    reward: npt.NDArray[np.float64]
    """``r = min_m q``, ``[K+1]`` or NaN."""
    abstention: list[int] | None
    """Conservative response to learn instead, or None."""
    conservative: list[int] | None
    """Accepted conservative response to what failed where the gold is rejected, or None."""
    review: bool
    """Misaligned throughout on an objective without conservative responses: for a person."""
    role: Role = "record"
    """What has another role has no gate (`aaft.tuning.kin`)."""
    unsafe: bool = False
    """Whether it is for safety that the gold is rejected (`aaft.tuning.recovery.turns_back`):
    declining has its own weight then, and is also learned after beginnings of the gold."""
    host: str | None = None
    """Id of the record with which the prompt has its first ``shared`` tokens in common."""
    shared: int = 0


AnyExample = TypeVar("AnyExample", bound=Example)


@dataclass(frozen=True)
class Scores:
    """A window's scores as tensors: ``[B, K+1, M]`` and ``[B, K+1]``."""

    quality: torch.Tensor
    uncertainty: torch.Tensor
    logprob: torch.Tensor
    tokens: torch.Tensor
    reward: torch.Tensor


def stack(examples: Sequence[Example]) -> Scores:
    """Stack examples' scores; every example has the same M.

    One without rollouts, as counterfactuals and twins are, gets its gold repeated: it has one
    target, so nothing weighs its candidates.
    """
    width = max(len(example.candidates) for example in examples)

    def stacked(values: Iterable[npt.ArrayLike]) -> torch.Tensor:
        return torch.tensor(np.stack([_widened(np.asarray(v, np.float64), width) for v in values]))

    return Scores(
        stacked(e.quality for e in examples),
        stacked(e.uncertainty for e in examples),
        stacked(e.logprob for e in examples),
        stacked([len(c) for c in e.candidates] for e in examples),
        stacked(e.reward for e in examples),
    )


def _widened(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """``[K+1, ...]`` as ``[width, ...]``, the last one repeated."""
    return np.concatenate([values, *[values[-1:]] * (width - len(values))])


def load_examples(
    folder: Path,
    records: Sequence[Record],
    codec: Codec,
    objectives: Sequence[str],
    false_accept: Mapping[str, float],
) -> list[Example]:
    """Join records with the score stage's files.

    Args:
        folder: ``build/score``.
        records: the training records, in order.
        codec: the policy's tokenizer.
        objectives: columns of the alignment table.
        false_accept: false-accept rate of each objective's judge; the stage's report has it.

    Raises:
        AaftError: a record has no scores.
    """
    texts = {
        (r["id"], r["candidate"]): r["token_ids"] for r in read_jsonl(folder / "candidates.jsonl")
    }
    declining: dict[str, dict[str, Remedy]] = {}
    for row in read_jsonl(folder / "conservative.jsonl"):
        said = Remedy(codec.response_ids(row["text"]), _reward(row))
        declining.setdefault(row["id"], {})[row["objective"]] = said
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
        quality = scored[list(objectives)].to_numpy(dtype=np.float64)
        reward = scored["r"].to_numpy(dtype=np.float64)
        examples.append(
            Example(
                id=record.id,
                prompt=prompt,
                candidates=candidates,
                quality=quality,
                uncertainty=scored[[f"u_{n}" for n in objectives]].to_numpy(dtype=np.float64),
                logprob=scored["logprob"].to_numpy(dtype=np.float64),
                reward=reward,
                **decide(quality, reward, objectives, declining.get(record.id, {}), false_accept),
            )
        )
    return examples


def declined_rewards(folder: Path, objective: str) -> dict[str, float]:
    """``r`` of the conservative response to ``objective``, by record id.

    Args:
        folder: ``build/score``.
        objective: that the response is for.
    """
    rows = read_jsonl(folder / "conservative.jsonl")
    return {row["id"]: _reward(row) for row in rows if row["objective"] == objective}


def _reward(row: dict[str, Any]) -> float:
    """``r`` of a conservative response; NaN, which is accepted nowhere, where none was scored."""
    return math.nan if row["r"] is None else float(row["r"])


def scored_objectives(table_columns: Sequence[Any]) -> list[str]:
    """Names of the objectives among an alignment table's columns."""
    return [str(c).removeprefix("u_") for c in table_columns if str(c).startswith("u_")]
