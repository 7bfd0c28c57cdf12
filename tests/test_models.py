"""Packed log-probabilities and cached generation against one plain forward pass a response."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from aaft.errors import AaftError
from aaft.models import runtime
from aaft.models.generate import complete, prefill, read_start, response_logprobs
from aaft.models.greedy import common_start, greedy
from aaft.models.packed import PackedRow, branch_logprobs, check_logits, pack, token_logprobs
from aaft.models.policy import (
    Codec,
    load_codec,
    load_frozen,
    load_policy,
    locate_model,
    locate_policy,
    save_adapter,
)
from tests import tiny


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.policy()


def plain_logprob(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(response))


ids = st.lists(st.integers(4, 250), min_size=1, max_size=12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_packed_branches_score_as_if_each_stood_alone(model, rows) -> None:
    packed = branch_logprobs(model, pack([PackedRow(p, bs) for p, bs in rows])).tolist()
    alone = [plain_logprob(model, p, b) for p, bs in rows for b in bs]
    # bfloat16 autocast on one side, float32 on the other.
    assert packed == pytest.approx(alone, rel=0.03, abs=0.35)


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_policy_is_run_in_the_dtype_that_is_fast_here(
    tmp_path, monkeypatch, fast: bool, dtype: torch.dtype
) -> None:
    """Its weights are the stored ones, rounded to bfloat16, in both."""
    tiny.save_policy(tmp_path / "policy")
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: fast)
    cpu = torch.device("cpu")
    assert runtime.compute_dtype(cpu) == dtype
    loaded = load_frozen(str(tmp_path / "policy"), cpu)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    stored = load_policy(str(tmp_path / "policy"), cpu, torch.bfloat16)
    for mine, its in zip(loaded.parameters(), stored.parameters(), strict=True):
        assert torch.equal(mine.float(), its.float())
    # Rotary frequencies, which bfloat16 would round.
    buffers = dict(stored.named_buffers())
    assert buffers
    for name, buffer in loaded.named_buffers():
        assert buffer.dtype == buffers[name].dtype == torch.float32
        assert torch.equal(buffer, buffers[name])


@pytest.mark.parametrize(
    ("machine", "kernels", "instructions", "expected"),
    [
        ("x86_64", True, True, True),
        # Skylake and Cascade Lake: oneDNN has kernels that convert, three times slower.
        ("x86_64", True, False, False),
        ("AMD64", True, False, False),
        ("x86_64", False, True, False),
        ("aarch64", True, False, True),
        ("aarch64", False, False, False),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_themselves(
    monkeypatch, machine: str, kernels: bool, instructions: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: kernels, raising=False
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions})
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    assert runtime.cpu_has_bfloat16() is expected


@pytest.mark.parametrize(
    ("name", "bfloat16", "set_by_user", "expected"),
    [
        ("Intel Xeon 2.50GHz", False, None, "AUTO,STRICT"),
        ("Intel Xeon 2.50GHz", False, "COMPATIBLE", "COMPATIBLE"),
        ("Intel Xeon 2.50GHz", True, None, None),
        ("AMD EPYC 7B13", False, None, None),
        (None, False, None, None),
    ],
)
def test_float32_products_are_made_repeatable_where_that_is_known_to_hold(
    monkeypatch, name: str | None, bfloat16: bool, set_by_user: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: bfloat16)
    found = {} if name is None else {"cpu_name": name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    environment = {} if set_by_user is None else {"MKL_CBWR": set_by_user}
    monkeypatch.setattr(runtime.os, "environ", environment)
    runtime.repeatable_products()
    assert environment.get("MKL_CBWR") == expected


def test_without_fast_bfloat16_training_computes_in_float32(model, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: False)
    rows = [PackedRow([5, 6, 7], [[8, 9], [10]])]
    packed = branch_logprobs(model, pack(rows)).tolist()
    alone = [plain_logprob(model, r.prompt, b) for r in rows for b in r.branches]
    assert packed == pytest.approx(alone, abs=1e-4)


def test_packed_branches_are_exact_without_autocast(model, monkeypatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: torch.enable_grad())
    rows = [PackedRow([5, 6, 7], [[8, 9], [10], [11, 12, 13]]), PackedRow([9] * 9, [[4]])]
    packed = branch_logprobs(model, pack(rows)).tolist()
    alone = [plain_logprob(model, r.prompt, b) for r in rows for b in r.branches]
    assert packed == pytest.approx(alone, abs=1e-4)


def test_a_branch_with_a_given_beginning_scores_as_if_that_were_prompt(model, monkeypatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: torch.enable_grad())
    given = [0, 1, 3]
    branches = [[8, 9], [10, 11, 12], [13, 14, 15, 16, 17]]
    alone = [
        plain_logprob(model, [5, 6, 7, *branch[:n]], branch[n:])
        for branch, n in zip(branches, given, strict=True)
    ]
    together = pack([PackedRow([5, 6, 7], branches, given), PackedRow([9] * 9, [[4]])])
    assert branch_logprobs(model, together).tolist()[:3] == pytest.approx(alone, abs=1e-4)
    assert together.labels.tolist() == [8, 9, 11, 12, 16, 17, 4]
    assert together.offset.tolist() == [0, 1] * 3 + [0]
    for branch, n, want in zip(branches, given, alone, strict=True):
        causal = pack([PackedRow([5, 6, 7], [branch], [n])])
        assert causal.mask is None
        assert branch_logprobs(model, causal).tolist() == pytest.approx([want], abs=1e-4)


def test_token_logprobs_are_each_labels_own_and_add_up_to_the_branches(model, monkeypatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: torch.enable_grad())
    rows = [PackedRow([5, 6, 7], [[8, 9], [10]]), PackedRow([9] * 4, [[4, 5, 6]])]
    packed = pack(rows)
    got = token_logprobs(model, packed)
    alone = [
        plain_logprob(model, row.prompt + branch[:k], [branch[k]])
        for row in rows
        for branch in row.branches
        for k in range(len(branch))
    ]
    assert got.tolist() == pytest.approx(alone, abs=1e-4)
    sums = torch.zeros(packed.branches).index_add(0, packed.branch, got)
    assert torch.equal(sums, branch_logprobs(model, packed))


@given(st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_branch_and_offset_say_where_each_label_stands(rows) -> None:
    packed = pack([PackedRow(p, bs) for p, bs in rows])
    branches = [branch for _, bs in rows for branch in bs]
    where = zip(packed.branch.tolist(), packed.offset.tolist(), strict=True)
    assert [branches[b][k] for b, k in where] == packed.labels.tolist()
    assert packed.offset.tolist() == [k for branch in branches for k in range(len(branch))]


def test_cached_gold_logprobs_equal_a_plain_forward_pass(model) -> None:
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    responses = [[20, 0], [21, 22, 23, 0], [24]]
    padded, mask, cache = prefill(model, prompts)
    got = response_logprobs(model, padded, mask, cache, responses)
    want = [plain_logprob(model, p, r) for p, r in zip(prompts, responses, strict=True)]
    assert got == pytest.approx(want, abs=1e-4)


def test_rollout_logprobs_are_those_of_the_drawn_tokens(model) -> None:
    prompts = [[5, 6, 7, 8], [9]]
    padded, mask, cache = prefill(model, prompts)
    rows = complete(
        model,
        padded,
        mask,
        cache,
        end_id=0,
        max_new_tokens=6,
        temperature=0.7,
        seeds=[[1, 2], [3, 4]],
    )
    for prompt, samples in zip(prompts, rows, strict=True):
        for sample in samples:
            drawn = sample.ids + [0] * sample.ended
            assert sample.tokens == len(drawn)
            assert sample.logprob == pytest.approx(plain_logprob(model, prompt, drawn), abs=1e-3)


def test_a_rows_samples_do_not_depend_on_its_neighbours(model) -> None:
    def draw(prompts, seeds):
        padded, mask, cache = prefill(model, prompts)
        return complete(
            model, padded, mask, cache, end_id=0, max_new_tokens=8, temperature=1.0, seeds=seeds
        )

    alone = draw([[5, 6]], [[7, 8]])
    among = draw([[9, 9, 9], [5, 6], [4]], [[1, 2], [7, 8], [3, 4]])
    assert [c.ids for c in alone[0]] == [c.ids for c in among[1]]


@pytest.mark.parametrize("rests", [[[5, 6, 7], [8, 9], [10, 11, 12, 13]], [[5, 6], [5, 6]]])
def test_a_common_start_computed_once_changes_no_answer(model, rests) -> None:
    start = list(range(20, 40))
    prompts = [start + rest for rest in rests]
    got = greedy(model, prompts, end_id=0, max_new_tokens=6, batch_size=3, independent=False)
    alone = [
        greedy(model, [p], end_id=0, max_new_tokens=6, batch_size=1, independent=False)[0]
        for p in prompts
    ]
    assert [c.ids for c in got] == [c.ids for c in alone]
    shared = common_start(prompts)
    padded, mask, cache = prefill(model, prompts, read_start(model, prompts[0][:shared]))
    assert mask.sum(1).tolist() == [len(p) for p in prompts]
    responses = [[41, 42, 0]] * len(prompts)
    want = [plain_logprob(model, p, r) for p, r in zip(prompts, responses, strict=True)]
    assert response_logprobs(model, padded, mask, cache, responses) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "want"),
    [
        ([[1, 2, 3, 4, 5], [1, 2, 3, 9]], 2),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 2),
        ([[1, 2, 3, 4], [2, 2, 3, 4]], 0),
        ([[1], [1]], 0),
    ],
)
def test_the_common_start_leaves_every_prompt_tokens_of_its_own(prompts, want) -> None:
    assert common_start(prompts) == want


def test_samples_follow_the_models_distribution(model) -> None:
    prompt, n = [5, 6, 7], 4000
    with torch.no_grad():
        want = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    padded, mask, cache = prefill(model, [prompt])
    drawn = complete(
        model,
        padded,
        mask,
        cache,
        end_id=0,
        max_new_tokens=1,
        temperature=1.0,
        seeds=[list(range(n))],
    )[0]
    first = torch.tensor([[*c.ids, 0][0] for c in drawn])
    got = torch.bincount(first, minlength=len(want)).double() / n
    assert float((got - want).abs().sum() / 2) < 0.1  # total variation


@pytest.mark.parametrize("rows", [3, 64])
def test_prompts_of_any_width_read_apart_and_decoded_together_get_their_own_answers(
    model, rows
) -> None:
    start = list(range(20, 30))
    # Of the widest one batch reads no two at once.
    prompts = [
        start + list(range(30, 32 + n % 60)) * (1 + n // 60) for n in (3, 70, 18, 70, 250, 5)
    ]
    prompts += [[*prompts[3][:-1], 29], [*prompts[4][:-1], 29]]
    settings = {"end_id": 0, "max_new_tokens": 6, "independent": False}
    together = greedy(model, prompts, batch_size=rows, **settings)
    alone = [greedy(model, [p], batch_size=1, **settings)[0].ids for p in prompts]
    assert [c.ids for c in together] == alone
    assert len({tuple(ids) for ids in alone}) > 1


def test_a_model_with_a_sliding_window_decodes_prompts_of_any_width() -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.5,
    )
    model = transformers.MistralForCausalLM(config).eval()
    prompts = [list(range(5, 8 + n)) for n in (1, 40, 20)]
    settings = {"end_id": 0, "max_new_tokens": 6, "independent": False}
    with torch.no_grad():
        plain = [
            model.generate(
                torch.tensor([p]), do_sample=False, max_new_tokens=6, eos_token_id=0, pad_token_id=0
            )[0, len(p) :].tolist()
            for p in prompts
        ]
    together = greedy(model, prompts, batch_size=3, **settings)
    assert [c.ids + [0] * c.ended for c in together] == plain


@pytest.mark.parametrize("independent", [True, False])
def test_greedy_answers_come_back_in_the_prompts_order(model, independent: bool) -> None:
    prompts = [[5], [6, 7, 8], [9, 10]]
    together = greedy(
        model, prompts, end_id=0, max_new_tokens=5, batch_size=2, independent=independent
    )
    alone = [greedy(model, [p], end_id=0, max_new_tokens=5, batch_size=1)[0].ids for p in prompts]
    assert [c.ids for c in together] == alone


def test_codec_ends_responses_and_opens_the_assistants_turn() -> None:
    codec = Codec(tiny.tokenizer())
    ids = codec.prompt_ids([{"role": "user", "content": "hi"}], prefill="Sure")
    assert codec.tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>Sure"
    assert codec.response_ids("ok")[-1] == codec.end_id
    assert codec.decode(codec.response_ids(" ok ")) == "ok"


@pytest.mark.parametrize("name", ["/no/such/model", "./nothing", "a b c"])
def test_a_missing_model_directory_is_named_with_the_remedy(name) -> None:
    with pytest.raises(AaftError, match=r"policy.model: model directory .* does not exist; run"):
        locate_model(name)


def test_a_folder_that_exists_makes_its_missing_child_a_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_model("models/policy") == "models/policy"  # could be a hub id
    Path("models").mkdir()
    with pytest.raises(AaftError, match="does not exist"):
        locate_model("models/policy")


def test_an_adapter_round_trips_and_its_bytes_do_not_depend_on_set_order(tmp_path: Path) -> None:
    from aaft.config import LoraSettings
    from aaft.tuning.stage import add_lora

    base = tiny.save_policy(tmp_path / "base")
    device = torch.device("cpu")
    model = add_lora(load_policy(str(base), device, torch.float32), LoraSettings(r=2, alpha=4), 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    save_adapter(model, tmp_path / "adapter")
    merged = load_policy(str(tmp_path / "adapter"), device, torch.float32)
    x = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(merged(x).logits, model.eval()(x).logits, atol=1e-4)
    import json

    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert load_codec(str(base)).end_id == 0


def test_a_repetition_penalty_of_the_model_does_not_reach_the_rollouts() -> None:
    model = tiny.policy()
    model.generation_config.repetition_penalty = 1.8
    prompt = [5, 6, 5, 6]
    padded, mask, cache = prefill(model, [prompt])
    drawn = complete(
        model, padded, mask, cache, end_id=0, max_new_tokens=8, temperature=1.0, seeds=[[3]]
    )[0][0]
    ids = drawn.ids + [0] * drawn.ended
    assert drawn.logprob == pytest.approx(plain_logprob(model, prompt, ids), abs=1e-3)


def test_a_model_that_changes_its_logits_is_refused(model) -> None:
    check_logits(model)

    class Capped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.base_model = model.base_model

        def forward(self, input_ids):
            out = self.inner(input_ids)
            out.logits = torch.tanh(out.logits / 4) * 4
            return out

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

    with pytest.raises(AaftError, match="changes its logits"):
        check_logits(Capped())


def test_an_adapter_can_not_be_the_policy(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AaftError, match="is an adapter; merge it"):
        locate_policy(str(tmp_path))


def test_the_end_of_a_turn_is_the_templates_own_token() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|system|>"
    assert Codec(tokenizer).end_id == tokenizer.convert_tokens_to_ids("<|end|>")
