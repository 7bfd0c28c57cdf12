"""The embedded judge's heads, fitted once for each set of labelled rows, models and code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from aaft.config import Config
from aaft.io import text_digest
from aaft.judges.labelled import labelled_digests, read_labelled

if TYPE_CHECKING:
    import torch


def fitted_heads(cfg: Config, device: torch.device | None = None) -> Path:
    """Folder with the heads for ``cfg``; they are fitted when there is none yet.

    Fitting reads every labelled row with both encoders, which takes about a minute on two cores;
    the folder, under ``score.cache``, is named by a digest of all that shapes the heads.

    Raises:
        AaftError: labelled rows or a model are missing or broken.
    """
    from aaft.judges.embedded import code_digest, fit
    from aaft.judges.features import Encoders

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
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    fit(rows, encoders).save(partial)
    partial.replace(folder)
    return folder
