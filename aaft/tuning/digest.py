"""What names a training run: a checkpoint of another one must not be continued."""

from __future__ import annotations

import json
from pathlib import Path

import aaft
from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import file_digest, text_digest
from aaft.models.fingerprint import library_versions, model_digest

_INPUTS = (
    "validate/clean.jsonl",
    "score/alignment.parquet",
    "score/candidates.jsonl",
    "score/conservative.jsonl",
    "score/counterfactuals.jsonl",
    "score/twins.jsonl",
    "score/siblings.jsonl",
    "score/report.json",
)
_CODE = ("config.py", "data/records.py", "models/*.py", "tuning/*.py")


def run_digest(cfg: Config, paths: Paths) -> str:
    """Digest of configuration, policy, inputs, code and libraries.

    The number of processes and threads is left out: it changes a run by rounding only, and a
    machine that comes back smaller should not lose what was done.

    Raises:
        AaftError: an input is missing.
    """
    for name in _INPUTS:
        if not (paths.build / name).is_file():
            stage = name.partition("/")[0]
            raise AaftError(f"{paths.build / name}: no such file; run aaft {stage} again")
    package = Path(aaft.__file__).parent
    code = sorted(path for pattern in _CODE for path in package.glob(pattern))
    settings = cfg.train.model_dump(mode="json", exclude={"checkpoint_steps"})
    parts = {
        "seed": cfg.seed,
        "train": settings,
        "policy": model_digest(cfg.policy.model, cfg.policy.revision, "policy.model"),
        "inputs": {name: file_digest(paths.build / name) for name in _INPUTS},
        "code": {path.relative_to(package).as_posix(): file_digest(path) for path in code},
        "packages": library_versions(),
    }
    return text_digest(json.dumps(parts, sort_keys=True))
