"""``aaft data status``: where every row of ``data/`` comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from aaft.data.build import MANIFEST
from aaft.data.wheels import PINS
from aaft.errors import AaftError
from aaft.io import read_json

UPSTREAM_NOTE = (
    "Licences are those that the wheels declare for themselves; the rows belong to the upstream"
    " projects: see upstream before you pass them on."
)


@dataclass(frozen=True)
class SourceStatus:
    """One source: its wheel, the licence the wheel declares, and rows used by file."""

    source: str
    upstream: str
    package: str
    version: str
    licence: str
    rows: dict[str, int]


@dataclass(frozen=True)
class Status:
    """All sources, models included (without rows), rows by file, poisoned train rows."""

    sources: list[SourceStatus]
    files: dict[str, int]
    poisoned: int

    def __rich__(self) -> Group:
        """Two tables, so that a rich console can print a status as it is."""
        sources = Table("source", "wheel", "licence", "rows used", title="Sources")
        for row in self.sources:
            used = "\n".join(
                f"{name.removesuffix('.jsonl')} {count:,}" for name, count in row.rows.items()
            )
            wheel = f"{row.package} {row.version}"
            sources.add_row(
                f"{row.source}\n[dim]{row.upstream}[/dim]", wheel, row.licence, used or "-"
            )
        files = Table("file", "rows", title="Files")
        for name, count in self.files.items():
            files.add_row(name, f"{count:,}")
        share = self.poisoned / self.files["train.jsonl"]
        poisoned = f"Poisoned train rows: {self.poisoned} ({share:.1%})."
        return Group(sources, files, poisoned, UPSTREAM_NOTE)


def status(data_dir: Path) -> Status:
    """Read the build's manifest; needs no wheels.

    Raises:
        AaftError: ``data_dir`` holds no finished build.
    """
    path = data_dir / MANIFEST
    if not path.is_file():
        raise AaftError(f"{path}: no such file; run aaft data build")
    made = read_json(path)
    fields = ("source", "upstream", "package", "version", "licence", "rows")
    rows = [SourceStatus(*(entry[field] for field in fields)) for entry in made["sources"]]
    used = {row.package for row in rows}
    models = [
        SourceStatus("model", wheel.purpose, wheel.package, wheel.version, wheel.licence, {})
        for wheel in PINS
        if wheel.package not in used
    ]
    return Status(rows + models, made["files"], made["poisoned"])
