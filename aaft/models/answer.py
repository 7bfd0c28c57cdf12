"""Answer one prompt, for ``aaft ask``."""

from __future__ import annotations

from aaft.models.greedy import greedy
from aaft.models.policy import load_codec, load_frozen
from aaft.models.runtime import prepare, quiet_transformers


def answer(name: str, prompt: str, *, revision: str | None, max_new_tokens: int) -> str:
    """The greedy answer of a model directory, adapter directory or hub id to one user message.

    Raises:
        AaftError: no such model.
    """
    quiet_transformers()
    device = prepare(0)
    codec = load_codec(name, revision)
    policy = load_frozen(name, device, revision)
    ids = codec.prompt_ids([{"role": "user", "content": prompt}])
    done = greedy(policy, [ids], end_id=codec.end_id, max_new_tokens=max_new_tokens, batch_size=1)
    return codec.decode(done[0].ids)
