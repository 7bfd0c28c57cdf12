"""Throughput of judging, rollouts and the cache, each against the plain way: ``make bench``.

    python scripts/bench_judges.py --rows 10000

Prints one JSON line. Ratios within one run are what to compare; times are noisy.

judge     pairs a second of the embedded judge, against the same features computed plainly:
          sentence-transformers in fp32 (``sentences_only`` is that alone) and transformers in fp32
          with all hidden states, rows in file order, 32 at a time
rollouts  tokens a second against ``generate`` in fp32, 8 prompts at a time
cache     seconds of ``aaft judges score`` on ``--rows`` pairs: fresh, known already, 1% more
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from aaft.config import Config, load_config
from aaft.data.records import Record, load_records
from aaft.io import write_jsonl
from aaft.judges.base import Sample, bare_prompt
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.features import MAX_REQUEST, Encoders
from aaft.judges.fitted import fitted_heads
from aaft.models import runtime
from aaft.models.policy import load_codec, load_frozen, load_policy
from aaft.scoring.rollouts import roll_out, tokenize

PAIRS = 600
PROMPTS = 128
PLAIN_PROMPTS = 32


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cfg = load_config()
    records = load_records(cfg.data)
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    figures = {
        "judge": judging(cfg, records, device, options.repeats),
        "rollouts": rollouts(cfg, records, device, options.repeats),
        "cache": caching(cfg, records, options.rows),
    }
    print(json.dumps(figures))


def judging(
    cfg: Config, records: list[Record], device: torch.device, repeats: int
) -> dict[str, float]:
    """Pairs a second."""
    samples = pairs(records, PAIRS)
    heads = fitted_heads(cfg, device)

    def ours() -> None:
        EmbeddedJudge.load(heads, Encoders.load(cfg.judges, device)).score(samples)

    sentences = plain_sentences(cfg, samples)
    states = plain_states(cfg, samples)
    took = {
        "ours": median(ours, repeats),
        "sentences": median(sentences, 1),
        "states": median(states, 1),
    }
    rate = PAIRS / took["ours"]
    return {
        "pairs_per_second": round(rate, 1),
        "plain_pairs_per_second": round(PAIRS / (took["sentences"] + took["states"]), 1),
        "ratio": round((took["sentences"] + took["states"]) / took["ours"], 2),
        "ratio_to_sentences_only": round(took["sentences"] / took["ours"], 2),
    }


def plain_sentences(cfg: Config, samples: list[Sample]) -> Callable[[], None]:
    """Request, answer, both and passage of each row, encoded in fp32 in the order of the file."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    def plain(name: str) -> SentenceTransformer:
        word = Transformer(name)
        return SentenceTransformer(modules=[word, Pooling(word.get_embedding_dimension())])

    model, larger = plain(cfg.judges.embedder), plain(cfg.judges.intent_embedder)
    larger.max_seq_length = MAX_REQUEST  # as much of a request as ours reads

    def run() -> None:
        for start in range(0, len(samples), 32):
            for s in (samples[start : start + 32],):
                larger.encode([x.prompt for x in s])
                model.encode([x.prompt for x in s])
                model.encode([x.response for x in s])
                grounded = [x for x in s if x.context is not None]
                if grounded:
                    model.encode([f"{x.prompt} {x.response}" for x in grounded])
                    model.encode([x.context for x in grounded])

    return run


def plain_states(cfg: Config, samples: list[Sample]) -> Callable[[], None]:
    """All hidden states of the probe's model in fp32, rows in the order of the file."""
    codec = load_codec(cfg.judges.probe)
    model = load_policy(cfg.judges.probe, torch.device("cpu"), torch.float32)
    codec.tokenizer.padding_side = "right"

    def run() -> None:
        for start in range(0, len(samples), 32):
            texts = [
                codec.tokenizer.apply_chat_template(
                    [
                        {"role": "user", "content": s.prompt},
                        {"role": "assistant", "content": s.response},
                    ],
                    tokenize=False,
                )
                for s in samples[start : start + 32]
            ]
            inputs = codec.tokenizer(
                texts, return_tensors="pt", padding=True, truncation=True, max_length=256
            )
            with torch.inference_mode():
                model.base_model(**inputs, output_hidden_states=True)

    return run


