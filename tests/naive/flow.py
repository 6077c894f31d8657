"""The oracle for ``everwall.flow``: ends sorted as tuples, HalfSipHash over bytes."""

from __future__ import annotations

import struct

MASK = 0xFFFFFFFF


def key(
    endpoint: int,
    family: int,
    protocol: int,
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    seed: int,
) -> dict[str, int | bytes]:
    """All that a packet from ``source`` to ``destination`` (address, port) is keyed by."""
    lower, upper = sorted([source, destination])
    key0 = struct.pack("<q", endpoint)
    if family == 4:
        key1 = (upper[0][::-1] + lower[0][::-1])[:8]
    else:
        halves = [end[0][half : half + 8][::-1] for end in (lower, upper) for half in (0, 8)]
        key1 = halfsiphash(b"".join(halves), struct.pack("<q", seed))
    key2 = struct.pack("<HHBBH", lower[1], upper[1], protocol, family, 0)
    return {
        "key0": endpoint,
        "key1": int.from_bytes(key1, "little", signed=True),
        "key2": int.from_bytes(key2, "little"),
        "lower": lower[0],
        "upper": upper[0],
        "direction": int(source != lower),
        "hash": int.from_bytes(
            halfsiphash(key0 + key1 + key2, struct.pack("<q", seed)), "little", signed=True
        ),
    }


def halfsiphash(data: bytes, key: bytes, compressions: int = 1, finalizations: int = 3) -> bytes:
    """HalfSipHash with 8 bytes of result, after its authors' description."""
    k0, k1 = struct.unpack("<II", key)
    state = [k0, k1 ^ 0xEE, k0 ^ 0x6C796765, k1 ^ 0x74656462]
    padded = data + bytes(3 - len(data) % 4) + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<I", padded):
        state[3] ^= word
        _rounds(state, compressions)
        state[0] ^= word
    result = b""
    for index, mark in ((2, 0xEE), (1, 0xDD)):
        state[index] ^= mark
        _rounds(state, finalizations)
        result += struct.pack("<I", state[1] ^ state[3])
    return result


def _rounds(state: list[int], count: int) -> None:
    for _ in range(count):
        for a, b, turn, swing in ((0, 1, 5, 16), (2, 3, 8, 0), (0, 3, 7, 0), (2, 1, 13, 16)):
            state[a] = (state[a] + state[b]) & MASK
            state[b] = _turned(state[b], turn) ^ state[a]
            state[a] = _turned(state[a], swing)


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & MASK
