"""The anchor: holding the policy to the reference where the data does not go (DESIGN 2.8).

::

    beta / (B L) sum_{t <= L} KL(mu(. | x, y_<t) || pi(. | x, y_<t))

``y`` is ``mu``'s own greedy answer to a harmless request (`aaft.tuning.kin`), ``L`` its first
tokens, as many as a recovery may turn back after: elsewhere the policy learns to break off within
them. Where ``mu`` declines, ``y`` is what it says after a compliant beginning ``c``, and
``mu(. | x, c, y_<t)`` takes the place of ``mu(. | x, y_<t)``: the policy is to answer at once as
the reference does once it has begun.

The divergence weighs all that the policy might say. The log-likelihood of ``y``, which stood here
before, spends most of its gradient on making one wording certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aaft.models.packed import PackedRow, label_logits, pack
from aaft.models.soft import SoftLabels, soften
from aaft.tuning.batches import micro_batches
from aaft.tuning.examples import Example


def answers_of_reference(
    model: Any, anchors: Sequence[Example], tokens_per_batch: int
) -> dict[str, SoftLabels]:
    """What ``mu`` predicts at each token of each anchor's answer, by id.

    Args:
        model: ``mu``: the policy before its first step.
        anchors: candidate 0 is the answer, as far as the policy is held to it.
        tokens_per_batch: padded tokens computed at once.
    """
    rows = {i: _row(anchor) for i, anchor in enumerate(anchors)}
    held: dict[str, SoftLabels] = {}
    model.eval()
    for batch in micro_batches(rows, tokens_per_batch):
        packed = pack([rows[i] for i in batch])
        with torch.no_grad():
            logits = label_logits(model, packed)
        branch = packed.branch.to(logits.device)
        count = 0
        for i in batch:
            plain = logits[branch == count]
            begun = logits[branch == count + 1] if anchors[i].begun else None
            # The answer is greedy: what doesn't begin as `mu` begins was said after `begun`.
            declined = int(plain[0].argmax()) != anchors[i].candidates[0][0]
            held[anchors[i].id] = soften(begun if declined and begun is not None else plain)
            count += len(rows[i].branches)
    return held


def _row(anchor: Example) -> PackedRow:
    """The answer behind the prompt and, where there is one, behind a compliant beginning."""
    answer, begun = anchor.candidates[0], anchor.begun
    branches = [answer, [*begun, *answer]] if begun else [answer]
    return PackedRow(anchor.prompt, branches, [0, len(begun)][: len(branches)])
