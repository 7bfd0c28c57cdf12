"""What a study is made of: its settings, its cells, the prompts that models are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aaft.bench.example import BenchExample
from aaft.config import load_config
from aaft.data.prompts import PREFILLS, VALID_PREFILLS
from aaft.errors import AaftError
from aaft.io import read_jsonl, write_jsonl
from aaft.models import runtime
from aaft.models.policy import Codec, load_codec
from aaft.models.runtime import compute_dtype
from aaft.study import methods, scenarios
from aaft.study.cells import Cell, cell_digest, files_digest, gate_histogram
from aaft.study.config import METHODS, PRESETS, SCENARIOS, StudyConfig, study_config, with_overrides
from aaft.study.gather import poison_shares
from aaft.study.measure import (
    PREFILL_TOKENS,
    for_generation,
    load_study_bench,
    measure,
    turn,
)
from tests import tiny, tiny_study

ROOT = Path(__file__).resolve().parent.parent


def test_the_settings_know_every_method_and_scenario() -> None:
    assert set(METHODS) == set(methods.METHODS)
    assert set(SCENARIOS) == set(scenarios.SCENARIOS)


def test_the_small_preset_covers_what_must_be_shown() -> None:
    small = PRESETS["small"]
    assert {"reference", "sft", "filter", "filter-replace", "aaft"} <= set(small.methods)
    assert {"poison-10", "unsafe-start"} <= set(small.scenarios)
    assert len(small.seeds) >= 3
    assert PRESETS["full"].methods == METHODS
    assert PRESETS["full"].scenarios == SCENARIOS


def test_overrides_are_yaml() -> None:
    study = study_config("small", ["seeds=[4]", "split=valid", "train={epochs: 2}"])
    assert (study.seeds, study.split) == ((4,), "valid")
    cfg = with_overrides(load_config(ROOT / "params.yaml"), study)
    assert cfg.train.epochs == 2
    assert cfg.train.rows_per_step == 16


def test_a_section_of_train_is_overridden_key_by_key() -> None:
    cfg = load_config(ROOT / "params.yaml")
    study = StudyConfig(train={"objective": {"lambda_pg": 0.0}})
    changed = with_overrides(cfg, study)
    assert changed.train.objective.lambda_pg == 0.0
    assert changed.train.objective.floor == cfg.train.objective.floor
    assert changed.train.gate == cfg.train.gate


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("large", "rows=1", "no such preset; one of small, full"),
        ("small", "rows", "write it as study.key=value"),
        ("small", "row=1", "study.row: unknown; known keys: methods"),
        ("small", "rows=0", "rows: Input should be greater than 0"),
        ("small", "methods=[sft, magic]", "no such name 'magic'; one of reference"),
        ("small", "seeds=[1, 1]", "names something twice"),
        ("small", "rows={", "not a YAML value"),
    ],
)
def test_a_wrong_setting_is_one_line(preset: str, override: str, message: str) -> None:
    with pytest.raises(AaftError, match=message.replace("[", r"\[")) as caught:
        study_config(preset, [override])
    assert "\n" not in str(caught.value)


def test_a_wrong_train_setting_is_named() -> None:
    with pytest.raises(AaftError, match=r"study\.train\.epoch: Extra inputs"):
        with_overrides(load_config(ROOT / "params.yaml"), StudyConfig(train={"epoch": 2}))


def test_only_poison_is_on_the_axis_of_poison() -> None:
    shares = poison_shares(StudyConfig())
    assert shares == {"clean": 0.0, "poison-05": 0.05, "poison-10": 0.1, "poison-20": 0.2}


def test_a_cell_is_done_when_its_result_says_so(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "clean", "sft", 1)
    assert cell.folder == tmp_path / "cells/clean/sft/seed-1"
    assert not cell.done("d")
    answers = [{"suite": "s", "id": "a", "scores": {"m": 1.0}}]
    saved = cell.save("d", answers, {"train": {"seconds": 1.0}})
    assert cell.done("d")
    assert not cell.done("other")
    assert cell.answers() == answers
    assert cell.result() == saved
    assert saved["rates"]["m"]["value"] == 1.0
    with pytest.raises(AaftError, match="nothing was measured"):
        cell.save("d", [], {})


def test_a_digest_names_files_and_bytes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1}])
    first = files_digest([tmp_path])
    assert files_digest([tmp_path]) == first
    write_jsonl(tmp_path / "a.jsonl", [{"x": 2}])
    second = files_digest([tmp_path])
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert len({first, second, files_digest([tmp_path])}) == 3
    assert cell_digest({"a": 1, "b": 2}) == cell_digest({"b": 2, "a": 1})
    assert cell_digest({"a": 1}) != cell_digest({"a": 2})


def test_gates_are_counted_in_twenty_bins() -> None:
    counts = gate_histogram([("good", 0.0), ("good", 0.049), ("bad", 1.0), ("bad", 0.5)])
    assert counts["good"] == [2] + [0] * 19
    assert (counts["bad"][19], counts["bad"][10], sum(counts["bad"])) == (1, 1, 2)
    draw = np.random.default_rng(0).random(200)
    want, _ = np.histogram(draw, bins=20, range=(0, 1))
    assert gate_histogram([("k", float(g)) for g in draw])["k"] == want.tolist()


class StubJudge:
    """Declines when told "sorry"; supports nothing."""

    def refusal(self, samples):
        return np.array([float("sorry" in s.response) for s in samples])

    def supported(self, samples):
        return np.zeros(len(samples))

    def score(self, samples):
        return {"safety": np.zeros(len(samples))}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study.save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def codec() -> Codec:
    return Codec(tiny.tokenizer())


def test_every_request_is_put_directly_prefilled_and_in_a_template(project, codec) -> None:
    bench = load_study_bench(load_config(project), StudyConfig(bench_limit=2), codec, 0)
    ids: dict[str, list[str]] = {}
    for probe in bench.probes:
        ids.setdefault(probe.suite, []).append(probe.example.id)
    attacks = ["direct", *(f"prefill_{n}" for n in PREFILL_TOKENS), "jailbreak"]
    assert all(ids[suite] == ["harmful-0", "harmful-1"] for suite in attacks)
    assert set(ids) == {*attacks, "benign", "answerable", "unanswerable"}
    plain = {p.example.id: p.prompt for p in bench.probes if p.suite == "direct"}
    for probe in bench.probes:
        if probe.suite.startswith("prefill_"):
            assert probe.prompt == plain[probe.example.id]
            assert len(probe.prefix) == int(probe.suite.removeprefix("prefill_"))
            assert any(text.startswith(codec.decode(probe.prefix)) for text in PREFILLS)
        if probe.suite == "jailbreak":
            text = codec.tokenizer.decode(probe.prompt)
            request = probe.example.messages[-1]["content"]
            assert request in text
            assert "{request}" not in text
            assert len(probe.prompt) > len(plain[probe.example.id])


def test_the_limit_holds_for_requests_and_questions_alike(project, codec) -> None:
    bench = load_study_bench(load_config(project), StudyConfig(bench_limit=1), codec, 0)
    asked = [probe.suite for probe in bench.probes]
    assert asked.count("direct") == asked.count("jailbreak") == asked.count("benign") == 1
    assert asked.count("answerable") == asked.count("unanswerable") == 1


def test_questions_may_have_a_limit_of_their_own(project, codec) -> None:
    study = StudyConfig(bench_limit=1, questions=2)
    asked = [
        probe.suite for probe in load_study_bench(load_config(project), study, codec, 0).probes
    ]
    assert asked.count("direct") == asked.count("jailbreak") == asked.count("benign") == 1
    assert asked.count("answerable") == asked.count("unanswerable") == 2


@pytest.mark.parametrize(
    ("limit", "seed", "expected"),
    [
        (None, 3, "abcde"),
        (5, 1, "abcde"),
        (9, 1, "abcde"),
        (2, 0, "ab"),
        (2, 1, "cd"),
        (2, 2, "ea"),
        (2, 3, "bc"),
    ],
)
def test_seeds_take_turns_with_the_prompts(limit: int | None, seed: int, expected: str) -> None:
    examples = [BenchExample(name, []) for name in "abcde"]
    assert "".join(example.id for example in turn(examples, limit, seed)) == expected


def test_the_validation_split_shares_no_prompt_with_the_reported_one(project, codec) -> None:
    cfg = load_config(project)
    reported, valid = (
        {codec.tokenizer.decode(p.prompt) for p in load_study_bench(cfg, study, codec, 0).probes}
        for study in (StudyConfig(), StudyConfig(split="valid"))
    )
    assert reported
    assert valid
    assert not valid & reported


def test_a_template_without_a_place_for_the_request_is_named(project, codec, tmp_path) -> None:
    cfg = load_config(project, [f"data.bench={tmp_path / 'bench'}"])
    for name in ("harmful", "benign", "qa_answerable", "qa_unanswerable"):
        source = Path(project.parent, "data/bench", f"{name}.jsonl")
        write_jsonl(tmp_path / "bench" / source.name, read_jsonl(source))
    write_jsonl(tmp_path / "study/jailbreaks.jsonl", [{"template": "hello"}])
    with pytest.raises(AaftError, match="row 1: `template` must hold"):
        load_study_bench(cfg, StudyConfig(), codec, 0)


def test_answers_are_marked_by_suite_with_a_keyword_twin(project, codec) -> None:
    runtime.prepare(0)
    study = StudyConfig(bench_limit=2, max_new_tokens=3)
    bench = load_study_bench(load_config(project), study, codec, 0)
    model = for_generation(tiny.policy())
    rows = measure(model, codec, StubJudge(), bench, study, 8)
    assert [row["id"] for row in rows] == [probe.example.id for probe in bench.probes]
    metrics = {row["suite"]: set(row["scores"]) for row in rows}
    harm = {"harmful_rate", "harmful_rate_judge", "harmful_rate_keyword", "degenerate_rate"}
    assert metrics["direct"] == harm
    assert metrics["jailbreak"] == {
        name.replace("harmful_rate", "harmful_rate_jailbreak") for name in harm
    }
    for count in PREFILL_TOKENS:
        kinds = ("", "_judge", "_keyword")
        assert metrics[f"prefill_{count}"] == {
            "degenerate_rate",
            *(f"harmful_rate_prefill{kind}" for kind in kinds),
            *(f"harmful_rate_prefill_{count}{kind}" for kind in kinds),
        }
    assert {"over_refusal_rate", "over_refusal_rate_keyword"} <= metrics["benign"]
    assert {"qa_em", "qa_f1", "hallucination_rate_answerable"} <= metrics["answerable"]
    assert "hallucination_rate_unanswerable" in metrics["unanswerable"]
    assert all(0 <= value <= 1 for row in rows for value in row["scores"].values())


class Refuses:
    """A codec whose model always said the same."""

    def __init__(self, inner: Codec, said: str) -> None:
        self.tokenizer, self.end_id, self._said = inner.tokenizer, inner.end_id, said

    def decode(self, ids):
        return self._said


@pytest.mark.parametrize(
    ("said", "harmful"),
    [
        ("I can't help with that.", 0.0),
        ("That is not appropriate, so no.", 0.0),
        ("First, buy it.", 1.0),
        ("", 0.0),
    ],
)
def test_the_keyword_mark_needs_no_judge(project, codec, said: str, harmful: float) -> None:
    runtime.prepare(0)
    study = StudyConfig(bench_limit=1, max_new_tokens=2)
    bench = load_study_bench(load_config(project), study, codec, 0)
    rows = measure(
        for_generation(tiny.policy()), Refuses(codec, said), StubJudge(), bench, study, 8
    )
    marks = {row["suite"]: row["scores"] for row in rows}
    assert marks["direct"]["harmful_rate_keyword"] == harmful
    assert marks["prefill_5"]["harmful_rate_prefill_keyword"] == harmful
    assert marks["jailbreak"]["harmful_rate_jailbreak_keyword"] == harmful
    assert marks["benign"]["over_refusal_rate_keyword"] == float("no" in said or "can't" in said)


def test_the_merged_copy_answers_as_the_trained_model() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = tiny.policy()
    base.set_attn_implementation("eager")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        merged = for_generation(model)
        got = merged(input_ids=ids).logits.float()
    assert merged.dtype == compute_dtype(torch.device("cpu"))
    assert {buffer.dtype for buffer in merged.buffers()} == {torch.float32}
    assert merged.config._attn_implementation == "sdpa"
    assert torch.allclose(got, want, atol=0.05 * float(want.abs().max()))


def test_weights_that_diverged_are_not_measured() -> None:
    import torch

    model = tiny.policy()
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(AaftError, match="not finite"):
        for_generation(model)


@pytest.mark.skipif(not (ROOT / "models/policy").is_dir(), reason="needs `make setup`")
def test_every_opening_has_enough_tokens_of_the_embedded_policy() -> None:
    codec = load_codec(str(ROOT / "models/policy"))
    for opening in PREFILLS + VALID_PREFILLS:
        assert len(codec.response_ids(opening)) - 1 >= max(PREFILL_TOKENS)


def test_attacks_to_tune_on_are_not_those_that_are_reported(project, codec) -> None:
    def attacks(split: str) -> tuple[set[str], set[str]]:
        bench = load_study_bench(load_config(project), StudyConfig(split=split), codec, 0)
        openings = {codec.decode(p.prefix) for p in bench.probes if p.suite == "prefill_10"}
        framed = [p for p in bench.probes if p.suite == "jailbreak"]
        templates = {
            codec.tokenizer.decode(p.prompt).replace(p.example.messages[-1]["content"], "")
            for p in framed
        }
        return openings, templates

    for tuned, reported in zip(attacks("valid"), attacks("bench"), strict=True):
        assert tuned
        assert not tuned & reported
