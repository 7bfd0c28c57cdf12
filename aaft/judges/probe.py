"""What a small language model makes of a request and an answer: features for the heads.

A frozen causal model reads the request as a user's turn and the answer as the assistant's. Its
lower layers already tell a refusal from a recipe, and a question about a crime from a plan for
one, so heads on them hold for sources that they were not fitted on; a sentence embedding of the
answer alone doesn't know what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.judges.head import Features
from aaft.models.batching import width_batches
from aaft.models.fingerprint import model_config, model_digest

if TYPE_CHECKING:
    import torch

    from aaft.models.states import StateReader

Pair = tuple[str, str]

# Where in the depth of the model its states are read. Chosen by leaving sources out
# (docs/judges.md): the lower third knows style, the other two know what is asked.
_DEPTHS = (0.333, 0.467, 0.6)
_MAX_PROMPT = 96
_MAX_RESPONSE = 96
_REMEMBERED = 20_000
_REQUESTS = 4


class Probe:
    """Features of requests and of answers to them.

    A row's features depend on that row alone (`aaft.models.batching`); a request is computed once
    for all answers to it that are asked for together. About 20,000 rows are remembered. The model
    is loaded when first needed.
    """

    def __init__(self, name: str, device: torch.device | None, batch_size: int) -> None:
        """``device`` None is the one that the runtime finds when the model is loaded."""
        config = model_config(name, None, "judges.probe")
        try:
            layers, self._size = int(config["num_hidden_layers"]), int(config["hidden_size"])
        except (KeyError, TypeError, ValueError):
            raise AaftError(
                f"judges.probe: {name}: its config.json gives no num_hidden_layers and "
                "hidden_size; name a causal language model"
            ) from None
        self._name, self._device, self._batch_size = name, device, batch_size
        self._depths = sorted({max(1, round(layers * depth)) for depth in _DEPTHS})
        self._reader: StateReader | None = None
        self._prompts: dict[str, npt.NDArray[np.float32]] = {}
        self._answers: dict[Pair, npt.NDArray[np.float32]] = {}

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return 2 * len(self._depths) * self._size

    @property
    def digest(self) -> str:
        """Digest of the model's files and of how it is read."""
        files = model_digest(self._name, None, "judges.probe")
        return f"{files} {self._depths} {_MAX_PROMPT} {_MAX_RESPONSE}"

    def prompts(self, prompts: Sequence[str]) -> Features:
        """``[n, width]``: mean state over the request and state where the answer starts."""
        self._read({prompt: [] for prompt in prompts if prompt not in self._prompts})
        return self._stack([self._prompts[prompt] for prompt in prompts])

    def answers(self, pairs: Sequence[Pair]) -> Features:
        """``[n, width]``: mean state over the answer and state at its end, given the request."""
        wanted: dict[str, list[str]] = {}
        for prompt, response in dict.fromkeys(pairs):
            if (prompt, response) not in self._answers:
                wanted.setdefault(prompt, []).append(response)
        self._read(wanted)
        return self._stack([self._answers[pair] for pair in pairs])

    def forget(self) -> None:
        """Drop what is remembered once it is much; what is asked again has the same bits."""
        if len(self._prompts) + len(self._answers) > _REMEMBERED:
            self._prompts.clear()
            self._answers.clear()

    def _read(self, wanted: dict[str, list[str]]) -> None:
        """Compute each request and the answers to it."""
        if not wanted:
            return
        reader = self._load()
        prompts = list(wanted)
        ids = [reader.prompt_ids(prompt, _MAX_PROMPT) for prompt in prompts]
        # Several batches' requests share a cache, so that their answers fill whole batches too.
        at_once = _REQUESTS * self._batch_size
        for padded, batch in width_batches([len(row) for row in ids], at_once, 16):
            rows = [(prompts[i], ids[i]) for i in batch]
            self._read_batch(reader, rows, padded, wanted)

    def _load(self) -> StateReader:
        if self._reader is None:
            from aaft.models import runtime
            from aaft.models.states import StateReader

            device = self._device or runtime.device()
            self._reader = StateReader(self._name, self._depths, device)
        return self._reader

    def _read_batch(
        self,
        reader: StateReader,
        rows: list[tuple[str, list[int]]],
        padded: int,
        wanted: dict[str, list[str]],
    ) -> None:
        vectors, cache = reader.read_prompts([ids for _, ids in rows], padded)
        answers = []
        for place, ((prompt, _), vector) in enumerate(zip(rows, vectors, strict=True)):
            self._prompts[prompt] = vector
            answers += [
                (place, text, reader.response_ids(text, _MAX_RESPONSE)) for text in wanted[prompt]
            ]
        for wide, batch in width_batches([len(a[2]) for a in answers], self._batch_size, 8):
            part = [answers[i] for i in batch]
            found = reader.read_answers(
                [ids for _, _, ids in part],
                wide,
                [len(rows[place][1]) for place, _, _ in part],
                reader.select(cache, [place for place, _, _ in part]),
            )
            for (place, text, _), vector in zip(part, found, strict=True):
                self._answers[rows[place][0], text] = vector

    def _stack(self, rows: list[npt.NDArray[np.float32]]) -> Features:
        return np.stack(rows) if rows else np.zeros((0, self.width), dtype=np.float32)
