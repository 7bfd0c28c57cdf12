"""Make a registered version champion by hand.

python -m flows.promote 3
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import typer
from prefect import flow

from aaft.config import load_config
from tasks.console import exit_on_expected_errors
from tasks.registry import promote


@flow(name="promote", log_prints=True)
def promote_version(version: int, root: str = ".") -> None:
    """Champion becomes ``version``, previous the champion before it."""
    with contextlib.chdir(root):
        print(promote(Path.cwd(), load_config().registry.model_name, version))


def main(version: int) -> None:
    """Promote VERSION."""
    with exit_on_expected_errors():
        promote_version(version)


if __name__ == "__main__":
    typer.run(main)
