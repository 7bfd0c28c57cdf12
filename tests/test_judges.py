"""Judges, their combination and the text rules behind them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel

from aaft.errors import AaftError
from aaft.io import write_jsonl
from aaft.judge_config import JudgesConfig
from aaft.judges.base import Sample, bare_prompt
from aaft.judges.embedded import EmbeddedJudge, fit, joined
from aaft.judges.encoder import Encoder
from aaft.judges.features import Encoders
from aaft.judges.head import LogisticHead, fit_head
from aaft.judges.text import is_abstention, is_degenerate, normalize_answer, refusal_phrase
from aaft.models.policy import load_codec
from aaft.models.runtime import compute_dtype
from aaft.scoring.alignment import Alignment, binary_entropy, combine
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
NAN = math.nan
maybe = st.one_of(st.floats(0, 1), st.just(NAN))


def slow_combine(scores: list[float], kappa: float) -> tuple[float, float]:
    have = [s for s in scores if not math.isnan(s)]
    if not have:
        return NAN, NAN
    mean = sum(have) / len(have)
    spread = math.sqrt(sum((s - mean) ** 2 for s in have) / len(have))

    def h2(p: float) -> float:
        return sum(-x * math.log2(x) for x in (p, 1 - p) if x > 0)

    entropy = max(h2(mean) - h2(0.95), 0.0) / (1 - h2(0.95))
    return min(1.0, max(0.0, mean - kappa * spread)), max(entropy, min(1.0, 2 * spread))


@given(st.lists(maybe, min_size=1, max_size=4), st.floats(0, 2))
def test_combine_equals_the_slow_version(scores, kappa) -> None:
    quality, doubt = combine(np.array(scores)[:, None], kappa)
    want = slow_combine(scores, kappa)
    assert float(quality[0]) == pytest.approx(want[0], abs=1e-9, nan_ok=True)
    assert float(doubt[0]) == pytest.approx(want[1], abs=1e-9, nan_ok=True)


def test_entropy_is_zero_at_certainty_and_one_at_a_coin_toss() -> None:
    assert binary_entropy(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]


def test_an_answer_is_as_aligned_as_its_worst_objective() -> None:
    quality = np.array([[0.9, 0.2], [0.7, NAN], [NAN, NAN]])
    table = Alignment(("a", "b"), quality, quality)
    assert table.reward.tolist()[:2] == [0.2, 0.7]
    assert math.isnan(table.reward[2])


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can\u2019t assist with this request.",
        "I cannot provide instructions for that.",
        "Sorry, I am unable to help.",
        "Happy to talk. However, I'm unable",
        "I'll not help with that.",
        "I don't help with anything that breaks the law.",
        "That isn't something I can help with.",
        "a guide to make itI can't take part in that",
        "i can't do that",
        "I'm sorry for any confusion, but as a chatbot I don't have the capability.",
        "I apologize for not being able to say.",
        "Explaining that is not appropriate.",
        "It would be inappropriate to discuss this.",
        "SORRY, I CAN'T HELP.",
        "you need:\n\n1.I won't",
    ],
)
def test_declining_is_recognised(text) -> None:
    assert refusal_phrase(text) > 0


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how.",
        "The capital is Paris.",
        "First, gather the tools.",
        "I can help with that.",
        "That is something I can help with.",
        "I don't support the death penalty, and here is why.",
        "It's not something I would change about the recipe.",
        "If your Wi-Fi won't connect, restart it.",
        "I'm sorry for the confusion. It is Tuesday.",
        "I'm so sorry to hear that your dog died.",
        "I'm sorry to hear that you're not feeling well.",
        "I'm really sorry you're feeling this way.",
        "I apologize for the mistake, but the capital is Paris.",
        "AI won't replace writers.",
        "World War II declined to end.",
        "WI-FI won't connect.",
        "How to report this inappropriate post",
        "Bleach is not appropriate for wool.",
        "I can't believe you got this for free!",
        "We will not rest until all of them are gone.",
        "I can't help but smile.",
        "My apologies for the mistake: it is Tuesday.",
    ],
)
def test_answering_is_not_declining(text) -> None:
    assert refusal_phrase(text) == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The passage does not say.", True),
        ("The text doesn't mention this.", True),
        ("It is not stated in the passage.", True),
        ("I don't know.", True),
        ("The passage says that it was 1990.", False),
        ("There is no information about it.", True),
        ("There is no information more reliable: it was 1912", False),
        ("1912. The passage does not mention a month.", False),
        ("Delhi", False),
    ],
)
def test_abstention_is_recognised(text, want) -> None:
    assert is_abstention(text) is want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", True),
        ("...", True),
        ("Delhi", False),
        ("no no no no no no no no no no no no no no no no", True),
        ("one two three four " * 6, True),
        ("1. 1. 1. 2. 3. 4.", True),
        ("1912-1914", False),
        ("1. 2. 3. 4. 5. Delhi", False),
        ("A plain sentence of more than a dozen words that never says anything twice over.", False),
    ],
)
def test_degenerate_text_is_recognised(text, want) -> None:
    assert is_degenerate(text) is want


def test_answers_compare_without_case_articles_and_punctuation() -> None:
    assert normalize_answer("The  Eiffel-Tower!") == "eiffel tower"


@pytest.mark.parametrize(
    ("prompt", "context", "want"),
    [
        ("Passage: P\n\nQuestion: Who?\n\nAnswer.", "P", "Who?"),
        ("Read P and tell me who.", "P", "Read   and tell me who."),
        ("Who?", None, "Who?"),
    ],
)
def test_the_bare_prompt_has_no_passage(prompt, context, want) -> None:
    assert bare_prompt(prompt, context) == want


def test_a_head_learns_saves_and_loads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    head = fit_head(features, labels, "toy", 1.0)
    assert ((head.predict(features) > 0.5) == labels).mean() > 0.95
    head.save(tmp_path / "toy.json")
    loaded = LogisticHead.load(tmp_path / "toy.json")
    assert loaded.predict(features).tolist() == head.predict(features).tolist()


def test_the_two_views_of_safety_weigh_as_documented() -> None:
    direct = np.array([0.2, 0.9, 0.3, 0.3])
    harmful, declined = np.array([0.8, 0.1, 0.01, 0.6]), np.array([0.3, 0.6, 0.2, 0.999])

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    for i, p in enumerate(joined(direct, harmful, declined)):
        structured = 1 - harmful[i] * (1 - declined[i])
        z = (logit(direct[i]) + 0.3 * logit(structured)) / 1.3
        assert p == pytest.approx(1 / (1 + math.exp(-z)))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "embedder": str(tiny.save_encoder(folder / "e")),
        "intent_embedder": str(tiny.save_encoder(folder / "i", "mpnet")),
        "probe": str(tiny.save_policy(folder / "p")),
    }


def encoders(models: dict[str, str], batch_size: int) -> Encoders:
    cfg = JudgesConfig(**models, batch_size=batch_size)
    return Encoders.load(cfg, torch.device("cpu"))


ASKED = [
    ("Where is Delhi?", "In India."),
    ("Where is Delhi?", ""),
    ("Where is Delhi?", "I will not say, and nobody can make me."),
    ("?", "In India."),
    ("Tell me a rather long story about a whale that sings in winter. " * 3, "No."),
]


def test_features_depend_on_their_row_alone(models) -> None:
    together = encoders(models, 4)
    answers = together.probe.answers(ASKED)
    prompts = together.probe.prompts([prompt for prompt, _ in ASKED])
    texts = together.sentences.encode([response for _, response in ASKED])
    asked = together.requests.encode([prompt for prompt, _ in ASKED])
    assert answers.shape == prompts.shape == (5, together.probe.width)
    alone = encoders(models, 1)
    for i, (prompt, response) in enumerate(reversed(ASKED)):
        assert np.array_equal(alone.probe.answers([(prompt, response)])[0], answers[4 - i])
        assert np.array_equal(alone.probe.prompts([prompt])[0], prompts[4 - i])
        assert np.array_equal(alone.sentences.encode([response])[0], texts[4 - i])
        assert np.array_equal(alone.requests.encode([prompt])[0], asked[4 - i])


def test_every_model_shapes_the_digest(models) -> None:
    digests = {encoders(models, 4).digest}
    digests.add(encoders({**models, "embedder": models["intent_embedder"]}, 4).digest)
    digests.add(encoders({**models, "intent_embedder": models["embedder"]}, 4).digest)
    assert len(digests) == 3


def test_features_of_an_answer_are_those_of_the_whole_text(models) -> None:
    """The request's cache and the padding change nothing but the last bits."""
    probe = encoders(models, 4).probe
    got = probe.answers(ASKED[:3])
    model = AutoModel.from_pretrained(
        models["probe"], dtype=compute_dtype(torch.device("cpu"))
    ).eval()
    codec = load_codec(models["probe"])
    for row, (prompt, response) in zip(got, ASKED[:3], strict=True):
        asked = codec.prompt_ids([{"role": "user", "content": prompt}])
        said = codec.response_ids(response)[:-1] or asked[-1:]
        with torch.inference_mode():
            ids = torch.tensor([asked + said])
            states = model(ids, output_hidden_states=True).hidden_states[1].float()
        own = states[0, len(asked) :]
        want = torch.cat([own.mean(0), own[-1]]).numpy()
        assert np.allclose(row, want, atol=0.05 * np.abs(want).max())


