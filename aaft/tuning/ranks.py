"""The processes that train together, through accelerate; one process needs none of it.

Every rank holds the whole model and plans the same windows. It computes its share of a window's
rows; what the others computed reaches it as a sum over ranks in which each number has one owner.
So every rank takes the same step, and the loss is that of one process up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from aaft.errors import AaftError
from aaft.tuning.batches import Key

# What `accelerate launch` sets for what splits or rewrites the model.
_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
# Gradients summed at once; bounds the copy that this needs.
_BUCKET = 1 << 24


class Ranks:
    """One process among ``count``; rank 0 alone writes files and shows progress."""

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.index: int = accelerator.process_index if accelerator else 0
        self.count: int = accelerator.num_processes if accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.index == 0

    @property
    def device(self) -> torch.device | None:
        """This rank's own device; None for a process alone, which has the choice."""
        return self._accelerator.device if self._accelerator else None

    def share(self, lengths: Mapping[Key, int]) -> list[Key]:
        """The keys that this rank computes, in the order of ``lengths``.

        The longest row goes first and each goes to the rank with the fewest tokens so far, so all
        ranks agree on who has what.

        Args:
            lengths: tokens of each row.
        """
        if self.count == 1:
            return list(lengths)
        load = [0] * self.count
        owner: dict[Key, int] = {}
        for key in sorted(lengths, key=lambda key: -lengths[key]):
            owner[key] = min(range(self.count), key=lambda rank: load[rank])
            load[owner[key]] += lengths[key]
        return [key for key in lengths if owner[key] == self.index]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over ranks, element by element, in float64; every rank gives equally many."""
        if self.count == 1 or not values:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        total: list[float] = self._accelerator.reduce(mine, reduction="sum").tolist()
        return total

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum gradients over ranks in place; a parameter without any on every rank keeps none."""
        if self.count == 1:
            return
        used = self.sum([float(p.grad is not None) for p in parameters])
        chosen = [p for p, ranks in zip(parameters, used, strict=True) if ranks]
        for p in chosen:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets(chosen):
            grads = [p.grad for p in bucket if p.grad is not None]
            flat = self._accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def close(self) -> None:
        """Wait for the others and leave the process group."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
            self._accelerator.state.destroy_process_group()


def connect() -> Ranks:
    """The ranks that a launcher started, or this process alone.

    ``accelerate launch --multi_gpu --num_processes N`` and ``torchrun --nproc-per-node N`` start N
    processes, on CPU too; ``accelerate launch --cpu`` without an MPI host file starts a single one.

    Raises:
        AaftError: the launcher was told to split the model, which aaft does not do.
    """
    for name, what in _REFUSED.items():
        if os.environ.get(name, "").lower() in {"true", "1", "yes"}:
            raise AaftError(
                f"train: {what} is not supported: every process holds the whole model; use "
                "accelerate launch --multi_gpu (which serves CPUs too)"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Ranks()
    from accelerate import Accelerator

    # Autocast and gradient accumulation are the trainer's own.
    return Ranks(Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no"))


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterable[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
