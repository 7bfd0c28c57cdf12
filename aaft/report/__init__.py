"""One self-contained HTML page about a run, for a reviewer."""

from aaft.report.page import render

__all__ = ["render"]
