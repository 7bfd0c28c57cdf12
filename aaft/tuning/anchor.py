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
from dataclasses import dataclass
from typing import Any

import torch

from aaft.models.packed import PackedRow, label_logits, pack
from aaft.models.soft import SoftLabels, soften
from aaft.progress import Advance
from aaft.tuning.batches import micro_batches
from aaft.tuning.examples import Example


@dataclass(frozen=True, eq=False)
class Held:
    """What the policy is held to on one twin."""

    labels: SoftLabels
    """One for each token of its answer."""
    mended: bool
    """Whether ``mu`` declines the twin, so that it is what ``mu`` says once it has begun."""


def answers_of_reference(
    model: Any, anchors: Sequence[Example], tokens_per_batch: int, advance: Advance
) -> dict[str, Held]:
    """What ``mu`` predicts at each token of each anchor's answer, by id.

    Args:
        model: ``mu``: the policy before its first step. It is left in evaluation mode.
        anchors: candidate 0 is the answer, as far as the policy is held to it; ``begun`` the
            beginning that it came after if ``mu`` declines.
        tokens_per_batch: padded tokens computed at once.
        advance: told how many are done.
    """
    asked = {anchor.id: anchor for anchor in anchors}
    rows = {name: _row(anchor) for name, anchor in asked.items()}
    held: dict[str, Held] = {}
    model.eval()
    for batch in micro_batches(rows, tokens_per_batch):
        packed = pack([rows[name] for name in batch])
        with torch.no_grad():
            logits = label_logits(model, packed)
        branch = packed.branch.to(logits.device)
        for i, name in enumerate(batch):
            plain, begun = (logits[branch == 2 * i + side] for side in (0, 1))
            answer = torch.tensor(asked[name].candidates[0], device=logits.device)
            # It is greedy, so each of its tokens is the likeliest where it was said.
            at_once, later = (int((x.argmax(-1) == answer).sum()) for x in (plain, begun))
            mended = later > at_once
            held[name] = Held(soften(begun if mended else plain), mended)
        advance(len(batch))
    return held


def _row(anchor: Example) -> PackedRow:
    """The answer behind the prompt, and behind the compliant beginning too."""
    answer, begun = anchor.candidates[0], anchor.begun
    return PackedRow(anchor.prompt, [answer, [*begun, *answer]], [0, len(begun)])
