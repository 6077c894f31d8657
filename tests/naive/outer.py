"""The oracle for the outer headers that an AF_XDP port reads: the same questions of a frame as bytes."""

from __future__ import annotations

import struct

from everwall.limits import GENEVE_PORT
from tests.packets import checksum


def payload(frame: bytes, readable: int) -> int:
    """Bytes of UDP payload of an Ethernet frame of which ``readable`` are in one piece; -1: not ours."""
    if readable < 42 or frame[12:14] != b"\x08\x00" or frame[14] != 0x45:
        return -1
    total, fragment = struct.unpack_from("!H2xH", frame, 16)
    if frame[23] != 17 or fragment & ~0xC000 or checksum(frame[14:34]) != 0:
        return -1
    port, length = struct.unpack_from("!HH", frame, 36)
    if port != GENEVE_PORT or length < 8 or 20 + length > total or 14 + total > len(frame):
        return -1
    return int(length) - 8
