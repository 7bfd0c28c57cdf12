"""The table that ends a run: what changed and whether it may be promoted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from aaft.promotion.explain import HEADLINES, interval, level, signed

COLOURS = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


def final_table(verdict: Mapping[str, Any]) -> Table:
    """Table of ``verdict.json``: a row a metric, the overall verdict in the caption.

    Eighty columns wide with the usual metrics; narrower terminals break lines within cells.
    """
    overall = verdict["verdict"]
    table = Table(
        title=f"Paired differences, {level(verdict['confidence'])} intervals",
        caption=Text(f"{overall}. {HEADLINES[overall]}", style=COLOURS[overall]),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("metric")
    table.add_column("reference", justify="right")
    table.add_column("candidate", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("verdict")
    for metric, result in verdict["metrics"].items():
        table.add_row(
            Text(metric),
            f"{result['reference']:.3f}",
            f"{result['candidate']:.3f}",
            Text(f"{signed(result['difference'])} {interval(result)}"),
            Text(result["verdict"], style=COLOURS[result["verdict"]]),
        )
    return table
