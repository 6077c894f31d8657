"""The oracle for ``everwall.flow``: ends sorted as tuples, hashes over unbounded numbers."""

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
        key1 = keyed(b"".join(halves), seed, 4)
    key2 = struct.pack("<HHBBH", lower[1], upper[1], protocol, family, 0)
    return {
        "key0": endpoint,
        "key1": int.from_bytes(key1, "little", signed=True),
        "key2": int.from_bytes(key2, "little"),
        "lower": lower[0],
        "upper": upper[0],
        "direction": int(source != lower),
        "hash": int.from_bytes(keyed(key0 + key1 + key2, seed, 1), "little", signed=True),
    }


def keyed(data: bytes, seed: int, number: int) -> bytes:
    """NH of 32-bit words under the secrets from ``number`` on, spread by a mix."""
    words = struct.unpack(f"<{len(data) // 4}I", data)
    total = 0
    for k in range(len(words) // 2):
        key = splitmix(seed, number + k)
        total += ((words[2 * k] + key) % 2**32) * ((words[2 * k + 1] + (key >> 32)) % 2**32)
    for _ in range(2):
        total %= 2**64
        total = (total ^ total >> 32) * 0xD6E8FEB86659FD93
    total %= 2**64
    return (total ^ total >> 32).to_bytes(8, "little")


def splitmix(seed: int, number: int) -> int:
    """Output ``number`` of SplitMix64, 1 being the first."""
    word = (seed + number * 0x9E3779B97F4A7C15) % 2**64
    for turn, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> turn) * factor % 2**64
    return word ^ word >> 31


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
