"""Responses of both models to a few of the same prompts, for side-by-side reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aaft.io import text_digest

PER_BENCHMARK = 5
LONGEST = 700
LONGEST_HARMFUL = 160


def choose(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A group per benchmark: name, whether its prompts are harmful, size, and a few examples.

    The choice follows a digest of the id: it is the same every time and blind to the responses,
    so it cannot flatter either model.
    """
    sides: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in results:
        models = sides.setdefault(str(row["benchmark"]), {})
        models.setdefault(str(row["model"]), {})[str(row["id"])] = row
    return [_group(name, sides[name]) for name in sorted(sides)]


def _group(name: str, models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    candidate, reference = models.get("candidate", {}), models.get("reference", {})
    shared = sorted(candidate.keys() & reference.keys(), key=text_digest)
    harmful = name.startswith("harmful")
    longest = LONGEST_HARMFUL if harmful else LONGEST
    return {
        "benchmark": name,
        "harmful": harmful,
        "n": len(shared),
        "examples": [
            {
                "id": key,
                "prompt": shorten(str(candidate[key]["prompt"]), longest),
                "reference": _answer(reference[key], longest),
                "candidate": _answer(candidate[key], longest),
            }
            for key in shared[:PER_BENCHMARK]
        ],
    }


def _answer(row: Mapping[str, Any], longest: int) -> dict[str, Any]:
    return {
        "response": shorten(str(row["response"]), longest),
        "scores": dict(sorted(row["scores"].items())),
    }


def shorten(text: str, longest: int) -> str:
    """At most ``longest`` characters, an ellipsis where text was cut."""
    text = text.strip()
    return text if len(text) <= longest else text[:longest].rstrip() + " …"
