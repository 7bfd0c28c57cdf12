"""What the page is made of: the files that earlier stages left under ``build/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.config import Paths
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl

GATE_COLUMNS = ["gate", "v", "uncertainty", "abstain"]


@dataclass(frozen=True)
class Inputs:
    """Contents of the stages' files; ``None`` for an optional one that is missing."""

    decision: dict[str, Any]
    """``gate/report.json``: the verdict and its reasons."""
    evaluation: dict[str, Any]
    results: list[dict[str, Any]]
    gates: dict[str, list[float]] | None
    """Columns of ``train/gates.parquet``, without counterfactuals: what the data itself got."""
    history: list[dict[str, Any]] | None
    validation: dict[str, Any] | None
    judges: Any | None
    """``judges`` of ``score/report.json``."""


def load(paths: Paths) -> Inputs:
    """Read everything once.

    Raises:
        AaftError: evaluate or gate has not finished, or a file is there but broken.
    """
    score = _optional_json(paths.report("score"))
    history = paths.stage("train") / "history.jsonl"
    return Inputs(
        evaluation=read_json(paths.report("evaluate")),
        decision=_decision(paths.report("gate")),
        results=read_jsonl(paths.stage("evaluate") / "results.jsonl"),
        gates=_gates(paths.stage("train") / "gates.parquet"),
        history=(read_jsonl(history) or None) if history.exists() else None,
        validation=_optional_json(paths.report("validate")),
        judges=score.get("judges") if score else None,
    )


def _decision(path: Path) -> dict[str, Any]:
    decision = read_json(path)
    for key in ("verdict", "confidence", "metrics", "reasons"):
        if not isinstance(decision, dict) or key not in decision:
            raise AaftError(f"{path}: no {key!r}; run the gate stage again")
    return dict(decision)


def _optional_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise AaftError(f"{path}: not a JSON object; run its stage again")
    return value


def _gates(path: Path) -> dict[str, list[float]] | None:
    """Columns as floats; counterfactuals and rows with a missing value left out."""
    if not path.exists():
        return None
    import pandas as pd
    import pyarrow as pa

    try:
        frame = pd.read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise AaftError(
            f"{path}: not a parquet file ({error}); run the train stage again"
        ) from None
    for column in GATE_COLUMNS:
        if column not in frame.columns:
            raise AaftError(f"{path}: no column {column!r}; run the train stage again")
    if "counterfactual" in frame.columns:
        frame = frame[~frame["counterfactual"].astype(bool)]
    frame = frame[GATE_COLUMNS].astype(float).dropna()
    return {column: frame[column].tolist() for column in GATE_COLUMNS} if len(frame) else None
