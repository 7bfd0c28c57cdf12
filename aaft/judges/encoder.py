"""Sentence embeddings by a small encoder: AutoModel and mean pooling, in bfloat16 on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaft.errors import AaftError
from aaft.io import text_digest
from aaft.models.policy import locate_model

_MAX_TOKENS = 192


class Encoder:
    """Embeds texts. Equal texts are embedded once; rows are batched by length."""

    def __init__(self, name: str, device: torch.device, batch_size: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        name = locate_model(name, key="judges.embedder")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModel.from_pretrained(name, dtype=torch.bfloat16)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AaftError(
                f"judges.embedder: {name} could not be loaded ({reason}); name a model directory "
                "or hub id"
            ) from None
        self._model = model.to(device).eval()
        self._batch_size = batch_size
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def width(self) -> int:
        """Length of an embedding."""
        size: int = self._model.config.hidden_size
        return size

    @property
    def digest(self) -> str:
        """Digest of the encoder's weights' fingerprint and settings."""
        total = sum(p.detach().double().sum().item() for p in self._model.parameters())
        return text_digest(f"{self._model.config.to_json_string()} {total!r} {_MAX_TOKENS}")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-length embeddings ``[n, width]`` of ``texts``, each cut at 192 tokens."""
        fresh = sorted({t for t in texts if t not in self._known}, key=lambda t: (len(t), t))
        for start in range(0, len(fresh), self._batch_size):
            batch = fresh[start : start + self._batch_size]
            inputs = self._tokenizer(
                batch, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            ).to(self._model.device)
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][:, :, None].float()
            pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            self._known.update(zip(batch, pooled.cpu().numpy(), strict=True))
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._known[text] for text in texts])
