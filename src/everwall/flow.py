"""The flow key: one name for both directions of a conversation.

The ends of a flow are put in canonical order: the *lower* end is the one whose address, then port, is smaller
as unsigned numbers in network order. Three int64 words then name the flow, the same for a packet and
for its answer:

* ``KEY0``: the endpoint id, so that overlapping address plans behind different endpoints stay apart;
* ``KEY1``: both IPv4 addresses, lower first; or a signature of both IPv6 addresses, which can collide,
  so whoever finds an IPv6 flow by its key compares ``LOWER_HIGH`` to ``UPPER_LOW`` as well;
* ``KEY2``: lower port | upper port << 16 | protocol << 32 | family << 40; never 0.

Hash and signature of a key are a universal hash of its 32-bit halves, keyed by a seed of this process: who does
not know the seed cannot choose flows that meet in one bucket (``hash_key`` says how, docs/decisions/0006 why). The
cut-through program computes the same. They mean nothing to another process and are never stored.

``hash_of`` is HalfSipHash-1-3 with 64 bits of output (Aumasson and Bernstein's SipHash on 32-bit words), for what is
not asked for every packet, or has to be harder to guess.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import inlined, kernel
from everwall.wire.fields import join
from everwall.wire.meta import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    DESTINATION_PORT,
    DIRECTION,
    ENDPOINT,
    FAMILY,
    HASH,
    KEY0,
    KEY1,
    KEY2,
    LOWER_HIGH,
    LOWER_LOW,
    PROTOCOL,
    SOURCE_HIGH,
    SOURCE_LOW,
    SOURCE_PORT,
    UPPER_HIGH,
    UPPER_LOW,
)

_LOW = 0xFFFFFFFF
_SIGN = -(1 << 63)
# Odd numbers, as int64: of SplitMix64, and of the mix.
_GOLDEN = -7046029254386353131
_SPLIT_1 = -4658895280553007687
_SPLIT_2 = -7723592293110705685
_SPREAD = -2960836687051489901


@kernel
def make_key(meta, i, seed):
    """Fill KEY0 to HASH of a packet that ``wire.packet.parse`` let pass; ``seed`` is any int64.

    In a later fragment the ports are those that the caller filled in.
    """
    source_high = meta[i, SOURCE_HIGH]
    source_low = meta[i, SOURCE_LOW]
    source_port = meta[i, SOURCE_PORT]
    destination_high = meta[i, DESTINATION_HIGH]
    destination_low = meta[i, DESTINATION_LOW]
    destination_port = meta[i, DESTINATION_PORT]
    family = meta[i, FAMILY]

    if source_high != destination_high:
        turned = less_unsigned(destination_high, source_high)
    elif source_low != destination_low:
        turned = less_unsigned(destination_low, source_low)
    else:
        turned = destination_port < source_port
    if turned:
        source_high, destination_high = destination_high, source_high
        source_low, destination_low = destination_low, source_low
        source_port, destination_port = destination_port, source_port

    key0 = meta[i, ENDPOINT]
    if family == 4:
        key1 = join(source_low, destination_low)
    else:
        key1 = signature(source_high, source_low, destination_high, destination_low, seed)
    key2 = source_port | destination_port << 16 | meta[i, PROTOCOL] << 32 | family << 40
    meta[i, KEY0] = key0
    meta[i, KEY1] = key1
    meta[i, KEY2] = key2
    meta[i, LOWER_HIGH] = source_high
    meta[i, LOWER_LOW] = source_low
    meta[i, UPPER_HIGH] = destination_high
    meta[i, UPPER_LOW] = destination_low
    meta[i, DIRECTION] = 1 if turned else 0
    meta[i, HASH] = hash_key(key0, key1, key2, seed)


@kernel
def less_unsigned(a, b):
    """``a < b`` for int64s that stand for unsigned numbers."""
    return (a ^ _SIGN) < (b ^ _SIGN)


@inlined
def hash_of(key0, key1, key2, seed):
    """The hash of three words: all 64 bits of an int64, so it may be negative."""
    v0, v1, v2, v3 = _begin(seed)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, key0)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, key1)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, key2)
    return _finish(v0, v1, v2, v3, 24)


@inlined
def hash_key(key0, key1, key2, seed):
    """The hash of a flow key: all 64 bits of an int64.

    NH (Black, Halevi, Krawczyk, Krovetz and Rogaway, UMAC, CRYPTO 1999, section 4) over the halves of each word, under
    secrets drawn from the seed: two different keys have the same sum with a probability of 2^-32 at most, whatever they
    are. A mix that loses nothing then spreads the sum over all bits. Everything wraps around at 64 bits.
    """
    total = (
        _product(key0, secret(seed, 1)) + _product(key1, secret(seed, 2)) + _product(key2, secret(seed, 3))
    )
    return _mix(total)


@kernel
def signature(lower_high, lower_low, upper_high, upper_low, seed):
    """64 bits that stand for two IPv6 addresses in a key: as ``hash_key``, under other secrets."""
    total = _product(lower_high, secret(seed, 4)) + _product(lower_low, secret(seed, 5))
    total += _product(upper_high, secret(seed, 6)) + _product(upper_low, secret(seed, 7))
    return _mix(total)


@inlined
def secret(seed, number):
    """64 bits that only the seed tells: SplitMix64 (Steele, Lea and Flood, 2014)."""
    word = np.int64(seed) + np.int64(number) * np.int64(_GOLDEN)
    word = (word ^ (word >> 30 & 0x3FFFFFFFF)) * np.int64(_SPLIT_1)
    word = (word ^ (word >> 27 & 0x1FFFFFFFFF)) * np.int64(_SPLIT_2)
    return word ^ (word >> 31 & 0x1FFFFFFFF)


@inlined
def _product(word, key):
    """Both halves of a word, each moved by its half of the key, multiplied."""
    low = ((word & _LOW) + (key & _LOW)) & _LOW
    high = ((word >> 32 & _LOW) + (key >> 32 & _LOW)) & _LOW
    return np.int64(low) * np.int64(high)


@inlined
def _mix(word):
    """Every bit of a word to every other; different words stay different."""
    word = (word ^ (word >> 32 & _LOW)) * np.int64(_SPREAD)
    word = (word ^ (word >> 32 & _LOW)) * np.int64(_SPREAD)
    return word ^ (word >> 32 & _LOW)


@inlined
def _begin(seed):
    """The state of HalfSipHash, four 32-bit words in int64s, with the seed as its key."""
    k0 = seed & _LOW
    k1 = seed >> 32 & _LOW
    return k0, k1 ^ 0xEE, k0 ^ 0x6C796765, k1 ^ 0x74656462


@inlined
def _rotate(word, bits):
    return (word << bits & _LOW) | word >> (32 - bits)


@inlined
def _round(v0, v1, v2, v3):
    v0 = v0 + v1 & _LOW
    v1 = _rotate(v1, 5) ^ v0
    v0 = _rotate(v0, 16)
    v2 = v2 + v3 & _LOW
    v3 = _rotate(v3, 8) ^ v2
    v0 = v0 + v3 & _LOW
    v3 = _rotate(v3, 7) ^ v0
    v2 = v2 + v1 & _LOW
    v1 = _rotate(v1, 13) ^ v2
    v2 = _rotate(v2, 16)
    return v0, v1, v2, v3


@inlined
def _absorb(v0, v1, v2, v3, word):
    """One round for either half of a 64-bit word, low half first (the bytes are little-endian)."""
    low = word & _LOW
    high = word >> 32 & _LOW
    v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ low)
    v0, v1, v2, v3 = _round(v0 ^ low, v1, v2, v3 ^ high)
    return v0 ^ high, v1, v2, v3


@inlined
def _finish(v0, v1, v2, v3, length):
    """The last word holds the length in bytes; then three rounds for each half of the result."""
    last = length << 24
    v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ last)
    v0, v2 = v0 ^ last, v2 ^ 0xEE
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    low = v1 ^ v3
    v1 = v1 ^ 0xDD
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return join(v1 ^ v3, low)
