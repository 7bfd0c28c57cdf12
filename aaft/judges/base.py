"""What a judge is: batches of answers in, a probability of "aligned" per objective out."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.io import text_digest

# Columns of the alignment table that are no objectives.
RESERVED = frozenset({"id", "candidate", "text_digest", "uncertainty", "r", "logprob", "tokens"})

Scores = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Sample:
    """One answer to judge. ``prompt`` is the bare request; ``context`` the passage, if any."""

    prompt: str
    response: str
    context: str | None = None


class Judge(Protocol):
    """Scores answers. A judge that can't score an answer returns NaN: missing, not 0 or 1."""

    @property
    def digest(self) -> str:
        """Names everything that shapes the scores; part of what a cached score depends on."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Return ``{objective: probabilities [n]}``, each in [0, 1] or NaN for missing."""


def bare_prompt(prompt: str, context: str | None) -> str:
    """The request without its passage.

    The passage is cut out of the user's message; where a line then starts with ``Question:``,
    that line alone is the request. Instructions around a question say nothing about it.
    """
    if not context:
        return prompt
    text = prompt.replace(context, " ")
    for line in text.splitlines():
        if line.startswith("Question:"):
            return line.removeprefix("Question:").strip()
    return text.strip()


class CallableJudge:
    """A user's own ``module:function``.

    The function takes a list of ``{"prompt", "response", "context"}`` and returns a list of
    ``{objective: probability or None}`` of the same length.
    """

    def __init__(self, target: str) -> None:
        module, _, name = target.partition(":")
        try:
            self._function: Callable[[list[dict[str, Any]]], Sequence[Mapping[str, Any]]] = getattr(
                importlib.import_module(module), name
            )
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise AaftError(
                f"judges.callables: {target}: {error}; write it as module:function and make the "
                "module importable from the project's root"
            ) from None
        self._target = target

    @property
    def digest(self) -> str:
        return text_digest(f"callable {self._target}")

    def score(self, samples: Sequence[Sample]) -> Scores:
        rows = self._function(
            [{"prompt": s.prompt, "response": s.response, "context": s.context} for s in samples]
        )
        if len(rows) != len(samples):
            raise AaftError(
                f"judges.callables: {self._target}: returned {len(rows)} rows for "
                f"{len(samples)} samples; return one mapping a sample"
            )
        if not all(isinstance(row, Mapping) for row in rows):
            raise AaftError(
                f"judges.callables: {self._target}: returned a row that is no mapping of objective "
                "to probability"
            )
        objectives = sorted({objective for row in rows for objective in row})
        taken = RESERVED & set(objectives)
        if taken or any(name.startswith("u_") for name in objectives):
            raise AaftError(
                f"judges.callables: {self._target}: an objective can't be named "
                f"{sorted(taken) or 'u_...'}, a column of the alignment table; rename it"
            )
        scores = {}
        for objective in objectives:
            values = [row.get(objective) for row in rows]
            column = np.array([math.nan if v is None else float(v) for v in values])
            outside = (column < 0) | (column > 1)
            if outside.any():
                raise AaftError(
                    f"judges.callables: {self._target}: {objective} = {column[outside][0]} is "
                    "outside [0, 1]; return a probability"
                )
            scores[objective] = column
        return scores
