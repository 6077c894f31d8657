"""What the store's measurements write, compare and make of times."""

from __future__ import annotations

import numpy as np
import pytest

from bench import bounds, store, takeover
from everwall.session import image


@pytest.mark.parametrize("family", [4, 6])
def test_no_two_sessions_are_one(family: int) -> None:
    rows = store.sessions_of(family, 5000, 1_700_000_000_000)
    key = rows[:, [image.LOWER_HIGH, image.LOWER_LOW, image.UPPER_HIGH, image.UPPER_LOW, image.KEY2]]
    assert len(np.unique(key, axis=0)) == 5000


def test_first_writes_and_refreshes_take_turns() -> None:
    rows = store.sessions_of(4, 10, 1_700_000_000_000)
    mixed = store.half_and_half(rows[5:], rows[:5])
    assert mixed[:, image.OP].tolist() == [image.WRITE_FIRST, image.WRITE] * 5
    assert mixed[:, image.TAG].tolist() == [5, 0, 6, 1, 7, 2, 8, 3, 9, 4]


def test_a_session_that_came_back_otherwise_is_seen() -> None:
    rows = store.sessions_of(4, 10, 1_700_000_000_000)
    found = rows[::-1].copy()
    assert store.altered(found, rows) == 0
    found[3, image.BYTES] += 1
    assert store.altered(found, rows) == 1


def test_a_bound_is_met_or_not() -> None:
    held = bounds.held_against({"a": ("<=", 5), "b": (">=", 5)}, {"a": 5.0, "b": 4.9})
    assert [row["ok"] for row in held.values()] == [True, False]


def test_what_did_not_come_out_is_lost_and_in_no_percentile() -> None:
    first, known = np.array([3_000_000, -1, 5_000_000]), np.array([1_000_000, 1_000_000, 1_000_000])
    found = takeover.outcome(first, known)
    assert found["lost"] == 1
    assert found["takeover_ms"]["max"] == 4.0
    assert found["takeover_ms"]["p50"] == 3.0
