"""The flow, really run: Prefect, DVC and MLflow on a tiny model, with stand-in stages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.processes import alive

ROOT = Path(__file__).resolve().parent.parent
DRIVER = """
import os
os.environ["FLOW"] = str(os.getpid())
import aaft.report

def render(cfg, paths):
    target = paths.build / "report.html"
    target.write_text("report")
    return target

aaft.report.render = render
from flows.retrain import main
main()
"""
READER = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
pipe = mlflow.transformers.load_model("models:/aaft@champion")
print(pipe("hello", max_new_tokens=2)[0]["generated_text"])
assert "aaft" not in sys.modules and str(pipe.model.dtype) == "torch.bfloat16"
"""


class Workspace:
    """A project root with its own DVC, stub stages, a tiny model and an adapter for it."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root
        self.env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        self.env |= {
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DVC_NO_ANALYTICS": "true",
        }
        self.env.pop("MLFLOW_TRACKING_URI", None)

    def flow(self, **env: str) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-P", "-c", DRIVER], env)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(Path(sys.executable).with_name("dvc")), *arguments], {})

    def set(self, **sections: object) -> None:
        file = self.root / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for name, value in sections.items():
            params[name] = {**params[name], **value} if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(params))

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root}/.aaft/mlflow/mlflow.db"

    def aliases(self) -> dict[str, int]:
        found = self.client().get_registered_model("aaft").aliases
        return {name: int(version) for name, version in found.items()}

    def _run(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that nothing ran in."""
    root = tmp_path_factory.mktemp("workspace")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    for folder in ("data/bench", "data/judge", "models/embedder", "models/intent_embedder"):
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text("{}")
    row = '{"id":"a","source":"instructions","messages":[],"context":null}\n'
    (root / "data/train.jsonl").write_text(row)
    for package in ("bench", "data", "judges", "models", "promotion", "scoring", "tuning"):
        (root / "aaft" / package).mkdir(parents=True)
        (root / "aaft" / package / "code.py").write_text("")
    files = [f"data/{name}.py" for name in ("contamination", "records", "similarity", "text")]
    for file in (*files, "promotion/intervals.py"):
        (root / "aaft" / file).write_text("")
    (root / "aaft/__init__.py").write_text("")
    shutil.copy(ROOT / "tests/stub_stages.py", root / "aaft/__main__.py")
    metrics = {name: {"better": "lower", "margin": 0.0} for name in ("harmful_rate",)}
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["gate"]["metrics"] = metrics
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    _tiny_model(root)
    Workspace(root, root / "none").dvc("init", "--no-scm", "-q")
    return root


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def workspace(template: Path, prefect_home: Path, tmp_path: Path) -> Workspace:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    return Workspace(root, prefect_home)


@pytest.fixture(scope="module")
def finished(
    template: Path, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, subprocess.CompletedProcess[str]]:
    """A workspace after its first run; tests may run it again but not change its inputs."""
    root = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(template, root)
    workspace = Workspace(root, prefect_home)
    return workspace, workspace.flow()


def test_first_run_ends_with_the_table_and_a_promoted_candidate(finished) -> None:
    workspace, done = finished
    assert done.returncode == 0, done.stderr
    assert "harmful_rate" in done.stdout
    assert "build/report.html" in done.stdout
    assert workspace.aliases() == {"champion": 2, "candidate": 2, "previous": 1}


def test_run_is_logged_with_parameters_metrics_files_and_lineage(finished) -> None:
    workspace, _ = finished
    client = workspace.client()
    version = client.get_model_version_by_alias("aaft", "champion")
    run = client.get_run(version.run_id)
    assert run.data.params["train.lora.r"] == "16"
    assert run.data.metrics["candidate.qa_em"] == 0.5
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train.loss.nll")] == [2.0]
    assert {"aaft.data_md5", "aaft.config_digest", "aaft.version.torch"} <= run.data.tags.keys()
    files = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluate")}
    assert files == {"evaluate/report.json", "evaluate/results.jsonl"}


def test_registered_version_loads_without_aaft(finished, tmp_path: Path) -> None:
    workspace, _ = finished
    env = {k: v for k, v in workspace.env.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", READER, workspace.uri]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_second_run_changes_nothing_and_dvc_agrees(finished) -> None:
    workspace, _ = finished
    lock = (workspace.root / "dvc.lock").read_bytes()
    done = workspace.flow()
    assert done.returncode == 0, done.stderr
    assert (workspace.root / "dvc.lock").read_bytes() == lock
    assert len(workspace.client().search_model_versions("name='aaft'")) == 2
    runs = workspace.client().search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert "Data and pipelines are up to date" in workspace.dvc("status").stdout


@pytest.mark.parametrize(
    ("seed", "code", "message"),
    [
        (13, 2, "error: score: data/train.jsonl: line 3: no response; delete the row"),
        (
            14,
            1,
            (
                "error: score: killed by SIGKILL, perhaps for lack of memory; "
                "run again, what is finished is kept"
            ),
        ),
        (15, 1, "error: score: exited with code 1; the log above says why"),
    ],
)
def test_failed_stage_is_named_in_one_line_and_the_next_run_finishes(
    workspace: Workspace, seed: int, code: int, message: str
) -> None:
    workspace.set(seed=seed)
    done = workspace.flow()
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == message
    assert "prefect/" not in done.stderr, "no traceback of the engine"
    assert ("ZeroDivisionError: a bug" in done.stderr) == (seed == 15)
    if seed == 14:
        workspace.set(seed=0)
        assert workspace.flow().returncode == 0


def test_a_flow_that_is_told_to_end_takes_its_stage_and_its_server_with_it(
    workspace: Workspace,
) -> None:
    workspace.set(seed=17)
    done = workspace.flow()
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines()[-1] == "error: stopped by SIGTERM"
    assert not alive(int((workspace.root / "stage.pid").read_text()))
    server = re.search(r"temporary server on http://([\d.]+):(\d+)", done.stderr + done.stdout)
    assert server is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server[1], int(server[2])), timeout=5)


def test_judge_that_drifted_stops_the_run_before_training(workspace: Workspace) -> None:
    assert workspace.flow().returncode == 0
    trained = (workspace.root / "build/train/report.json").stat().st_mtime_ns
    workspace.set(seed=16)
    done = workspace.flow()
    assert done.returncode == 2
    assert "judge embedded: safety moved by 0.500" in done.stderr.splitlines()[-1]
    assert (workspace.root / "build/train/report.json").stat().st_mtime_ns == trained


def test_worse_candidate_is_registered_but_not_promoted(workspace: Workspace) -> None:
    workspace.set(evaluate={"limit": 1})
    done = workspace.flow()
    assert done.returncode == 0, done.stderr
    assert workspace.aliases() == {"champion": 1, "candidate": 2}


def test_unreachable_mlflow_stops_the_run_before_any_stage(workspace: Workspace) -> None:
    done = workspace.flow(MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: MLflow does not answer at http://127")
    assert not (workspace.root / "build").exists()


def _tiny_model(root: Path) -> None:
    """A two-layer llama over bytes, and an adapter for it, under ``models`` and ``fixture``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), **shape, **heads))
    model.to(torch.bfloat16).save_pretrained(root / "models/policy")
    tokenizer.save_pretrained(root / "models/policy")
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapted.peft_config["default"].base_model_name_or_path = "models/policy"
    adapted.save_pretrained(root / "fixture/adapter")
    (root / "fixture/adapter/README.md").unlink(missing_ok=True)
