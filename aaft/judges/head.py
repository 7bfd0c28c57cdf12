"""A logistic head: fitted by scikit-learn, stored as JSON, applied by numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaft.errors import AaftError
from aaft.io import read_json, write_json

Features = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LogisticHead:
    """Probability ``sigmoid(((x - mean) / scale) @ weight + bias)``."""

    mean: Vector
    scale: Vector
    weight: Vector
    bias: float

    def predict(self, features: Features) -> Vector:
        """Probabilities ``[n]`` of features ``[n, d]``."""
        # Not `@`, and not in another layout: their rounding of a row depends on the other rows.
        scaled = np.ascontiguousarray((features - self.mean) / self.scale)
        logits = np.einsum("nd,d->n", scaled, self.weight) + self.bias
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30))), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write as JSON; floats keep every bit."""
        write_json(
            path,
            {
                "mean": self.mean.tolist(),
                "scale": self.scale.tolist(),
                "weight": self.weight.tolist(),
                "bias": self.bias,
            },
        )

    @classmethod
    def load(cls, path: Path) -> LogisticHead:
        """Read what ``save`` wrote."""
        raw: dict[str, Any] = read_json(path)
        return cls(
            np.array(raw["mean"]), np.array(raw["scale"]), np.array(raw["weight"]), raw["bias"]
        )


def fit_head(
    features: Features, labels: npt.NDArray[np.int64], name: str, regularization: float
) -> LogisticHead:
    """Fit a class-balanced L2 logistic regression.

    Args:
        features: ``[n, d]``.
        labels: ``[n]`` of 0 and 1.
        name: what is fitted, for the error message.
        regularization: scikit-learn's ``C``; smaller is smoother.

    Raises:
        AaftError: only one class present.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise AaftError(
            f"judge {name}: its fit split has one class only; check the labels in data/judge"
        )
    mean = features.mean(0, dtype=np.float64)
    # A feature that never varies carries nothing; scale 1 leaves it at zero.
    scale = features.std(0, dtype=np.float64)
    scale[scale < 1e-8] = 1.0
    model = LogisticRegression(C=regularization, class_weight="balanced", max_iter=500, tol=1e-3)
    model.fit((features - mean) / scale, labels)
    return LogisticHead(mean, scale, model.coef_[0].astype(np.float64), float(model.intercept_[0]))
