"""The embedded judge's heads, fitted once for each set of labelled rows, models and code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aaft.config import Config
from aaft.io import text_digest
from aaft.judges.base import Sample
from aaft.judges.features import Encoders, support_features
from aaft.judges.labelled import Row, labelled_digests, read_labelled
from aaft.progress import progress

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_AT_ONCE = 512
"""Rows between two reports of progress."""


def fitted_heads(cfg: Config, device: torch.device | None = None) -> Path:
    """Folder with the heads for ``cfg``; they are fitted when there is none yet.

    Fitting reads every labelled row with all encoders, which takes some minutes on two cores;
    the folder, under ``score.cache``, is named by a digest of all that shapes the heads.

    Raises:
        AaftError: labelled rows or a model are missing or broken.
    """
    from aaft.judges.embedded import code_digest, fit

    encoders = Encoders.load(cfg.judges, device)
    data = labelled_digests(cfg.data.judge)
    folder = (
        cfg.score.cache / "judges" / text_digest(" ".join([*data, encoders.digest, code_digest()]))
    )
    if folder.is_dir():
        return folder
    from aaft.models import runtime  # with torch, which known heads don't need

    rows = read_labelled(cfg.data.judge)
    print("judges: fitting the embedded heads", flush=True)
    # The folder's name does not say who fits: everybody must do it with the same kernels.
    runtime.prepare(cfg.seed)
    runtime.quiet_transformers()
    _read(rows, encoders)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    fit(rows, encoders).save(partial)
    partial.replace(folder)
    return folder


def _read(rows: Mapping[str, Sequence[Row]], encoders: Encoders) -> None:
    """Have the models read what the heads are fitted on, which is nearly all of the work.

    Part by part, to show how far it is; `fit` then finds it remembered.
    """
    fitting = {name: [row for row in part if row["split"] != "test"] for name, part in rows.items()}
    # Calibrating safety asks for the intent of its requests too.
    judged = [row for row in fitting["safety"] if row["split"] == "calibrate"]
    requests = list(dict.fromkeys(row["prompt"] for row in [*fitting["intent"], *judged]))
    # Answers to one request in one part: it is read once for all of them.
    answered = sorted(
        (row["prompt"], row["response"]) for name in ("refusal", "safety") for row in fitting[name]
    )
    passages = [
        Sample(row["prompt"], row["response"], row["context"]) for row in fitting["grounding"]
    ]
    total = len(requests) + len(answered) + len(passages)
    with progress("judges", total, "labelled rows") as advance:
        for few in _parts(requests):
            encoders.probe.prompts(few)
            encoders.requests.encode(few)
            advance(len(few))
        for pairs in _parts(answered):
            encoders.probe.answers(pairs)
            advance(len(pairs))
        for samples in _parts(passages):
            support_features(encoders, samples)
            advance(len(samples))


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[i : i + _AT_ONCE] for i in range(0, len(items), _AT_ONCE))
