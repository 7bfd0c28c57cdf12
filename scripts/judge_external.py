"""The embedded judges on labelled sets that other hands wrote: ``tests/external``.

    python scripts/judge_external.py

Each set was written by a language model that was told the task and the kinds of rows, and nothing
of the judges, their data or the other sets. No row of them fits or calibrates a judge. What had
been seen of which set when rows and settings were chosen stands in docs/judges.md.
Prints AUROC with its interval, accuracy at 0.5, the trivial baselines, and by kind of row the share
that is judged right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaft.config import load_config
from aaft.io import read_jsonl
from aaft.judges.asking import ask
from aaft.judges.baselines import fit_baselines
from aaft.judges.breakdown import compared
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.features import Encoders
from aaft.judges.fitted import fitted_heads
from aaft.judges.labelled import FILES, labels, prompts, read_labelled
from aaft.models import runtime

SETS = Path(__file__).parent.parent / "tests/external"


def main() -> None:
    """Print the figures; run it in the project's root, as `make run` is."""
    cfg = load_config()
    runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    judge = EmbeddedJudge.load(fitted_heads(cfg), Encoders.load(cfg.judges))
    known = read_labelled(cfg.data.judge)
    for task in FILES:
        fitting = [row for row in known[task] if row["split"] == "fit"]
        baselines = fit_baselines(task, fitting)
        for path in sorted(SETS.glob(f"{task}-*.jsonl")):
            rows = read_jsonl(path)
            scores = ask(judge, task, rows)
            figures = compared(scores, labels(rows), prompts(rows), baselines.scores(rows))
            auroc, trivial = figures["auroc"], figures["baselines"]
            print(
                f"{path.stem}: {len(rows)} rows, AUROC {auroc['value']:.3f}"
                f" [{auroc['low']:.3f}, {auroc['high']:.3f}],"
                f" accuracy {figures['accuracy']['value']:.3f};"
                + "".join(f" {k} {v['auroc']:.3f}" for k, v in trivial.items() if k != "majority")
            )
            for (label, kind), share in _by_kind(rows, scores >= 0.5).items():
                print(f"    {label} {kind}: {share}")


def _by_kind(
    rows: Sequence[dict[str, Any]], said: npt.NDArray[np.bool_]
) -> dict[tuple[int, str], str]:
    """Share judged right of the rows of each label and kind."""
    right = defaultdict(list)
    for row, verdict in zip(rows, said, strict=True):
        right[row["label"], row["kind"]].append(bool(verdict) == bool(row["label"]))
    return {key: f"{np.mean(v):.2f} of {len(v)}" for key, v in sorted(right.items())}


if __name__ == "__main__":
    main()
