"""The validate stage: training data in, clean rows and reasons for the rest out.

Run it with ``python -m aaft validate``. Under ``build/validate/``: ``clean.jsonl`` (accepted rows
in record format, what later stages read), ``quarantine.jsonl`` (bad rows with reasons),
``data_docs/index.html``, and ``report.json`` last.

When it stops (exit code 2): always at a structural fault (unreadable line, missing response,
wrong type, repeated id, text over the limit), since such a file isn't what its owner meant; at
content faults (benchmark leaks, blank texts, control characters, answers that repeat the prompt,
repeated rows) once more than ``validate.max_bad_fraction`` of all rows have one. Either way
``quarantine.jsonl`` is written first, so that all faults can be mended at once, and earlier clean
rows, docs and report stay as they were.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from aaft.config import Config, Paths
from aaft.data import expectations
from aaft.data.contamination import Leak, leaks
from aaft.data.pin import dvc_dir_md5, file_md5
from aaft.data.records import Draft, RawRow, Record, draft, is_local, iter_rows
from aaft.data.schema import Fault, row_faults
from aaft.errors import AaftError
from aaft.io import write_json, write_jsonl

STAGE = "validate"
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Validate ``data.train`` against the row schema, the benchmarks and the suite.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        AaftError: unreadable data, a structural fault, too many bad rows, or a failed critical
            expectation; the message names file, line, id, field and the remedy.
    """
    folder = paths.stage(STAGE)
    rows = list(iter_rows(cfg.data))
    drafts = [draft(row.value or {}) for row in rows]
    faults = _faults(rows, drafts, cfg)
    quarantine = folder / "quarantine.jsonl"
    write_jsonl(quarantine, _quarantined(rows, drafts, faults))
    _stop_if_bad(rows, drafts, faults, cfg, quarantine)

    bad = {fault.row for fault in faults}
    records = [made.record() for number, made in enumerate(drafts) if number not in bad]
    fresh_docs = folder / ".data_docs.partial"
    checked = expectations.check(records, cfg.validate_, fresh_docs)
    if not checked["success"]:
        shutil.rmtree(fresh_docs, ignore_errors=True)
        raise AaftError(_expectation_message(cfg, checked))
    report = _report(cfg, rows, records, faults, checked)

    docs = folder / "data_docs"
    shutil.rmtree(docs, ignore_errors=True)
    fresh_docs.rename(docs)
    write_jsonl(folder / "clean.jsonl", (record.row() for record in records))
    write_json(paths.report(STAGE), report)
    return report


def _faults(rows: list[RawRow], drafts: list[Draft], cfg: Config) -> list[Fault]:
    """Faults of all rows. Only rows without any other fault are compared with the benchmarks."""
    if not rows:
        raise AaftError(f"{cfg.data.train}: no rows; check data.train in params.yaml")
    unread = [
        Fault(number, "line", row.fault, structural=True)
        for number, row in enumerate(rows)
        if row.value is None
    ]
    readable = [number for number, row in enumerate(rows) if row.value is not None]
    found = row_faults([drafts[number] for number in readable], cfg.validate_)
    faults = unread + [fault._replace(row=readable[fault.row]) for fault in found]
    bad = {fault.row for fault in faults}
    sound = [number for number in readable if number not in bad]
    records = [drafts[number].record() for number in sound]
    for leak in leaks(records, cfg.data.bench, cfg.validate_.contamination_threshold):
        faults.append(Fault(sound[leak.row], "prompt", _leak_reason(leak), structural=False))
    return sorted(faults, key=lambda fault: fault.row)


def _leak_reason(leak: Leak) -> str:
    return f"in benchmark {leak.file} (id {leak.id}, similarity {leak.similarity:.2f})"


def _kind(fault: Fault) -> str:
    """The fault without details that differ from row to row."""
    reason = fault.reason.partition(" (")[0].partition(" at byte")[0]
    return f"{fault.field}: {reason}"


def _quarantined(
    rows: list[RawRow], drafts: list[Draft], faults: list[Fault]
) -> list[dict[str, Any]]:
    by_row: defaultdict[int, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_row[fault.row].append(fault)
    return [
        {
            "line": rows[number].line,
            "id": drafts[number].id if drafts[number].own_id else None,
            "structural": any(fault.structural for fault in found),
            "reasons": [f"{fault.field}: {fault.reason}" for fault in found],
            "row": rows[number].value,
        }
        for number, found in sorted(by_row.items())
    ]


def _stop_if_bad(
    rows: list[RawRow], drafts: list[Draft], faults: list[Fault], cfg: Config, quarantine: Path
) -> None:
    structural = [fault for fault in faults if fault.structural]
    limit = cfg.validate_.max_bad_fraction
    bad = {fault.row for fault in faults}
    if structural:
        first, count = structural[0], len({fault.row for fault in structural})
        total = f"{count} unusable row{'s' if count > 1 else ''} of {len(rows)}"
        remedy = "fix or delete them"
    elif len(bad) > limit * len(rows) or len(bad) == len(rows):
        first = faults[0]
        total = f"{len(bad)} bad rows of {len(rows)}, above validate.max_bad_fraction {limit:g}"
        remedy = "fix or delete them, or raise the limit"
    else:
        return
    made = drafts[first.row]
    name = f" (id {str(made.id)[:40]!r})" if made.own_id else ""
    raise AaftError(
        f"{cfg.data.train}: line {rows[first.row].line}{name}: {first.field}: {first.reason};"
        f" {total}; {remedy}, all are listed in {quarantine}"
    )


def _expectation_message(cfg: Config, checked: dict[str, Any]) -> str:
    first = next(entry for entry in checked["failed"] if entry["severity"] == "critical")
    return (
        f"{cfg.data.train}: expectation {first['expectation']} on {first['column']} fails;"
        " change the data or the validate limits in params.yaml"
    )


def _report(
    cfg: Config,
    rows: list[RawRow],
    records: list[Record],
    faults: list[Fault],
    checked: dict[str, Any],
) -> dict[str, Any]:
    kinds = {(fault.row, _kind(fault)) for fault in faults}
    leaked = Counter(
        fault.reason.split()[2] for fault in faults if fault.reason.startswith("in benchmark ")
    )
    return {
        "rows": {
            "in": len(rows),
            "accepted": len(records),
            "quarantined": len({fault.row for fault in faults}),
        },
        "reasons": _sorted(Counter(kind for _, kind in kinds)),
        "sources": _sorted(Counter(record.source for record in records)),
        "with_context": sum(record.context is not None for record in records),
        "characters": _lengths(records),
        "contamination": {
            "threshold": cfg.validate_.contamination_threshold,
            "rows": sum(leaked.values()),
            "by_file": _sorted(leaked),
        },
        "expectations": checked,
        "data": {
            "train_md5": file_md5(Path(cfg.data.train)) if is_local(cfg.data.train) else None,
            "bench_md5": dvc_dir_md5(cfg.data.bench),
        },
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _lengths(records: list[Record]) -> dict[str, dict[str, int]]:
    """Quantiles of text lengths in characters (nearest rank below)."""
    measured = expectations.measures(records)
    columns = ("prompt_chars", "response_chars", "context_chars")
    return {
        column.removesuffix("_chars"): {
            name: int(measured[column].quantile(q, interpolation="lower"))
            for name, q in QUANTILES.items()
        }
        for column in columns
    }
