"""The anchor: holding the policy to the reference where the data does not go (DESIGN 2.8).

::

    beta / (B L) sum_{t <= L} KL(mu(. | x, y_<t) || pi(. | x, y_<t))

``y`` is ``mu``'s own greedy answer to a harmless request (`aaft.tuning.kin`), ``L`` its first
tokens, as many as a recovery may turn back after: elsewhere the policy learns to break off within
them.

The divergence weighs all that the policy might say. The log-likelihood of ``y``, which stood here
before, spends most of its gradient on making one wording certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aaft.models.packed import PackedRow, label_logits, pack
from aaft.models.soft import SoftLabels, soften
from aaft.progress import Advance
from aaft.tuning.batches import micro_batches
from aaft.tuning.examples import Example


def answers_of_reference(
    model: Any, anchors: Sequence[Example], tokens_per_batch: int, advance: Advance
) -> dict[str, SoftLabels]:
    """What ``mu`` predicts at each token of each anchor's answer, by id.

    Args:
        model: ``mu``: the policy before its first step. It is left in evaluation mode.
        anchors: candidate 0 is the answer, as far as the policy is held to it.
        tokens_per_batch: padded tokens computed at once.
        advance: told how many are done.
    """
    rows = {anchor.id: PackedRow(anchor.prompt, anchor.candidates[:1]) for anchor in anchors}
    held: dict[str, SoftLabels] = {}
    model.eval()
    for batch in micro_batches(rows, tokens_per_batch):
        packed = pack([rows[name] for name in batch])
        with torch.no_grad():
            logits = label_logits(model, packed)
        branch = packed.branch.to(logits.device)
        held |= {name: soften(logits[branch == i]) for i, name in enumerate(batch)}
        advance(len(batch))
    return held
