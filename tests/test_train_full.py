"""Training all weights: ``train.lora: null``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from aaft.config import Paths, load_config
from aaft.io import read_jsonl
from aaft.models.policy import load_policy, merge_adapter
from aaft.tuning import stage
from tests import tiny_train
from tests.test_train_kin import SIBLINGS, TWINS, add_kin
from tests.tiny_train import outcome

# A rate at which a weight of 1 moves further than bfloat16 rounds.
FULL = ["train.lora=null", "train.learning_rate=0.03"]


def trained(root: Path, *overrides: str) -> Path:
    params = tiny_train.save_project(root, records=12)
    stage.run(load_config(params, [*FULL, *overrides]), Paths(root / "build"))
    return root / "build/train"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("full"))


def test_the_result_is_a_whole_model_in_bfloat16_with_its_tokenizer(out: Path) -> None:
    weights = load_file(out / "adapter/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(out / "adapter").chat_template
    assert not (out / "adapter/adapter_config.json").exists()


def test_no_path_of_this_machine_is_saved(out: Path) -> None:
    for file in (out / "adapter").glob("*.json"):
        assert str(out.parent.parent) not in file.read_text()


def test_every_weight_was_trained(out: Path) -> None:
    before = load_policy(str(out.parent.parent / "policy"), torch.device("cpu"), torch.bfloat16)
    after = load_policy(str(out / "adapter"), torch.device("cpu"), torch.bfloat16)
    changed = dict(after.named_parameters())
    assert all(not torch.equal(p, changed[name]) for name, p in before.named_parameters())


def test_registering_it_stores_the_weights_as_they_are(out: Path, tmp_path: Path) -> None:
    merge_adapter(str(out.parent.parent / "policy"), out / "adapter", tmp_path / "merged")
    stored = load_file(tmp_path / "merged/model.safetensors")
    for name, tensor in load_file(out / "adapter/model.safetensors").items():
        assert torch.equal(stored[name], tensor)


def test_twins_hold_all_weights_to_the_reference_too(tmp_path: Path) -> None:
    """There is no adapter to take off: the reference is asked before the first step."""
    params = tiny_train.save_project(tmp_path, records=12)
    add_kin(tmp_path / "build", TWINS, SIBLINGS)
    report = stage.run(load_config(params, FULL), Paths(tmp_path / "build"))
    history = read_jsonl(tmp_path / "build/train/history.jsonl")
    assert report["twins"]["kept"] == 1
    assert sum(row["anchor"] for row in history) > 0


def test_the_same_inputs_give_the_same_bytes(out: Path, tmp_path: Path) -> None:
    again = outcome(trained(tmp_path).parent)
    assert again == outcome(out.parent)


def test_the_settings_of_the_model_are_those_of_the_policy(out: Path) -> None:
    def settings(folder: Path) -> dict[str, object]:
        return json.loads((folder / "config.json").read_text())

    ours, theirs = settings(out / "adapter"), settings(out.parent.parent / "policy")
    assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} <= {"dtype"}
