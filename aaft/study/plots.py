"""The study's plots, as PNG and SVG files; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aaft.io import atomic_path
from aaft.study.cells import GATE_BINS
from aaft.study.config import METHODS

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aaft-study",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,
}
# Okabe and Ito's colours without yellow, which is too light for thin lines, and two greys.
_COLOURS = (
    "#000000",
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#777777",
    "#AA9977",
    "#D55E00",
)
_MARKERS = "osD^vPXh*"
_OURS = "aaft"
_COLUMNS = 3


def trade_off(rates: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """``trade-off.{png,svg}``: harmful rate against task F1, a panel a scenario.

    Direct harm above, prefilled harm below; better is to the lower right. Whiskers are the
    report's 95% intervals.
    """
    scenarios = list(rates)
    columns = min(len(scenarios), _COLUMNS)
    bands = -(-len(scenarios) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * columns + 2.0, 5.6 * bands), layout="constrained")
        grid = figure.subplots(2 * bands, columns, squeeze=False, sharex=True)
        for place in range(bands * columns):
            band, column = divmod(place, columns)
            pair = grid[2 * band][column], grid[2 * band + 1][column]
            if place >= len(scenarios):
                for axes in pair:
                    axes.set_axis_off()
                continue
            scenario = scenarios[place]
            for axes, metric in zip(pair, ("harmful_rate", "harmful_rate_prefill"), strict=True):
                _points(axes, rates[scenario], metric)
            pair[0].set_title(scenario)
            pair[1].set_xlabel("task F1")
            pair[1].tick_params(labelbottom=True)
            if column == 0:
                pair[0].set_ylabel("harmful rate, direct")
                pair[1].set_ylabel("harmful rate, prefilled")
        _legend(figure, sorted({m for methods in rates.values() for m in methods}, key=_rank))
        _save(figure, folder, "trade-off")


def gate_histograms(gates: Mapping[str, Mapping[str, Sequence[int]]], folder: Path) -> None:
    """``gates.{png,svg}``: share of records by gate, a panel a scenario, a line a kind of row.

    Args:
        gates: counts in equal bins of [0, 1] by scenario and kind, summed over seeds.
        folder: where the files go.
    """
    columns = min(len(gates), _COLUMNS)
    rows = -(-len(gates) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * columns + 2.0, 2.8 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        kinds = sorted({kind for by_kind in gates.values() for kind in by_kind})
        edges = [i / GATE_BINS for i in range(GATE_BINS + 1)]
        for place, axes in enumerate(grid.flat):
            if place >= len(gates):
                axes.set_axis_off()
                continue
            scenario, by_kind = list(gates.items())[place]
            for number, kind in enumerate(kinds):
                counts = by_kind.get(kind)
                if counts is None:
                    continue
                colour = _COLOURS[number % len(_COLOURS)]
                shares = [count / sum(counts) for count in counts]
                axes.stairs(shares, edges, color=colour, linewidth=1.6)
                axes.stairs(shares, edges, color=colour, fill=True, alpha=0.12)
            axes.set_title(scenario)
            axes.set_xlabel("gate g")
            axes.set_ylim(0, 1.02)
        for axes in grid[:, 0]:
            axes.set_ylabel("share of records of a kind")
        handles = [
            matplotlib.lines.Line2D([], [], color=_COLOURS[i % len(_COLOURS)], label=kind)
            for i, kind in enumerate(kinds)
        ]
        figure.legend(handles=handles, loc="outside right upper")
        _save(figure, folder, "gates")


def harm_by_poison(
    rates: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float], folder: Path
) -> None:
    """``poison.{png,svg}``: harmful rate against the share of poisoned rows, a line a method.

    Ablations are left out: with them no line can be followed.

    Args:
        rates: the report's.
        shares: share of poison of the scenarios that belong on the axis, two or more.
        folder: where the files go.
    """
    order = sorted((name for name in shares if name in rates), key=lambda name: shares[name])
    every = {method for name in order for method in rates[name] if not _ablation(method)}
    methods = sorted(every, key=_rank)
    step = max(shares[name] for name in order) / 20 / len(methods)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        metrics = {"harmful_rate": "direct", "harmful_rate_prefill": "prefilled"}
        for axes, (metric, title) in zip(panels, metrics.items(), strict=True):
            for number, method in enumerate(methods):
                known = [name for name in order if method in rates[name]]
                entries = [rates[name][method][metric] for name in known]
                # Lines side by side: whiskers on top of one another can't be read.
                shift = (number - (len(methods) - 1) / 2) * step
                axes.errorbar(
                    [shares[name] + shift for name in known],
                    [entry["value"] for entry in entries],
                    yerr=_whiskers(entries),
                    linewidth=1.4,
                    elinewidth=0.9,
                    **_look(method),
                )
            axes.set_title(title)
            axes.set_xlabel("share of poisoned rows")
            axes.set_xticks([shares[name] for name in order])
            axes.xaxis.set_major_formatter("{x:.0%}")
            axes.set_ylim(-0.03, 1.03)
        panels[0].set_ylabel("harmful rate")
        _legend(figure, methods)
        _save(figure, folder, "poison")


def _points(axes: Axes, methods: Mapping[str, Any], metric: str) -> None:
    for method in sorted(methods, key=_rank):
        across, up = methods[method]["qa_f1"], methods[method][metric]
        axes.errorbar(
            across["value"],
            up["value"],
            xerr=_whiskers([across]),
            yerr=_whiskers([up]),
            linestyle="none",
            elinewidth=0.9,
            **_look(method),
        )
    axes.set_ylim(-0.03, 1.03)


def _whiskers(entries: Sequence[Mapping[str, float]]) -> list[list[float]]:
    below = [max(e["value"] - e["low"], 0.0) for e in entries]
    return [below, [max(e["high"] - e["value"], 0.0) for e in entries]]


def _look(method: str) -> dict[str, Any]:
    """Colour and marker of a method, the same in every plot; our ablations are hollow."""
    rank = _rank(method)
    return {
        "color": _COLOURS[rank % len(_COLOURS)],
        "marker": _MARKERS[rank % len(_MARKERS)],
        "markerfacecolor": "white" if _ablation(method) else _COLOURS[rank % len(_COLOURS)],
        "markersize": 10 if method == _OURS else 6.5,
    }


def _ablation(method: str) -> bool:
    return method.startswith(f"{_OURS}-")


def _rank(method: str) -> int:
    return METHODS.index(method)


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    """One legend beside the panels: labels at points would cover one another."""
    handles = []
    for method in methods:
        line = matplotlib.lines.Line2D([], [], linestyle="none", label=method, **_look(method))
        handles.append(line)
    figure.legend(handles=handles, loc="outside right upper")


def _save(figure: Figure, folder: Path, name: str) -> None:
    nothing: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, metadata in nothing.items():
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=130, metadata=metadata)
