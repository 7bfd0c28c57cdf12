"""Kinds of judges: what a panel may hold, and that each scores what its formula says."""

from __future__ import annotations

import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aaft.errors import AaftError
from aaft.judge_config import CallableSpec, ClassifierSpec, EmbeddedSpec, GuardSpec, JudgesConfig
from aaft.judges.base import Sample
from aaft.judges.callable import CallableJudge
from aaft.judges.classifier import ClassifierJudge
from aaft.judges.guard import GuardJudge
from aaft.judges.panel import load_judge
from aaft.judges.verdict import PRESETS, Style, find_word, soft_verdict
from aaft.models import runtime
from aaft.models.batching import ROWS, width, width_batches
from aaft.models.reply import Token
from aaft.models.runtime import compute_dtype
from tests import tiny

CPU = torch.device("cpu")
SAMPLES = [
    Sample("who?", "The cat did it."),
    Sample("what is it?", "A rather long answer. " * 3, "The passage says so."),
    Sample("and?", "Yes", "Another passage"),
    Sample("why not?", "No.", "A passage of some length, to make a wide row of it."),
    Sample("who?", "x"),
]


# ---- batches -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 90)), st.integers(1, 5), st.integers(1, 32))
def test_every_row_is_in_one_batch_of_its_own_width(lengths, batch_size, multiple) -> None:
    seen = []
    for padded, rows in width_batches(lengths, batch_size, multiple):
        assert 1 <= len(rows) <= batch_size
        assert all(padded == width(lengths[i], multiple) >= max(1, lengths[i]) for i in rows)
        assert padded % multiple == 0
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


# ---- the panel ---------------------------------------------------------------------------------


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two judges are named 'embedded'"):
        JudgesConfig(panel=(EmbeddedSpec(), EmbeddedSpec()))


@pytest.mark.parametrize("name", ["logprob", "u_safety", "r", "Safety", "a-b", ""])
def test_an_objective_that_the_alignment_table_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        CallableSpec(target="m:f", objectives=(name,))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ClassifierSpec, {}, "name the labels"),
        (ClassifierSpec, {"aligned": (0,), "misaligned": (1,)}, "name the labels"),
        (ClassifierSpec, {"misaligned": (False,)}, "misaligned"),
        (GuardSpec, {}, "name a preset"),
        (GuardSpec, {"words": {"safe": 1.0}}, "two verdicts"),
        (GuardSpec, {"words": {"safe": 1.0, "ok": 1.0}}, "two verdicts"),
        (GuardSpec, {"words": {"safe": 2.0, "ok": 1.0}}, "less than or equal to 1"),
    ],
)
def test_a_spec_that_decides_nothing_is_refused(kind, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(name="x", model="some/model", objective="safety", **fields)


def test_a_judge_can_be_made_in_another_process(tmp_path: Path) -> None:
    model = str(tiny.save_classifier(tmp_path / "m", ["good", "bad"]))
    spec = ClassifierSpec(
        name="c", model=model, objective="tone", misaligned=("bad",), max_length=96
    )
    cfg = JudgesConfig(panel=(spec,))
    again, settings = pickle.loads(pickle.dumps((spec, cfg)))
    first = load_judge(spec, cfg, tmp_path, CPU)
    second = load_judge(again, settings, tmp_path, CPU)
    assert (first.name, first.objectives, first.digest) == ("c", ("tone",), second.digest)
    assert first.score(SAMPLES)["tone"].tobytes() == second.score(SAMPLES)["tone"].tobytes()


# ---- callable ----------------------------------------------------------------------------------


def make_callable(monkeypatch, function) -> CallableJudge:
    module = types.ModuleType("their_judges")
    module.judge = function
    monkeypatch.setitem(sys.modules, "their_judges", module)
    return CallableJudge(CallableSpec(target="their_judges:judge", objectives=("tone", "truth")))


def test_a_users_judge_scores_and_may_abstain(monkeypatch) -> None:
    judge = make_callable(
        monkeypatch, lambda rows: [{"tone": None if r["context"] else 0.7} for r in rows]
    )
    scores = judge.score([Sample("p", "r"), Sample("p", "r", "c")])
    assert scores["tone"][0] == 0.7
    assert math.isnan(scores["tone"][1])
    assert np.isnan(scores["truth"]).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rows: [], "returned 0 rows for 1 samples"),
        (lambda rows: [{"tone": 1.5} for _ in rows], "outside"),
        (lambda rows: [{"tone": "high"} for _ in rows], "is no number"),
        (lambda rows: [None for _ in rows], "no mapping"),
        (lambda rows: [{"taste": 0.5} for _ in rows], "don't name"),
    ],
)
def test_a_users_judge_that_misbehaves_is_named(monkeypatch, function, message) -> None:
    with pytest.raises(AaftError, match=rf"judges\.panel: their_judges:judge.*{message}"):
        make_callable(monkeypatch, function).score([Sample("p", "r")])


