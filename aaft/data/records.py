"""Training rows: from a JSONL file or a hub data set to one record format.

Accepted rows: ``{"messages": [..., {"role": "assistant", ...}]}`` or ``{"prompt", "response"}``,
each with an optional ``id``, ``source`` and ``context`` (the passage an answer must rest on).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aaft.config import DataConfig
from aaft.errors import AaftError
from aaft.io import read_jsonl, text_digest

ROLES = ("system", "user", "assistant")
DEFAULT_SOURCE = "user"


@dataclass(frozen=True)
class Record:
    """A prompt (all messages before the answer) and its reference response."""

    id: str
    prompt_messages: list[dict[str, str]]
    response: str
    context: str | None
    source: str

    @property
    def prompt(self) -> str:
        """Text of the last user message."""
        return last_user(self.prompt_messages)

    def row(self) -> dict[str, Any]:
        """The record as a JSONL row."""
        answer = {"role": "assistant", "content": self.response}
        return {
            "id": self.id,
            "source": self.source,
            "messages": [*self.prompt_messages, answer],
            "context": self.context,
        }


class RawRow(NamedTuple):
    """A row as found: its 1-based line (or row) number, and its value or why there is none."""

    line: int
    value: dict[str, Any] | None
    fault: str = ""


class Draft(NamedTuple):
    """A row in record shape whose values may still be missing or wrong.

    ``fault`` says what is wrong with the row's shape; it is empty when the shape is fine.
    ``own_id`` is False when the id is a digest of the text.
    """

    id: str | None
    own_id: bool
    prompt_messages: list[dict[str, str]]
    response: str | None
    context: str | None
    source: str
    fault: str

    def record(self) -> Record:
        """The record; only for a draft without faults (``ValueError``)."""
        if self.fault or self.id is None or self.response is None:
            raise ValueError(f"not a record: {self.fault or 'no response'}")
        return Record(self.id, self.prompt_messages, self.response, self.context, self.source)


def last_user(messages: list[dict[str, str]]) -> str:
    """Text of the last user message, empty when there is none."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


def is_local(name: str) -> bool:
    """Whether ``data.train`` names a file and not a hub data set."""
    return name.endswith((".jsonl", ".json")) or Path(name).exists()


def iter_rows(cfg: DataConfig) -> Iterator[RawRow]:
    """Every row of ``cfg.train``, readable or not; blank lines are skipped.

    Raises:
        AaftError: the file is missing, or the hub data set can't be loaded.
    """
    return _file_rows(Path(cfg.train)) if is_local(cfg.train) else _hub_rows(cfg)


def _file_rows(path: Path) -> Iterator[RawRow]:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise AaftError(f"{path}: no such file; check data.train in params.yaml") from None
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield _parse(number, line)


def _parse(number: int, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        # An escape like "\\ud800" parses, but no file can hold the result.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return RawRow(number, None, f"invalid UTF-8 at byte {error.start}")
    except UnicodeEncodeError:
        return RawRow(number, None, "half of a surrogate pair in a text")
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error).split(" while ")[0]
        return RawRow(number, None, f"not JSON ({reason})")
    if not isinstance(value, dict):
        return RawRow(number, None, "not a JSON object")
    return RawRow(number, value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _hub_rows(cfg: DataConfig) -> Iterator[RawRow]:
    # Slow to import, and needed for hub data alone.
    from datasets import load_dataset

    try:
        rows = load_dataset(cfg.train, split=cfg.split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AaftError(
            f"data.train: {cfg.train!r} is no file and split {cfg.split!r} of it can't be loaded"
            f" from the hub ({reason}); check the id, the split and the network"
        ) from None
    for number, value in enumerate(rows, start=1):
        # Dates become text and NaN becomes null: what JSON lacks can't be quarantined.
        text = json.dumps(dict(value), default=str)
        yield RawRow(number, json.loads(text, parse_constant=lambda _: None))


def draft(value: dict[str, Any]) -> Draft:
    """Bring a row into record shape; never fails, see ``Draft.fault``."""
    messages, response, fault = _conversation(value)
    own = value.get("id")
    own_id = own is not None and own != ""
    if own_id and (isinstance(own, bool) or not isinstance(own, (str, int))):
        fault = fault or f"id: expected text, got {type(own).__name__}"
    context = value.get("context")
    if context is not None and not isinstance(context, str):
        fault, context = fault or f"context: expected text, got {type(context).__name__}", None
    if context and not fault and context not in last_user(messages):
        fault = "context: not in the user's message, so the model would never see it"
    source = value.get("source") or DEFAULT_SOURCE
    if not isinstance(source, str):
        fault, source = fault or f"source: expected text, got {type(source).__name__}", ""
    digest = text_digest(json.dumps([messages, response, context]))
    return Draft(
        str(own) if own_id else digest,
        own_id,
        messages,
        response,
        context or None,
        source,
        fault,
    )


def _conversation(value: dict[str, Any]) -> tuple[list[dict[str, str]], str | None, str]:
    """Prompt messages, response (None when missing) and the fault of either format."""
    if "messages" not in value:
        prompt, response = value.get("prompt"), value.get("response")
        if prompt is None:
            return [], None, "messages: missing; give messages, or prompt and response"
        for name, text in (("prompt", prompt), ("response", response)):
            if text is not None and not isinstance(text, str):
                return [], None, f"{name}: expected text, got {type(text).__name__}"
        return [{"role": "user", "content": prompt}], response, ""
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        return [], None, "messages: expected a non-empty list"
    for number, message in enumerate(messages):
        fault = _message_fault(message)
        if fault:
            return [], None, f"messages[{number}]{fault}"
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    response = plain.pop()["content"] if plain[-1]["role"] == "assistant" else None
    if not any(message["role"] == "user" for message in plain):
        return plain, response, "messages: no user message before the answer"
    return plain, response, ""


def _message_fault(message: Any) -> str:
    if not isinstance(message, dict):
        return ": expected an object"
    if message.get("role") not in ROLES:
        return f".role: {message.get('role')!r} is not one of {', '.join(ROLES)}"
    if not isinstance(message.get("content"), str):
        return ".content: expected text"
    return ""


def load_records(cfg: DataConfig) -> list[Record]:
    """All records of ``cfg.train``, strictly: the first bad row stops.

    Raises:
        AaftError: unreadable data, a row without a response, a wrong shape or a repeated id.
    """
    records: dict[str, Record] = {}
    for raw in iter_rows(cfg):
        where = f"{cfg.train}: line {raw.line}"
        if raw.value is None:
            raise AaftError(f"{where}: {raw.fault}; fix or delete the line")
        made = draft(raw.value)
        if made.fault or not made.response:
            raise AaftError(f"{where}: {made.fault or 'response: missing'}; fix or delete the row")
        record = made.record()
        if record.id in records:
            raise AaftError(f"{where}: id: {record.id!r} is used before; make ids unique")
        records[record.id] = record
    if not records:
        raise AaftError(f"{cfg.train}: no rows; check data.train in params.yaml")
    return list(records.values())


def read_clean(path: Path, stage: str = "validate") -> list[Record]:
    """The records in a ``clean.jsonl`` that the validate stage wrote, or in a file like it.

    Args:
        path: a file of `Record.row` lines.
        stage: that wrote it.

    Raises:
        AaftError: missing file, or one that the stage didn't write.
    """
    if not path.is_file():
        raise AaftError(f"{path}: no such file; run aaft {stage} first")
    try:
        return [draft(row).record() for row in read_jsonl(path)]
    except ValueError as error:
        raise AaftError(f"{path}: {error}; run aaft {stage} again") from None
