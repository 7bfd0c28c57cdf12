"""A study's cells on disk: one folder each, done when its ``result.json`` says so.

``cells/<scenario>/<method>/seed-<n>/`` holds ``answers.jsonl`` (a row a measured prompt) and
``result.json``, written last: a killed study loses the cell that it was computing, no more. A cell
is done when the digest in its result is that of the settings, inputs and code that it would be
computed from now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aaft
from aaft.bench.stage import rates
from aaft.errors import AaftError
from aaft.io import file_digest, read_json, read_jsonl, text_digest, write_json, write_jsonl

GATE_BINS = 20
_RESULT, _ANSWERS = "result.json", "answers.jsonl"
_PACKAGES = ("bench", "data", "judges", "models", "scoring", "tuning")
_STUDY = (
    *("cells", "config", "measure", "methods", "openings", "rivals", "rows", "running"),
    *("scenarios", "signal", "stage", "start"),
)


@dataclass(frozen=True)
class Cell:
    """One method on one scenario from one seed, in its folder below ``root``."""

    root: Path
    scenario: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """``<scenario>/<method>/seed-<n>``."""
        return f"{self.scenario}/{self.method}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / "cells" / self.name

    def done(self, digest: str) -> bool:
        """Whether its result is there and was made from what ``digest`` names."""
        path = self.folder / _RESULT
        return path.is_file() and read_json(path).get("digest") == digest

    def save(self, digest: str, answers: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> Any:
        """Write both files, the result last; return the result.

        Args:
            digest: names what the cell was computed from.
            answers: rows of `measure`.
            facts: what else the result says (``train``, ``gates``).

        Raises:
            AaftError: there are no answers.
        """
        if not answers:
            raise AaftError(f"{self.folder}: nothing was measured; check study.bench_limit")
        (self.folder / _RESULT).unlink(missing_ok=True)
        write_jsonl(self.folder / _ANSWERS, answers)
        result = {
            "scenario": self.scenario,
            "method": self.method,
            "seed": self.seed,
            "digest": digest,
            "rates": rates(row["scores"] for row in answers),
            **facts,
        }
        write_json(self.folder / _RESULT, result)
        return result

    def result(self) -> dict[str, Any]:
        """What `save` returned.

        Raises:
            AaftError: the cell is not done.
        """
        result: dict[str, Any] = read_json(self.folder / _RESULT)
        return result

    def answers(self) -> list[dict[str, Any]]:
        """The rows that `save` got."""
        return read_jsonl(self.folder / _ANSWERS)


def gate_histogram(gates: Iterable[tuple[str, float]]) -> dict[str, list[int]]:
    """Counts of gates in 20 equal bins of [0, 1] by kind of row; the last bin holds 1 too.

    Args:
        gates: (kind, g) of each record.
    """
    counts: dict[str, list[int]] = {}
    for kind, gate in gates:
        row = counts.setdefault(kind, [0] * GATE_BINS)
        row[min(int(gate * GATE_BINS), GATE_BINS - 1)] += 1
    return dict(sorted(counts.items()))


def cell_digest(parts: Mapping[str, Any]) -> str:
    """Digest of everything that shapes a cell, given as JSON values."""
    return text_digest(json.dumps(parts, sort_keys=True))


def files_digest(folders: Iterable[Path]) -> str:
    """Digest of the names and bytes of the JSONL files in ``folders``."""
    files = sorted(path for folder in folders for path in folder.glob("*.jsonl"))
    return text_digest(json.dumps([[p.parent.name, p.name, file_digest(p)] for p in files]))


def code_digest() -> str:
    """Digest of the modules that shape a cell."""
    home = Path(aaft.__file__).parent
    files = [home / "config.py"]
    files += [path for package in _PACKAGES for path in sorted((home / package).glob("*.py"))]
    files += [home / "study" / f"{name}.py" for name in _STUDY]
    return text_digest(json.dumps([[str(p.relative_to(home)), file_digest(p)] for p in files]))
