"""An array remembers flows: the last one of each hash, until its time is over, and never one for another."""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.flow import make_key
from everwall.opening import describe_flow
from everwall.session.remembered import forget_flow, recall, remember
from everwall.session.state import REMEMBERED_COLUMNS
from everwall.wire import meta as m
from everwall.wire.meta import make_batch

pytestmark = pytest.mark.kernel

ROWS = 16


def flows(count: int, family: int = 4) -> np.ndarray:
    """Descriptors of flows that differ in one port."""
    meta = make_batch(count).meta
    for i in range(count):
        key2 = i | 80 << 16 | 6 << 32 | family << 40
        describe_flow(meta[i : i + 1], 7, key2, 0, 0x0A000001, 0, 0x0A000002)
        make_key(meta, i, 99)
    return meta


@pytest.fixture
def rows() -> np.ndarray:
    return np.zeros((ROWS, REMEMBERED_COLUMNS), np.int64)


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_is_remembered_until_its_time_is_over(rows: np.ndarray, family: int) -> None:
    meta = flows(2, family)
    row = remember(rows, meta, 0, 1000)
    assert recall(rows, meta, 0, 999) == row
    assert recall(rows, meta, 0, 1000) == -1
    assert recall(rows, meta, 1, 999) == -1


def test_a_later_flow_takes_the_place_of_another_and_is_never_taken_for_it(rows: np.ndarray) -> None:
    meta = flows(2)
    meta[1, m.HASH] = meta[0, m.HASH]
    remember(rows, meta, 0, 1000)
    assert recall(rows, meta, 1, 0) == -1
    remember(rows, meta, 1, 1000)
    assert recall(rows, meta, 0, 0) == -1
    forget_flow(rows, meta, 0)
    assert recall(rows, meta, 1, 0) >= 0, "whoever has lost its place forgets nobody else"
    forget_flow(rows, meta, 1)
    assert recall(rows, meta, 1, 0) == -1


def test_whatever_is_done_each_place_knows_who_came_last(rows: np.ndarray) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice, meta = random.Random(seed), flows(4 * ROWS)
    there: dict[int, tuple[int, int]] = {}
    for now in range(2_000):
        i = dice.randrange(len(meta))
        place = (int(meta[i, m.HASH]) >> 17) % ROWS
        flow, until = there.get(place, (-1, 0))
        assert (recall(rows, meta, i, now) >= 0) == (flow == i and until > now)
        if dice.random() < 0.4:
            there[place] = (i, now + dice.randrange(200))
            assert remember(rows, meta, i, there[place][1]) == place
        elif dice.random() < 0.2:
            forget_flow(rows, meta, i)
            if flow == i:
                del there[place]
