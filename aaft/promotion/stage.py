"""``python -m aaft gate``: candidate against reference on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl, write_json
from aaft.promotion.explain import explain
from aaft.promotion.verdict import compare


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Decide and write ``gate/verdict.json``, then ``gate/report.json`` (with the reasons).

    A FAIL or INCONCLUSIVE verdict is a result, not an error.

    Raises:
        AaftError: the evaluate stage has not finished, or its results cannot be compared.
    """
    read_json(paths.report("evaluate"))  # Written last: without it the results may be partial.
    source = paths.stage("evaluate") / "results.jsonl"
    rows = read_jsonl(source)
    try:
        verdict = compare(of_model(rows, "candidate"), of_model(rows, "reference"), cfg.gate)
    except AaftError as error:
        raise AaftError(f"{source}: {error}") from None
    reasons = {
        metric: explain(metric, result, verdict["confidence"])
        for metric, result in verdict["metrics"].items()
    }
    report = {**verdict, "reasons": reasons}
    write_json(paths.stage("gate") / "verdict.json", verdict)
    write_json(paths.report("gate"), report)
    return report


def of_model(rows: list[dict[str, Any]], model: str) -> list[Mapping[str, Any]]:
    """The rows of one model, "candidate" or "reference".

    Raises:
        AaftError: there are none.
    """
    chosen = [row for row in rows if row.get("model") == model]
    if not chosen:
        raise AaftError(f"no row has model {model!r}; evaluate again")
    return list(chosen)
