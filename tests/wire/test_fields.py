"""Fields of 8 to 64 bits: what is written is read again, signs and all."""

from __future__ import annotations

import numpy as np
import pytest

from everwall.wire.fields import (
    join,
    read8,
    read16,
    read32,
    read64,
    write8,
    write16,
    write32,
    write64,
)

pytestmark = pytest.mark.kernel


def test_fields_are_big_endian() -> None:
    data = np.arange(0xF0, 0x100, dtype=np.uint8).reshape(1, 16)
    assert read8(data, 0, 0) == 0xF0
    assert read16(data, 0, 1) == 0xF1F2
    assert read32(data, 0, 2) == 0xF2F3F4F5
    assert read64(data, 0, 3) == int.from_bytes(bytes(range(0xF3, 0xFB)), "big", signed=True)


@pytest.mark.parametrize("value", [0, 1, -1, 1 << 32, -(1 << 63), (1 << 63) - 1, 0xFFFFFFFF])
def test_64_bits_are_the_same_bits_again(value: int) -> None:
    data = np.full((1, 10), 0x55, np.uint8)
    write64(data, 0, 1, value)
    assert bytes(data[0]) == b"\x55" + value.to_bytes(8, "big", signed=True) + b"\x55"
    assert read64(data, 0, 1) == value
    assert join(value >> 32 & 0xFFFFFFFF, value & 0xFFFFFFFF) == value


def test_a_write_touches_its_bytes_only_and_drops_what_does_not_fit() -> None:
    data = np.full((2, 9), 0x55, np.uint8)
    write8(data, 1, 1, 0x1AB)
    write16(data, 1, 2, 0x1CDEF)
    write32(data, 1, 4, 0x1_2345_6789)
    assert bytes(data[1]) == bytes.fromhex("55 ab cd ef 23 45 67 89 55")
    assert bytes(data[0]) == b"\x55" * 9
