"""Any sequence-classification model as a judge: toxicity, NLI, hallucination.

One label a text: ``p = sum of softmax over the aligned labels``, or one minus that over the
misaligned ones. A label each (``problem_type: multi_label_classification``): ``p = 1 - max of
sigmoid over the misaligned labels``. A single output: its sigmoid, or one minus it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaft.errors import AaftError
from aaft.io import file_digest, text_digest
from aaft.judge_config import ClassifierSpec
from aaft.judges.base import Sample, Scores
from aaft.models import batching, runtime
from aaft.models.fingerprint import model_config, model_digest

_MULTIPLE = 16


class ClassifierJudge:
    """Scores one objective. An answer without the context that a text needs is missing."""

    def __init__(self, spec: ClassifierSpec, device: torch.device | None = None) -> None:
        self._spec = spec
        self._device = device or runtime.device()
        self._key = f"judges.panel: {spec.name}: model"
        config = model_config(spec.model, spec.revision, self._key)
        self._labels = _label_ids(spec, config)
        self._many = config.get("problem_type") == "multi_label_classification"
        if self._many and spec.aligned:
            raise AaftError(
                f"judges.panel: {spec.name}: {spec.model} gives every label a probability of its "
                "own; name its misaligned labels"
            )

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def objectives(self) -> tuple[str, ...]:
        return (self._spec.objective,)

    @cached_property
    def digest(self) -> str:
        spec = self._spec.model_dump(exclude={"name", "model", "revision", "batch_size"})
        model = model_digest(self._spec.model, self._spec.revision, self._key)
        code = [file_digest(Path(path)) for path in (__file__, batching.__file__)]
        return text_digest(json.dumps([spec, model, code]))

    def score(self, samples: Sequence[Sample]) -> Scores:
        column = np.full(len(samples), math.nan)
        need = "context" in self._spec.pair
        rows = [i for i, s in enumerate(samples) if not need or s.context is not None]
        if rows:
            column[rows] = self._predict([self._texts(samples[i]) for i in rows])
        return {self._spec.objective: column}

    def _texts(self, sample: Sample) -> list[str]:
        parts = {
            "prompt": sample.prompt,
            "response": sample.response,
            "context": sample.context or "",
            "claim": f"{sample.prompt} {sample.response}",
        }
        return [parts[name] for name in self._spec.pair]

    @torch.inference_mode()
    def _predict(self, texts: list[list[str]]) -> list[float]:
        """Probability of aligned for each row's one or two texts; NaN where they don't fit."""
        tokenizer, model = self._loaded
        result = [math.nan] * len(texts)
        fitting = [i for i, row in enumerate(texts) if self._fits(tokenizer, row)]
        if not fitting:
            return result
        encoded = tokenizer(
            *zip(*(texts[i] for i in fitting), strict=True),
            truncation=("only_first" if self._spec.truncate == "first" else "longest_first"),
            max_length=self._spec.max_length,
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        for width, batch in batching.width_batches(lengths, self._spec.batch_size, _MULTIPLE):
            # The head sees one state a text.
            rows = batching.filled(batch)
            inputs = tokenizer.pad(
                {name: [column[i] for i in rows] for name, column in encoded.items()},
                padding="max_length",
                max_length=min(width, self._spec.max_length),
                return_tensors="pt",
            ).to(self._device)
            logits = model(**inputs).logits[: len(batch)].double()
            for i, row in zip(batch, logits, strict=True):
                result[fitting[i]] = self._probability(row)
        return result

    def _probability(self, logits: torch.Tensor) -> float:
        named = self._labels
        if logits.shape[0] == 1 or self._many:
            yes = float(logits.sigmoid()[named].max())
        else:
            yes = min(1.0, float(logits.softmax(-1)[named].sum()))
        return yes if self._spec.aligned else 1.0 - yes

    def _fits(self, tokenizer: Any, texts: list[str]) -> bool:
        """Whether cutting the first text alone is enough; always so for the other settings."""
        if self._spec.truncate != "first" or len(texts) == 1:
            return True
        second = len(tokenizer(texts[1], add_special_tokens=False)["input_ids"])
        room = self._spec.max_length - tokenizer.num_special_tokens_to_add(pair=True)
        return bool(second < room)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        spec, dtype = self._spec, runtime.compute_dtype(self._device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(spec.model, revision=spec.revision)
            model = AutoModelForSequenceClassification.from_pretrained(
                spec.model, revision=spec.revision, dtype=dtype
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AaftError(
                f"{self._key}: {spec.model} could not be loaded ({reason}); name a model "
                "directory or hub id of a sequence-classification model"
            ) from None
        limit = min(
            getattr(model.config, "max_position_embeddings", spec.max_length),
            tokenizer.model_max_length,
        )
        if spec.max_length > limit:
            raise AaftError(
                f"judges.panel: {spec.name}: max_length = {spec.max_length}, but {spec.model} "
                f"reads {limit} tokens; lower it"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Decoders find a row's last token by it.
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"
        return tokenizer, model.to(self._device).eval()


def _label_ids(spec: ClassifierSpec, config: dict[str, Any]) -> list[int]:
    """Outputs that the spec names, by id or by ``id2label``.

    Raises:
        AaftError: a label that the model doesn't have, or none left for the other side.
    """
    default = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    labels = {int(i): str(label) for i, label in config.get("id2label", default).items()}
    known = ", ".join(f"{i} ({label})" for i, label in sorted(labels.items()))
    ids = {label.lower(): i for i, label in labels.items()}
    chosen = set()
    for label in spec.aligned or spec.misaligned:
        found = ids.get(label.lower()) if isinstance(label, str) else label
        if found not in labels:
            raise AaftError(
                f"judges.panel: {spec.name}: {spec.model} has no label {label!r}; it has {known}"
            )
        chosen.add(found)
    one_of_many = config.get("problem_type") != "multi_label_classification"
    if len(chosen) == len(labels) > 1 and one_of_many:
        raise AaftError(
            f"judges.panel: {spec.name}: all of {spec.model}'s labels are named, so every answer "
            f"would score the same; it has {known}"
        )
    return sorted(chosen)
