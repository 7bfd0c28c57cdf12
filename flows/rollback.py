"""Go back to the previous champion; a second time goes forward again.

python -m flows.rollback
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from prefect import flow

from aaft.config import load_config
from tasks.console import exit_on_expected_errors
from tasks.registry import rollback


@flow(name="rollback", log_prints=True)
def roll_back(root: str = ".") -> None:
    """Swap the aliases champion and previous."""
    with contextlib.chdir(root):
        print(rollback(Path.cwd(), load_config().registry.model_name))


if __name__ == "__main__":
    with exit_on_expected_errors():
        roll_back()
