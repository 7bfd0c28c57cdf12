"""A training process that is killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aaft.config import Paths, load_config
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl
from aaft.tuning import checkpoint, digest, stage
from tests import tiny_train
from tests.test_train_counterfactual import KEPT, add_counterfactuals
from tests.test_train_kin import SIBLINGS, TWINS, add_kin
from tests.tiny_train import outcome


def train(params: Path) -> dict[str, str]:
    build = params.parent / "build"
    stage.run(load_config(params), Paths(build))
    return outcome(build)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, uninterrupted run with a checkpoint after every second step."""
    params = tiny_train.save_project(
        tmp_path_factory.mktemp("whole"), records=20, epochs=6, checkpoint_steps=2
    )
    add_counterfactuals(params.parent / "build", KEPT)
    add_kin(params.parent / "build", TWINS, SIBLINGS)
    train(params)
    return params


@pytest.fixture
def unharmed(whole: Path) -> dict[str, str]:
    """What the uninterrupted run left behind."""
    return outcome(whole.parent / "build")


@pytest.fixture
def fresh(whole: Path, tmp_path: Path) -> Path:
    """The same project before training."""
    shutil.copytree(whole.parent / "build", tmp_path / "build")
    shutil.rmtree(tmp_path / "build/train")
    return Path(shutil.copy(whole, tmp_path / "params.yaml"))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "a checkpoint half written": lambda out: any(
        name.endswith(".partial") for name in names(out / "checkpoints") if name > ".step-000008"
    ),
    "the adapter without its report": lambda out: "adapter" in names(out),
}


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    unharmed: dict[str, str], fresh: Path
) -> None:
    out = fresh.parent / "build/train"
    for moment in MOMENTS.values():
        process = tiny_train.start(fresh)
        while not moment(out) and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
    process = tiny_train.start(fresh)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "damaged" not in said
    assert outcome(fresh.parent / "build") == unharmed


class Killed(BaseException):
    """Stands for a process that ends here and now."""


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """End the process at the ``call``-th flush of a checkpoint's files and folders."""
    calls = 0
    real = checkpoint._flush

    def flush(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        real(path)

    monkeypatch.setattr(checkpoint, "_flush", flush)


@pytest.mark.parametrize("call", [1, 4, 5, 8, 23])
def test_every_moment_of_writing_a_checkpoint_may_be_the_last(
    fresh: Path, unharmed: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, call)
        with pytest.raises(Killed):
            train(fresh)
    assert train(fresh) == unharmed


def interrupted(params: Path, monkeypatch: pytest.MonkeyPatch, step: int = 9) -> Path:
    """Train up to before ``step``; returns the folder of checkpoints."""
    from aaft.tuning.trainer import Trainer

    real = Trainer._step

    def stop(self, number, *rest):
        if number == step:
            raise Killed
        real(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        with pytest.raises(Killed):
            train(params)
    return params.parent / "build/train/checkpoints"


def steps_run(params: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], dict[str, str]]:
    from aaft.tuning.trainer import Trainer

    ran: list[int] = []
    real = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "_step", lambda self, n, *rest: ran.append(n) or real(self, n, *rest)
        )
        return ran, train(params)


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    fresh: Path, unharmed: dict[str, str], monkeypatch, capsys
) -> None:
    folder = interrupted(fresh, monkeypatch)
    assert sorted(names(folder)) == ["step-000006", "step-000008"]
    with (folder / "step-000008/tensors.safetensors").open("r+b") as file:
        file.truncate(1000)
    ran, result = steps_run(fresh, monkeypatch)
    assert ran[0] == 7
    assert result == unharmed
    assert "step-000008 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["seed=5", "train.learning_rate=0.1"])
def test_a_checkpoint_of_another_run_is_not_continued(fresh, monkeypatch, change) -> None:
    folder = interrupted(fresh, monkeypatch, step=5)
    build = fresh.parent / "build"
    cfg = load_config(fresh, [change])
    loaded = checkpoint.Checkpoints(folder, digest.run_digest(cfg, Paths(build)), 2).load()
    assert loaded is None
    assert names(folder) == []


def test_other_inputs_or_code_make_another_run(fresh: Path, monkeypatch) -> None:
    cfg, paths = load_config(fresh), Paths(fresh.parent / "build")
    before = digest.run_digest(cfg, paths)
    assert digest.run_digest(cfg, paths) == before
    assert digest.run_digest(load_config(fresh, ["train.checkpoint_steps=7"]), paths) == before
    with monkeypatch.context() as patch:
        patch.setattr(digest, "_CODE", ("data/records.py", "models/*.py"))
        assert digest.run_digest(cfg, paths) != before
    with (paths.stage("score") / "candidates.jsonl").open("a") as out:
        out.write("\n")
    assert digest.run_digest(cfg, paths) != before


def test_an_input_that_is_missing_is_named_with_the_stage_that_makes_it(fresh: Path) -> None:
    (fresh.parent / "build/score/counterfactuals.jsonl").unlink()
    cfg = load_config(fresh, ["train.method=sft"])
    with pytest.raises(AaftError, match=r"counterfactuals\.jsonl: no such file; run aaft score"):
        stage.run(cfg, Paths(fresh.parent / "build"))


def test_checkpoints_go_when_the_report_is_written(whole: Path) -> None:
    out = whole.parent / "build/train"
    assert (out / "report.json").is_file()
    assert not (out / "checkpoints").exists()


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_and_writes_nothing(
    fresh: Path, unharmed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aaft.tuning.recipe import SupervisedRecipe

    real, calls = SupervisedRecipe.loss, 0

    def broken(self, model, batch, coefficients):
        nonlocal calls
        calls += 1
        loss, nll = real(self, model, batch, coefficients)
        return (loss * float("nan"), nll) if calls == 20 else (loss, nll)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedRecipe, "loss", broken)
        with pytest.raises(AaftError, match="not finite"):
            train(fresh)
    assert names(fresh.parent / "build/train") == ["checkpoints"]
    assert train(fresh) == unharmed


def test_history_and_timing_have_a_line_a_step_after_a_resume(
    fresh: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(fresh, monkeypatch)
    train(fresh)
    out = fresh.parent / "build/train"
    history, timing = read_jsonl(out / "history.jsonl"), read_jsonl(out / "timing.jsonl")
    assert [row["step"] for row in history] == list(range(1, 43))
    assert [row["step"] for row in timing] == list(range(1, 43))
    assert read_json(out / "report.json")["steps"] == 42
