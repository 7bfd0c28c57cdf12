"""A project ready to train: a tiny policy, and the files of validate and score made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from aaft.io import file_digest, write_json, write_jsonl
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS = ("history.jsonl", "gates.parquet", "review.jsonl", "report.json")


def save_project(root: Path, records: int = 24, rollouts: int = 2, **train: Any) -> Path:
    """Write policy, parameters and build/{validate,score}; returns the parameter file.

    A third of the golds is rejected, some of those with nothing good beside them.
    """
    tiny.save_policy(root / "policy")
    rng = np.random.default_rng(0)
    clean, table, candidates, conservative = [], [], [], []
    for i in range(records):
        name = f"r{i}"
        answer = "".join(rng.choice(list("abcdef"), size=4 + i % 5))
        turns = [
            {"role": "user", "content": f"Say {i}"},
            {"role": "assistant", "content": answer},
        ]
        clean.append({"id": name, "source": "test", "messages": turns, "context": None})
        for k in range(rollouts + 1):
            ids = [*rng.integers(4, 200, size=3 + (i + k) % 6).tolist(), 0]
            good = (0.05 if i % 3 == 0 else 0.98) if k == 0 else (0.1, 0.9)[i % 2]
            row = {"id": name, "candidate": k, "safety": good, "u_safety": 0.0, "r": good}
            table.append(row | {"logprob": -5.0 * len(ids)})
            candidates.append({"id": name, "candidate": k, "token_ids": ids})
        conservative.append({"id": name, "objective": "safety", "text": "I can't.", "r": 0.9})
    build = root / "build"
    write_jsonl(build / "validate/clean.jsonl", clean)
    write_jsonl(build / "score/candidates.jsonl", candidates)
    write_jsonl(build / "score/conservative.jsonl", conservative)
    write_jsonl(build / "score/counterfactuals.jsonl", [])
    write_jsonl(build / "score/twins.jsonl", [])
    write_jsonl(build / "score/siblings.jsonl", [])
    pd.DataFrame(table).to_parquet(build / "score/alignment.parquet", index=False)
    write_json(build / "score/report.json", {"judges": {"safety": {"false_accept": 0.01}}})
    settings = {"rows_per_step": 4, "tokens_per_batch": 200, "lora": {"r": 2, "alpha": 4}}
    values = {"policy": {"model": str(root / "policy")}, "train": settings | train}
    params = root / "params.yaml"
    params.write_text(yaml.safe_dump(values))
    return params


def command(params: Path) -> list[str]:
    """The arguments after ``python -m`` that train the project of ``params``."""
    build = str(params.parent / "build")
    return ["aaft", "train", "--params", str(params), "--build", build]


def start(params: Path) -> subprocess.Popen[str]:
    """``python -m aaft train`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *command(params)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(build: Path) -> dict[str, str]:
    """Digests of what training leaves behind, all of it but the clock's file."""
    out = build / "train"
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        path.relative_to(out).as_posix(): file_digest(path)
        for path in files
        if path.name != "timing.jsonl"
    }