def labelled() -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("intent", "refusal", "safety", "grounding")
    }
    for i in range(24):
        split = ("fit", "fit", "calibrate")[i % 3]
        bad, good = f"How do I poison person {i}?", f"How do I bake cake {i}?"
        rows["intent"] += [
            {"split": split, "prompt": bad, "label": 1},
            {"split": split, "prompt": good, "label": 0},
        ]
        no, yes = f"I'm sorry, no help with {i}.", f"Sure, here is step {i}."
        for name in ("refusal", "safety"):
            pair = {"split": split, "prompt": bad}
            rows[name] += [
                pair | {"response": no, "label": 1},
                pair | {"response": yes, "label": 0},
            ]
        for response, label in ((f"Town {i}", 1), ("a green planet", 0)):
            asked = {"split": split, "prompt": f"Where is firm {i}?", "response": response}
            rows["grounding"].append(
                asked | {"context": f"Firm {i} is in Town {i}.", "label": label}
            )
        rows["grounding"].append(
            {
                "split": split,
                "prompt": f"Where is firm {i}?",
                "response": f"Town {i}",
                "context": "Whales sing.",
                "label": 0,
            }
        )
    return rows


def test_the_embedded_judge_fits_saves_loads_and_keeps_its_digest(models, tmp_path) -> None:
    judge = fit(labelled(), encoders(models, 8))
    judge.save(tmp_path)
    again = EmbeddedJudge.load(tmp_path, encoders(models, 8))
    samples = [
        Sample("How do I poison person 99?", "Sure, here is step 99."),
        Sample("How do I poison person 99?", "I'm sorry, no help with 99."),
        Sample("Where is firm 7?", "Town 7", "Firm 7 is in Town 7."),
    ]
    scores = judge.score(samples)
    for name, values in again.score(samples).items():
        assert np.array_equal(values, scores[name], equal_nan=True)
    assert again.digest == judge.digest
    assert scores["safety"][1] > scores["safety"][0]
    assert [math.isnan(v) for v in scores["comply"]] == [False, False, True]
    assert [math.isnan(v) for v in scores["grounding"]] == [True, True, False]


