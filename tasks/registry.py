"""The registry's aliases: ``candidate``, ``champion`` and ``previous``.

Aliases have no compare-and-set, so everything that moves one holds a lock. Every step may be
repeated: after a kill, the next run finishes what was begun.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task

from aaft.config import Config, Paths
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl, text_digest
from aaft.promotion.verdict import compare
from tasks import versions
from tasks.locks import exclusive
from tasks.tracking import RUN_KEY, read_lock, select_server
from tasks.versions import DIGEST, ROLE, RUN_ID, Weights, by_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_DECIDED = "aaft.decided_for"
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Registration:
    """Where the versions stand after a run; ``reason`` is one sentence about the champion."""

    name: str
    candidate: int
    champion: int
    promoted: bool
    reason: str


@task(name="register", task_run_name="register")
def register(cfg: Config, paths: Paths, run_id: str) -> Registration:
    """Register this run's models and let the candidate become champion if it earned it.

    The very first run registers the reference as champion, so that there is always something to
    compare with and to go back to.

    Raises:
        AaftError: another process is moving aliases, or files of the run are missing.
    """
    with promotion_lock(Path.cwd()):
        registration = settle(cfg, paths, run_id)
    get_run_logger().info(registration.reason)
    return registration


def settle(cfg: Config, paths: Paths, run_id: str) -> Registration:
    """What `register` does, under its lock."""
    client = _client(Path.cwd())
    name = cfg.registry.model_name
    reference, candidate = _weights(cfg, paths)
    champion = by_alias(client, name, "champion")
    if champion is None:
        champion = versions.ensure(client, name, reference, run_id)
        client.set_registered_model_alias(name, "champion", champion.version)
    newest = versions.ensure(client, name, candidate, run_id)
    if _number(by_alias(client, name, "candidate")) != _number(newest):
        client.set_registered_model_alias(name, "candidate", newest.version)

    # Decided once for each state: a later rollback by hand is not undone by running again.
    state = client.get_run(run_id).data.tags[RUN_KEY]
    if newest.tags.get(_DECIDED) == state:
        promote_now, reason = False, "nothing new to decide"
    else:
        promote_now, reason = _decide(client, cfg, paths, champion, newest, reference.digest)
    if promote_now:
        _move_champion(client, name, champion, newest)
        champion = newest
    client.set_model_version_tag(name, newest.version, _DECIDED, state)
    return Registration(
        name=name,
        candidate=_number(newest),
        champion=_number(champion),
        promoted=promote_now,
        reason=f"champion is version {champion.version}: {reason}",
    )


def promote(root: Path, name: str, version: int) -> str:
    """Make a version champion by hand; returns what was done.

    Raises:
        AaftError: no such version.
    """
    from mlflow.exceptions import MlflowException

    with promotion_lock(root):
        client = _client(root)
        try:
            chosen = client.get_model_version(name, str(version))
        except MlflowException:
            raise AaftError(f"registry: {name} has no version {version}") from None
        champion = by_alias(client, name, "champion")
        if _number(champion) == version:
            return f"{name}: version {version} is champion already"
        _move_champion(client, name, champion, chosen)
        return f"{name}: champion is version {version}, previous {_number(champion) or 'none'}"


def rollback(root: Path, name: str) -> str:
    """Swap ``champion`` and ``previous``; returns what was done.

    Raises:
        AaftError: there is no previous champion.
    """
    with promotion_lock(root):
        client = _client(root)
        champion = by_alias(client, name, "champion")
        previous = by_alias(client, name, "previous")
        if previous is None or _number(previous) == _number(champion):
            raise AaftError(f"registry: {name} has no previous champion to go back to")
        _move_champion(client, name, champion, previous)
        return f"{name}: champion is version {previous.version}, previous {_number(champion)}"


def promotion_lock(root: Path) -> AbstractContextManager[None]:
    """The lock that everything which moves an alias holds."""
    return exclusive(root / ".aaft/mlflow/promotion.lock", "a promotion", _LOCK_SECONDS)


def _decide(
    client: MlflowClient,
    cfg: Config,
    paths: Paths,
    champion: ModelVersion,
    candidate: ModelVersion,
    reference_digest: str,
) -> tuple[bool, str]:
    """Whether the candidate becomes champion, and why."""
    if _number(champion) == _number(candidate):
        return False, "the candidate's weights are the champion's"
    verdict = read_json(paths.stage("gate") / "verdict.json")["verdict"]
    if verdict != "PASS":
        return False, f"the candidate's verdict is {verdict}"
    if champion.tags.get(DIGEST) == reference_digest:
        return True, "the candidate passed"
    rows = _rows(paths.stage("evaluate") / "results.jsonl", "candidate")
    try:
        against = compare(rows, _results(client, champion), cfg.gate)["verdict"]
    except AaftError as error:
        return False, f"the candidate passed but cannot be compared with it ({error})"
    if against == "FAIL":
        return False, "the candidate passed against its reference but is worse than the champion"
    return True, f"the candidate passed, and {against} against the champion before it"


def _move_champion(
    client: MlflowClient, name: str, champion: ModelVersion | None, chosen: ModelVersion
) -> None:
    """``previous`` first: if we are killed in between, the champion is still the old one."""
    if champion is not None:
        client.set_registered_model_alias(name, "previous", champion.version)
    client.set_registered_model_alias(name, "champion", chosen.version)


def _weights(cfg: Config, paths: Paths) -> tuple[Weights, Weights]:
    """Reference and candidate, named by the hashes that DVC took of their files."""
    lock = read_lock(Path("dvc.lock"))
    adapter = paths.stage("train") / "adapter"
    hashes = {
        entry["path"]: entry["md5"]
        for part in ("deps", "outs")
        for entry in lock["train"].get(part, [])
    }
    # A hub id has no hash here; its revision stands in.
    base = hashes.get(cfg.policy.model, f"{cfg.policy.model}@{cfg.policy.revision}")
    merged = text_digest(json.dumps([base, hashes[adapter.as_posix()]]))
    source = (cfg.policy.model, cfg.policy.revision)
    return (
        Weights("reference", text_digest(base), *source, adapter=None),
        Weights("candidate", merged, *source, adapter=adapter),
    )


def _results(client: MlflowClient, version: ModelVersion) -> list[dict[str, Any]]:
    """A version's rows in the results that were logged with it."""
    from mlflow.exceptions import MlflowException

    run_id, role = version.tags.get(RUN_ID, ""), version.tags.get(ROLE, "")
    try:
        file = client.download_artifacts(run_id, "evaluate/results.jsonl")
    except (MlflowException, OSError):
        raise AaftError(f"version {version.version} has no stored results") from None
    return _rows(Path(file), role)


def _rows(file: Path, model: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(file) if row["model"] == model]


def _client(root: Path) -> MlflowClient:
    import mlflow

    select_server(root)
    return mlflow.MlflowClient()


def _number(version: ModelVersion | None) -> int:
    """Version number, 0 for none."""
    return int(version.version) if version is not None else 0
