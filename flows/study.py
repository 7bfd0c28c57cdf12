"""The study as a flow: the rivals on the same work, then its tables in the Prefect UI.

    python -m flows.study
    python -m flows.study full build/study-full

Exit code 2 when an input is wrong, 1 when something broke.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from tasks.console import exit_on_expected_errors, quiet_expected_errors
from tasks.study import publish_study, run_study


@flow(name="study", persist_result=False)
def study(
    preset: str = "small",
    out: str = "build/study",
    overrides: Sequence[str] = (),
    root: str = ".",
) -> Path:
    """Run the cells that are not done, report them all and publish the tables.

    Args:
        preset: ``small`` or ``full``.
        out: the study's folder, relative to ``root``.
        overrides: ``section.key=value`` each.
        root: the project's root, with ``params.yaml``.

    Raises:
        AaftError: an input is wrong, or another study uses this folder.
        StageError: the study crashed or was killed; running again keeps finished cells.
    """
    quiet_expected_errors()
    with contextlib.chdir(root):
        report = run_study(preset, Path(out), overrides)
        publish_study(report)
        return report.resolve()


def main() -> None:
    """Run the flow here and say where its tables are."""
    with exit_on_expected_errors():
        report = study(*sys.argv[1:3])
        print(f"study: done, see {report.with_suffix('.md')}")


if __name__ == "__main__":
    main()
