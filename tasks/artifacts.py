"""What a run leaves in the Prefect UI: a table of metrics, the verdict and links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from aaft.config import Paths
from aaft.io import read_json
from tasks.registry import Registration


@task(name="publish", task_run_name="publish")
def publish(paths: Paths, report: Path, registration: Registration, run_url: str) -> None:
    """Create the artifacts ``retrain-verdict``, ``retrain-metrics`` and three links."""
    verdict = read_json(paths.stage("gate") / "verdict.json")
    rates = read_json(paths.report("evaluate"))
    create_table_artifact(
        key="retrain-metrics",
        table=[_row(name, entry, rates) for name, entry in verdict["metrics"].items()],
        description="Candidate minus reference, paired on the same prompts",
    )
    create_markdown_artifact(
        key="retrain-verdict",
        markdown=(
            f"# {verdict['verdict']}\n\n{registration.name}: candidate is version "
            f"{registration.candidate}; {registration.reason}.\n"
        ),
        description="Verdict of the promotion gate",
    )
    docs = paths.stage("validate") / "data_docs/index.html"
    create_link_artifact(report.resolve().as_uri(), key="retrain-report", link_text="Report")
    create_link_artifact(docs.resolve().as_uri(), key="retrain-data-docs", link_text="Data Docs")
    create_link_artifact(run_url, key="retrain-mlflow-run", link_text="MLflow run")


def _row(name: str, entry: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    return {
        "metric": name,
        "reference": round(rates["reference"][name]["value"], 4),
        "candidate": round(rates["candidate"][name]["value"], 4),
        "difference": round(entry["difference"], 4),
        "interval": f"[{entry['low']:+.4f}, {entry['high']:+.4f}]",
        "n": entry["n"],
        "verdict": entry["verdict"],
    }