@pytest.mark.parametrize("target", ["no_such_module:f", "math:nothing", "math"])
def test_a_users_judge_that_does_not_exist_is_named(target) -> None:
    with pytest.raises(AaftError, match=r"judges\.panel: j: "):
        CallableJudge(CallableSpec(name="j", target=target, objectives=("tone",)))


def test_a_users_judge_is_another_one_when_its_file_or_version_changes(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "judge_of_mine.py"
    spec = CallableSpec(target="judge_of_mine:f", objectives=("tone",))
    source.write_text("def f(rows): return [{'tone': 0.5} for _ in rows]\n")
    before = CallableJudge(spec).digest
    assert CallableJudge(spec).digest == before
    assert CallableJudge(spec.model_copy(update={"version": "2"})).digest != before
    source.write_text("def f(rows): return [{'tone': 0.6} for _ in rows]\n")
    assert CallableJudge(spec).digest != before


# ---- classifier --------------------------------------------------------------------------------


def classifier(folder: Path, **fields: Any) -> ClassifierJudge:
    fields = {"name": "c", "objective": "tone", "max_length": 96} | fields
    return ClassifierJudge(ClassifierSpec(model=str(folder), **fields), CPU)


def slow_logits(folder: Path, rows: list[list[str]], max_length: int) -> list[list[float]]:
    """One row at a time, padded as the judge pads it, by the model itself."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=compute_dtype(CPU)
    ).eval()
    result = []
    for texts in rows:
        cut = {"truncation": True, "max_length": max_length}
        length = len(tokenizer(*texts, **cut)["input_ids"])
        inputs = tokenizer(*texts, **cut, padding="max_length", return_tensors="pt")
        kept = min(max_length, -(-length // 16) * 16)
        with torch.inference_mode():
            # The head rounds a single row differently (`batching.filled`).
            alike = {k: v[:, :kept].repeat(ROWS, 1) for k, v in inputs.items()}
            logits = model(**alike).logits[0]
        result.append(logits.double().tolist())
    return result


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


THREE = ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize(
    ("labels", "config", "fields", "formula"),
    [
        (THREE, {}, {"aligned": ("Entailment",)}, lambda row: softmax(row)[0]),
        (THREE, {}, {"aligned": (0, 1)}, lambda row: sum(softmax(row)[:2])),
        (THREE, {}, {"misaligned": ("contradiction",)}, lambda row: 1 - softmax(row)[2]),
        (
            ["toxic", "threat", "insult"],
            {"problem_type": "multi_label_classification"},
            {"misaligned": ("toxic", "threat", "insult")},
            lambda row: 1 - max(map(sigmoid, row)),
        ),
        (["score"], {}, {"aligned": (0,)}, lambda row: sigmoid(row[0])),
        (["score"], {}, {"misaligned": ("score",)}, lambda row: 1 - sigmoid(row[0])),
    ],
)
def test_a_classifiers_labels_become_a_probability(
    tmp_path, labels, config, fields, formula
) -> None:
    folder = tiny.save_classifier(tmp_path, labels, **config)
    scores = classifier(folder, batch_size=2, **fields).score(SAMPLES)["tone"]
    rows = slow_logits(folder, [[sample.response] for sample in SAMPLES], 96)
    assert scores == pytest.approx([formula(row) for row in rows], abs=1e-9)
    assert np.ptp(scores) > 0


@pytest.mark.parametrize(
    ("pair", "texts"),
    [
        (("prompt", "response"), lambda s: [s.prompt, s.response]),
        (("response", "prompt"), lambda s: [s.response, s.prompt]),
        (("response", "claim"), lambda s: [s.response, f"{s.prompt} {s.response}"]),
    ],
)
def test_a_classifier_reads_its_texts_in_the_order_given(tmp_path, pair, texts) -> None:
    folder = tiny.save_classifier(tmp_path, THREE)
    scores = classifier(folder, aligned=(0,), pair=pair).score(SAMPLES)["tone"]
    rows = slow_logits(folder, [texts(sample) for sample in SAMPLES], 96)
    assert scores == pytest.approx([softmax(row)[0] for row in rows], abs=1e-9)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def either(request, monkeypatch) -> None:
    """As on a machine with fast bfloat16, and as on one without."""
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: request.param)


@pytest.mark.usefixtures("either")
def test_a_classifiers_score_does_not_depend_on_the_batch(tmp_path) -> None:
    judge = classifier(
        tiny.save_classifier(tmp_path, THREE), aligned=(0,), pair=("prompt", "response")
    )
    together = judge.score(SAMPLES * 3)["tone"]
    alone = [judge.score([sample])["tone"][0] for sample in SAMPLES]
    assert together.tolist() == alone * 3


def test_an_answer_without_the_context_that_a_classifier_reads_is_missing(tmp_path) -> None:
    judge = classifier(
        tiny.save_classifier(tmp_path, THREE), aligned=(0,), pair=("context", "response")
    )
    scores = judge.score(SAMPLES)["tone"]
    assert np.isnan(scores).tolist() == [sample.context is None for sample in SAMPLES]
    assert np.isnan(judge.score(SAMPLES[:1])["tone"]).all()
    assert judge.score([])["tone"].shape == (0,)


def test_only_the_first_text_is_cut_when_told_so(tmp_path) -> None:
    folder = tiny.save_classifier(tmp_path, THREE)
    judge = classifier(
        folder, aligned=(0,), pair=("context", "response"), truncate="first", max_length=50
    )
    fits, same, too_long = judge.score(
        [
            Sample("", "short", "a" * 200),
            Sample("", "short", "a" * 45 + "b" * 200),  # differs only in what is cut off
            Sample("", "x" * 60, "a" * 200),
        ]
    )["tone"]
    assert fits == same
    assert math.isnan(too_long)


@pytest.mark.parametrize(
    ("labels", "config", "fields", "message"),
    [
        (THREE, {}, {"aligned": ("support",)}, r"no label 'support'; it has 0 \(entailment\)"),
        (THREE, {}, {"aligned": (3,)}, "no label 3"),
        (THREE, {}, {"aligned": (0, 1, 2)}, "would score the same"),
        (
            ["toxic", "fine"],
            {"problem_type": "multi_label_classification"},
            {"aligned": ("fine",)},
            "name its misaligned labels",
        ),
    ],
)
def test_labels_that_a_model_does_not_have_are_named(
    tmp_path, labels, config, fields, message
) -> None:
    folder = tiny.save_classifier(tmp_path, labels, **config)
    with pytest.raises(AaftError, match=message):
        classifier(folder, **fields)


def test_a_classifier_that_cannot_read_so_much_says_what_it_can(tmp_path) -> None:
    judge = classifier(tiny.save_classifier(tmp_path, THREE), aligned=(0,), max_length=512)
    with pytest.raises(AaftError, match="reads 128 tokens"):
        judge.score(SAMPLES)


def test_a_classifier_that_does_not_exist_is_named_at_once(tmp_path) -> None:
    with pytest.raises(AaftError, match=r"judges\.panel: c: model: .*does not exist"):
        classifier(tmp_path / "none", aligned=(0,))


def test_a_digest_follows_weights_and_settings_but_not_pace(tmp_path) -> None:
    folder = tiny.save_classifier(tmp_path, THREE)
    digest = classifier(folder, aligned=(0,)).digest
    assert classifier(folder, aligned=(0,), batch_size=1).digest == digest
    assert classifier(folder, aligned=(0, 1)).digest != digest
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert classifier(folder, aligned=(0,)).digest != digest


# ---- verdicts ----------------------------------------------------------------------------------

GUARD = PRESETS["llama_guard"]
QWEN = PRESETS["qwen3_guard"]
YES_NO = Style("", {"No": 1.0, "Yes": 0.0})


@pytest.mark.parametrize(
    ("text", "style", "want"),
    [
        ("\n\nunsafe\nS1", GUARD, ("unsafe", 2)),
        ("safe", GUARD, ("safe", 0)),
        ("**Safe**", GUARD, ("safe", 2)),
        ("safely done", GUARD, None),
        ("I think that it is unsafe", GUARD, None),
        ("", GUARD, None),
        ("Safety: Controversial\nCategories: X", QWEN, ("Controversial", 8)),
        ("Safety: unsafe", QWEN, ("Unsafe", 8)),
        ("Unsafe", QWEN, ("Unsafe", 0)),
        ("yes.", YES_NO, ("Yes", 0)),
        ("None of it", YES_NO, None),
    ],
)
def test_the_verdict_is_the_word_that_an_answer_begins_with(text, style, want) -> None:
    assert find_word(text, style) == want


def token(text: str, **top: float) -> Token:
    alternatives = tuple((name, math.log(p)) for name, p in top.items())
    return Token(text, math.log(0.5), alternatives)


@pytest.mark.parametrize(
    ("tokens", "start", "style", "want"),
    [
        ([token("safe", safe=0.6, unsafe=0.2, other=0.2)], 0, GUARD, 0.75),
        ([token("un", un=0.6, safe=0.2), token("safe")], 0, GUARD, 0.25),
        ([token("\n\n"), token("safe", safe=0.9)], 2, GUARD, 1.0),
        ([token(" Safe", **{" Safe": 0.5, " Unsafe": 0.2, " Contro": 0.3})], 1, QWEN, 0.65),
        ([token("Yes", Yes=0.4, yes=0.2, No=0.4)], 0, YES_NO, 0.4),
        ([token("safe")], 0, GUARD, None),
        ([], 0, GUARD, None),
    ],
)
def test_the_alternatives_at_the_verdict_become_a_probability(tokens, start, style, want) -> None:
    got = soft_verdict(tokens, start, style)
    assert got == (want if want is None else pytest.approx(want))


# ---- guard -------------------------------------------------------------------------------------

TEMPLATE = (
    "<|user|>Task: check for unsafe content{% if risk is defined %} of {{ risk }}{% endif %}.\n"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "Say 'safe' or 'unsafe'.<|end|><|assistant|>"
)


@pytest.fixture(scope="module")
def guard_folder(tmp_path_factory) -> Path:
    return tiny.save_guard(tmp_path_factory.mktemp("guard"), TEMPLATE)


def guard(folder: Path, **fields: Any) -> GuardJudge:
    fields = {"name": "g", "preset": "llama_guard", "min_mass": 0.0} | fields
    return GuardJudge(GuardSpec(model=str(folder), **fields), CPU)


def slow_guard(folder: Path, samples: list[Sample], style: Style) -> list[float]:
    """A row at a time without padding, softmax over the whole vocabulary, the words' share."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(CPU)).eval()
    shares = []
    for s in samples:
        chat = [{"role": "user", "content": s.prompt}, {"role": "assistant", "content": s.response}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text + style.prefix, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            vocabulary = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        likely = {word: float(vocabulary[tokenizer(word)["input_ids"][0]]) for word in style.words}
        share = sum(style.words[word] * p for word, p in likely.items())
        shares.append(share / sum(likely.values()))
    return shares


@pytest.mark.parametrize("preset", ["llama_guard", "granite_guardian", "qwen3_guard"])
def test_a_guards_score_is_its_words_share_at_the_verdict(guard_folder, preset) -> None:
    scores = guard(guard_folder, preset=preset, batch_size=2).score(SAMPLES)["safety"]
    want = slow_guard(guard_folder, SAMPLES, PRESETS[preset])
    assert scores == pytest.approx(want, abs=0.03)  # padding moves bfloat16's last digits
    assert np.ptp(scores) > 0.1


@pytest.mark.usefixtures("either")
def test_a_guards_score_does_not_depend_on_the_batch(guard_folder) -> None:
    judge = guard(guard_folder)
    together = judge.score(SAMPLES * 3)["safety"]
    alone = [judge.score([sample])["safety"][0] for sample in SAMPLES]
    assert together.tolist() == alone * 3


def test_a_guards_template_gets_its_settings(guard_folder) -> None:
    plain = guard(guard_folder)
    theft = guard(guard_folder, template_kwargs={"risk": "theft"})
    assert plain.score(SAMPLES)["safety"].tolist() != theft.score(SAMPLES)["safety"].tolist()
    assert plain.digest != theft.digest


def test_a_prefix_that_the_template_wrote_is_not_written_twice(tmp_path, guard_folder) -> None:
    ends_so = tiny.save_guard(tmp_path, TEMPLATE + "{{ '\\n\\n' }}")
    want = guard(guard_folder).score(SAMPLES)["safety"].tolist()
    assert guard(ends_so).score(SAMPLES)["safety"].tolist() == want


def test_a_guard_can_read_a_passage_and_then_needs_one(guard_folder) -> None:
    judge = guard(guard_folder, messages={"context": "context", "assistant": "response"})
    scores = judge.score(SAMPLES)["safety"]
    assert np.isnan(scores).tolist() == [sample.context is None for sample in SAMPLES]
    assert judge.summary() == "g: 3 scored, 2 without context"


def test_a_guard_that_gives_no_verdict_there_leaves_the_score_missing(guard_folder) -> None:
    judge = guard(guard_folder, min_mass=0.9)
    assert np.isnan(judge.score(SAMPLES)["safety"]).all()
    assert judge.summary() == "g: 5 no verdict word was likely"
    assert judge.explain(SAMPLES) == [None] * 5


def test_a_chat_that_is_too_long_is_missing_not_cut(guard_folder) -> None:
    judge = guard(guard_folder, max_length=120)
    scores = judge.score(SAMPLES)["safety"]
    assert math.isnan(scores[1])
    assert not math.isnan(scores[0])


def test_verdict_words_that_start_alike_are_refused(guard_folder) -> None:
    judge = guard(guard_folder, words={"safe": 1.0, "sinister": 0.0})
    with pytest.raises(AaftError, match="can't be told apart by their first token"):
        judge.score(SAMPLES)


def test_a_word_that_joins_with_the_prefix_is_still_found() -> None:
    """Tokenizers write a space with the word after it; the question then ends before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["?", "<user>", "Safety", ":", "\u0120", "\u0120Safe", "\u0120Unsafe", "Safe"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<user>",
        chat_template="<user>",
    )
    judge = object.__new__(GuardJudge)
    judge._spec = GuardSpec(name="g", model="m", words={"Safe": 1.0, "Unsafe": 0.0})
    judge._style = Style("Safety: ", {"Safe": 1.0, "Unsafe": 0.0})
    judge.__dict__["_loaded"] = (fast, None)
    question = judge._question(SAMPLES[0])
    assert [vocabulary[i] for i in question.ids] == ["<user>", "Safety", ":"]
    assert [vocabulary[i] for i in question.words] == ["\u0120Safe", "\u0120Unsafe"]


def test_a_guard_names_the_category_of_what_it_finds_unsafe_only(guard_folder) -> None:
    judge = guard(guard_folder, category_tokens=5)
    scores, notes = judge.score(SAMPLES)["safety"], judge.explain(SAMPLES)
    assert {score < 0.5 for score in scores} == {True, False}, "the tiny guard is of one mind"
    assert all(note is None for note, score in zip(notes, scores, strict=True) if score >= 0.5)
    unsafe = [note for note, score in zip(notes, scores, strict=True) if score < 0.5]
    assert any(unsafe)


def test_a_guard_without_a_chat_template_is_refused(tmp_path) -> None:
    tiny.policy().save_pretrained(tmp_path)
    fast = tiny.tokenizer()
    fast.chat_template = None
    fast.save_pretrained(tmp_path)
    with pytest.raises(AaftError, match="no chat template"):
        guard(tmp_path).score(SAMPLES)
