"""Log-probabilities of several responses to one prompt in one forward pass.

A row holds the prompt once, then every response (a branch) behind it. A branch sees the prompt
and itself, not its neighbours, and its positions go on from the prompt's end, so each branch is
computed as if it stood alone while the prompt is paid for once. A branch may begin with tokens that
are given: seen, but without a label. Its labels may be soft: what another model predicts at each of
its tokens (`aaft.models.soft`). A batch in which every row has one branch is an ordinary causal
batch and takes the ordinary, faster path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aaft.errors import AaftError
from aaft.models.runtime import compute_dtype
from aaft.models.soft import SoftLabels, divergence

# Added to the score of a position that must not be seen; finite, so that no softmax is NaN.
_HIDDEN = -1e9


@dataclass(frozen=True)
class PackedRow:
    """A prompt and its branches, each a non-empty list of token ids."""

    prompt: list[int]
    branches: list[list[int]]
    given: Sequence[int] = ()
    """First tokens of each branch that have no label, fewer than it has; empty: none of any."""
    soft: Sequence[SoftLabels | None] = ()
    """Of each branch, one for each of its labels; None or empty: none."""

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return len(self.prompt) + sum(map(len, self.branches))


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of packed rows; ``mask`` and ``positions`` are None for one branch a row."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    predictor: torch.Tensor
    """``[T, 2]``: row and position whose hidden state predicts each label."""
    labels: torch.Tensor
    """``[T]`` response tokens, branch after branch, row after row."""
    branch: torch.Tensor
    """``[T]`` index of the branch each label belongs to."""
    offset: torch.Tensor
    """``[T]`` position of each label among those of its branch, from 0."""
    branches: int
    soft: Mapping[int, SoftLabels]
    """By branch, of those that have them."""


def pack(rows: Sequence[PackedRow]) -> PackedBatch:
    """Pad rows on the right and lay out masks, positions and labels.

    Raises:
        ValueError: a branch has another number of soft labels than of labels.
    """
    width = max(row.length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    tree = any(len(row.branches) != 1 for row in rows)
    seen = torch.zeros(len(rows), 1, width, width, dtype=torch.bool) if tree else None
    predictor, labels, owner = [], [], []
    offset: list[int] = []
    soft: dict[int, SoftLabels] = {}
    count = 0
    for b, row in enumerate(rows):
        stem = len(row.prompt)
        ids[b, :stem] = torch.tensor(row.prompt)
        positions[b, :stem] = torch.arange(stem)
        if seen is not None:
            seen[b, 0, :stem, :stem] = torch.ones(stem, stem).tril().bool()
        start = stem
        softs = row.soft or [None] * len(row.branches)
        givens = row.given or [0] * len(row.branches)
        for branch, given, own in zip(row.branches, givens, softs, strict=True):
            stop = start + len(branch)
            ids[b, start:stop] = torch.tensor(branch)
            positions[b, start:stop] = torch.arange(stem, stem + len(branch))
            if seen is not None:
                seen[b, 0, start:stop, :stem] = True
                causal = torch.ones(len(branch), len(branch)).tril().bool()
                seen[b, 0, start:stop, start:stop] = causal
            before = start + given - 1 if given else stem - 1
            predictor += [(b, before), *((b, p) for p in range(start + given, stop - 1))]
            labels += branch[given:]
            owner += [count] * (len(branch) - given)
            offset += range(len(branch) - given)
            if own is not None:
                if len(own) != len(branch) - given:
                    raise ValueError(f"{len(own)} soft labels for {len(branch) - given} tokens")
                soft[count] = own
            count += 1
            start = stop
        if seen is not None:
            # A padding row must see something, or its softmax is NaN.
            seen[b, 0, start:, 0] = True
    return PackedBatch(
        ids,
        None if seen is None else torch.zeros(seen.shape).masked_fill(~seen, _HIDDEN),
        positions if tree else None,
        torch.tensor(predictor, dtype=torch.long).reshape(-1, 2),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(offset, dtype=torch.long),
        count,
        soft,
    )


def label_logits(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Logits where there are labels and nowhere else, ``[T, V]`` float32.

    Runs under bfloat16 autocast where the hardware has bfloat16.

    Args:
        model: a causal language model or a PEFT wrapper around one.
        batch: packed rows.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(causal.parameters()).device
    mask = None if batch.mask is None else batch.mask.to(device)
    positions = None if batch.positions is None else batch.positions.to(device)
    fast = compute_dtype(device) == torch.bfloat16
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        hidden = causal.base_model(
            input_ids=batch.ids.to(device),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        where = batch.predictor.to(device)
        logits: torch.Tensor = causal.get_output_embeddings()(hidden[where[:, 0], where[:, 1]])
    return logits.float()


def token_logprobs(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Log-probability of each label, ``[T]`` float32, in nats and in the order of ``labels``.

    Args:
        model: as for `label_logits`.
        batch: packed rows.
    """
    return -_surprise(label_logits(model, batch), batch)


def branch_logprobs(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Summed log-probability of each branch, ``[branches]`` float32, in nats.

    Args:
        model: as for `label_logits`.
        batch: packed rows.
    """
    return by_branch(token_logprobs(model, batch), batch)


def branch_losses(model: Any, batch: PackedBatch) -> torch.Tensor:
    """What each branch is to lose, summed over its tokens, ``[branches]`` float32, in nats.

    The negative log-likelihood of its labels; where they are soft, the divergence from these.

    Args:
        model: as for `label_logits`.
        batch: packed rows.
    """
    if not batch.soft:
        return -branch_logprobs(model, batch)
    logits = label_logits(model, batch)
    values, branch = _surprise(logits, batch), batch.branch.to(logits.device)
    where = torch.cat([(branch == i).nonzero()[:, 0] for i in batch.soft])
    soft = SoftLabels(
        torch.cat([own.ids for own in batch.soft.values()]).to(logits.device),
        torch.cat([own.logprob for own in batch.soft.values()]).to(logits.device),
        torch.cat([own.rest for own in batch.soft.values()]).to(logits.device),
    )
    return by_branch(values.index_copy(0, where, divergence(soft, logits[where])), batch)


def _surprise(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Negative log-likelihood of each label, ``[T]`` in nats."""
    labels = batch.labels.to(logits.device)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def by_branch(values: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Sums of ``values`` ``[T]`` over each branch, ``[branches]``."""
    sums = torch.zeros(batch.branches, dtype=values.dtype, device=values.device)
    return sums.index_add(0, batch.branch.to(values.device), values)


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many first entries all rows share."""
    count = 0
    for entries in zip(*rows, strict=False):
        if len(set(entries)) > 1:
            break
        count += 1
    return count


def check_logits(model: Any) -> None:
    """Make sure that the output embedding alone gives the model's logits.

    Raises:
        AaftError: the model scales or caps its logits (Gemma 2, Granite, Cohere and others), which
            computing them only where there are labels would leave out.
    """
    ids = torch.tensor([[1, 2, 3, 4]], device=next(model.parameters()).device)
    with torch.inference_mode():
        whole = model(input_ids=ids).logits.float()
        hidden = model.base_model(input_ids=ids).last_hidden_state
        ours = model.get_output_embeddings()(hidden).float()
    if not torch.allclose(whole, ours, rtol=0.05, atol=0.05 * float(whole.abs().max())):
        raise AaftError(
            "policy.model: this architecture changes its logits after the output embedding, which "
            "aaft does not support; use another model"
        )