def rollouts(
    cfg: Config, records: list[Record], device: torch.device, repeats: int
) -> dict[str, float]:
    """New tokens a second, the end token included."""
    codec = load_codec(cfg.policy.model)
    asked = tokenize(codec, records[:PROMPTS], cfg.score, cfg.policy.max_tokens)
    model = load_frozen(cfg.policy.model, device)
    made: list[int] = []

    def ours() -> None:
        found = roll_out(model, codec, asked, cfg.score, cfg.seed)
        made.append(sum(len(c.token_ids) for row in found for c in row[1:]))

    seconds = median(ours, repeats)
    rate = made[0] / seconds
    plain = load_policy(cfg.policy.model, device, torch.float32)
    codec.tokenizer.padding_side = "left"
    tokens = 0
    began = time.perf_counter()
    for start in range(0, PLAIN_PROMPTS, 8):
        batch = [{"input_ids": a.prompt_ids} for a in asked[start : start + 8]]
        inputs = codec.tokenizer.pad(batch, return_tensors="pt").to(device)
        out = plain.generate(
            **inputs,
            do_sample=True,
            temperature=cfg.score.temperature,
            top_k=0,
            max_new_tokens=cfg.score.max_new_tokens,
            num_return_sequences=cfg.score.rollouts,
            eos_token_id=codec.end_id,
            pad_token_id=codec.end_id,
        )[:, inputs["input_ids"].shape[1] :]
        # Everything after the first end token is padding.
        ended = (out == codec.end_id).cumsum(1)
        tokens += int(((ended == 0) | ((ended == 1) & (out == codec.end_id))).sum())
    plain_rate = tokens / (time.perf_counter() - began)
    return {
        "tokens_per_second": round(rate, 1),
        "plain_tokens_per_second": round(plain_rate, 1),
        "ratio": round(rate / plain_rate, 2),
    }


def caching(cfg: Config, records: list[Record], rows: int) -> dict[str, float]:
    """Whole-process seconds of ``aaft judges score`` with an empty, a full and a nearly full cache.

    The heads are fitted before the clock starts.
    """
    samples = pairs(records, rows + rows // 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = yaml.safe_load(Path("params.yaml").read_text())
        raw["score"]["cache"] = str(folder / "cache")
        params = folder / "params.yaml"
        params.write_text(yaml.safe_dump(raw))
        heads = fitted_heads(cfg, torch.device("cpu"))
        (folder / "cache" / "judges").mkdir(parents=True)
        (folder / "cache" / "judges" / heads.name).symlink_to(heads.resolve())
        write_jsonl(folder / "in.jsonl", (vars(s) for s in samples[:rows]))
        # The new rows stand among the old ones.
        more = sorted(range(len(samples)), key=lambda i: (i * 7919) % len(samples))
        write_jsonl(folder / "more.jsonl", (vars(samples[i]) for i in more))
        took = {
            key: score(params, folder / source, folder / f"{key}.jsonl")
            for key, source in (
                ("fresh", "in.jsonl"),
                ("known", "in.jsonl"),
                ("one_percent_more", "more.jsonl"),
            )
        }
        same = (folder / "fresh.jsonl").read_bytes() == (folder / "known.jsonl").read_bytes()
    if not same:
        raise SystemExit("the cached run differs from the fresh one")
    share = (took["one_percent_more"] - took["known"]) / took["fresh"]
    return {
        **{key: round(value, 2) for key, value in took.items()},
        "rows": rows,
        "one_percent_share": round(took["one_percent_more"] / took["fresh"], 4),
        "one_percent_share_beyond_known": round(share, 4),
    }


def score(params: Path, source: Path, out: Path) -> float:
    """Seconds of one process."""
    command = [sys.executable, "-m", "aaft", "judges", "score", "--params", str(params)]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--in", str(source), "--out", str(out)], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def pairs(records: list[Record], count: int) -> list[Sample]:
    """``count`` distinct pairs, three answers a request as after rollouts: its own and others'."""
    found: dict[Any, Sample] = {}
    shift = 0
    while len(found) < count:
        for i, record in enumerate(records):
            for k in range(3):
                other = records[(i + shift * 3 + k) % len(records)].response[:120]
                prompt = bare_prompt(record.prompt, record.context)
                found[prompt, other] = Sample(prompt, other, record.context)
        shift += 1
    return list(found.values())[:count]


def median(run: Callable[[], None], repeats: int) -> float:
    """Median seconds of some runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
