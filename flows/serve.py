"""Serve the deployment ``retrain/retrain``, so that it can be started from the Prefect UI.

python -m flows.serve
"""

from __future__ import annotations

from pathlib import Path

from prefect.schedules import Cron

from flows.retrain import retrain

if __name__ == "__main__":
    # The schedule is there to be switched on in the UI; nothing runs by itself before that.
    retrain.serve(
        name="retrain",
        parameters={"root": str(Path.cwd())},
        schedule=Cron("0 3 * * 1", timezone="UTC", active=False),
    )
