"""Sealing and opening of session records, as the store thread does for each batch."""

from __future__ import annotations

import time

import numpy as np

from everwall.limits import FIELD_BYTES, STORE_BATCH_RECORDS
from everwall.session import image, record


def measure(seconds: float) -> dict[str, float]:
    """Nanoseconds per record, 256 in a batch."""
    rows = np.zeros((STORE_BATCH_RECORDS, image.COLUMNS), np.int64)
    rows[:, image.KEY2] = np.arange(1, STORE_BATCH_RECORDS + 1)
    rows[:, image.STATE] = 3
    keys = record.derive_keys(b"k" * 32)
    fields = np.zeros((STORE_BATCH_RECORDS, FIELD_BYTES), np.uint8)
    values = np.zeros((STORE_BATCH_RECORDS, record.RECORD_BYTES), np.uint8)
    record.seal(rows, len(rows), keys, fields, values)
    record.open_records(rows, len(rows), keys, values)

    def rate(call) -> float:  # type: ignore[no-untyped-def]
        calls = 0
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < seconds * 1e9 / 2:
            call()
            calls += 1
        return (time.perf_counter_ns() - start) / (calls * len(rows))

    return {
        "ns per record sealed": rate(lambda: record.seal(rows, len(rows), keys, fields, values)),
        "ns per record opened": rate(lambda: record.open_records(rows, len(rows), keys, values)),
    }