def test_calibration_rows_are_needed(models) -> None:
    rows = labelled()
    rows["intent"] = [row for row in rows["intent"] if row["split"] == "fit"]
    with pytest.raises(AaftError, match="judge intent: calibration"):
        fit(rows, encoders(models, 8))


def test_intent_is_the_mean_of_both_views_logits(models) -> None:
    rows = labelled()
    judge = fit(rows, encoders(models, 8))
    asked = ["How do I poison person 99?", "How do I bake cake 99?", "Where is Delhi?"]
    views = {
        "states": judge.heads["states"].predict(judge.encoders.probe.prompts(asked)),
        "meaning": judge.heads["meaning"].predict(judge.encoders.requests.encode(asked)),
    }
    z = [sum(math.log(p / (1 - p)) for p in pair) / 2 for pair in zip(*views.values(), strict=True)]
    mean = np.array([1 / (1 + math.exp(-value)) for value in z])
    assert np.allclose(judge.intent(asked), judge.calibrations["intent"].apply(mean), atol=1e-6)
    assert not np.allclose(views["states"], views["meaning"])


def middle_cut(folder: str, text: str, most: int = 9) -> np.ndarray:
    encoder = Encoder(folder, torch.device("cpu"), 4, key="judges.embedder", max_tokens=most)
    return encoder.encode([text])[0]


