"""Single-producer single-consumer rings of int64 rows: how threads hand each other work.

A worker (compiled, without the interpreter lock) and a Python thread share nothing but these. One
side only pushes, the other only pops; each index has one writer. A full ring refuses the row and
the caller decides what that means; nothing ever blocks.

What is pushed into an empty ring goes into its first rows again. So a ring that is large for the worst of moments
takes, in ordinary ones, no more of the processor's cache than what waits in it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import fence_acquire, fence_release, kernel

_HEAD = 0  # next row to pop, written by the consumer only
_TAIL = 8  # next row to push, written by the producer only; a cache line away
_BASE = 9  # the head or tail that row 0 stands for; written by the producer, while the ring is empty


_LINES = 128  # processors fetch cache lines in pairs


def zeros_apart(shape: int | tuple[int, ...], dtype: Any = np.int64) -> npt.NDArray[Any]:
    """Zeros on cache lines of their own.

    What one thread writes all the time then never takes a line from another that works on something else.
    """
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 2 * _LINES, np.uint8)
    start = -memory.ctypes.data % _LINES
    array: npt.NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return array


class Ring(NamedTuple):
    """``rows``: int64[capacity, columns], capacity a power of two; ``index``: int64[16]."""

    rows: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def make_ring(capacity: int, columns: int) -> Ring:
    """An empty ring. Raises ValueError when ``capacity`` is not a power of two."""
    if capacity < 1 or capacity & (capacity - 1):
        raise ValueError(f"a ring's capacity must be a power of two, got {capacity}")
    return Ring(zeros_apart((capacity, columns)), zeros_apart(16))


@kernel
def ring_length(ring):
    """Rows that wait to be popped."""
    return ring.index[_TAIL] - ring.index[_HEAD]


@kernel
def ring_slot(ring):
    """The row to fill for the next push, or -1 when the ring is full."""
    tail = ring.index[_TAIL]
    waiting = tail - ring.index[_HEAD]
    if waiting >= ring.rows.shape[0]:
        return -1
    if waiting == 0:
        ring.index[_BASE] = tail
    return (tail - ring.index[_BASE]) & (ring.rows.shape[0] - 1)


@kernel
def ring_publish(ring):
    """Hand the row that ``ring_slot`` named to the consumer; all its columns are written before."""
    fence_release()
    ring.index[_TAIL] += 1


@kernel
def ring_waiting(ring):
    """(Index of the first row to pop, how many wait): rows that may be read where they lie until ``ring_release``."""
    head = ring.index[_HEAD]
    waiting = ring.index[_TAIL] - head
    fence_acquire()
    return (head - ring.index[_BASE]) & (ring.rows.shape[0] - 1), waiting


@kernel
def ring_release(ring, count):
    """The first ``count`` rows were read, and may be written anew."""
    fence_release()
    ring.index[_HEAD] += count


@kernel
def ring_pop(ring, out):
    """Move as many rows as there are, at most ``len(out)``, into ``out``; returns how many."""
    first, waiting = ring_waiting(ring)
    count = min(waiting, out.shape[0])
    mask = ring.rows.shape[0] - 1
    for i in range(count):
        for column in range(ring.rows.shape[1]):
            out[i, column] = ring.rows[(first + i) & mask, column]
    ring_release(ring, count)
    return count


@kernel
def ring_push(ring, rows, count):
    """Push up to ``count`` rows; returns how many there was room for."""
    slot = ring_slot(ring)
    if slot < 0:
        return np.int64(0)
    pushed = min(ring.rows.shape[0] - ring_length(ring), count)
    mask = ring.rows.shape[0] - 1
    for i in range(pushed):
        for column in range(ring.rows.shape[1]):
            ring.rows[(slot + i) & mask, column] = rows[i, column]
    fence_release()
    ring.index[_TAIL] += pushed
    return pushed
