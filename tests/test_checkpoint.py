"""Checkpoints are whole or absent, verified on load, and never another run's."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aaft.errors import AaftError
from aaft.tuning.checkpoint import Checkpoints, Snapshot, capture, restore


def snapshot(step: int) -> Snapshot:
    tensors = {"weight/a": torch.full((40,), float(step)), "step/a": torch.tensor(float(step))}
    return Snapshot(step, tensors, {"history": [{"step": step, "loss": 0.1 + step}]})


def saved(folder: Path, *steps: int, run: str = "mine") -> Checkpoints:
    checkpoints = Checkpoints(folder, run, 1)
    for step in steps:
        checkpoints.save(snapshot(step))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    loaded = saved(tmp_path, 7).load()
    assert loaded.step == 7
    assert loaded.state["history"] == [{"step": 7, "loss": 7.1}]
    for name, tensor in snapshot(7).tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].shape == tensor.shape


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", "mine", 1).load() is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 10)
    assert names(tmp_path) == ["step-000003", "step-000010"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_named_once_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Callable[[Path], None]
) -> None:
    checkpoints = saved(tmp_path, 4, 8)
    damage(tmp_path / "step-000008" / file)
    assert checkpoints.load().step == 4
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: train: ")
    assert "step-000008" in said[0]


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4, 8)
    truncate(tmp_path / "step-000008/tensors.safetensors")
    checkpoints.save(snapshot(8))
    assert checkpoints.load().step == 8


def test_nothing_but_damaged_checkpoints_is_a_start_from_the_beginning(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    flip(tmp_path / "step-000004/state.json")
    assert checkpoints.load() is None


def test_checkpoints_of_another_run_are_removed_and_not_used(tmp_path: Path) -> None:
    saved(tmp_path, 4, 8, run="theirs")
    assert Checkpoints(tmp_path, "mine", 1).load() is None
    assert names(tmp_path) == []


def test_what_a_killed_process_left_half_done_is_cleared(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / ".step-000008.partial").mkdir()
    (tmp_path / ".step-000002.gone").mkdir()
    assert checkpoints.load().step == 4
    assert names(tmp_path) == ["step-000004"]


@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_is_one_message_and_the_earlier_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    checkpoints = saved(tmp_path, 4)
    calls = 0
    real = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AaftError) as caught:
            checkpoints.save(snapshot(8))
    assert "step-000008: checkpoint not written (No space left on device)" in str(caught.value)
    assert "\n" not in str(caught.value)
    # The fifth flush is that of the folder, after the rename: the new checkpoint may be there.
    assert names(tmp_path)[0] == "step-000004"
    assert checkpoints.load().step == (8 if call == 5 else 4)


def test_tensors_that_do_not_fit_are_one_message_too(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(AaftError, match=r"step-000008: checkpoint not written .*; make room"):
            checkpoints.save(Snapshot(8, {"weight/a": torch.zeros(1 << 20)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000004"]


def test_a_rank_that_cannot_see_the_checkpoint_says_why(tmp_path: Path) -> None:
    assert saved(tmp_path, 4).at(4).step == 4
    with pytest.raises(AaftError, match="must see the same build folder"):
        Checkpoints(tmp_path / "elsewhere", "mine", 1).at(4)


def test_a_restored_optimizer_takes_the_same_steps_to_the_bit() -> None:
    def fresh() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        named = {"a": torch.nn.Parameter(torch.ones(5)), "idle": torch.nn.Parameter(torch.ones(2))}
        return named, torch.optim.AdamW(list(named.values()), lr=0.1, weight_decay=0.1)

    def step(named, optimizer, number: int) -> None:
        named["a"].grad = torch.sin(torch.arange(5.0) + number)
        optimizer.step()

    straight = fresh()
    for number in range(6):
        step(*straight, number)
    first = fresh()
    for number in range(3):
        step(*first, number)
    kept = {name: tensor.detach().clone() for name, tensor in capture(*first).items()}
    second = fresh()
    restore(*second, kept)
    for number in range(3, 6):
        step(*second, number)
    for name, parameter in straight[0].items():
        assert torch.equal(second[0][name], parameter)
