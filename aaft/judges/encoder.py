"""Sentence embeddings, each text once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.models.fingerprint import model_config, model_digest

if TYPE_CHECKING:
    import torch

    from aaft.models.sentences import SentenceReader

_REMEMBERED = 50_000


class Encoder:
    """Embeds texts; equal texts once. The model (and torch) is loaded when first needed."""

    def __init__(
        self, name: str, device: torch.device | None, batch_size: int, *, key: str, max_tokens: int
    ) -> None:
        """An encoder that isn't loaded yet.

        Args:
            name: model directory or hub id.
            device: None is the one that the runtime finds when the model is loaded.
            batch_size: texts computed at once.
            key: the parameter that names the model, for messages.
            max_tokens: the middle of a longer text is left out.
        """
        config = model_config(name, None, key)
        try:
            self.width = int(config["hidden_size"])
        except (KeyError, TypeError, ValueError):
            raise AaftError(
                f"{key}: {name}: its config.json gives no hidden_size; name a sentence encoder"
            ) from None
        self._name, self._device, self._batch_size = name, device, batch_size
        self._key, self._max_tokens = key, max_tokens
        self._reader: SentenceReader | None = None
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def digest(self) -> str:
        """Digest of the encoder's files and settings."""
        return f"{model_digest(self._name, None, self._key)} {self._max_tokens}"

    def forget(self) -> None:
        """Drop what is remembered once it is much; what is asked again has the same bits."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-length embeddings ``[n, width]`` of ``texts``."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            rows = self._load().embed(fresh, self._batch_size)
            self._known.update((fresh[i], row) for i, row in rows)
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._known[text] for text in texts])

    def _load(self) -> SentenceReader:
        if self._reader is None:
            from aaft.models import runtime
            from aaft.models.sentences import SentenceReader

            device = self._device or runtime.device()
            self._reader = SentenceReader(self._name, device, self._key, self._max_tokens)
        return self._reader
