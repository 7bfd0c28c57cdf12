"""The study's aligned start: the policy after a short alignment stage.

``python -m aaft align --out DIR`` trains a LoRA adapter by plain supervised fine-tuning, merges it
and writes ``DIR``, a Hugging Face model directory with ``report.json`` in it, written last. It
learns from

- ``data/study/align.jsonl``: refusals, real answers, and questions, each once with its passage and
  once, to be answered with "the passage does not say", with another one's. Questions that share a
  passage come into one step, the passage computed once (`aaft.tuning.hosts`);
- the policy's own answers to the harmless requests of ``own.jsonl``;
- the refusals once more, but for requests that the policy refuses by itself, after the beginning
  of a compliant answer (arXiv:2406.05946): half of them of what the policy says to the request now,
  half of one of `OPENINGS`. A start that an opening undoes has nothing there to preserve.

None of these rows is near a benchmark prompt. Learning rate and rows a step are those of the
study's methods, and it is one epoch, whatever ``params.yaml`` says of them: at half that rate and
16 rows a step the policy hardly learned to tell harmful requests from harmless ones, and what isn't
there can't be preserved (docs/study.md).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aaft
from aaft.config import Config, LoraSettings, TrainConfig
from aaft.data.records import Record
from aaft.data.text import bucket, opens_with_refusal, shorten
from aaft.errors import AaftError
from aaft.io import file_digest, read_json, text_digest, write_json
from aaft.models import runtime
from aaft.models.fingerprint import library_versions, model_digest
from aaft.models.greedy import greedy
from aaft.models.policy import (
    Codec,
    load_codec,
    load_frozen,
    locate_policy,
    merge_adapter,
    save_adapter,
)
from aaft.progress import progress
from aaft.scoring.kin import KinWork, as_kin, texts_at_once
from aaft.study.cells import files_digest
from aaft.study.config import LEARNING_RATE, ROWS_PER_STEP
from aaft.study.openings import OPENINGS
from aaft.study.rows import StudyRow, of_kind, read_requests, read_rows, study_row
from aaft.study.signal import plain_examples
from aaft.tuning.examples import Example
from aaft.tuning.hosts import with_hosts
from aaft.tuning.recovery import recovery_prefixes
from aaft.tuning.stage import prepare_model
from aaft.tuning.trainer import Trainer

EPOCHS = 1
OWN_TOKENS = 64
"""Most tokens of an own answer; its last whole sentence is where it ends."""
OWN_CHARACTERS = 240
BEGUN_TOKENS = 16
"""Longest beginning of a compliant answer that a refusal is also learned after."""
OPENED_PERCENT = 50
"""How many of these beginnings are of `OPENINGS`, not the policy's own."""
REPORT = "report.json"

_CODE = (
    *("config.py", "data/*.py", "models/*.py", "tuning/*.py"),
    *(
        "scoring/counterfactual.py",
        "scoring/kin.py",
        "study/openings.py",
        "study/rows.py",
        "study/signal.py",
        "study/start.py",
    ),
)


def run(cfg: Config, out: Path) -> dict[str, Any]:
    """Make the aligned start in ``out``, or leave it when it was made from the same inputs.

    Raises:
        AaftError: missing inputs, a row that is too long, a training that diverges, or ``out``
            holds something else, which is not replaced.
    """
    locate_policy(cfg.policy.model)
    rows, asked = _rows(cfg)
    train = _train(cfg)
    inputs = _inputs(cfg, train)
    known = _known(out)
    if known.get("inputs") == inputs:
        return known

    cfg = cfg.model_copy(update={"train": train})
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    policy = load_frozen(cfg.policy.model, device, cfg.policy.revision)
    rows += _answered(cfg, codec, policy, asked)
    guests = of_kind(rows, "unanswerable")
    examples = plain_examples([row for row in rows if row.kind != "unanswerable"], codec)
    examples += with_hosts(plain_examples(guests, codec), examples)
    refusals = of_kind(rows, "refusal")
    begun = _begun(cfg, codec, policy, refusals)
    del policy
    twins = _twins(cfg, refusals)
    examples += [*begun, *plain_examples(twins, codec)]
    for example in examples:
        size = len(example.prompt) + len(example.candidates[0])
        if size > cfg.policy.max_tokens:
            raise AaftError(
                f"data/study/align.jsonl: row {example.id} takes {size} tokens, more than "
                f"policy.max_tokens = {cfg.policy.max_tokens}; raise it"
            )
    model = prepare_model(cfg, device)
    trainer = Trainer(model, examples, train, cfg.seed)
    trainer.run()
    report = {
        "inputs": inputs,
        "rows": dict(sorted(Counter(row.kind for row in rows).items()))
        | {"begun": len(begun), "twin": len(twins)},
        "epochs": EPOCHS,
        "steps": len(trainer.history),
        "loss_first": trainer.history[0]["loss"],
        "loss_last": trainer.history[-1]["loss"],
    }
    _write(cfg, model, report, out)
    return report


def made(cfg: Config, out: Path) -> bool:
    """Whether ``out`` holds the start that `run` would make there.

    Raises:
        AaftError: missing inputs, or ``out`` holds something else.
    """
    locate_policy(cfg.policy.model)
    _rows(cfg)
    return bool(_known(out).get("inputs") == _inputs(cfg, _train(cfg)))


def _rows(cfg: Config) -> tuple[list[StudyRow], list[Record]]:
    folder = cfg.data.bench.parent / "study"
    return read_rows(folder / "align.jsonl"), read_requests(folder / "own.jsonl")


