"""``build/report.html``: verdict, differences, gates, training, data, judges and examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aaft.config import Config, Paths
from aaft.io import write_text
from aaft.promotion.explain import HEADLINES, interval, level, signed
from aaft.report.inputs import Inputs, load

TEMPLATE = Path(__file__).with_name("template.html")


def render(cfg: Config, paths: Paths) -> Path:
    """Write the page and return its path; the same files give the same bytes.

    A section whose optional file is missing is replaced by a note.

    Raises:
        AaftError: evaluate or gate has not finished, or an input file is broken.
    """
    # Templates and plots take a second to import; whoever imports this module may not render.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, signed=signed, interval=interval, flat=flat)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    target = paths.build / "report.html"
    write_text(target, clean(template.render(context(cfg, load(paths)))))
    return target


def context(cfg: Config, inputs: Inputs) -> dict[str, Any]:
    """The template's variables."""
    from aaft.report import plots
    from aaft.report.examples import choose

    decision, evaluation = inputs.decision, inputs.evaluation
    sides = ("candidate", "reference")
    return {
        "about": about(cfg),
        "decision": decision,
        "headline": HEADLINES[decision["verdict"]],
        "level": level(decision["confidence"]),
        "forest": plots.forest(decision["metrics"]),
        "rates": {side: evaluation.get(side, {}) for side in sides},
        "measures": {key: value for key, value in evaluation.items() if key not in sides},
        "gates": gate_facts(inputs.gates) if inputs.gates else None,
        "gate_plot": plots.gate_histograms(inputs.gates) if inputs.gates else None,
        "training": plots.training(inputs.history) if inputs.history else None,
        "steps": len(inputs.history or []),
        "validation": inputs.validation,
        "judges": inputs.judges,
        "groups": choose(inputs.results),
    }


def about(cfg: Config) -> list[tuple[str, str]]:
    """What ran, in a few words; of an absolute path only the last part, to stay reproducible."""
    model = Path(cfg.policy.model)
    return [
        ("policy", model.name if model.is_absolute() else cfg.policy.model),
        ("method", cfg.train.method),
        ("epochs", str(cfg.train.epochs)),
        ("rollouts", str(cfg.score.rollouts)),
        ("seed", str(cfg.seed)),
    ]


def gate_facts(gates: Mapping[str, list[float]]) -> list[tuple[str, str]]:
    """Shares of records by how far their gate is open."""
    values = gates["gate"]
    n = len(values)
    return [
        ("records", number(n)),
        ("exactly closed (0)", f"{sum(value == 0 for value in values) / n:.1%}"),
        ("more than half open", f"{sum(value > 0.5 for value in values) / n:.1%}"),
        ("mean gate", number(sum(values) / n)),
        ("abstain", f"{sum(value > 0 for value in gates['abstain']) / n:.1%}"),
    ]


def number(value: Any) -> str:
    """A scalar as people read it."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"
    return str(value)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested reports as (dotted name, text) pairs; long lists by their length only."""
    if isinstance(value, Mapping):
        return [
            pair
            for key, inner in value.items()
            for pair in flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list):
        simple = len(value) <= 6 and not any(isinstance(item, (dict, list)) for item in value)
        text = ", ".join(number(item) for item in value) if simple else f"{len(value):,} entries"
        return [(prefix, text or "none")]
    return [(prefix, number(value))]


def clean(text: str) -> str:
    """Text that UTF-8 and HTML can carry: control characters and lone surrogates are replaced."""
    kept = "".join(c if c.isprintable() or c in "\n\t" or c.isspace() else "\ufffd" for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8")
