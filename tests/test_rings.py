"""Rings hand over every row once and in order, within one thread and between two."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwall.kernels import JIT
from everwall.rings import (
    Ring,
    make_ring,
    ring_length,
    ring_pop,
    ring_publish,
    ring_push,
    ring_slot,
    zeros_apart,
)

pytestmark = pytest.mark.kernel

CAPACITY = 8
COLUMNS = 3

steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, CAPACITY + 2)),
        st.tuples(st.just("slot"), st.just(1)),
        st.tuples(st.just("pop"), st.integers(0, CAPACITY + 2)),
    ),
    max_size=60,
)


def rows_from(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64)[:, None] * np.array([1, 10, 100])


@settings(max_examples=200 if JIT else 60)
@given(steps=steps, turns=st.integers(0, 3))
def test_a_ring_is_a_bounded_deque(steps: list[tuple[str, int]], turns: int) -> None:
    ring = make_ring(CAPACITY, COLUMNS)
    twin: deque[int] = deque()
    out = np.zeros((CAPACITY + 4, COLUMNS), np.int64)
    number = 0
    # A ring that is never empty goes round, so that the masks are put to the test.
    for _ in range(turns * 5):
        assert ring_push(ring, rows_from(number, 1), 1) == 1
        twin.append(number)
        number += 1
        if len(twin) > 1:
            assert ring_pop(ring, out[:1]) == 1
            assert out[0, 0] == twin.popleft()
    for what, count in steps:
        if what == "push":
            pushed = ring_push(ring, rows_from(number, count), count)
            assert pushed == min(count, CAPACITY - len(twin))
            twin.extend(range(number, number + pushed))
            number += pushed
        elif what == "slot":
            slot = ring_slot(ring)
            assert (slot == -1) == (len(twin) == CAPACITY)
            if slot >= 0:
                ring.rows[slot] = rows_from(number, 1)[0]
                ring_publish(ring)
                twin.append(number)
                number += 1
        else:
            popped = ring_pop(ring, out[:count])
            expected = [twin.popleft() for _ in range(min(count, len(twin)))]
            assert out[:popped].tolist() == rows_from(0, number)[expected].tolist()
        assert ring_length(ring) == len(twin)


def test_an_empty_ring_begins_at_its_first_row_again() -> None:
    ring = make_ring(CAPACITY, COLUMNS)
    out = np.zeros((CAPACITY, COLUMNS), np.int64)
    for _ in range(3):
        assert ring_slot(ring) == 0
        assert ring_push(ring, rows_from(0, 2), 2) == 2
        assert ring_slot(ring) == 2
        assert ring_pop(ring, out) == 2


def test_what_one_thread_writes_lies_on_no_line_of_anothers() -> None:
    arrays = [
        zeros_apart(shape, kind) for shape, kind in ((1, np.int64), ((3, 5), np.uint8), (40, np.int64)) * 3
    ]
    lines = [range(a.ctypes.data // 128, (a.ctypes.data + a.nbytes - 1) // 128 + 1) for a in arrays]
    assert sum(map(len, lines)) == len(set().union(*lines))
    assert all(array.flags.c_contiguous and array.ctypes.data % 128 == 0 for array in arrays)
    assert not any(array.any() for array in arrays)


def test_a_capacity_that_is_no_power_of_two_is_refused() -> None:
    for capacity in (0, -8, 3, 12):
        with pytest.raises(ValueError, match="power of two"):
            make_ring(capacity, 1)


def test_two_threads_lose_nothing_and_keep_the_order() -> None:
    total = 100_000 if JIT else 5_000
    ring = make_ring(256, COLUMNS)
    got: list[np.ndarray] = []
    # The first call compiles; both threads shall meet in the ring, not in the compiler.
    ring_push(ring, rows_from(0, 1), 0)
    ring_pop(ring, np.zeros((0, COLUMNS), np.int64))

    producer = threading.Thread(target=_produce, args=(ring, total))
    consumer = threading.Thread(target=_consume, args=(ring, total, got))
    producer.start()
    consumer.start()
    producer.join(60)
    consumer.join(60)
    assert not producer.is_alive()
    assert not consumer.is_alive()
    np.testing.assert_array_equal(np.concatenate(got), rows_from(0, total))
    assert ring_length(ring) == 0


def _produce(ring: Ring, total: int) -> None:
    sent = 0
    while sent < total:
        count = min(100, total - sent)
        pushed = ring_push(ring, rows_from(sent, count), count)
        sent += pushed
        if not pushed:
            time.sleep(0)


def _consume(ring: Ring, total: int, got: list[np.ndarray]) -> None:
    out = np.zeros((64, COLUMNS), np.int64)
    received = 0
    while received < total:
        count = ring_pop(ring, out)
        if count:
            got.append(out[:count].copy())
            received += count
        else:
            time.sleep(0)
