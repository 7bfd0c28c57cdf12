"""From a judge's spec to the judge.

Everything that a judge is made of (spec, configuration, folder of heads) can be pickled or is a
path, so another process can make the same judge.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aaft.judge_config import (
    CallableSpec,
    ClassifierSpec,
    EmbeddedSpec,
    EndpointSpec,
    GuardSpec,
    JudgesConfig,
    JudgeSpec,
)
from aaft.judges.base import Judge

if TYPE_CHECKING:
    import torch


def load_judge(
    spec: JudgeSpec, cfg: JudgesConfig, heads: Path, device: torch.device | None = None
) -> Judge:
    """Make one judge of a panel.

    Weights are read when the first answer is scored, so that a judge whose scores are all in the
    cache costs little.

    Args:
        spec: entry of ``cfg.panel``.
        cfg: settings that judges share.
        heads: folder with the fitted heads of the embedded judge.
        device: where models compute; None is the one that the runtime finds.

    Raises:
        AaftError: a model, label, function or head that does not exist.
    """
    match spec:
        case EmbeddedSpec():
            from aaft.judges.embedded import EmbeddedJudge
            from aaft.judges.features import Encoders

            return EmbeddedJudge.load(heads, Encoders.load(cfg, device))
        case ClassifierSpec():
            from aaft.judges.classifier import ClassifierJudge

            return ClassifierJudge(spec, device)
        case GuardSpec():
            from aaft.judges.guard import GuardJudge

            return GuardJudge(spec, device)
        case EndpointSpec():
            from aaft.judges.endpoint import EndpointJudge

            return EndpointJudge(spec)
        case CallableSpec():
            from aaft.judges.callable import CallableJudge

            return CallableJudge(spec)
