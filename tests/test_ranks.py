"""Several processes train what one would."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from aaft.config import Paths, load_config
from aaft.errors import AaftError
from aaft.io import read_jsonl
from aaft.tuning import stage
from aaft.tuning.ranks import Ranks, connect
from tests import tiny_train
from tests.test_train_counterfactual import KEPT, add_counterfactuals
from tests.test_train_kin import SIBLINGS, TWINS, add_kin


class Fake:
    """An accelerator's place in a group that is never talked to."""

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes = index, count


@given(st.lists(st.integers(1, 200), max_size=40), st.integers(1, 5))
def test_every_row_has_one_owner_and_no_rank_has_much_more_than_its_part(lengths, count) -> None:
    rows = dict(enumerate(lengths))
    shares = [Ranks(Fake(index, count)).share(rows) for index in range(count)]
    assert sorted(key for share in shares for key in share) == list(rows)
    assert all(share == sorted(share) for share in shares)
    loads = [sum(rows[key] for key in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_one_process_needs_no_group() -> None:
    ranks = connect()
    assert (ranks.main, ranks.count, ranks.device) == (True, 1, None)
    assert ranks.sum([1.0, 2.0]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP is not supported"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed is not supported"),
    ],
)
def test_splitting_the_model_is_refused(monkeypatch, name: str, said: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(AaftError, match=said):
        connect()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launch(params: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    # With --cpu it would start a single process, unless there is MPI.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", str(processes), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(free_port())]
    paths = {"PYTHONPATH": str(tiny_train.ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*launcher, "-m", *tiny_train.command(params)],
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_give_the_losses_and_the_adapter_of_one(tmp_path: Path) -> None:
    # A row a batch: in another batch bfloat16 would round it differently.
    params = tiny_train.save_project(tmp_path / "one", checkpoint_steps=1, tokens_per_batch=1)
    add_counterfactuals(tmp_path / "one/build", KEPT)
    add_kin(tmp_path / "one/build", TWINS, SIBLINGS)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    stage.run(load_config(params), Paths(params.parent / "build"))
    done = launch(Path(tmp_path / "two/params.yaml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: done") == 2
    one, two = tmp_path / "one/build/train", tmp_path / "two/build/train"
    for alone, shared in zip(
        read_jsonl(one / "history.jsonl"), read_jsonl(two / "history.jsonl"), strict=True
    ):
        for key, value in alone.items():
            assert shared[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (alone["step"], key)
    ours, theirs = (load_file(out / "adapter/adapter_model.safetensors") for out in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-3)
    assert not (two / "checkpoints").exists()