def _train(cfg: Config) -> TrainConfig:
    return cfg.train.model_copy(
        update={
            "method": "sft",
            "epochs": EPOCHS,
            "rows_per_step": ROWS_PER_STEP,
            "learning_rate": LEARNING_RATE,
            "lora": cfg.train.lora or LoraSettings(),
        }
    )


def _answered(cfg: Config, codec: Codec, policy: Any, asked: Sequence[Record]) -> list[StudyRow]:
    """The requests with what the policy says to them now."""
    done = _said(cfg, codec, policy, asked, OWN_TOKENS, "own answers")
    answers = [shorten(codec.decode(ids), OWN_CHARACTERS) for ids in done]
    return [
        study_row(dataclasses.replace(record, response=answer), "own")
        for record, answer in zip(asked, answers, strict=True)
        if answer
    ]


def _begun(cfg: Config, codec: Codec, policy: Any, refusals: Sequence[StudyRow]) -> list[Example]:
    """Each refusal after a beginning of what the policy says to the request now, or of an opening.

    Requests that the policy refuses by itself are left out.
    """
    done = _said(cfg, codec, policy, refusals, BEGUN_TOKENS, "answers' beginnings")
    begun = []
    for example, said in zip(plain_examples(refusals, codec), done, strict=True):
        if opens_with_refusal(codec.decode(said)):
            continue
        ids = said
        if bucket(example.id, "opening") < OPENED_PERCENT:
            ids = codec.response_ids(OPENINGS[bucket(example.id, "which") % len(OPENINGS)])
        prefixes = recovery_prefixes(example.id, ids, 0, cfg.seed, longest=BEGUN_TOKENS, count=1)
        begun += [
            dataclasses.replace(
                example, id=f"{example.id}~{len(prefix)}", prompt=[*example.prompt, *prefix]
            )
            for prefix in prefixes
        ]
    return begun


def _twins(cfg: Config, refusals: Sequence[StudyRow]) -> list[StudyRow]:
    """A harmless request beside each refusal, with the policy's own answer."""
    score = cfg.score.model_copy(update={"twins": 1, "siblings": 0})
    size = texts_at_once(cfg.score)
    work = KinWork(cfg.model_copy(update={"score": score}), mend=True)
    made = []
    with progress("twins", len(refusals), "requests") as advance:
        for begin in range(0, len(refusals), size):
            made += work.compute(refusals[begin : begin + size])
            advance(len(made) - begin)
    twins = as_kin(refusals, made, cfg).twins
    return [study_row(twin, "twin") for twin in twins if not opens_with_refusal(twin.response)]


def _said(
    cfg: Config, codec: Codec, policy: Any, asked: Sequence[Record], most: int, title: str
) -> list[list[int]]:
    with progress(title, len(asked), "requests") as advance:
        done = greedy(
            policy,
            [codec.prompt_ids(record.prompt_messages) for record in asked],
            end_id=codec.end_id,
            max_new_tokens=most,
            batch_size=cfg.evaluate.batch_size,
            advance=advance,
            independent=False,
        )
    return [list(completion.ids) for completion in done]


def _write(cfg: Config, model: Any, report: dict[str, Any], out: Path) -> None:
    """Put the merged model with its report in place: ``out`` is whole or as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    adapter, made, gone = (
        out.with_name(f".{out.name}.{part}") for part in ("adapter", "made", "gone")
    )
    try:
        save_adapter(model, adapter)
        merge_adapter(cfg.policy.model, adapter, made, cfg.policy.revision)
        write_json(made / REPORT, report)
        # Moved away first: killed in between, `out` is missing, never half of a model.
        shutil.rmtree(gone, ignore_errors=True)
        if out.exists():
            out.rename(gone)
        try:
            made.replace(out)
        except OSError:
            if gone.exists():
                gone.rename(out)
            raise
    finally:
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)


def _inputs(cfg: Config, train: TrainConfig) -> str:
    """Digest of all that shapes the weights."""
    package = Path(aaft.__file__).parent
    code = sorted(path for pattern in _CODE for path in package.glob(pattern))
    parts = {
        "seed": cfg.seed,
        # Batches change the rounding of an own answer (`greedy`).
        "batch_size": cfg.evaluate.batch_size,
        "train": train.model_dump(mode="json", exclude={"checkpoint_steps", "gate", "objective"}),
        "policy": model_digest(cfg.policy.model, cfg.policy.revision, "policy.model"),
        "rows": [
            file_digest(cfg.data.bench.parent / "study" / name)
            for name in ("align.jsonl", "own.jsonl")
        ],
        # Twins near to a benchmark are left out.
        "benchmarks": files_digest([cfg.data.bench]),
        "contamination": cfg.validate_.contamination_threshold,
        "code": {path.relative_to(package).as_posix(): file_digest(path) for path in code},
        "packages": library_versions(),
    }
    return text_digest(json.dumps(parts, sort_keys=True))


def _known(out: Path) -> dict[str, Any]:
    """The report of an earlier start in ``out``; empty when there is nothing.

    Raises:
        AaftError: ``out`` holds something else, which replacing it would delete.
    """
    report: Any = {}
    if out.exists() and any(out.iterdir()):
        report = read_json(out / REPORT) if (out / REPORT).is_file() else None
        if not isinstance(report, dict) or "inputs" not in report:
            raise AaftError(f"{out}: not made by aaft align; name an empty or a new folder")
    found: dict[str, Any] = report
    return found
