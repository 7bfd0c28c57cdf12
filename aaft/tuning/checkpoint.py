"""Checkpoints of a training run: whole or absent, and never of another run.

A checkpoint is a folder with tensors (safetensors), a state (JSON) and a manifest with the SHA-256
of each. It is written under another name, flushed to the disk and renamed, so a process killed at
any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aaft.errors import AaftError
from aaft.io import file_digest

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_KEEP = 2
# What torch's AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after ``step`` steps; ``state`` is plain JSON."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


class _Damaged(Exception):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The newest checkpoints of one run in ``folder``; ``run`` is the digest that names the run."""

    def __init__(self, folder: Path, run: str, every: int) -> None:
        self._folder = folder
        self._run = run
        self.every = every
        """Steps between two checkpoints."""

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, then remove all but the newest two.

        Raises:
            AaftError: the disk is full or can't be written; earlier checkpoints stay.
        """
        target = self._folder / f"step-{snapshot.step:06d}"
        partial = self._folder / f".{target.name}.partial"
        state = {"run": self._run, "step": snapshot.step, **snapshot.state}
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            tensors = {name: t.detach().contiguous() for name, t in snapshot.tensors.items()}
            save_file(tensors, partial / _TENSORS)
            (partial / _STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            digests = {name: file_digest(partial / name) for name in (_TENSORS, _STATE)}
            (partial / _MANIFEST).write_text(json.dumps(digests), encoding="utf-8")
            for path in (*sorted(partial.iterdir()), partial):
                _flush(path)
            _discard(target)
            partial.rename(target)
            _flush(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise AaftError(
                f"train: {target}: checkpoint not written ({reason}); make room and run again, "
                "it goes on from the checkpoint before"
            ) from None
        for old in self._found()[:-_KEEP]:
            _discard(old)

    def load(self) -> Snapshot | None:
        """The newest checkpoint of this run, or None.

        A damaged one is skipped with a warning; those of other runs are removed without a word.
        """
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        newest: Snapshot | None = None
        for path in reversed(self._found()):
            try:
                snapshot = _read(path)
            except _Damaged as damage:
                print(f"warning: train: {path} is damaged ({damage}); skipped", file=sys.stderr)
                continue
            if snapshot.state["run"] != self._run:
                _discard(path)
            elif newest is None:
                newest = snapshot
        return newest

    def at(self, step: int) -> Snapshot:
        """The checkpoint after ``step`` steps, for a rank that was told to go on from it.

        Raises:
            AaftError: it is not here, or damaged: the ranks don't see the same folder.
        """
        path = self._folder / f"step-{step:06d}"
        try:
            return _read(path)
        except _Damaged as damage:
            raise AaftError(
                f"train: {path}: {damage}; all processes must see the same build folder"
            ) from None

    def clear(self) -> None:
        """Remove every checkpoint: the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(self._folder.glob("step-*"))


def capture(
    named: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Parameters and AdamW's moments by name."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in named.items():
        tensors[f"weight/{name}"] = parameter
        for key in _MOMENTS:
            if key in optimizer.state.get(parameter, {}):
                tensors[f"{key}/{name}"] = optimizer.state[parameter][key]
    return tensors


def restore(
    named: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put what `capture` took into the parameters and their optimizer, made with them in order."""
    state = {}
    for index, (name, parameter) in enumerate(named.items()):
        with torch.no_grad():
            parameter.copy_(tensors[f"weight/{name}"])
        moments = {k: tensors[f"{k}/{name}"] for k in _MOMENTS if f"{k}/{name}" in tensors}
        if moments:
            state[index] = moments
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read(path: Path) -> Snapshot:
    try:
        digests = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name in (_TENSORS, _STATE):
            if file_digest(path / name) != digests[name]:
                raise _Damaged(f"{name} is not what was written")
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return Snapshot(state["step"], load_file(path / _TENSORS), state)
    except FileNotFoundError as error:
        raise _Damaged(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _Damaged(" ".join(str(error).split())) from None


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    """Remove a checkpoint; killed halfway, it is a leftover and no damaged checkpoint."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
