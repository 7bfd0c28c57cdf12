"""Rollouts from the reference policy and the reference's log-probability of every candidate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aaft.config import ScoreConfig
from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.models.generate import Completion, complete, prefill, prompt_batches, response_logprobs
from aaft.models.policy import Codec
from aaft.progress import progress


@dataclass(frozen=True)
class Candidate:
    """One response to a record's prompt: 0 is the gold, 1 to K are rollouts.

    ``token_ids`` end with the end token where the response ended; ``logprob`` is their summed
    log-probability under the reference, in nats.
    """

    id: str
    candidate: int
    text: str
    token_ids: list[int]
    logprob: float


def sample_seed(seed: int, record_id: str, candidate: int) -> int:
    """A seed of its own for each record and candidate: other rows never change its draws."""
    digest = hashlib.sha256(f"{seed}/{record_id}/{candidate}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def check_lengths(
    codec: Codec, records: Sequence[Record], cfg: ScoreConfig, max_tokens: int
) -> None:
    """Make sure that every prompt fits with its gold and with a rollout.

    Raises:
        AaftError: some don't; the first is named, the others are counted.
    """
    sizes = {
        record.id: len(codec.prompt_ids(record.prompt_messages))
        + max(len(codec.response_ids(record.response)), cfg.max_new_tokens)
        for record in records
    }
    long = [name for name, size in sizes.items() if size > max_tokens]
    if long:
        raise AaftError(
            f"record {long[0]}: prompt and response take {sizes[long[0]]} tokens, more than "
            f"policy.max_tokens = {max_tokens} ({len(long)} such records); raise it or shorten them"
        )


def roll_out(
    model: Any, codec: Codec, records: Sequence[Record], cfg: ScoreConfig, seed: int
) -> list[list[Candidate]]:
    """Gold and ``cfg.rollouts`` sampled responses for each record, in the records' order.

    Each prompt is computed once; the gold is scored and the rollouts are drawn from its cache.

    Args:
        model: the reference policy.
        codec: its tokenizer.
        records: prompts with gold responses.
        cfg: sampler settings.
        seed: of the whole run.
    """
    prompts = [codec.prompt_ids(record.prompt_messages) for record in records]
    golds = [codec.response_ids(record.response) for record in records]
    results: dict[int, list[Candidate]] = {}
    rows_per_batch = max(1, cfg.batch_size // max(1, cfg.rollouts))
    with progress("rollouts", len(records), "prompts") as advance:
        for batch in prompt_batches(prompts, rows_per_batch):
            ids, mask, cache = prefill(model, [prompts[i] for i in batch])
            gold_logprobs = response_logprobs(model, ids, mask, cache, [golds[i] for i in batch])
            sampled: list[list[Completion]] = [[] for _ in batch]
            if cfg.rollouts:
                sampled = complete(
                    model,
                    ids,
                    mask,
                    cache,
                    end_id=codec.end_id,
                    max_new_tokens=cfg.max_new_tokens,
                    temperature=cfg.temperature,
                    seeds=[
                        [sample_seed(seed, records[i].id, k + 1) for k in range(cfg.rollouts)]
                        for i in batch
                    ],
                )
            for i, gold_logprob, rollouts in zip(batch, gold_logprobs, sampled, strict=True):
                record = records[i]
                results[i] = [Candidate(record.id, 0, record.response, golds[i], gold_logprob)]
                for k, rollout in enumerate(rollouts, start=1):
                    ids_k = rollout.ids + [codec.end_id] * rollout.ended
                    text = codec.decode(rollout.ids)
                    results[i].append(Candidate(record.id, k, text, ids_k, rollout.logprob))
            advance(len(batch))
    return [results[i] for i in range(len(records))]
