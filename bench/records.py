"""Sealing and opening of session records, as the store's side does for each batch."""

from __future__ import annotations

import time

import numpy as np

from everwall.kernels import kernel
from everwall.limits import STORE_BATCH_RECORDS
from everwall.session import image, record


@kernel
def _seal_all(rows, keys, out):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        record.seal(rows, i, keys, out, i * record.RECORD_BYTES)


@kernel
def _open_all(rows, keys, data):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        record.open_record(rows, i, keys, 0, data, i * record.RECORD_BYTES)


def measure(seconds: float) -> dict[str, float]:
    """Nanoseconds per record, 256 in a batch."""
    rows = np.zeros((STORE_BATCH_RECORDS, image.COLUMNS), np.int64)
    rows[:, image.KEY2] = np.arange(1, STORE_BATCH_RECORDS + 1)
    rows[:, image.STATE] = 3
    keys = record.derive_keys(b"k" * 32)
    values = np.zeros(STORE_BATCH_RECORDS * record.RECORD_BYTES, np.uint8)
    _seal_all(rows, keys, values)
    _open_all(rows, keys, values)

    def rate(call) -> float:  # type: ignore[no-untyped-def]
        calls = 0
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < seconds * 1e9 / 2:
            call()
            calls += 1
        return (time.perf_counter_ns() - start) / (calls * len(rows))

    return {
        "ns per record sealed": rate(lambda: _seal_all(rows, keys, values)),
        "ns per record opened": rate(lambda: _open_all(rows, keys, values)),
    }
