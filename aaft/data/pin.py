"""The hash that ``data.dvc`` pins, computed as DVC 3 does, without importing DVC."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import yaml

from aaft.errors import AaftError

_md5 = functools.partial(hashlib.md5, usedforsecurity=False)


def file_md5(path: Path) -> str:
    """DVC's hash of a file: the md5 of its bytes, in hex."""
    with path.open("rb") as source:
        # DVC names content by md5; nothing here relies on it being hard to forge.
        return hashlib.file_digest(source, _md5).hexdigest()


def dvc_dir_md5(folder: Path) -> str:
    """DVC's hash of a folder: 32 hex digits and ``.dir``.

    It is the md5 of the JSON list ``[{"md5", "relpath"}, ...]`` of all files, sorted by path.
    """
    entries = [
        {
            "md5": file_md5(path),
            "relpath": path.relative_to(folder).as_posix(),
        }
        for path in folder.rglob("*")
        if path.is_file()
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode("utf-8")
    return _md5(listing).hexdigest() + ".dir"


def read_pin(dvc_file: Path) -> str:
    """The md5 in a ``.dvc`` file with one output.

    Raises:
        AaftError: missing or malformed file.
    """
    try:
        return str(yaml.safe_load(dvc_file.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except FileNotFoundError:
        raise AaftError(f"{dvc_file}: no such file; restore it with git checkout") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError):
        raise AaftError(f"{dvc_file}: not a DVC file; restore it with git checkout") from None
