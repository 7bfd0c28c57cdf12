"""Load a policy and turn chat messages into token ids."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaft.errors import AaftError
from aaft.io import write_json

if TYPE_CHECKING:
    import torch

Message = dict[str, str]

_MARK = "Zq7"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate_model(name: str, key: str = "policy.model") -> str:
    """Return ``name`` when it is a model directory or can be a hub id.

    A name whose parent folder exists here is meant as a path: a missing ``models/x`` is an
    error, not an attempt to download.

    Raises:
        AaftError: the directory is missing or holds no ``config.json``.
    """
    path = Path(name)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return name
    if path.is_dir():
        raise AaftError(f"{key}: {name} holds no config.json; name a Hugging Face model directory")
    looks_local = path.is_absolute() or name.startswith(".") or path.parent != Path()
    if (looks_local and path.parent.is_dir()) or not _HUB_ID.fullmatch(name):
        raise AaftError(
            f"{key}: model directory {name} does not exist; run `make setup` for the embedded "
            "model, or name a directory or hub id in params.yaml"
        )
    return name


def locate_policy(name: str) -> str:
    """``locate_model`` for the model to train, which must be whole.

    Raises:
        AaftError: also when ``name`` is an adapter: a new one would be saved on the old one's base
            and lose it.
    """
    if (Path(name) / "adapter_config.json").is_file():
        raise AaftError(
            f"policy.model: {name} is an adapter; merge it into its base first, or name a "
            "registered version's model directory"
        )
    return locate_model(name)


@dataclass(frozen=True)
class Codec:
    """A tokenizer with its chat template: messages to ids and back."""

    tokenizer: Any

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids of the rendered chat up to where the assistant speaks, plus a ``prefill``."""
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise AaftError(
                f"policy.model: its chat template refuses a prompt ({error}); change the messages' "
                "roles"
            ) from None
        ids: list[int] = self.tokenizer(text + prefill, add_special_tokens=False)["input_ids"]
        return ids

    def turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the rendered chat up to the end of its last message, which is left unfinished.

        Raises:
            AaftError: the chat template can't leave it so.
        """
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, continue_final_message=True
            )
        except (TemplateError, ValueError) as error:
            raise AaftError(
                f"policy.model: its chat template can't leave a message unfinished ({error}); set "
                "score.twins and score.siblings to 0"
            ) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def response_ids(self, text: str) -> list[int]:
        """Ids of a whole response, ended by the end-of-turn token."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids without special tokens or outer white space."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    @cached_property
    def end_id(self) -> int:
        """The token with which the chat template ends an assistant turn, else the eos token."""
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        end = self._ending(turn)
        eos: int = self.tokenizer.eos_token_id
        return eos if end is None else end

    @cached_property
    def user_end_id(self) -> int | None:
        """The special token with which the chat template ends a user turn; None: there is none."""
        return self._ending([{"role": "user", "content": _MARK}])

    def _ending(self, turns: Sequence[Message]) -> int | None:
        """The special token right behind the mark that the last turn is."""
        rendered = self.tokenizer.apply_chat_template(list(turns), tokenize=False)
        tail = self.tokenizer(rendered.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return tail[0] if tail and tail[0] in special else None


def load_codec(name: str, revision: str | None = None) -> Codec:
    """Load the tokenizer of a model directory, adapter directory or hub id.

    Raises:
        AaftError: not found, or a tokenizer without a chat template or an end token.
    """
    from transformers import AutoTokenizer

    name = locate_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except OSError as error:
        raise AaftError(_hub_message(name, error)) from None
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise AaftError(f"policy.model: {name}: the tokenizer has no chat template or no eos token")
    return Codec(tokenizer)


def load_policy(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    attention: str = "sdpa",
) -> Any:
    """Load a causal language model in evaluation mode.

    An adapter directory (PEFT) is loaded on its base and merged.

    Args:
        name: model directory, adapter directory or hub id.
        device: where to place it.
        dtype: dtype of the weights.
        revision: hub revision.
        attention: transformers' attention implementation.

    Raises:
        AaftError: not found.
    """
    from transformers import AutoModelForCausalLM

    name = locate_model(name)
    adapter = Path(name) / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else name
    if adapter.is_file():
        locate_model(base, key=f"{adapter}: base_model_name_or_path")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, revision=revision, attn_implementation=attention
        )
    except (OSError, ValueError) as error:
        raise AaftError(_hub_message(base, error)) from None
    if adapter.is_file():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.to(device).eval()


def load_frozen(name: str, device: torch.device, revision: str | None = None) -> Any:
    """A policy to run and not to train (`frozen`).

    Raises:
        AaftError: not found.
    """
    import torch

    return frozen(load_policy(name, torch.device("cpu"), torch.bfloat16, revision), device)


def frozen(model: Any, device: torch.device) -> Any:
    """``model`` itself with its weights in the dtype that is fast here (`compute_dtype`).

    They are rounded to bfloat16, as they are stored, wherever it runs. Buffers stay as they are:
    rotary frequencies in bfloat16 would turn late positions by a wrong angle.
    """
    import torch

    from aaft.models.runtime import compute_dtype

    dtype = compute_dtype(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
    return model.to(device).eval()


def merge_adapter(base: str, adapter: Path, out: Path, revision: str | None = None) -> None:
    """Write ``base`` with ``adapter`` merged in, in bfloat16, as a Hugging Face directory.

    These are exactly the weights that the evaluate stage generates with. ``out`` is replaced.
    """
    import torch

    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model = load_policy(str(adapter), torch.device("cpu"), torch.bfloat16, revision)
    model.save_pretrained(temporary)
    load_codec(base, revision).tokenizer.save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.replace(out)


def save_adapter(model: Any, out: Path) -> None:
    """Save a PEFT model's adapter: ``adapter_model.safetensors`` and ``adapter_config.json``.

    PEFT writes the target modules in set order, which changes from process to process; they are
    sorted here so that equal training gives equal bytes. ``out`` is replaced whole.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, safe_serialization=True)
    (partial / "README.md").unlink(missing_ok=True)
    settings = json.loads((partial / "adapter_config.json").read_text())
    for key, value in settings.items():
        if isinstance(value, list):
            settings[key] = sorted(value)
    write_json(partial / "adapter_config.json", dict(sorted(settings.items())))
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)


def save_model(model: Any, codec: Codec, out: Path) -> None:
    """Save a whole model with its tokenizer as a Hugging Face directory, in bfloat16.

    ``model`` itself is converted. ``out`` is replaced whole.
    """
    import torch

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    codec.tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)


def _hub_message(name: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0]
    return f"policy.model: {name} could not be loaded ({first}); name a model directory or hub id"
