"""What names a model's weights without loading them."""

from __future__ import annotations

import importlib.metadata
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from aaft.errors import AaftError
from aaft.io import file_digest, read_json, text_digest
from aaft.models.policy import locate_model

# Files of a model directory that can't change what the model computes.
_IDLE = {".md", ".msgpack", ".h5", ".onnx", ".log"}


def model_digest(name: str, revision: str | None, key: str) -> str:
    """Digest of a model directory's files, or of a hub id's commit.

    Args:
        name: model directory or hub id.
        revision: hub revision.
        key: the parameter that names the model, for messages.

    Raises:
        AaftError: not found.
    """
    config = config_file(name, revision, key)
    if not Path(name).is_dir():
        # The hub cache keeps a file under its commit: snapshots/<commit>/config.json.
        return text_digest(f"{name} {config.parent.name}")
    files = sorted(path for path in Path(name).iterdir() if path.is_file())
    parts = {p.name: _digest(p) for p in files if p.suffix not in _IDLE and p.name[0] != "."}
    return text_digest(json.dumps(parts))


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_once(path: Path, _size: int, _modified: int) -> str:
    """A process asks for the same weights' digest several times; hashing them takes a second."""
    return file_digest(path)


def model_config(name: str, revision: str | None, key: str) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        AaftError: not found, or no JSON object.
    """
    path = config_file(name, revision, key)
    config = read_json(path)
    if not isinstance(config, dict):
        raise AaftError(f"{key}: {path} holds no JSON object; fetch the model again")
    return config


def config_file(name: str, revision: str | None, key: str) -> Path:
    """Path of the model's ``config.json``, fetched from the hub for a hub id.

    Raises:
        AaftError: not found.
    """
    name = locate_model(name, key)
    if Path(name).is_dir():
        return Path(name, "config.json")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AaftError(
            f"{key}: {name} could not be loaded ({reason}); name a model directory or hub id"
        ) from None


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a model's outputs and training depend on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "peft", "tokenizers")
    }
