"""What the heads of the embedded judge look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from aaft.judge_config import JudgesConfig
from aaft.judges.base import Sample
from aaft.judges.encoder import Encoder
from aaft.judges.head import Features
from aaft.judges.probe import Probe
from aaft.judges.text import content_words, normalize_answer, refusal_phrase, words

if TYPE_CHECKING:
    import torch


_MAX_SENTENCE = 192
MAX_REQUEST = 64


@dataclass(frozen=True)
class Encoders:
    """The frozen models below the heads: sentence embeddings and hidden states.

    ``sentences`` embeds passages and answers, ``requests``, a larger model, what is asked.
    """

    sentences: Encoder
    requests: Encoder
    probe: Probe

    @classmethod
    def load(cls, cfg: JudgesConfig, device: torch.device | None = None) -> Encoders:
        """Those that ``cfg`` names; weights (and torch) are read when first needed.

        ``device`` None is the one that the runtime finds then.
        """
        size = cfg.batch_size
        return cls(
            Encoder(cfg.embedder, device, size, key="judges.embedder", max_tokens=_MAX_SENTENCE),
            Encoder(
                cfg.intent_embedder,
                device,
                size,
                key="judges.intent_embedder",
                max_tokens=MAX_REQUEST,
            ),
            Probe(cfg.probe, device, size),
        )

    @property
    def digest(self) -> str:
        """Names the models' files and how they are read."""
        return f"{self.sentences.digest} {self.requests.digest} {self.probe.digest}"

    def forget(self) -> None:
        """Drop what is remembered once it is much."""
        self.sentences.forget()
        self.requests.forget()
        self.probe.forget()


def answer_features(encoders: Encoders, samples: Sequence[Sample]) -> Features:
    """``[n, probe width]``: states over each answer, given the request."""
    return encoders.probe.answers([(s.prompt, s.response) for s in samples])


def refusal_features(encoders: Encoders, samples: Sequence[Sample]) -> Features:
    """``[n, probe width + 1]``: states over the answer, and how early a phrase declines."""
    phrase = np.array([[refusal_phrase(s.response)] for s in samples], dtype=np.float32)
    return np.hstack([answer_features(encoders, samples), phrase.reshape(-1, 1)])


def match_features(encoders: Encoders, samples: Sequence[Sample]) -> Features:
    """``[n, 4]``: how well a passage matches a question."""
    question = encoders.sentences.encode([s.prompt for s in samples])
    passage = encoders.sentences.encode([s.context or "" for s in samples])
    plain = []
    for sample in samples:
        asked, told = set(content_words(sample.prompt)), set(content_words(sample.context or ""))
        names = {w.lower() for w in sample.prompt.split()[1:] if w[:1].isupper()}
        named = {word for name in names for word in content_words(name)}
        plain.append([_share(asked, told), _share(named, told), float(len(asked & told))])
    similarity = (question * passage).sum(1, keepdims=True)
    return np.hstack([similarity, np.array(plain, dtype=np.float32).reshape(-1, 3)])


def support_features(encoders: Encoders, samples: Sequence[Sample]) -> Features:
    """``[n, 14]``: how far a passage bears out an answer to a question."""
    answer = encoders.sentences.encode([s.response for s in samples])
    claim = encoders.sentences.encode([f"{s.prompt} {s.response}" for s in samples])
    passage = encoders.sentences.encode([s.context or "" for s in samples])
    plain = []
    for sample in samples:
        told, said = words(sample.context or ""), words(sample.response)
        told_set, asked = set(told), set(words(sample.prompt))
        content = content_words(sample.response)
        new = [word for word in content if word not in asked]
        figures = [word for word in said if word[0].isdigit()]
        flat = f" {normalize_answer(sample.context or '')} "
        bigrams = list(pairwise(said))
        told_bigrams = set(pairwise(told))
        plain.append(
            [
                _share(content, told_set),
                _share(new, told_set),
                float(sum(word not in told_set for word in new)),
                _share(figures, told_set),
                float(f" {normalize_answer(sample.response)} " in flat),
                float(sum(b in told_bigrams for b in bigrams)) / max(1, len(bigrams)),
                np.log1p(len(said)),
                float(len(new) == 0),
                _share(content, asked),
            ]
        )
    cosines = np.stack([(answer * passage).sum(1), (claim * passage).sum(1)], axis=1)
    match = match_features(encoders, samples)
    return np.hstack([cosines, np.array(plain, dtype=np.float32).reshape(-1, 9), match[:, :3]])


def _share(part: Sequence[str] | set[str], whole: set[str]) -> float:
    """Share of ``part`` that stands in ``whole``; 1 for an empty part, which claims nothing."""
    return sum(word in whole for word in part) / len(part) if part else 1.0