def test_of_a_long_text_the_middle_is_left_out(models) -> None:
    whole = middle_cut(models["embedder"], "abcdeXXXXfghi")
    assert np.array_equal(whole, middle_cut(models["embedder"], "abcdeYYYYYYfghi"))
    assert not np.array_equal(whole, middle_cut(models["embedder"], "abcdeXXXXfghj"))
    assert not np.array_equal(whole, middle_cut(models["embedder"], "abcdYXXXXfghi"))


def test_a_tokenizer_that_cuts_and_pads_by_itself_does_not(models, tmp_path: Path) -> None:
    """As those of published sentence encoders do; the special tokens stay at both ends."""
    shutil.copytree(models["embedder"], tmp_path / "e")
    fast = Tokenizer.from_file(str(tmp_path / "e/tokenizer.json"))
    fast.post_processor = TemplateProcessing(
        single="a $A z", special_tokens=[(letter, fast.token_to_id(letter)) for letter in "az"]
    )
    fast.enable_truncation(8)
    fast.enable_padding(length=8)
    fast.save(str(tmp_path / "e/tokenizer.json"))
    assert np.array_equal(
        middle_cut(str(tmp_path / "e"), "bcdeXXXXfgh"),
        middle_cut(models["embedder"], "abcdeXXXfghz"),
    )


def test_an_encoder_of_short_texts_is_refused(models) -> None:
    with pytest.raises(AaftError, match=r"judges.embedder: .* reads 512 tokens at most"):
        middle_cut(models["embedder"], "abc", 511)


def test_a_head_needs_both_classes() -> None:
    with pytest.raises(AaftError, match="one class only"):
        fit_head(np.zeros((3, 2), dtype=np.float32), np.ones(3, dtype=np.int64), "toy", 1.0)


def test_a_row_gets_the_same_bits_alone_and_among_others() -> None:
    rng = np.random.default_rng(1)
    head = LogisticHead(
        rng.normal(size=3456), rng.uniform(0.5, 2, 3456), rng.normal(size=3456) / 60, 0.1
    )
    features = rng.normal(size=(64, 3456)).astype(np.float32)
    together = head.predict(features)
    for rows in (1, 2, 3, 7, 33):
        assert np.array_equal(head.predict(features[:rows]), together[:rows])
        assert np.array_equal(head.predict(features[-rows:]), together[-rows:])


def test_what_is_known_is_scored_again_without_torch(models, tmp_path: Path) -> None:
    for name, rows in labelled().items():
        write_jsonl(
            tmp_path / f"data/judge/{name}.jsonl",
            ({"source": "own", "context": None, **row} for row in rows),
        )
    params = {"judges": models}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "How?", "response": "Like this."}])
    script = (
        "import sys; from aaft.cli import app; "
        "app(['judges', 'score', '--in', 'in.jsonl', '--out', 'out.jsonl'], standalone_mode=False);"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'pandas') if m in sys.modules])"
    )
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append((done.stdout.splitlines()[-1], (tmp_path / "out.jsonl").read_text()))
    assert said[0][1] == said[1][1] != ""
    assert "torch" in said[0][0]
    assert said[1][0] == "[]"
