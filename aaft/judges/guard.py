"""Generative guard models (Llama Guard, Granite Guardian, Qwen3Guard) as judges.

The model's own chat template holds the policy and asks the question; no answer is generated.
The score comes from the probabilities of the verdict words at the place of the verdict
(``aaft.judges.verdict``). Only for a category is text generated, by ``explain``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaft.errors import AaftError
from aaft.io import file_digest, text_digest
from aaft.judge_config import GuardSpec
from aaft.judges import verdict
from aaft.judges.base import Sample, Scores
from aaft.models import batching, packed, runtime
from aaft.models.fingerprint import config_file, model_digest

_MULTIPLE = 16


@dataclass(frozen=True)
class _Question:
    """A rendered chat up to the verdict, and the next token of each verdict word."""

    ids: list[int]
    words: list[int]


class GuardJudge:
    """Scores one objective. Missing where the chat is too long or gets no verdict."""

    def __init__(self, spec: GuardSpec, device: torch.device | None = None) -> None:
        self._spec = spec
        self._device = device or runtime.device()
        self._style = verdict.style(spec)
        self._key = f"judges.panel: {spec.name}: model"
        self._counts: Counter[str] = Counter()
        config_file(spec.model, spec.revision, self._key)  # a missing model is told at once

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def objectives(self) -> tuple[str, ...]:
        return (self._spec.objective,)

    @cached_property
    def digest(self) -> str:
        idle = {"name", "model", "revision", "batch_size", "category_tokens"}
        spec = self._spec.model_dump(exclude=idle)
        style = [self._style.prefix, dict(self._style.words)]
        model = model_digest(self._spec.model, self._spec.revision, self._key)
        modules = (verdict, batching, packed)
        code = [file_digest(Path(p)) for p in (__file__, *(str(m.__file__) for m in modules))]
        return text_digest(json.dumps([spec, style, model, code]))

    def score(self, samples: Sequence[Sample]) -> Scores:
        column = np.full(len(samples), math.nan)
        for i, probabilities in self._verdicts(samples).items():
            mass = float(probabilities.sum())
            if mass < self._spec.min_mass or mass == 0.0:
                self._counts["no verdict word was likely"] += 1
                continue
            values = np.array(list(self._style.words.values()))
            column[i] = float(np.clip((values * probabilities).sum() / mass, 0, 1))
            self._counts["scored"] += 1
        return {self._spec.objective: column}

    def explain(self, samples: Sequence[Sample]) -> list[str | None]:
        """What the guard says after its verdict where that is a word of less than one half.

        Greedy, up to ``category_tokens`` tokens: hazard codes or a list of categories.
        """
        from aaft.models.greedy import greedy

        tokenizer, model = self._loaded
        words, values = list(self._style.words), list(self._style.words.values())
        notes: list[str | None] = [None] * len(samples)
        rows, prompts = [], []
        for i, probabilities in self._verdicts(samples).items():
            likely = int(probabilities.argmax())
            if values[likely] < 0.5 and probabilities.sum() >= self._spec.min_mass:
                text = self._render(samples[i])
                rows.append(i)
                prompts.append(_encode(tokenizer, f"{text}{words[likely]}"))
        done = greedy(
            model,
            prompts,
            end_id=tokenizer.eos_token_id,
            max_new_tokens=self._spec.category_tokens,
            batch_size=self._spec.batch_size,
        )
        for i, completion in zip(rows, done, strict=True):
            text = tokenizer.decode(completion.ids, skip_special_tokens=True).strip()
            notes[i] = text or None
        return notes

    def summary(self) -> str:
        """What came of all answers so far."""
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self._counts.items()))
        return f"{self.name}: {counts or 'nothing scored'}"

    @torch.inference_mode()
    def _verdicts(self, samples: Sequence[Sample]) -> dict[int, np.ndarray[Any, Any]]:
        """Index of each sample that fits to the probabilities ``[words]`` of the verdict words."""
        model = self._loaded[1]
        asked = {}
        for i, sample in enumerate(samples):
            question = self._question(sample)
            if isinstance(question, str):
                self._counts[question] += 1
            else:
                asked[i] = question
        questions, rows = list(asked.values()), list(asked)
        result = {}
        lengths = [len(question.ids) for question in questions]
        for width, batch in batching.width_batches(lengths, self._spec.batch_size, _MULTIPLE):
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - lengths[i] :] = torch.tensor(questions[i].ids)
                mask[row, width - lengths[i] :] = 1
            logits = model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(self._device),
                # The last one, and others that keep its rounding (`aaft.models.batching`).
                logits_to_keep=batching.ROWS,
            ).logits[:, -1]
            for row, i in enumerate(batch):
                probabilities = logits[row].double().softmax(-1)[questions[i].words]
                result[rows[i]] = probabilities.cpu().numpy()
        return result

    def _question(self, sample: Sample) -> _Question | str:
        """What to ask the model; or why it can't be asked.

        A tokenizer may join the end of the prefix with the word. So each word is encoded in its
        place: the question is what all the encodings begin with, and their next tokens decide.
        """
        tokenizer = self._loaded[0]
        text = self._render(sample)
        if text is None:
            return "without context"
        encoded = [_encode(tokenizer, f"{text}{word}") for word in self._style.words]
        shared = packed.shared_length(encoded)
        if shared > self._spec.max_length:
            return "too long"
        nexts = [ids[shared] if shared < len(ids) else -1 for ids in encoded]
        if len(set(nexts)) < len(nexts) or shared > len(_encode(tokenizer, text)):
            raise AaftError(
                f"judges.panel: {self.name}: the verdict words {', '.join(self._style.words)} "
                f"can't be told apart by their first token in {self._spec.model}; choose others "
                "in words, or move what they share to answer_prefix"
            )
        return _Question(encoded[0][:shared], nexts)

    def _render(self, sample: Sample) -> str | None:
        """The chat in the model's template with the prefix; None without a needed context."""
        from jinja2.exceptions import TemplateError

        chat = verdict.messages(self._spec, sample)
        if chat is None:
            return None
        try:
            text: str = self._loaded[0].apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self._spec.template_kwargs
            )
        except (TemplateError, TypeError) as error:
            raise AaftError(
                f"judges.panel: {self.name}: {self._spec.model}'s chat template refuses the chat "
                f"({error}); change messages or template_kwargs"
            ) from None
        # Some versions of a family's template write it already.
        return text if text.endswith(self._style.prefix) else text + self._style.prefix

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec, dtype = self._spec, runtime.compute_dtype(self._device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(spec.model, revision=spec.revision)
            model: Any = AutoModelForCausalLM.from_pretrained(
                spec.model, revision=spec.revision, dtype=dtype
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AaftError(
                f"{self._key}: {spec.model} could not be loaded ({reason}); name a model "
                "directory or hub id of a causal language model"
            ) from None
        if tokenizer.chat_template is None:
            raise AaftError(
                f"{self._key}: {spec.model}: its tokenizer has no chat template; a guard's "
                "template holds its policy"
            )
        return tokenizer, model.to(self._device).eval()


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
