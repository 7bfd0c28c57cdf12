"""A record's rollouts and log-probabilities are its own: no neighbour changes a bit of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aaft.config import Config, ScoreConfig
from aaft.data.records import Record
from aaft.judge_config import EmbeddedSpec, JudgesConfig
from aaft.judges.base import Sample
from aaft.models import generate, runtime
from aaft.models.generate import prompt_batches
from aaft.models.greedy import greedy
from aaft.models.policy import Codec
from aaft.scoring.judging import JudgeWork
from aaft.scoring.rollouts import Asked, RolloutWork, roll_out
from tests import tiny


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tiny.tokenizer())


@pytest.fixture(scope="module")
def policy() -> Iterator[Any]:
    runtime.prepare(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these sizes are too small to share out
    # A multiple of 32, as of real ones: floats that fill no whole pair of vectors torch computes
    # one by one, and whose they are depends on the batch.
    yield tiny.policy(layers=3, inner=64).to(runtime.compute_dtype(torch.device("cpu")))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def asked(codec: Codec) -> list[Asked]:
    items = []
    for i in range(24):
        # Prompts of 21 to 116 tokens, golds of 1 to 35: several padded widths of both.
        user = {"role": "user", "content": f"{i} " + "why " * (i % 24) + "?"}
        record = Record(f"row-{i}", [user], "x" * (i * 7 % 35), None, "user")
        gold = codec.response_ids(record.response)
        items.append(Asked(record, codec.prompt_ids(record.prompt_messages), gold))
    return items


def rolled(policy: Any, codec: Codec, items: list[Asked], **sampler: int) -> dict[str, Any]:
    cfg = ScoreConfig(max_new_tokens=9, temperature=1.0, **sampler)
    rows = roll_out(policy, codec, items, cfg, seed=5)
    return {row[0].id: [asdict(candidate) for candidate in row] for row in rows}


@pytest.mark.parametrize("rollouts", [1, 3])
def test_a_records_candidates_are_the_same_bits_alone_and_among_others(
    policy, codec, asked, rollouts
) -> None:
    together = rolled(policy, codec, asked, rollouts=rollouts)
    alone: dict[str, Any] = {}
    for item in asked:
        alone |= rolled(policy, codec, [item], rollouts=rollouts)
    otherwise = rolled(policy, codec, asked[::-1], rollouts=rollouts, batch_size=5)
    assert alone == together
    assert otherwise == together


def test_a_greedy_answer_is_the_same_alone_and_among_others(policy, codec, asked) -> None:
    prompts = [item.prompt_ids for item in asked]
    settings = {"end_id": codec.end_id, "max_new_tokens": 12}
    together = greedy(policy, prompts, batch_size=16, **settings)
    alone = [greedy(policy, [p], batch_size=1, **settings)[0].ids for p in prompts]
    assert [done.ids for done in together] == alone


def test_decoding_does_not_pack_query_heads_into_rows() -> None:
    """Where transformers' own attention serves one query: packed, it depends on the batch."""
    from transformers.integrations import sdpa_attention

    runtime.prepare(0)
    key = torch.zeros(1, 2, 4, 8)
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    assert sdpa_attention.use_gqa_in_sdpa(mask, key, key)


def test_rollouts_that_were_decoded_otherwise_are_not_taken_for_ours(
    tmp_path, asked, monkeypatch
) -> None:
    tiny.save_policy(tmp_path)
    cfg = Config(policy={"model": str(tmp_path)})
    key = RolloutWork(cfg).key(asked[0])
    assert RolloutWork(cfg).key(asked[0]) == key
    monkeypatch.setattr(generate, "DECODING", generate.DECODING + 1)
    assert RolloutWork(cfg).key(asked[0]) != key
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "compute_dtype", lambda device: torch.float16)
    assert RolloutWork(cfg).key(asked[0]) != key


def test_a_guards_categories_are_decoded_too(monkeypatch) -> None:
    guard = SimpleNamespace(digest="d", explain=lambda samples: [None])
    sample = Sample("why?", "because", None)

    def keys() -> list[bytes]:
        found = []
        for explain in (True, False):
            work = JudgeWork(EmbeddedSpec(), JudgesConfig(), Path(), 0, explain=explain)
            vars(work)["judge"] = guard
            found.append(work.key(sample))
        return found

    before = keys()
    monkeypatch.setattr(generate, "DECODING", generate.DECODING + 1)
    assert [old == new for old, new in zip(before, keys(), strict=True)] == [False, True]


def test_prompts_of_a_batch_share_a_padded_width_and_the_widest_come_first(asked) -> None:
    prompts = [item.prompt_ids for item in asked]
    batches = list(prompt_batches(prompts, batch_size=4))
    widths = [{-(-len(prompts[i]) // 16) for i in batch} for batch in batches]
    assert all(len(width) == 1 for width in widths)
    order = [next(iter(width)) for width in widths]
    assert order == sorted(order, reverse=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
