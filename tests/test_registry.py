"""Which version the aliases point to, on a real MLflow database with models left out."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from aaft.config import Config, GateConfig, MetricRule, Paths
from aaft.errors import AaftError
from tasks import registry, versions
from tasks.tracking import RUN_KEY, connect, final_metrics, parameters, run_key

CFG = Config(gate=GateConfig(metrics={"harmful_rate": MetricRule(better="lower", margin=0.0)}))
PATHS = Paths()


class Project:
    """A project root whose pipeline reached some state."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.experiment = connect(root, CFG.registry.experiment)
        self.client = MlflowClient()

    def run(self, adapter: str, harmful: float, verdict: str = "PASS") -> registry.Registration:
        """Settle the state with this adapter, whose candidate has this harmful rate."""
        train = {
            "deps": [{"path": "models/policy", "md5": "base"}],
            "outs": [{"path": "build/train/adapter", "md5": adapter}],
        }
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"train": train}}))
        rates = {"reference": 1.0, "candidate": harmful}
        rows = [
            {
                "model": model,
                "benchmark": "harmful",
                "id": str(number),
                "prompt": f"p{number}",
                "scores": {"harmful_rate": float(number < 200 * rate)},
            }
            for model, rate in rates.items()
            for number in range(200)
        ]
        results = PATHS.stage("evaluate") / "results.jsonl"
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text("".join(json.dumps(row) + "\n" for row in rows))
        decided = PATHS.stage("gate") / "verdict.json"
        decided.parent.mkdir(parents=True, exist_ok=True)
        decided.write_text(json.dumps({"verdict": verdict}))
        run = self.client.create_run(self.experiment, tags={RUN_KEY: adapter + verdict})
        self.client.log_artifact(run.info.run_id, str(results), "evaluate")
        return registry.settle(CFG, PATHS, run.info.run_id)

    def aliases(self) -> dict[str, int]:
        found = self.client.get_registered_model("aaft").aliases
        return {name: int(version) for name, version in found.items()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")

    def log_nothing(name, weights, run_id, tags):
        return MlflowClient().create_logged_model("1", name=weights.role, source_run_id=run_id)

    monkeypatch.setattr(versions, "_log", log_nothing)
    yield Project(tmp_path)
    mlflow.set_tracking_uri(None)


def test_first_pass_promotes_over_the_registered_reference(project: Project) -> None:
    done = project.run("a", harmful=0.2)
    assert project.aliases() == {"champion": 2, "candidate": 2, "previous": 1}
    assert done.promoted
    assert project.client.get_model_version("aaft", "1").tags[versions.ROLE] == "reference"


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_without_a_pass_only_candidate_moves(project: Project, verdict: str) -> None:
    done = project.run("a", harmful=0.2, verdict=verdict)
    assert project.aliases() == {"champion": 1, "candidate": 2}
    assert verdict in done.reason


def test_candidate_worse_than_the_champion_is_not_promoted(project: Project) -> None:
    project.run("a", harmful=0.2)
    done = project.run("b", harmful=0.9)
    assert project.aliases() == {"champion": 2, "candidate": 3, "previous": 1}
    assert "worse than the champion" in done.reason


def test_candidate_better_than_the_champion_is_promoted(project: Project) -> None:
    project.run("a", harmful=0.9)
    project.run("b", harmful=0.2)
    assert project.aliases() == {"champion": 3, "candidate": 3, "previous": 2}


def test_same_state_again_adds_no_version(project: Project) -> None:
    project.run("a", harmful=0.2)
    project.run("a", harmful=0.2)
    assert len(project.client.search_model_versions("name='aaft'")) == 2
    assert project.aliases() == {"champion": 2, "candidate": 2, "previous": 1}


def test_rollback_swaps_and_outlasts_a_run_of_the_same_state(project: Project) -> None:
    project.run("a", harmful=0.2)
    registry.rollback(project.root, "aaft")
    project.run("a", harmful=0.2)
    assert project.aliases() == {"champion": 1, "candidate": 2, "previous": 2}


def test_kill_between_the_two_aliases_is_finished_by_the_next_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = MlflowClient.set_registered_model_alias

    def killed(self, name, alias, version):
        if alias == "champion" and int(version) == 2:
            raise KeyboardInterrupt
        move(self, name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            project.run("a", harmful=0.2)
    assert project.aliases() == {"champion": 1, "candidate": 2, "previous": 1}
    project.run("a", harmful=0.2)
    assert project.aliases() == {"champion": 2, "candidate": 2, "previous": 1}


def test_promote_by_hand_moves_champion_and_previous(project: Project) -> None:
    project.run("a", harmful=0.2, verdict="FAIL")
    registry.promote(project.root, "aaft", 2)
    assert project.aliases() == {"champion": 2, "candidate": 2, "previous": 1}


def test_impossible_moves_are_refused_in_one_line(project: Project) -> None:
    project.run("a", harmful=0.2, verdict="FAIL")
    with pytest.raises(AaftError, match="no version 9"):
        registry.promote(project.root, "aaft", 9)
    with pytest.raises(AaftError, match="no previous champion"):
        registry.rollback(project.root, "aaft")


def test_run_key_follows_what_ran_and_the_configuration() -> None:
    def lock(adapter: str) -> dict[str, object]:
        return {"train": {"cmd": "x", "outs": [{"path": "build/train/adapter", "md5": adapter}]}}

    key = run_key(CFG, lock("a"))
    assert run_key(CFG, lock("a")) == key
    assert run_key(CFG, lock("b")) != key
    assert run_key(CFG.model_copy(update={"seed": 1}), lock("a")) != key


def test_parameters_are_dotted_and_fit_mlflow() -> None:
    long = CFG.model_copy(update={"data": CFG.data.model_copy(update={"train": "x" * 7000})})
    assert parameters(CFG)["validate.max_bad_fraction"] == "0.02"
    assert len(parameters(long)["data.train"]) == 6000


def test_metric_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    for name, text in {
        "evaluate/report.json": '{"candidate": {"m": {"value": NaN}}, "reference": {}}',
        "gate/verdict.json": '{"metrics": {}}',
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    with pytest.raises(AaftError, match=r"candidate\.m is nan"):
        final_metrics(paths)
