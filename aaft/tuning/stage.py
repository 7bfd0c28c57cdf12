"""The train stage: gated fine-tuning, of LoRA weights or of all weights.

``python -m aaft train`` reads ``build/validate`` and ``build/score`` and writes ``build/train/``:
``adapter/`` (PEFT, or with ``train.lora: null`` a whole model), ``history.jsonl``,
``gates.parquet`` (counterfactuals too, marked), ``review.jsonl``, ``report.json``. Equal inputs
give equal bytes on one machine, however often the run was killed; ``timing.jsonl`` alone differs.
``checkpoints/`` is there while it runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from aaft.config import Config, LoraSettings, Paths
from aaft.data.records import read_clean
from aaft.errors import AaftError
from aaft.io import atomic_path, read_json, write_json, write_jsonl
from aaft.models import runtime
from aaft.models.policy import (
    Codec,
    load_codec,
    load_policy,
    locate_policy,
    save_adapter,
    save_model,
)
from aaft.tuning.checkpoint import Checkpoints
from aaft.tuning.counterfactual import kept_counterfactuals
from aaft.tuning.digest import run_digest
from aaft.tuning.examples import Example, declined_rewards, load_examples, scored_objectives
from aaft.tuning.history import GateRow
from aaft.tuning.kin import kept_siblings, kept_twins
from aaft.tuning.ranks import connect
from aaft.tuning.trainer import Trainer

# Counterfactuals of which at least one must be worth learning from.
_MANY = 20


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Fine-tune the policy and save the adapter.

    Under ``accelerate launch`` the processes share the work and the first one writes.

    Raises:
        AaftError: missing inputs, a non-finite loss, a full disk, gates that never open although
            judged misaligned answers are there to open them, or many counterfactuals without one
            that the judges agree on.
    """
    out, scored = paths.stage("train"), paths.stage("score")
    locate_policy(cfg.policy.model)
    score_report = read_json(paths.report("score"))
    records = read_clean(paths.stage("validate") / "clean.jsonl")
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    ranks = connect()
    if ranks.main:
        paths.report("train").unlink(missing_ok=True)
        _tidy(out)

    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    objectives = scored_objectives(pq.read_schema(scored / "alignment.parquet").names)
    false_accept = {
        name: float(score_report["judges"][name]["false_accept"])
        for name in objectives
        # Absent where too few labelled rows measured it.
        if "false_accept" in score_report["judges"].get(name, {})
    }
    # Counterfactuals, twins and siblings, which plain training leaves alone.
    sets = [
        read_clean(scored / f"{name}.jsonl", "score") if cfg.train.method == "aaft" else []
        for name in ("counterfactuals", "twins", "siblings")
    ]
    rows = [*records, *itertools.chain(*sets)]
    loaded = {e.id: e for e in load_examples(scored, rows, codec, objectives, false_accept)}
    examples, swapped, twins, siblings = (
        [loaded[row.id] for row in part] for part in (records, *sets)
    )
    added = _added(swapped, examples)
    anchors = kept_twins(
        twins,
        declined_rewards(scored, "safety"),
        longest=cfg.train.objective.recovery_tokens,
    )
    harmful = kept_siblings(siblings)
    model = prepare_model(cfg, ranks.device or device)
    checkpoints = Checkpoints(
        out / "checkpoints", run_digest(cfg, paths), cfg.train.checkpoint_steps
    )
    trainer = Trainer(
        model,
        [*examples, *added, *anchors, *harmful],
        cfg.train,
        cfg.seed,
        checkpoints=checkpoints,
        ranks=ranks,
    )
    trainer.run()
    if cfg.train.method == "aaft":
        # Without the counterfactuals, whose gates are open whatever the settings.
        _check_gates_open(examples, {e.id: trainer.gates[e.id] for e in examples})
    report = summarize(cfg, examples, added, trainer)
    if cfg.train.method == "aaft":
        report |= {
            name: {"scored": len(made), "kept": len(kept)}
            for name, made, kept in (
                ("counterfactuals", swapped, added),
                ("twins", twins, anchors),
                ("siblings", siblings, harmful),
            )
        }
    if ranks.main:
        write_outputs(out, model, codec, examples, added, trainer)
        write_json(paths.report("train"), report)
        checkpoints.clear()
    ranks.close()
    return report


