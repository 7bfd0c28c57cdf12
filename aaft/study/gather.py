"""A study's cells gathered into its report, tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aaft.io import write_json, write_text
from aaft.study import plots
from aaft.study.cells import Cell
from aaft.study.config import REFERENCE, StudyConfig
from aaft.study.report import build_report, collect, markdown
from aaft.study.scenarios import SCENARIOS, Scenario


def cell_of(study: StudyConfig, out: Path, scenario: Scenario, method: str, seed: int) -> Cell:
    """The cell that answers for a method and a seed.

    The reference's is of a start, whatever the scenario, and nothing in it depends on a seed but
    which prompts are asked: where all of them are, one counts for every seed.
    """
    if method == REFERENCE:
        turn = seed if study.takes_turns else 0
        return Cell(out, f"{scenario.start}-reference", REFERENCE, turn)
    return Cell(out, scenario.name, method, seed)


def write_report(study: StudyConfig, out: Path) -> dict[str, Any]:
    """Write the plots, ``report.md`` and, last, ``report.json``; return the report.

    Raises:
        AaftError: a cell is not done.
    """
    found: dict[str, dict[str, Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    gates: dict[str, dict[str, list[int]]] = {}
    for name in study.scenarios:
        found[name], results[name] = {}, {}
        for method in study.methods:
            cells = {
                seed: cell_of(study, out, SCENARIOS[name], method, seed) for seed in study.seeds
            }
            found[name][method] = collect({s: cell.answers() for s, cell in cells.items()})
            results[name][method] = [cell.result() for cell in cells.values()]
        for result in results[name].get("aaft", []):
            for kind, counts in result["gates"].items():
                summed = gates.setdefault(name, {}).setdefault(kind, [0] * len(counts))
                gates[name][kind] = [a + b for a, b in zip(summed, counts, strict=True)]
    report = {
        "settings": study.model_dump(mode="json"),
        **build_report(found, results),
        "gates": gates,
    }
    plots.trade_off(report["rates"], out)
    if gates:
        plots.gate_histograms(gates, out)
    shares = poison_shares(study)
    if len(shares) > 1:
        plots.harm_by_poison(report["rates"], shares, out)
    write_text(out / "report.md", markdown(report))
    write_json(out / "report.json", report)
    return report


def poison_shares(study: StudyConfig) -> dict[str, float]:
    """Share of poison of the scenarios that differ from ``clean`` in nothing else."""
    scenarios = [SCENARIOS[name] for name in study.scenarios]
    return {
        scenario.name: scenario.poison
        for scenario in scenarios
        if scenario == Scenario(scenario.name, poison=scenario.poison)
    }
