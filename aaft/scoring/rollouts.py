"""Rollouts from the reference policy and the reference's log-probability of every candidate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from aaft.config import Config, ScoreConfig
from aaft.data.records import Record
from aaft.errors import AaftError
from aaft.models import runtime
from aaft.models.fingerprint import model_digest
from aaft.models.generate import (
    Completion,
    complete,
    decoded_by,
    prefill,
    prompt_batches,
    response_logprobs,
)
from aaft.models.policy import Codec, load_codec, load_frozen
from aaft.scoring.cache import ScoreCache
from aaft.scoring.counterfactual import AnyRecord
from aaft.scoring.engine import content_key, fill, read


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


@dataclass(frozen=True)
class Asked:
    """A record with its prompt and gold as token ids."""

    record: Record
    prompt_ids: list[int]
    gold_ids: list[int]


def sample_seed(seed: int, record_id: str, candidate: int) -> int:
    """A seed of its own for each record and candidate: other rows never change its draws."""
    digest = hashlib.sha256(f"{seed}/{record_id}/{candidate}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def tokenize(
    codec: Codec, records: Sequence[Record], cfg: ScoreConfig, max_tokens: int
) -> list[Asked]:
    """Token ids of every prompt and gold.

    Raises:
        AaftError: some prompts don't fit with their gold and with a rollout; the first is named,
            the others are counted.
    """
    asked = [_asked(codec, record) for record in records]
    sizes = [_size(a, cfg) for a in asked]
    long = [i for i, size in enumerate(sizes) if size > max_tokens]
    if long:
        raise AaftError(
            f"record {records[long[0]].id}: prompt and response take {sizes[long[0]]} tokens, more "
            f"than policy.max_tokens = {max_tokens} ({len(long)} such records); raise it or "
            "shorten them"
        )
    return asked


def fitting(
    codec: Codec, records: Sequence[AnyRecord], cfg: ScoreConfig, max_tokens: int
) -> list[AnyRecord]:
    """The records that `tokenize` would take."""
    return [record for record in records if _size(_asked(codec, record), cfg) <= max_tokens]


def _asked(codec: Codec, record: Record) -> Asked:
    prompt, gold = codec.prompt_ids(record.prompt_messages), codec.response_ids(record.response)
    return Asked(record, prompt, gold)


def _size(asked: Asked, cfg: ScoreConfig) -> int:
    """Tokens of the prompt with its gold or a rollout, whichever is longer."""
    return len(asked.prompt_ids) + max(len(asked.gold_ids), cfg.max_new_tokens)


class RolloutWork:
    """Work for the engine: a record's candidates, as JSON."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg

    @property
    def remote(self) -> bool:
        """Whether a server draws the rollouts."""
        return self._cfg.score.endpoint is not None

    def key(self, asked: Asked) -> bytes:
        return content_key(*self._identity, asked.record.id, asked.prompt_ids, asked.gold_ids)

    def length(self, asked: Asked) -> int:
        return len(asked.prompt_ids)

    def compute(self, items: Sequence[Asked]) -> list[Any]:
        rows: Sequence[list[Candidate] | None]
        if self._cfg.score.endpoint is None:
            rows = roll_out(self._model, self._codec, items, self._cfg.score, self._cfg.seed)
        else:
            rows = self._ask(items)
        return [None if row is None else [asdict(candidate) for candidate in row] for row in rows]

    def summary(self) -> str:
        """What the server answered; empty for local rollouts."""
        return str(self._client.tally.summary()) if self.remote else ""

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process loads its own policy."""
        return {"_cfg": self._cfg}

    def _ask(self, items: Sequence[Asked]) -> list[list[Candidate] | None]:
        from aaft.scoring.remote import local_scorer, roll_out_remote

        cfg = self._cfg.score
        if cfg.endpoint is None:
            raise ValueError("no endpoint to ask")

        def score_locally(pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
            return local_scorer(self._model, cfg.batch_size)(pairs)

        records = [asked.record for asked in items]
        return roll_out_remote(
            self._client, cfg.endpoint, self._codec, records, cfg, self._cfg.seed, score_locally
        )

    @cached_property
    def _identity(self) -> tuple[str, ...]:
        policy, cfg = self._cfg.policy, self._cfg.score
        where = decoded_by()
        if cfg.endpoint is not None:
            # How hard the server is leant on changes nothing in what it answers. Golds are scored
            # here.
            asked = {"url", "model", "served_as", "api", "logprobs", "extra"}
            dtype = runtime.compute_dtype(runtime.device())
            where = f"{cfg.endpoint.model_dump_json(include=asked)} {dtype}"
        sampler = f"{cfg.rollouts} {cfg.max_new_tokens} {cfg.temperature!r} {self._cfg.seed}"
        digest = model_digest(policy.model, policy.revision, "policy.model")
        return ("rollouts", digest, sampler, where)

    @cached_property
    def _codec(self) -> Codec:
        return load_codec(self._cfg.policy.model, self._cfg.policy.revision)

    @cached_property
    def _client(self) -> Any:
        from aaft.models.endpoint import EndpointClient

        if self._cfg.score.endpoint is None:
            raise ValueError("no endpoint to ask")
        return EndpointClient(self._cfg.score.endpoint, "score.endpoint")

    @cached_property
    def _model(self) -> Any:

        from aaft.models.packed import check_logits

        device = runtime.prepare(self._cfg.seed)
        runtime.quiet_transformers()
        policy = self._cfg.policy
        model = load_frozen(policy.model, device, policy.revision)
        check_logits(model)
        return model


def draw(cfg: Config, asked: Sequence[Asked], cache: ScoreCache) -> list[list[Candidate]]:
    """Each record's candidates, drawn where the cache doesn't know them.

    Raises:
        AaftError: a server failed on some; what it did is kept.
    """
    if not asked:
        return []
    work = RolloutWork(cfg)
    filled = fill(work, asked, len(asked), cache, cfg.score, "rollouts", unit="prompts")
    print(
        f"rollouts: {filled.reused} of {len(asked)} prompts known already, {filled.computed} drawn",
        flush=True,
    )
    if filled.failed:
        raise AaftError(
            f"score.endpoint: {filled.failed} of {len(asked)} prompts without rollouts "
            f"({work.summary()}); what succeeded is kept, rerun to go on"
        )
    return [as_candidates(value) for value in read(work, asked, cache)]


def of_golds(cfg: Config) -> Config:
    """``cfg`` without rollouts, for what has one target and no gate to weigh candidates for."""
    return cfg.model_copy(update={"score": cfg.score.model_copy(update={"rollouts": 0})})


def as_candidates(value: Sequence[dict[str, Any]]) -> list[Candidate]:
    """The candidates of what the work returned."""
    return [Candidate(**fields) for fields in value]


def roll_out(
    model: Any, codec: Codec, items: Sequence[Asked], cfg: ScoreConfig, seed: int
) -> list[list[Candidate]]:
    """Gold and ``cfg.rollouts`` sampled responses for each record, in order.

    Each prompt is computed once; the gold is scored and the rollouts are drawn from its cache.

    Args:
        model: the reference policy.
        codec: its tokenizer.
        items: prompts with gold responses.
        cfg: sampler settings.
        seed: of the whole run.
    """
    results: dict[int, list[Candidate]] = {}
    rows_per_batch = max(1, cfg.batch_size // max(1, cfg.rollouts))
    for batch in prompt_batches([asked.prompt_ids for asked in items], rows_per_batch):
        part = [items[i] for i in batch]
        ids, mask, cache = prefill(model, [asked.prompt_ids for asked in part])
        golds = response_logprobs(model, ids, mask, cache, [asked.gold_ids for asked in part])
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
                    [sample_seed(seed, asked.record.id, k + 1) for k in range(cfg.rollouts)]
                    for asked in part
                ],
            )
        for i, asked, gold, rollouts in zip(batch, part, golds, sampled, strict=True):
            name = asked.record.id
            results[i] = [Candidate(name, 0, asked.record.response, asked.gold_ids, gold)]
            for k, rollout in enumerate(rollouts, start=1):
                drawn = rollout.ids + [codec.end_id] * rollout.ended
                text = codec.decode(rollout.ids)
                results[i].append(Candidate(name, k, text, drawn, rollout.logprob))
    return [results[i] for i in range(len(items))]
