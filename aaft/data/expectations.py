"""Great Expectations over the accepted rows as a whole, with Data Docs for people.

The frame that GX sees holds numbers only (lengths and counts), since its docs repeat unexpected
values even in the SUMMARY result format.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from aaft.config import ValidateConfig
from aaft.data.records import Record

_NAME = "train"


def measures(records: list[Record]) -> pd.DataFrame:
    """One line a record: characters of prompt, response and context, messages, uses of texts."""
    prompts = Counter(record.prompt for record in records)
    responses = Counter(record.response for record in records)
    columns = {
        "prompt_chars": [
            sum(len(message["content"]) for message in record.prompt_messages) for record in records
        ],
        "response_chars": [len(record.response) for record in records],
        "context_chars": [len(record.context or "") for record in records],
        "prompt_messages": [len(record.prompt_messages) for record in records],
        "rows_with_prompt": [prompts[record.prompt] for record in records],
        "rows_with_response": [responses[record.response] for record in records],
    }
    return pd.DataFrame(columns, dtype="int64")


def check(records: list[Record], cfg: ValidateConfig, docs: Path) -> dict[str, Any]:
    """Run the suite and write Data Docs to ``docs/index.html`` (``docs`` is replaced).

    Returns:
        ``success`` (every critical expectation holds; a warning doesn't count, although GX's own
        flag falls with it), ``statistics`` and ``failed``: expectation, column and severity.
    """
    # Read when the library is imported; no usage data may leave the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas(_NAME)
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(_NAME))
    for expectation in _expectations(cfg, len(records)):
        suite.add_expectation(expectation)
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=_NAME, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=_NAME, validation_definitions=[definition], result_format="SUMMARY")
    )
    shutil.rmtree(docs, ignore_errors=True)
    context.add_data_docs_site(_NAME, _site(docs))
    outcome = checkpoint.run(
        batch_parameters={"dataframe": measures(records)},
        run_id=gx.RunIdentifier(run_name="validate"),
    )
    context.build_data_docs(site_names=[_NAME])
    (result,) = outcome.run_results.values()
    broken = [entry.expectation_config for entry in result.results if not entry.success]
    failed = [
        {
            "expectation": config.type,
            "column": config.kwargs.get("column"),
            "severity": config.severity.value,
        }
        for config in broken
        if config is not None
    ]
    return {
        "success": all(entry["severity"] != "critical" for entry in failed),
        "statistics": dict(result.statistics),
        "failed": failed,
    }


def _expectations(cfg: ValidateConfig, rows: int) -> list[Any]:
    """Bounds are critical; shares that merely look odd are warnings."""
    from great_expectations import expectations

    gxe: Any = expectations  # its re-exports are invisible to type checkers
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, severity="critical"),
        gxe.ExpectColumnValuesToBeBetween(
            column="prompt_chars", min_value=1, max_value=cfg.max_prompt_chars, severity="critical"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="response_chars",
            min_value=1,
            max_value=cfg.max_response_chars,
            severity="critical",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="prompt_messages", min_value=1, severity="critical"
        ),
        gxe.ExpectColumnMedianToBeBetween(
            column="response_chars", min_value=2, max_value=4_000, severity="warning"
        ),
        # One answer for everything teaches a model to ignore the question.
        gxe.ExpectColumnMaxToBeBetween(
            column="rows_with_response", max_value=max(5, rows // 10), severity="warning"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="rows_with_prompt", max_value=1, mostly=0.9, severity="warning"
        ),
    ]


def _site(docs: Path) -> Any:
    """GX's configuration of a static site, a plain dictionary."""
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
