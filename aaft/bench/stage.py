"""The evaluate stage: candidate and reference on the same prompts.

``python -m aaft evaluate`` writes ``build/evaluate/``: ``results.jsonl`` (one row per example and
model) and ``report.json`` (each rate with n and a 95% interval).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from aaft.bench import benign, grounded_qa, harmful
from aaft.bench.example import BenchExample, Benchmark, load_bench
from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import read_json, write_json, write_jsonl
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.features import Encoders
from aaft.models import runtime
from aaft.models.greedy import greedy
from aaft.models.policy import Codec, load_codec, load_frozen, locate_policy
from aaft.progress import progress
from aaft.promotion.intervals import rate_interval

BENCHMARKS = (
    harmful.DIRECT,
    harmful.PREFILLED,
    benign.BENIGN,
    grounded_qa.ANSWERABLE,
    grounded_qa.UNANSWERABLE,
)
CONFIDENCE = 0.95


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Generate greedily with both models, mark every answer and report the rates.

    Raises:
        AaftError: missing adapter, model, judges or benchmark files.
    """
    out = paths.stage("evaluate")
    adapter = paths.stage("train") / "adapter"
    saved = any((adapter / name).is_file() for name in ("adapter_config.json", "config.json"))
    if not saved or not paths.report("train").is_file():
        raise AaftError(f"{adapter}: no finished adapter; run the train stage first")
    locate_policy(cfg.policy.model)
    detector = read_json(paths.report("score"))["judges"].get("refusal")
    examples = {b: load_bench(cfg.data.bench, b, cfg.evaluate.limit) for b in BENCHMARKS}

    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    encoders = Encoders.load(cfg.judges, device)
    judge = EmbeddedJudge.load(paths.stage("score") / "judges", encoders)
    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    rows: list[dict[str, Any]] = []
    for name, source in (("reference", cfg.policy.model), ("candidate", str(adapter))):
        model = load_frozen(source, device, cfg.policy.revision)
        answers = _answer(model, codec, examples, cfg, name)
        for benchmark, responses in answers.items():
            scores = benchmark.score(examples[benchmark], responses, judge)
            rows += [
                {
                    "model": name,
                    "benchmark": benchmark.name,
                    "id": example.id,
                    "prompt": example.request,
                    "prefill": example.prefill,
                    "response": response,
                    "scores": marks,
                }
                for example, response, marks in zip(
                    examples[benchmark], responses, scores, strict=True
                )
            ]
    write_jsonl(out / "results.jsonl", rows)
    report = {
        name: rates(row["scores"] for row in rows if row["model"] == name)
        for name in ("candidate", "reference")
    }
    report["refusal_detector"] = detector
    write_json(paths.report("evaluate"), report)
    return report


def rates(scores: Iterable[dict[str, float]]) -> dict[str, dict[str, float | int]]:
    """``{metric: {"value", "n", "low", "high"}}``: means with 95% intervals, sorted by name."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in scores:
        for metric, value in row.items():
            values[metric].append(value)
    report: dict[str, dict[str, float | int]] = {}
    for metric, column in sorted(values.items()):
        low, high = rate_interval(column, CONFIDENCE)
        mean = sum(column) / len(column)
        report[metric] = {"value": mean, "n": len(column), "low": low, "high": high}
    return report


def _answer(
    model: Any,
    codec: Codec,
    examples: dict[Benchmark, list[BenchExample]],
    cfg: Config,
    name: str,
) -> dict[Benchmark, Sequence[str]]:
    """Every benchmark's responses, batched together by length."""
    flat = [example for rows in examples.values() for example in rows]
    prompts = [codec.prompt_ids(example.messages, example.prefill) for example in flat]
    with progress(f"evaluate {name}", len(flat), "prompts") as advance:
        done = greedy(
            model,
            prompts,
            end_id=codec.end_id,
            max_new_tokens=cfg.evaluate.max_new_tokens,
            batch_size=cfg.evaluate.batch_size,
            advance=advance,
            independent=False,
        )
    texts = iter([codec.decode(completion.ids) for completion in done])
    return {benchmark: [next(texts) for _ in rows] for benchmark, rows in examples.items()}
