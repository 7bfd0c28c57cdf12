"""What a training step costs, against plain supervised training and against TRL: ``make bench``.

    python scripts/bench_train.py

Prints one JSON line. Steps of the compared ways alternate on the same rows of data.train. Seconds
and tokens a second are medians over steps; a ratio is the median of the steps' own ratios.

step    one step of ``train.method: aaft`` against the same step of ``sft``, from the same weights

        closed  every answer certain and good, so no gate may open and the loss must be that of sft
        open    3 of 16 rows with an open gate. Their golds are called rejected and their rollouts,
                drawn from the policy as the score stage draws them, in turn both accepted, one
                accepted, and none; whether such a row abstains or recovers is decided
                by aaft's own rules, with a judge that accepts 5% by mistake
        real    the rows and scores under build/, where a run has left them; else null

tokens  tokens a second of ``sft`` against TRL's SFTTrainer, bfloat16 autocast (where the hardware
        has bfloat16) and loss on the same response tokens in both; prompt and response count,
        padding doesn't

        defaults  TRL's: 8 rows at a time, gradient checkpointing
        tuned     4 rows at a time, as they pad less, and no checkpointing, as memory isn't short

        During TRL's steps the torch settings that aaft makes are undone, all but those of the
        allocator, which can't be and make TRL faster too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from aaft.config import Config, Paths, load_config
from aaft.data.records import Record, load_records, read_clean
from aaft.io import read_json
from aaft.models import runtime
from aaft.models.policy import Codec, load_codec, load_frozen, load_policy
from aaft.scoring.conservative import conservative_responses
from aaft.scoring.rollouts import Candidate, roll_out, tokenize
from aaft.tuning.abstain import abstains
from aaft.tuning.examples import Example, load_examples, scored_objectives
from aaft.tuning.stage import prepare_model
from aaft.tuning.trainer import Trainer

STEPS = 5
WARM_UP = 1
OPEN_EVERY = 5
"""Rows 0, 5 and 10 of 16 are open; the last row never is."""
GOOD, BAD = 0.99, 0.05
OUTCOMES = ((BAD, GOOD, GOOD), (BAD, GOOD, BAD), (BAD, BAD, BAD))
FALSE_ACCEPT = 0.05
OBJECTIVES = 3

Window = list[Example]
Weights = dict[str, torch.Tensor]


def main() -> None:
    """Print the figures."""
    # Read when huggingface_hub is first imported, which is below.
    os.environ["HF_HUB_OFFLINE"] = "1"
    cfg = load_config()
    device = runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    codec = load_codec(cfg.policy.model, cfg.policy.revision)
    bench = Bench(cfg, device)
    closed, opened = synthetic(cfg, codec, device)
    figures = {
        "step": bench.steps(closed, opened, real(cfg, codec)),
        "tokens": bench.tokens(codec, closed),
    }
    print(json.dumps(figures))


class Bench:
    """Single training steps of one model, each from the same weights."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self._cfg = cfg
        self._device = device
        self._model = prepare_model(cfg, device)
        self._start = {n: p.detach().clone() for n, p in self._trained()}

    def steps(
        self, closed: list[Window], opened: list[Window], found: list[Window] | None
    ) -> dict[str, Any]:
        """Seconds of steps of aaft and their ratios to those of sft."""
        took: dict[str, list[float]] = {name: [] for name in ("sft", "closed", "open")}
        share = {"closed": 0.0, "open": len(OUTCOMES) / self._cfg.train.rows_per_step}
        for plain, gated in zip(closed, opened, strict=True):
            ways = {"sft": plain, "closed": plain, "open": gated}
            rows, weights = {}, {}
            for name in alternating(ways, len(took["sft"])):
                method = "sft" if name == "sft" else "aaft"
                seconds, rows[name], weights[name] = self._step(method, ways[name])
                took[name].append(seconds)
            check_same(rows["sft"], rows["closed"], weights["sft"], weights["closed"])
            for name, expected in share.items():
                measured = rows[name]["gate_open_share"]
                if measured != expected:
                    raise SystemExit(f"{name}: gates open in {measured} of rows, not {expected}")
        return {
            "rows": self._cfg.train.rows_per_step,
            "steps": STEPS,
            "sft_seconds": middle(took["sft"]),
            **{name: compared(took[name], took["sft"], share[name]) for name in share},
            "real": None if found is None else self._real(found),
        }

    def _real(self, windows: list[Window]) -> dict[str, float]:
        took: dict[str, list[float]] = {"sft": [], "aaft": []}
        shares = []
        for window in windows:
            for method in alternating(took, len(took["sft"])):
                seconds, row, _ = self._step(method, window)
                took[method].append(seconds)
                if method == "aaft":
                    shares.append(row["gate_open_share"])
        return compared(took["aaft"], took["sft"], statistics.mean(shares[WARM_UP:]))

    def tokens(self, codec: Codec, windows: list[Window]) -> dict[str, Any]:
        """Tokens a second of sft and of TRL, and the ratio of the two."""
        rows = self._cfg.train.rows_per_step
        figures: dict[str, Any] = {}
        rates: list[float] = []
        for name, at_once, checkpointing in (("defaults", 8, True), ("tuned", 4, False)):
            settings = {
                "per_device_train_batch_size": at_once,
                "gradient_accumulation_steps": rows // at_once,
                "gradient_checkpointing": checkpointing,
            }
            took: list[float] = []
            losses: list[float] = []

            def ours(index: int, took: list[float] = took, losses: list[float] = losses) -> None:
                seconds, row, _ = self._step("sft", windows[index])
                took.append(seconds)
                losses.append(row["loss"])

            theirs, loss = train_with_trl(self._cfg, self._device, codec, windows, settings, ours)
            if abs(loss - losses[0]) > 0.02 * losses[0]:
                raise SystemExit(f"TRL starts from loss {loss}, aaft from {losses[0]}")
            rates += speeds(windows, took)
            figures[f"trl_{name}"] = {
                **settings,
                "tokens_per_second": round(statistics.median(speeds(windows, theirs)), 1),
                "ratio": compared(theirs, took)["ratio"],
            }
        return {"tokens_per_second": round(statistics.median(rates), 1), **figures}

    def _step(self, method: str, window: Window) -> tuple[float, dict[str, Any], Weights]:
        """Seconds, history and weights of a first step from the weights at the start."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self._start[name])
        settings = self._cfg.train.model_copy(update={"method": method, "epochs": 1})
        trainer = Trainer(self._model, window, settings, self._cfg.seed)
        trainer.run()
        weights = {n: p.detach().clone() for n, p in self._trained()}
        return trainer.timing[0]["seconds"], trainer.history[0], weights

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self._model.named_parameters() if p.requires_grad]


def synthetic(cfg: Config, codec: Codec, device: torch.device) -> tuple[list[Window], list[Window]]:
    """The same rows twice: scored so that no gate opens, and so that three of each window do."""
    size = cfg.train.rows_per_step
    records = random.Random(cfg.seed).sample(load_records(cfg.data), size * (WARM_UP + STEPS))
    reference = load_frozen(cfg.policy.model, device, cfg.policy.revision)
    asked = tokenize(codec, records, cfg.score, cfg.policy.max_tokens)
    drawn = roll_out(reference, codec, asked, cfg.score, cfg.seed)
    closed, opened = [], []
    for i, (record, one, candidates) in enumerate(zip(records, asked, drawn, strict=True)):
        turn, rest = divmod(i % size, OPEN_EVERY)
        good = (GOOD,) * len(candidates)
        outcome = good if rest or turn >= len(OUTCOMES) else OUTCOMES[turn]
        closed.append(example(record, one.prompt_ids, candidates, good, codec))
        opened.append(example(record, one.prompt_ids, candidates, outcome, codec))
    return windows_of(closed, size), windows_of(opened, size)


def example(
    record: Record,
    prompt: list[int],
    candidates: Sequence[Candidate],
    outcome: Sequence[float],
    codec: Codec,
) -> Example:
    """An example whose candidates have the qualities ``outcome``, gold first, without doubt."""
    if len(outcome) != len(candidates):
        raise SystemExit(f"score.rollouts is {len(candidates) - 1}, not {len(outcome) - 1}")
    quality = np.full((len(candidates), OBJECTIVES), GOOD)
    quality[:, 0] = outcome
    # For a record with a passage the last is what to say when the passage doesn't tell.
    declining = codec.response_ids(conservative_responses(record)[-1].text)
    reward = quality.min(axis=1)
    return Example(
        id=record.id,
        prompt=prompt,
        candidates=[c.token_ids for c in candidates],
        quality=quality,
        uncertainty=np.zeros_like(quality),
        logprob=np.array([c.logprob for c in candidates]),
        reward=reward,
        abstention=declining if abstains(reward, GOOD, FALSE_ACCEPT) else None,
        conservative=declining if outcome[0] == BAD else None,
        # With a passage it is a made-up answer that is rejected, and from that there's no recovery.
        unsafe=record.context is None,
        review=False,
    )


def real(cfg: Config, codec: Codec) -> list[Window] | None:
    """Windows of what the score stage left, or None."""
    paths = Paths()
    if not (paths.report("score").is_file() and paths.report("validate").is_file()):
        return None
    scored = paths.stage("score")
    judges = read_json(paths.report("score"))["judges"]
    objectives = scored_objectives(pq.read_schema(scored / "alignment.parquet").names)
    examples = load_examples(
        scored,
        read_clean(paths.stage("validate") / "clean.jsonl"),
        codec,
        objectives,
        {name: judges.get(name, {}).get("false_accept", 0.0) for name in objectives},
    )
    size = cfg.train.rows_per_step
    return windows_of(random.Random(cfg.seed).sample(examples, size * (WARM_UP + STEPS)), size)


def train_with_trl(
    cfg: Config,
    device: torch.device,
    codec: Codec,
    windows: list[Window],
    settings: dict[str, Any],
    between: Callable[[int], None],
) -> tuple[list[float], float]:
    """Seconds of each of SFTTrainer's steps, and its first loss.

    ``between`` is called after each step with its number, outside of the measured time.
    """
    import datasets
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    if cfg.train.lora is None:
        raise SystemExit("train.lora is null; the comparison with TRL is one of LoRA")
    datasets.disable_progress_bars()
    lora = LoraConfig(
        r=cfg.train.lora.r,
        lora_alpha=cfg.train.lora.alpha,
        target_modules=list(cfg.train.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    rows = datasets.Dataset.from_list(
        [
            {
                "input_ids": row.prompt + row.candidates[0],
                "completion_mask": [0] * len(row.prompt) + [1] * len(row.candidates[0]),
            }
            for window in windows
            for row in window
        ]
    )
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._plain = contextlib.ExitStack()
            self._plain.enter_context(as_torch_comes())
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self._began)
            self._plain.close()
            between(len(seconds) - 1)

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            bf16=runtime.compute_dtype(device) == torch.bfloat16,
            use_cpu=device.type == "cpu",
            max_length=cfg.policy.max_tokens,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=cfg.seed,
            **settings,
        )
        trainer = SFTTrainer(
            model=load_policy(cfg.policy.model, device, torch.float32, cfg.policy.revision),
            args=arguments,
            train_dataset=rows,
            processing_class=codec.tokenizer,
            peft_config=lora,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if len(seconds) != len(windows):
        raise SystemExit(f"TRL made {len(seconds)} steps of {len(windows)} windows")
    return seconds, float(trainer.state.log_history[0]["loss"])


@contextlib.contextmanager
def as_torch_comes() -> Iterator[None]:
    """Undo what `runtime.prepare` asked of torch and transformers, for a while."""
    forced = os.environ.pop(runtime.FORCE_GQA, None)
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)
    if forced is not None:
        os.environ[runtime.FORCE_GQA] = forced


def check_same(plain: dict[str, Any], gated: dict[str, Any], left: Weights, right: Weights) -> None:
    """Stop unless two steps were the same computation, to the bit."""
    same = all(plain[key] == gated[key] for key in ("loss", "grad_norm", "tokens"))
    if not same or not all(torch.equal(left[name], right[name]) for name in left):
        raise SystemExit("with every gate closed a step differs from plain supervised training")


def windows_of(examples: Window, size: int) -> list[Window]:
    """Examples in windows of ``size``."""
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def alternating(names: Any, turn: int) -> list[str]:
    """``names``, begun with another one at each turn."""
    order = list(names)
    cut = turn % len(order)
    return order[cut:] + order[:cut]


def speeds(windows: list[Window], seconds: list[float]) -> list[float]:
    """Tokens of golds and their prompts a second, warm-up left out."""
    tokens = [sum(len(e.prompt) + len(e.candidates[0]) for e in window) for window in windows]
    return [n / s for n, s in zip(tokens, seconds, strict=True)][WARM_UP:]


def compared(
    took: list[float], plain: list[float], open_share: float | None = None
) -> dict[str, float]:
    """Median seconds, and the median over steps of how many times as long they took."""
    ratios = [a / b for a, b in zip(took, plain, strict=True)][WARM_UP:]
    share = {} if open_share is None else {"open_share": round(open_share, 4)}
    return {**share, "seconds": middle(took), "ratio": round(statistics.median(ratios), 3)}


def middle(seconds: list[float]) -> float:
    """Median without the warm-up."""
    return round(statistics.median(seconds[WARM_UP:]), 3)


if __name__ == "__main__":
    main()
