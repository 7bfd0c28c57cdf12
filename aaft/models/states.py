"""Hidden states of a frozen causal model over a request and the answers to it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaft.errors import AaftError
from aaft.models.policy import load_codec, locate_model
from aaft.models.runtime import compute_dtype

Vector = npt.NDArray[np.float32]

_MARK = "Zq7"


class StateReader:
    """The lower layers of a causal model, read at the given depths.

    Requests are padded on the right, where causal attention never looks, and answers go on from
    the request's key-value cache.
    """

    def __init__(self, name: str, depths: Sequence[int], device: torch.device) -> None:
        from transformers import AutoModel

        name = locate_model(name, key="judges.probe")
        codec = load_codec(name)
        self._tokenizer = codec.tokenizer
        turn = codec.tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = turn.partition(_MARK)
        # A default system prompt would only cost time: keep the user's own turn.
        end = codec.tokenizer.decode([codec.end_id])
        self._head = self._ids(before.rpartition(end)[2].lstrip())
        self._tail = self._ids(after)
        try:
            model: Any = AutoModel.from_pretrained(
                name, dtype=compute_dtype(device), num_hidden_layers=max(depths)
            )
            layers = [model.layers[depth - 1] for depth in depths]
        except (OSError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AaftError(
                f"judges.probe: {name} can't be read ({reason}); name a decoder-only model"
            ) from None
        self._model = model.to(device).eval()
        self._device = device
        self._states: list[torch.Tensor] = []
        for layer in layers:
            layer.register_forward_hook(self._keep)

    def prompt_ids(self, prompt: str, longest: int) -> list[int]:
        """The user's turn; the middle of a request of more than ``longest`` tokens is left out."""
        ids = self._ids(prompt)
        if len(ids) > longest:
            ids = ids[: longest // 2] + ids[-longest // 2 :]
        return [*self._head, *ids, *self._tail]

    def response_ids(self, response: str, longest: int) -> list[int]:
        """The answer's start; an empty answer is read as what precedes it, to have a state."""
        return self._ids(response)[:longest] or self._tail[-1:]

    def read_prompts(self, prompts: Sequence[list[int]], padded: int) -> tuple[list[Vector], Any]:
        """Mean state over each request and state where its answer starts, and the cache."""
        states, cache = self._forward(input_ids=_rows(prompts, padded), use_cache=True)
        first = len(self._head)
        vectors = []
        for row, ids in enumerate(prompts):
            last = max(first + 1, len(ids) - len(self._tail))
            vectors.append(_vector(states[:, row, first:last], states[:, row, len(ids) - 1]))
        return vectors, cache

    def read_answers(
        self, answers: Sequence[list[int]], padded: int, lengths: Sequence[int], cache: Any
    ) -> list[Vector]:
        """Mean state over each answer and state at its end.

        Args:
            answers: token ids of ``n`` answers.
            padded: width to pad them to.
            lengths: tokens of each answer's request.
            cache: of the requests, a row an answer; consumed.
        """
        before = cache.get_seq_length()
        start = torch.tensor(lengths)[:, None]
        seen = torch.arange(before)[None, :] < start
        causal = torch.ones(padded, padded, dtype=torch.bool).tril()
        allowed = torch.cat(
            [seen[:, None].expand(-1, padded, -1), causal.expand(len(answers), -1, -1)], dim=2
        )
        states, _ = self._forward(
            input_ids=_rows(answers, padded),
            attention_mask=allowed[:, None],
            position_ids=start + torch.arange(padded),
            past_key_values=cache,
            use_cache=True,
        )
        return [
            _vector(states[:, row, : len(ids)], states[:, row, len(ids) - 1])
            for row, ids in enumerate(answers)
        ]

    def select(self, cache: Any, rows: Sequence[int]) -> Any:
        """A copy of the cache with a row for each of ``rows``; ``cache`` stays as it is."""
        index = torch.tensor(rows, device=self._device)
        chosen = copy.copy(cache)
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in chosen.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        return chosen

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def _forward(self, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """States ``[depths, B, T, d]`` and the cache."""
        self._states.clear()
        moved = {
            key: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
        cache = self._model(**moved).past_key_values
        return torch.stack(self._states).float().cpu(), cache

    def _keep(self, _layer: Any, _inputs: Any, output: Any) -> None:
        self._states.append(output[0] if isinstance(output, tuple) else output)


def _rows(ids: Sequence[list[int]], padded: int) -> torch.Tensor:
    tokens = torch.zeros(len(ids), padded, dtype=torch.long)
    for row, part in enumerate(ids):
        tokens[row, : len(part)] = torch.tensor(part)
    return tokens


def _vector(span: torch.Tensor, last: torch.Tensor) -> Vector:
    """``[depths, t, d]`` and ``[depths, d]`` to one vector of ``2 * depths * d``."""
    return np.asarray(torch.cat([span.mean(1).flatten(), last.flatten()]).numpy(), dtype=np.float32)
