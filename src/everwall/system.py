"""The few system calls that compiled loops make: clock, poll, eventfd.

Addresses are passed as integers; every buffer belongs to the caller. Errors of poll and eventfd
are not told apart: a loop treats them as "nothing happened" and goes on.
"""

from __future__ import annotations

from everwall.kernels import external, kernel

_clock_gettime = external("clock_gettime", "i32", "i32", "pointer")
_ppoll = external("ppoll", "i32", "pointer", "i64", "pointer", "i64")
_read = external("read", "i64", "i32", "pointer", "i64")
_write = external("write", "i64", "i32", "pointer", "i64")

_CLOCK_MONOTONIC = 1
_POLLIN = 1


@kernel
def monotonic(scratch):
    """CLOCK_MONOTONIC in nanoseconds; ``scratch``: int64[2] or longer."""
    _clock_gettime(_CLOCK_MONOTONIC, scratch.ctypes.data)
    return scratch[0] * 1_000_000_000 + scratch[1]


def poll_words(descriptors):
    """``struct pollfd`` for each descriptor, as the int64 words that ``wait`` takes; -1 is passed over."""
    return [descriptor & 0xFFFFFFFF | (_POLLIN << 32) for descriptor in descriptors]


@kernel
def wait(words, timeout_ns, scratch):
    """Sleep until one of the descriptors is readable; returns how many are, 0 after the time-out.

    ``words``: int64 array made from ``poll_words``; the kernel writes the upper 16 bits only. ``scratch``: int64[2]
    or longer.
    """
    scratch[0], scratch[1] = timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000
    return _ppoll(words.ctypes.data, words.shape[0], scratch.ctypes.data, 0)


@kernel
def readable(words, i):
    """Whether descriptor ``i`` had something to read when ``wait`` returned."""
    return ((words[i] >> 48) & _POLLIN) != 0


@kernel
def signal(descriptor, scratch):
    """Wake whoever polls the eventfd ``descriptor``."""
    scratch[0] = 1
    _write(descriptor, scratch.ctypes.data, 8)


@kernel
def clear_signal(descriptor, scratch):
    """Take the wake-ups of a non-blocking eventfd."""
    _read(descriptor, scratch.ctypes.data, 8)
