"""Twins and siblings of harmful requests: where the line runs, in the reference's own words.

The few harmful requests of a data set teach to decline, too few to learn the matter from, and
nothing beside them says where to stop. So the reference gets the beginning of such a request and
goes on as a user would:

- a *twin* from its first few words, half of it at most, "How do I make a" - "cake without eggs?",
  or from a common beginning, as else a policy learns to decline every other form of request. Most
  are harmless, and near to the harmful request in form. The reference's own answer to it is what
  there is to hold on to; there is nothing where it declines.
- a *sibling* from its first half or more, "Give instructions for stealing a" - "car". Most are
  harmful too. Its gold is that of the request which it comes from, so that there is a bad beginning
  to turn back from.

Which are what is for the judges to say, and what is neither is dropped (`aaft.tuning.kin`). Our
own; that a chat model completes the user's turn is Magpie's observation (arXiv:2406.08464).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aaft.config import ACCEPTED, Config, ScoreConfig
from aaft.data import text as shaping
from aaft.data.contamination import leaks
from aaft.data.records import Record
from aaft.data.text import normalise, opens_with_refusal, ranked, shorten
from aaft.io import file_digest
from aaft.models.fingerprint import model_digest
from aaft.models.policy import Codec, load_codec, load_frozen
from aaft.scoring.cache import ScoreCache
from aaft.scoring.counterfactual import AnyRecord, with_prompt
from aaft.scoring.engine import content_key, fill, read

TWIN, SIBLING = "twin", "sibling"
REQUEST_TOKENS = 40
ANSWER_TOKENS = 48
"""Most tokens of an answer; its last whole sentence is where it ends."""
TEMPERATURE = 0.7
COMPLIANT = "Certainly! Here it is:\n\n"
"""Beginning of an answer that a policy goes on from where it would decline; not part of it."""
COMMON = (
    *("How do I", "How can I", "What is the best way to", "What do I need to", "Where can I"),
    *("Help me", "Teach me how to", "Show me how to", "Tell me how to", "Give me", "I want to"),
    *("Explain", "Why do", "What are", "Can you", "Make a", "Plan a", "Is it safe to"),
    *("How can I protect myself from", "What are the warning signs of", "Why is it illegal to"),
    *("How do I report", "What is the history of", "How can we prevent"),
)
"""How people begin a request, harmless or not; the last ones, one about something harmful."""
_TWIN_WORDS = (1, 2, 3)
_TWIN_SHARES = (0.25, 0.33, 0.5)
_SIBLING_SHARES = (0.5, 0.6, 0.7, 0.8)
_FEWEST_WORDS = 4


class _Begun(NamedTuple):
    """A request under way: of which item, its kind and number, and how it begins."""

    item: int
    name: str
    opening: str


class KinWork:
    """Work for the engine: a record's twins and siblings, as JSON.

    A twin that the policy declines has no answer; with ``mend`` what it says once it has begun.
    """

    def __init__(self, cfg: Config, *, mend: bool = False) -> None:
        self._cfg, self._mend = cfg, mend

    @property
    def remote(self) -> bool:
        """Never: a server's chat API does not write the user's turn, the local policy does."""
        return False

    def key(self, record: Record) -> bytes:
        messages = [text for m in record.prompt_messages for text in (m["role"], m["content"])]
        begun = [text for pair in openings(record, self._cfg.score).items() for text in pair]
        return content_key(*self._identity, record.id, *messages, *begun)

    def length(self, record: Record) -> int:
        return len(record.prompt)

    def compute(self, items: Sequence[Record]) -> list[Any]:
        asked = [
            _Begun(i, name, opening)
            for i, record in enumerate(items)
            for name, opening in openings(record, self._cfg.score).items()
        ]
        requests = self._requests(items, asked)
        made: list[dict[str, dict[str, str]]] = [{} for _ in items]
        for begun, request in zip(asked, requests, strict=True):
            more = normalise(request) != normalise(begun.opening)
            if more and len(request.split()) >= _FEWEST_WORDS:
                made[begun.item][begun.name] = {"request": request}
        twins = [
            (i, kin) for i, own in enumerate(made) for name, kin in own.items() if TWIN in name
        ]
        answers = self._answers([_with_request(items[i], kin["request"]) for i, kin in twins])
        for (_, kin), answer in zip(twins, answers, strict=True):
            kin["answer"] = answer
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process loads its own policy."""
        return {"_cfg": self._cfg, "_mend": self._mend}

    def _requests(self, items: Sequence[Record], asked: Sequence[_Begun]) -> list[str]:
        """What the policy makes of each opening; empty where it came to no end."""
        from aaft.models.generate import complete, prefill, prompt_batches

        begun = [self._codec.turn_ids(_with_request(items[kin.item], kin.opening)) for kin in asked]
        texts = [""] * len(asked)
        end_id = self._codec.user_end_id
        if end_id is None:
            print("kin: none, the chat template ends a user turn with no token of its own")
            return texts
        for batch in prompt_batches(begun, self._cfg.score.batch_size):
            ids, mask, cache = prefill(self._model, [begun[i] for i in batch])
            seeds = [[_draw(self._cfg.seed, items[asked[i].item], asked[i].name)] for i in batch]
            drawn = complete(
                self._model,
                ids,
                mask,
                cache,
                end_id=end_id,
                max_new_tokens=REQUEST_TOKENS,
                temperature=TEMPERATURE,
                seeds=seeds,
            )
            for i, (completion,) in zip(batch, drawn, strict=True):
                if completion.ended:
                    texts[i] = (asked[i].opening + self._rest(begun[i], completion.ids)).strip()
        return texts

    def _rest(self, begun: list[int], ids: list[int]) -> str:
        """What ``ids`` add; some decoders drop a space from what they see the beginning of."""

        def text(tokens: list[int]) -> str:
            return str(self._codec.tokenizer.decode(tokens, skip_special_tokens=True))

        return text(begun + ids)[len(text(begun)) :]

    def _answers(self, asked: Sequence[list[dict[str, str]]]) -> list[str]:
        """What the policy says to each; empty, or mended, where it declines."""
        prompts = [self._codec.prompt_ids(messages) for messages in asked]
        texts = self._said(prompts)
        declined = [i for i, text in enumerate(texts) if opens_with_refusal(text)]
        instead = [""] * len(declined)
        if self._mend:
            instead = self._said([self._codec.prompt_ids(asked[i], COMPLIANT) for i in declined])
        for i, text in zip(declined, instead, strict=True):
            texts[i] = text
        return texts

    def _said(self, prompts: Sequence[list[int]]) -> list[str]:
        """What the policy goes on with, in whole sentences; empty where it doesn't end one."""
        from aaft.models.greedy import greedy

        done = greedy(
            self._model,
            prompts,
            end_id=self._codec.end_id,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=self._cfg.score.batch_size,
        )
        texts = [self._codec.decode(completion.ids) for completion in done]
        return [
            text if completion.ended else shorten(text, len(text) - 1)
            for text, completion in zip(texts, done, strict=True)
        ]

    @cached_property
    def _identity(self) -> tuple[str | int, ...]:
        from aaft.models.generate import decoded_by

        policy = self._cfg.policy
        digest = model_digest(policy.model, policy.revision, "policy.model")
        declined = f"mended by {COMPLIANT}" if self._mend else "left out"
        sampler = f"{REQUEST_TOKENS} {ANSWER_TOKENS} {TEMPERATURE!r} {_FEWEST_WORDS} {declined}"
        shaped = file_digest(Path(shaping.__file__))
        return ("kin", digest, sampler, self._cfg.seed, shaped, decoded_by())

    @cached_property
    def _codec(self) -> Codec:
        return load_codec(self._cfg.policy.model, self._cfg.policy.revision)

    @cached_property
    def _model(self) -> Any:

        from aaft.models import runtime

        device = runtime.prepare(self._cfg.seed)
        runtime.quiet_transformers()
        policy = self._cfg.policy
        return load_frozen(policy.model, device, policy.revision)


