"""Model versions in the MLflow registry: write one that loads anywhere, and read one back."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaft.errors import AaftError
from aaft.models.policy import merge_adapter
from tasks.tracking import select_server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST = "aaft.digest"
ROLE = "aaft.role"
RUN_ID = "aaft.run_id"

_REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Weights:
    """What a version holds: a base, with an adapter merged in or as it is.

    ``digest`` names the bytes, ``role`` is "reference" or "candidate".
    """

    role: str
    digest: str
    base: str
    revision: str | None
    adapter: Path | None


def by_digest(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The version with these weights, if there is one."""
    found = (v for v in client.search_model_versions(f"name='{name}'"))
    return next((version for version in found if version.tags.get(DIGEST) == digest), None)


def by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to, if it points anywhere."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def ensure(client: MlflowClient, name: str, weights: Weights, run_id: str) -> ModelVersion:
    """The version with these weights, logged and registered unless it exists.

    The whole model is stored as bfloat16 safetensors with its tokenizer, without pickles and
    without a trace of aaft, so that ``mlflow.transformers.load_model`` is all that a reader needs.
    ``run_id`` is the run whose results measured it.
    """
    from mlflow.exceptions import MlflowException

    known = by_digest(client, name, weights.digest)
    if known is not None:
        client.set_model_version_tag(name, known.version, RUN_ID, run_id)
        return known
    tags = {DIGEST: weights.digest, ROLE: weights.role, RUN_ID: run_id}
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = _log(name, weights, run_id, tags)
    # Tags go in together with the version: one without its digest would be stored again.
    return client.create_model_version(
        name, model.model_uri, run_id, tags=tags, model_id=model.model_id
    )


def download(root: Path, name: str, alias: str) -> Path:
    """A model directory with the version behind ``alias``, kept under ``.aaft/versions/``.

    Raises:
        AaftError: there is no such alias yet.
    """
    import mlflow

    select_server(root)
    version = by_alias(mlflow.MlflowClient(), name, alias)
    if version is None:
        raise AaftError(f"registry: {name} has no {alias} yet; run `make run` first")
    target = root / ".aaft/versions" / f"{name}-{version.version}-{version.tags.get(DIGEST, '')}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        stored = Path(
            mlflow.artifacts.download_artifacts(
                f"models:/{name}/{version.version}", dst_path=scratch
            )
        )
        whole = Path(scratch, "whole")
        shutil.copytree(stored / "model", whole)
        shutil.copytree(stored / "components/tokenizer", whole, dirs_exist_ok=True)
        whole.rename(target)
    return target


def _log(name: str, weights: Weights, run_id: str, tags: Mapping[str, str]) -> Any:
    """Log the model to its run; nothing is generated and nothing is asked of the hub."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aaft.models.runtime import quiet_transformers

    quiet_transformers()
    with tempfile.TemporaryDirectory(prefix="aaft-") as scratch, warnings.catch_warnings():
        # A deprecation inside of transformers' own save_pretrained.
        warnings.simplefilter("ignore", FutureWarning)
        source, revision = weights.base, weights.revision
        if weights.adapter is not None:
            source, revision = str(Path(scratch, "merged")), None
            merge_adapter(weights.base, weights.adapter, Path(source), weights.revision)
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        # MLflow looks a model's name up on the hub, with retries, unless it cannot be a hub id.
        model.name_or_path = model.config._name_or_path = f"{name}:{weights.role}"
        card = (
            f"---\nlicense: unknown\n---\n# {name}: {weights.role}\n\nBase model: {weights.base}\n"
        )
        with mlflow.start_run(run_id=run_id):
            return mlflow.transformers.log_model(
                transformers_model={"model": model, "tokenizer": tokenizer},
                name=weights.role,
                task="text-generation",
                signature=ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")])),
                pip_requirements=_requirements(),
                model_card=ModelCard(card + "".join(f"- {k}: {v}\n" for k, v in tags.items())),
            )


def _requirements() -> list[str]:
    """Pinned, so that MLflow does not run the model to find out; local build tags dropped."""
    versions = {name: importlib.metadata.version(name) for name in _REQUIREMENTS}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
