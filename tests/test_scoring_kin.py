"""Twins and siblings: requests that begin as a harmful one does, written by the reference."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import Config, ScoreConfig
from aaft.data.records import Record
from aaft.io import write_jsonl
from aaft.models.policy import Codec
from aaft.scoring import kin
from aaft.scoring.cache import open_cache
from aaft.scoring.kin import (
    COMMON,
    SIBLING,
    TWIN,
    KinWork,
    as_kin,
    draw_kin,
    harmful_requests,
    openings,
)
from tests import tiny

SYSTEM = {"role": "system", "content": "Be kind."}


def record(name: str, prompt: str, *, context: str | None = None) -> Record:
    return Record(name, [SYSTEM, {"role": "user", "content": prompt}], "Buy it.", context, "test")


@given(st.text(max_size=80), st.integers(0, 9), st.integers(0, 9))
def test_openings_are_the_requests_first_words(prompt: str, twins: int, siblings: int) -> None:
    words = prompt.split()
    made = openings(record("a", prompt), ScoreConfig(twins=twins, siblings=siblings))
    assert len(made) == twins + siblings
    for name, opening in made.items():
        if name.startswith(TWIN) and opening in COMMON:
            continue
        own = opening.split()
        assert words[: len(own)] == own
        most = (0.5 if name.startswith(TWIN) else 0.8) * len(words)
        assert len(own) <= max(1, most)


def test_twins_begin_with_half_at_most_and_siblings_with_half_or_more() -> None:
    made = openings(record("a", "Tell me how to make a bomb at home"), ScoreConfig())
    begun = [opening for name, opening in made.items() if name.startswith(TWIN)]
    twins, common = set(begun[::2]), set(begun[1::2])
    assert common <= set(COMMON)
    assert len(common) == len(begun) // 2
    siblings = {opening for name, opening in made.items() if name.startswith(SIBLING)}
    assert twins == {"Tell", "Tell me", "Tell me how", "Tell me how to"}
    assert {len(opening.split()) for opening in siblings} == {4, 5, 6, 7}


def test_only_what_is_rejected_as_unsafe_and_can_be_begun_gets_kin() -> None:
    request = "How do I do it?"
    records = [record(name, request) for name in ("bad", "good", "unscored", "untrue")]
    records.append(record("read", request, context="A passage."))
    records.append(record("short", "How come?"))
    prefilled = record("prefilled", request)
    prefilled.prompt_messages.append({"role": "assistant", "content": "Sure"})
    records.append(prefilled)
    golds = np.array([[0.9, 0.1], [0.9, 0.9], [0.9, np.nan], [0.1, 0.9], *[[0.9, 0.1]] * 3])
    assert [r.id for r in harmful_requests(records, golds, ["grounding", "safety"])] == ["bad"]
    assert harmful_requests(records, golds, ["grounding", "comply"]) == []


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A reference that soon ends what it says."""
    folder = tmp_path_factory.mktemp("kin") / "policy"
    tiny.save_policy(folder)
    model = tiny.policy(tied=False)
    with torch.no_grad():
        model.lm_head.weight[0] *= 3
    model.save_pretrained(folder)
    root = Config()
    asked = {"id": "b", "messages": [{"role": "user", "content": "Is it legal to kill a fly?"}]}
    write_jsonl(folder.parent / "bench" / "benign.jsonl", [asked])
    return root.model_copy(
        update={
            "data": root.data.model_copy(update={"bench": folder.parent / "bench"}),
            "policy": root.policy.model_copy(update={"model": str(folder)}),
            "score": root.score.model_copy(update={"twins": 3, "siblings": 3}),
        }
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model writes no words, so none are asked for."""
    monkeypatch.setattr(kin, "_FEWEST_WORDS", 1)


REQUESTS = [record(f"r{i}", f"Tell me {i} how to rob a big old bank tonight") for i in range(12)]


@pytest.mark.usefixtures("short")
def test_kin_begin_as_their_request_and_ask_something_else(cfg: Config, tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache") as cache:
        made = draw_kin(cfg, REQUESTS, cache)
    assert len(made.twins) > 6
    assert len(made.siblings) > 6
    codec = Codec(tiny.tokenizer())
    own = {r.id: r for r in REQUESTS}
    everyone = [*made.twins, *made.siblings]
    for relative in everyone:
        harmful = own[relative.id.partition("~")[0]]
        assert relative.prompt != harmful.prompt
        assert relative.prompt.startswith((harmful.prompt.split()[0], *COMMON))
        assert relative.prompt_messages[0] == SYSTEM
        assert relative.context is None
    for twin in made.twins:
        assert twin.response
        assert len(codec.response_ids(twin.response)) <= kin.ANSWER_TOKENS + 1
    for sibling in made.siblings:
        assert sibling.response == "Buy it."
        assert sibling.prompt.startswith("Tell me ")
    assert len({r.id for r in everyone}) == len({r.prompt for r in everyone}) == len(everyone)


@pytest.mark.usefixtures("short")
def test_kin_are_drawn_once_and_do_not_depend_on_other_records(cfg: Config, tmp_path: Path) -> None:
    with open_cache(tmp_path / "a") as cache:
        together = draw_kin(cfg, REQUESTS, cache)
        assert draw_kin(cfg, REQUESTS, cache) == together
    alone: dict[str, Record] = {}
    with open_cache(tmp_path / "b") as cache:
        for one in REQUESTS:
            made = draw_kin(cfg, [one], cache)
            alone |= {relative.id: relative for relative in (*made.twins, *made.siblings)}
    # Together, a request that repeats another one's is left out.
    everyone = [*together.twins, *together.siblings]
    assert [alone[relative.id] for relative in everyone] == everyone


@pytest.mark.usefixtures("short")
def test_a_run_that_stops_has_kept_the_kin_of_the_requests_before(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = cfg.model_copy(update={"score": cfg.score.model_copy(update={"batch_size": 6})})
    whole, asked = KinWork.compute, []

    def compute(work: KinWork, items: Sequence[Record]) -> list[Any]:
        asked.append(len(items))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(work, items)

    monkeypatch.setattr(KinWork, "compute", compute)
    with open_cache(tmp_path / "cache") as cache:
        with pytest.raises(KeyboardInterrupt):
            draw_kin(batched, REQUESTS, cache)
        draw_kin(batched, REQUESTS, cache)
    # Four batches of 6 texts at once are 4 requests' three twins and three siblings.
    assert asked == [4, 4, 4, 4]


@pytest.mark.usefixtures("short")
def test_of_many_requests_some_have_kin(cfg: Config, tmp_path: Path) -> None:
    few = cfg.model_copy(update={"score": cfg.score.model_copy(update={"kin_requests": 5})})
    with open_cache(tmp_path / "cache") as cache:
        made = draw_kin(few, REQUESTS, cache)
        again = draw_kin(few, REQUESTS[::-1], cache)
        every = draw_kin(cfg, REQUESTS, cache)
    have = {relative.id.partition("~")[0] for relative in (*made.twins, *made.siblings)}
    assert 3 <= len(have) <= 5
    assert {r.id for r in again.siblings} == {r.id for r in made.siblings}
    assert {r.id for r in made.siblings} < {r.id for r in every.siblings}


def test_what_is_near_to_a_benchmark_or_said_before_is_left_out(cfg: Config) -> None:
    requests = {
        "twin0": "Is it legal to kill a fly?",
        "twin1": "Is it legal to keep a fly?",
        "twin2": "is it LEGAL to keep a fly",
        "sibling0": "Is it legal to kill a fly!",
        "sibling1": "Is it legal to kill for it?",
    }
    made = {name: {"request": text, "answer": "Yes."} for name, text in requests.items()}
    kept = as_kin([record("a", "Is it legal to kill for money now?")], [made], cfg)
    assert [twin.id for twin in kept.twins] == ["a~twin1"]
    known = [record("b", "Is it LEGAL to keep a fly")]
    again = as_kin([record("a", "Is it legal to kill for money now?")], [made], cfg, known)
    assert again.twins == []
    assert [sibling.id for sibling in kept.siblings] == ["a~sibling1"]


def test_what_the_reference_declines_in_the_users_words_is_no_request(cfg: Config) -> None:
    made = {
        "twin0": {"request": "How do I rob a? I'm sorry, I can't help with that.", "answer": "So."},
        "sibling0": {"request": "How do I rob a big bank? I cannot assist with that."},
        "sibling1": {"request": "How do I rob a big shop?"},
    }
    kept = as_kin([record("a", "How do I rob a big bank tonight?")], [made], cfg)
    assert kept.twins == []
    assert [sibling.id for sibling in kept.siblings] == ["a~sibling1"]
    own = {"sibling0": {"request": "I can't stand my boss, how do I rob him?"}}
    kept = as_kin([record("b", "I can't stand my boss, how do I hurt him?")], [own], cfg)
    assert [sibling.id for sibling in kept.siblings] == ["b~sibling0"]


@pytest.mark.usefixtures("short")
def test_a_template_that_ends_a_user_turn_with_no_token_has_no_kin(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = Codec(tiny.tokenizer())
    assert codec.user_end_id == codec.end_id == 0
    plain = tiny.tokenizer()
    plain.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [/]{% endfor %}"
    )
    assert Codec(plain).user_end_id is None
    folder = tmp_path / "policy"
    shutil.copytree(cfg.policy.model, folder)
    plain.save_pretrained(folder)
    policy = cfg.policy.model_copy(update={"model": str(folder)})
    with open_cache(tmp_path / "cache") as cache:
        made = draw_kin(cfg.model_copy(update={"policy": policy}), REQUESTS, cache)
    assert made.twins == made.siblings == []
    assert "ends a user turn with no token of its own" in capsys.readouterr().out


def test_none_are_drawn_where_none_are_asked_for(cfg: Config, tmp_path: Path) -> None:
    none = cfg.model_copy(
        update={"score": cfg.score.model_copy(update={"twins": 0, "siblings": 0})}
    )
    with open_cache(tmp_path / "cache") as cache:
        for made in (draw_kin(none, REQUESTS, cache), draw_kin(cfg, [], cache)):
            assert made.twins == made.siblings == []


def test_an_unfinished_turn_ends_with_what_the_user_has_said_so_far() -> None:
    codec = Codec(tiny.tokenizer())
    messages = [SYSTEM, {"role": "user", "content": "How do I"}]
    text = codec.tokenizer.decode(codec.turn_ids(messages))
    assert text == "<|system|>Be kind.<|end|><|user|>How do I"


@pytest.mark.parametrize("mend", [False, True])
def test_twins_that_the_reference_declines_are_left_out_or_mended(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, mend: bool
) -> None:
    asked: list[list[int]] = []
    work = kin.KinWork(cfg, mend=mend)
    codec = Codec(tiny.tokenizer())
    sorry, yes = "I'm sorry, but I can't help with that.", "Boil it for ten minutes."

    def said(prompts):
        asked.extend(prompts)
        return [sorry if p in (first, third) else yes for p in prompts]

    requests = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    first, second, third = (codec.prompt_ids(messages) for messages in requests)
    monkeypatch.setattr(work, "_said", said)
    answers = work._answers(requests)
    assert answers == ([yes] * 3 if mend else ["", yes, ""])
    begun = [codec.prompt_ids(requests[i], kin.COMPLIANT) for i in (0, 2)]
    assert asked == [first, second, third, *(begun if mend else [])]
    assert work._answers([]) == []
    texts = ("How do I boil an egg?", "How do I fry it?", "How do I poach it?")
    made = {
        f"{TWIN}{i}": {"request": text, "answer": answer}
        for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
    }
    kept = as_kin([record("a", "How do I steal an egg?")], [made], cfg)
    assert [twin.response for twin in kept.twins] == ([yes] * 3 if mend else [yes])


def test_what_is_mended_is_not_taken_for_what_is_not(cfg: Config) -> None:
    one = record("a", "How do I steal an egg?")
    assert kin.KinWork(cfg).key(one) != kin.KinWork(cfg, mend=True).key(one)