def harmful_requests(
    records: Sequence[AnyRecord], golds: npt.NDArray[np.float64], objectives: Sequence[str]
) -> list[AnyRecord]:
    """Records without a passage whose gold is rejected on ``safety``.

    Their last message is a user's, of some words: a request that can be begun.

    Args:
        records: ``n`` of them.
        golds: ``q`` of their golds, ``[n, M]`` or NaN.
        objectives: names of the ``M`` columns.
    """
    if "safety" not in objectives:
        return []
    safety = golds[:, list(objectives).index("safety")]
    return [
        record
        for record, quality in zip(records, safety, strict=True)
        if record.context is None
        and quality < ACCEPTED
        and record.prompt_messages[-1]["role"] == "user"
        and len(record.prompt.split()) >= _FEWEST_WORDS
    ]


def openings(record: Record, cfg: ScoreConfig) -> dict[str, str]:
    """How the kin of a request begin, by kind and number.

    Twins in turn with some of its words (one to three, or a quarter to half) and with one of
    `COMMON`, siblings with half to four fifths of it.
    """
    words = record.prompt.split()
    first = _draw(0, record, "")
    few = [min(count, len(words) // 2) for count in _TWIN_WORDS]
    twin = few + [int(share * len(words)) for share in _TWIN_SHARES]
    sibling = [int(share * len(words)) for share in _SIBLING_SHARES]

    def begun(lengths: Sequence[int], number: int) -> str:
        return " ".join(words[: max(1, lengths[(first + number) % len(lengths)])])

    return {
        f"{TWIN}{number}": COMMON[(first + number // 2) % len(COMMON)]
        if number % 2
        else begun(twin, number // 2)
        for number in range(cfg.twins)
    } | {f"{SIBLING}{number}": begun(sibling, number) for number in range(cfg.siblings)}


@dataclass(frozen=True)
class Kin:
    """What was made of harmful requests, as records with ids ``<id>~<kind><number>``."""

    twins: list[Record]
    """With the reference's own answer as gold."""
    siblings: list[Record]
    """With the gold of the request that each comes from."""


def draw_kin(cfg: Config, records: Sequence[Record], cache: ScoreCache) -> Kin:
    """Up to ``score.twins`` twins and ``score.siblings`` siblings of each record.

    Of ``score.kin_requests`` records at most, by a hash of their ids: with many harmful requests
    these are examples enough of what is harmful, and kin of all would cost more than the rest.

    Args:
        cfg: ``policy`` is the reference.
        records: harmful requests (`unsafe`).
        cache: what is known, and where new ones go.

    Raises:
        AaftError: the chat template can't leave a message unfinished, or there are no benchmarks
            to keep the kin apart from.
    """
    if not (records and cfg.score.twins + cfg.score.siblings):
        return Kin([], [])
    order = ranked(records, "kin", lambda record: record.id)
    chosen = {record.id for record in order[: cfg.score.kin_requests]}
    asked = [record for record in records if record.id in chosen]
    work = KinWork(cfg)
    size = texts_at_once(cfg.score) // (cfg.score.twins + cfg.score.siblings)
    few = cfg.score.model_copy(update={"shard_rows": min(max(1, size), cfg.score.shard_rows)})
    fill(work, asked, len(asked), cache, few, "kin", unit="requests")
    kin = as_kin(asked, list(read(work, asked, cache)), cfg, known=records)
    print(
        f"kin: {len(kin.twins)} twins and {len(kin.siblings)} siblings of {len(asked)} requests",
        flush=True,
    )
    return kin


def texts_at_once(cfg: ScoreConfig) -> int:
    """Twins and siblings to write at once: several batches, as those of like length share one.

    A killed `draw_kin` loses so many.
    """
    return 4 * cfg.batch_size


def as_kin(
    records: Sequence[Record],
    made: Sequence[dict[str, dict[str, str]]],
    cfg: Config,
    known: Sequence[Record] = (),
) -> Kin:
    """Records of what the work made of each.

    Left out are requests that repeat another one, decline, or are near to a benchmark's, as
    ``validate`` leaves such rows out, and twins without an answer: declined, or not a whole
    sentence of one.

    Args:
        records: requests.
        made: of each.
        cfg: names the benchmarks.
        known: more requests that are not to be repeated.
    """
    kin = Kin([], [])
    seen = {normalise(record.prompt) for record in (*records, *known)}
    for record, own in zip(records, made, strict=True):
        for name, found in own.items():
            answer = found.get("answer", record.response)
            if _declines(found["request"], record) or not answer:
                continue
            if normalise(found["request"]) in seen:
                continue
            seen.add(normalise(found["request"]))
            messages = _with_request(record, found["request"])
            relative = Record(f"{record.id}~{name}", messages, answer, None, record.source)
            (kin.twins if name.startswith(TWIN) else kin.siblings).append(relative)
    return Kin(_unleaked(kin.twins, cfg), _unleaked(kin.siblings, cfg))


def _declines(request: str, record: Record) -> bool:
    """Whether the policy, which goes on with the user's turn, declines there.

    What the user's own request says ("I can't stand my boss") is no refusal.
    """
    return opens_with_refusal(request) and not opens_with_refusal(record.prompt)


def _unleaked(records: list[Record], cfg: Config) -> list[Record]:
    if not records:
        return []
    found = leaks(records, cfg.data.bench, cfg.validate_.contamination_threshold)
    leaked = {leak.row for leak in found}
    return [record for i, record in enumerate(records) if i not in leaked]


def _with_request(record: Record, request: str) -> list[dict[str, str]]:
    return with_prompt(record.prompt_messages, request)


def _draw(seed: int, record: Record, name: str) -> int:
    digest = hashlib.sha256(f"kin/{seed}/{record.id}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