def prepare_model(cfg: Config, device: torch.device) -> Any:
    """The policy with float32 weights, wrapped with LoRA unless all its weights are trained."""
    attention = runtime.training_attention(device)
    base = load_policy(cfg.policy.model, device, torch.float32, cfg.policy.revision, attention)
    return base if cfg.train.lora is None else add_lora(base, cfg.train.lora, cfg.seed)


def write_outputs(
    out: Path,
    model: Any,
    codec: Codec,
    examples: list[Example],
    added: list[Example],
    trainer: Trainer,
) -> None:
    """Write all but the report; ``added`` are the counterfactuals trained on."""
    if hasattr(model, "peft_config"):
        save_adapter(model, out / "adapter")
    else:
        save_model(model, codec, out / "adapter")
    write_jsonl(out / "history.jsonl", trainer.history)
    write_jsonl(out / "timing.jsonl", trainer.timing)
    gates = pd.DataFrame(
        [dataclasses.asdict(trainer.gates[e.id]) for e in examples if e.id in trainer.gates]
        + [dataclasses.asdict(trainer.gates[e.id]) for e in added],
        columns=[field.name for field in dataclasses.fields(GateRow)],
    )
    gates["counterfactual"] = gates["id"].isin([e.id for e in added])
    with atomic_path(out / "gates.parquet") as temporary:
        gates.to_parquet(temporary, index=False)
    write_jsonl(
        out / "review.jsonl",
        (
            {"id": e.id, "reason": "every answer is misaligned, and declining is no remedy"}
            for e in examples
            if e.review
        ),
    )


def add_lora(base: Any, settings: LoraSettings, seed: int) -> Any:
    """Wrap ``base`` with freshly initialised LoRA weights, reproducibly.

    Raises:
        AaftError: the model has no such modules.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapter = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, adapter)
    except ValueError as error:
        raise AaftError(f"train.lora.target_modules: {' '.join(str(error).split())}") from None


def summarize(
    cfg: Config, examples: list[Example], added: list[Example], trainer: Trainer
) -> dict[str, Any]:
    """The report: counts and gates of the records (no counterfactuals), first and last loss.

    ``need``, what abstaining weighs, is of counterfactuals too: most of what abstains is.
    """
    first, last = trainer.history[0], trainer.history[-1]
    report: dict[str, Any] = {
        "method": cfg.train.method,
        "records": len(examples),
        "steps": len(trainer.history),
        "loss_first": first["loss"],
        "loss_last": last["loss"],
        "gold_rejected": sum(bool(np.nanmin(e.quality[0], initial=1.0) < 0.5) for e in examples),
        "abstaining": sum(e.abstention is not None for e in examples),
        "review": sum(e.review for e in examples),
        "unscored": sum(bool(np.isnan(e.quality).all()) for e in examples),
    }
    if trainer.gates:
        gates = np.array([trainer.gates[e.id].gate for e in examples])
        report["gates"] = {
            "mean": float(gates.mean()),
            "share_zero": float((gates == 0).mean()),
            "share_above_half": float((gates > 0.5).mean()),
        }
        needs = np.array([trainer.gates[e.id].need for e in [*examples, *added]])
        if not np.isnan(needs).all():
            marks = np.nanquantile(needs, [0.1, 0.5, 0.9]).tolist()
            report["need"] = dict(zip(("p10", "p50", "p90"), marks, strict=True))
    return report


def _tidy(out: Path) -> None:
    """Remove what a killed run had not finished writing; checkpoints see to their own."""
    for leftover in out.glob(".*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _added(swapped: list[Example], records: list[Example]) -> list[Example]:
    kept = kept_counterfactuals(swapped, records)
    if len(swapped) >= _MANY and not kept:
        raise AaftError(
            f"build/score/counterfactuals.jsonl: of {len(swapped)} questions with a foreign "
            "passage the judges find none unanswerable, so none teaches to abstain; look at the "
            "grounding judge (docs/judges.md) or set score.counterfactuals to 0"
        )
    return kept


def _check_gates_open(examples: list[Example], gates: dict[str, GateRow]) -> None:
    misaligned = sum(bool((e.quality < 0.5).all(0).any()) for e in examples)
    if misaligned and not any(row.gate > 0 for row in gates.values()):
        raise AaftError(
            f"train: {misaligned} records have only misaligned answers, yet no gate opened; "
            "check train.gate"
        )
