"""Which split of the labelled pairs a prompt belongs to."""

from __future__ import annotations

from aaft.data.text import bucket

TEST_PERCENT = 25
CALIBRATE_PERCENT = 15


def split_of(key: str, test_percent: int = TEST_PERCENT) -> str:
    """``fit``, ``calibrate`` or ``test``; the same for equal ``key``."""
    place = bucket(key, "split")
    if place < test_percent:
        return "test"
    return "calibrate" if place < test_percent + CALIBRATE_PERCENT else "fit"
