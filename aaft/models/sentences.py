"""Sentence embeddings by a small encoder: AutoModel and mean pooling, in `compute_dtype`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaft.errors import AaftError
from aaft.models.batching import width_batches
from aaft.models.runtime import compute_dtype


class SentenceReader:
    """A loaded encoder; a text's embedding depends on that text alone (`aaft.models.batching`)."""

    def __init__(self, name: str, device: torch.device, key: str, max_tokens: int) -> None:
        """Load ``name``, a directory or hub id that the parameter ``key`` names.

        Raises:
            AaftError: it can't be loaded, or reads fewer than ``max_tokens`` tokens.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModel.from_pretrained(name, dtype=compute_dtype(device))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AaftError(
                f"{key}: {name} could not be loaded ({reason}); name a model directory or hub id"
            ) from None
        # Some models count positions from the padding token's id on (RoBERTa, MPNet).
        limit = getattr(model.config, "max_position_embeddings", None) or max_tokens + 2
        if max_tokens + 2 > limit:
            raise AaftError(
                f"{key}: {name} reads {limit} tokens at most, {max_tokens + 2} are needed; name an "
                "encoder of longer texts"
            )
        self._max_tokens = max_tokens
        self._model = model.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def embed(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Each text's index with its embedding of length 1, in any order.

        Of a text of more than ``max_tokens`` tokens, the special ones included, the middle is left
        out: a question often stands below its passage.
        """
        tokens = self._tokenizer(list(texts), verbose=False)["input_ids"]
        most, half = self._max_tokens, self._max_tokens // 2
        ids = [row if len(row) <= most else row[: most - half] + row[-half:] for row in tokens]
        for padded, batch in width_batches([len(row) for row in ids], batch_size, 8):
            inputs = self._tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]},
                padding="max_length",
                max_length=padded,
                return_tensors="pt",
            ).to(self._device)
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][:, :, None].float()
            pooled = torch.nn.functional.normalize(
                (hidden * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1
            )
            yield from zip(batch, pooled.cpu().numpy(), strict=True)
