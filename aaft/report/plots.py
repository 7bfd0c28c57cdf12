"""The page's plots, as SVG text to put inside HTML.

The same numbers give the same bytes. Colours are CSS variables of the page, so that plots
follow its light and dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aaft.promotion.explain import limit

# matplotlib wants real colours: each of these stands for the CSS variable beside it.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
ACCENT, SECOND, THIRD = "#040404", "#050505", "#060606"
PASS, FAIL, INCONCLUSIVE = "#070707", "#080808", "#090909"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    SECOND: "--second",
    THIRD: "--third",
    PASS: "--pass",
    FAIL: "--fail",
    INCONCLUSIVE: "--inconclusive",
}
_VERDICTS = {"PASS": PASS, "FAIL": FAIL, "INCONCLUSIVE": INCONCLUSIVE}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
}


def forest(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Paired differences with their intervals; the shaded side of each row is not allowed."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 0.8 + 0.42 * len(metrics)), layout="constrained")
        axes = figure.subplots()
        rows = list(metrics.items())
        edge = max(abs(v) for _, m in rows for v in (m["low"], m["high"], limit(m)))
        edge = min(1.12 * edge + 0.02, 1.0)
        for y, (_, metric) in enumerate(rows):
            bound = limit(metric)
            worst = edge if metric["better"] == "lower" else -edge
            axes.fill_betweenx(
                [y - 0.38, y + 0.38], bound, worst, color=FAIL, alpha=0.13, linewidth=0
            )
            axes.plot([bound, bound], [y - 0.38, y + 0.38], color=FAIL, linewidth=1.4)
            colour = _VERDICTS[metric["verdict"]]
            axes.plot(
                [metric["low"], metric["high"]], [y, y], color=colour, linewidth=2.6, zorder=3
            )
            axes.plot(metric["difference"], y, "o", color=colour, markersize=6.5, zorder=4)
        axes.axvline(0, color=MUTED, linewidth=1, dashes=(3, 3))
        labels = [f"{name} {'↓' if m['better'] == 'lower' else '↑'}" for name, m in rows]
        axes.set_yticks(range(len(rows)), labels, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-edge, edge)
        axes.set_xlabel("candidate minus reference")
        return _svg(figure, "forest")


def gate_histograms(gates: Mapping[str, Sequence[float]]) -> str:
    """How far each record's gate is open, and what that followed from."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        trained = [g for g, a in zip(gates["gate"], gates["abstain"], strict=True) if not a]
        abstained = [g for g, a in zip(gates["gate"], gates["abstain"], strict=True) if a]
        _histogram(left, [trained, abstained], [ACCENT, SECOND], "gate g")
        if abstained:
            left.legend(["own response", "abstain"], fontsize=9)
        _histogram(middle, [gates["v"]], [ACCENT], "alignment v")
        _histogram(right, [gates["uncertainty"]], [ACCENT], "judge uncertainty U")
        left.set_ylabel("records")
        return _svg(figure, "gates")


def training(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss parts, gates, gradient norm and learning rate per optimiser step."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 5.0), layout="constrained")
        (loss, gate), (norm, rate) = figure.subplots(2, 2)
        parts = {"loss": INK, "sft": ACCENT, "pg": SECOND, "abstain": THIRD}
        for key, colour in parts.items():
            _line(loss, history, key, colour)
        # Dashed in the colour of the part that each belongs with: imitation and declining.
        for key, colour in {"anchor": ACCENT, "recovery": THIRD}.items():
            if any(row.get(key) for row in history):
                _line(loss, history, key, colour, dashes=(3, 2))
        low, high = _series(history, "gate_p10"), _series(history, "gate_p90")
        gate.fill_between(
            _steps(history), low, high, color=ACCENT, alpha=0.18, linewidth=0, label="p10 to p90"
        )
        _line(gate, history, "gate_p50", ACCENT, "median")
        _line(gate, history, "gate_open_share", SECOND, "share open")
        gate.set_ylim(-0.03, 1.03)
        _line(norm, history, "grad_norm", ACCENT)
        _line(rate, history, "lr", ACCENT)
        rate.yaxis.set_major_formatter("{x:g}")
        titles = {loss: "loss parts", gate: "gates", norm: "gradient norm", rate: "learning rate"}
        for axes, title in titles.items():
            axes.set_title(title)
            axes.grid(axis="y", linewidth=0.6)
            axes.set_axisbelow(True)
        for axes in (norm, rate):
            axes.set_xlabel("step")
        for axes in (loss, gate):
            # Beside the title: inside the axes it would hide the curves.
            axes.legend(
                fontsize=9,
                ncols=4,
                loc="lower right",
                bbox_to_anchor=(1, 0.98),
                borderaxespad=0,
                handlelength=1.2,
                columnspacing=1.0,
            )
        return _svg(figure, "training")


def _histogram(axes: Axes, groups: list[Sequence[float]], colours: list[str], title: str) -> None:
    axes.hist(groups, bins=20, range=(0, 1), stacked=True, color=colours, rwidth=0.9)
    axes.set_title(title)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)


def _line(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    key: str,
    colour: str,
    label: str = "",
    dashes: tuple[float, ...] = (),
) -> None:
    values = _series(history, key)
    axes.plot(
        _steps(history), values, color=colour, linewidth=1.6, label=label or key, dashes=dashes
    )
    if len(values) == 1:
        axes.plot(_steps(history), values, "o", color=colour, markersize=4)


def _steps(history: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row.get("step", number)) for number, row in enumerate(history, start=1)]


def _series(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Values of a column; a gap in the line where a step has none."""
    values = [row.get(key) for row in history]
    return [math.nan if value is None else float(value) for value in values]


def _svg(figure: Figure, name: str) -> str:
    """SVG element that scales with the page; its ids start with ``name``, so pages can mix them."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": f"aaft-{name}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
