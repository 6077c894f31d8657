"""A session as it lies in the store: 52 sealed bytes under an 8-byte field.

===========  =====  =========================================================================
bytes        size   meaning (numbers are big-endian)
===========  =====  =========================================================================
0            1      version (high 4 bits, now 1), state of ``session.tcp`` (low 4 bits)
1            1      flags of ``session.image``
2            1      window scales: lower end | upper end << 4; 15 = not known
3 .. 4       2      zone the session came from (16-bit hash of its name)
5 .. 6       2      zone it goes to
7 .. 8       2      application
9 .. 12      4      rule (32-bit hash of its name)
13 .. 16     4      host name, interned
17 .. 20     4      owner: the node that wrote the record
21 .. 26     6      start, milliseconds of store time
27 .. 28     2      generation
29 .. 32     4      expiry, seconds of store time
33 .. 37     5      packets
38 .. 43     6      bytes
44 .. 51     8      tag
===========  =====  =========================================================================

Start and generation stand side by side, so that bytes 21 to 28 are one number that orders all records of a
session; owner stands before them.

What every later version keeps, so that two releases can share a store during an upgrade: 52 bytes, the version in the
first four bits, owner, start, generation and expiry in their places, and the tag at the end, over everything before it.
So a release can tell a genuine record that it cannot read from a forged one: it does not restore it, and gives way to
it as to any other (``open_record`` says FOREIGN).

The field is SipHash-2-4 of the flow key under one key, the tag SipHash-2-4 of the flow key and bytes 0 to
43 under another (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012). So a record opens
only under the flow it was written for, and nobody without the cluster secret can make one.

Identifiers must fit their fields and are cut to them; quantities that only grow (packets, bytes,
generation, start, expiry) stop at the greatest value their field holds.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from everwall.kernels import inlined, kernel
from everwall.limits import CLUSTER_SECRET_BYTES_MIN, CLUSTER_SECRETS_MAX, FIELD_BYTES, RECORD_BYTES_MAX
from everwall.session import image

VERSION = 1
RECORD_BYTES = 52
TAG_OFFSET = 44
OWNER_OFFSET = 17
ORDER_OFFSET = 21
"""Start and generation: eight bytes that order the records of one session."""
ORDER_BYTES = 8
EXPIRY_OFFSET = 29
KEY_WORDS = 4
"""Of each secret: two for fields, two for tags."""

assert RECORD_BYTES == TAG_OFFSET + 8 <= RECORD_BYTES_MAX
assert FIELD_BYTES == 8

# Where each number lies: column of the image, offset, size in bytes.
_LAYOUT = np.array(
    [
        (image.FLAGS, 1, 1),
        (image.SCALES, 2, 1),
        (image.FROM_ZONE, 3, 2),
        (image.TO_ZONE, 5, 2),
        (image.APPLICATION, 7, 2),
        (image.RULE, 9, 4),
        (image.HOST, 13, 4),
        (image.OWNER, 17, 4),
        (image.START, 21, 6),
        (image.GENERATION, 27, 2),
        (image.EXPIRY, EXPIRY_OFFSET, 4),
        (image.PACKETS, 33, 5),
        (image.BYTES, 38, 6),
    ],
    np.int64,
)

# What field and tag are computed over comes first: the flow key, six words of 64 bits.
_KEY_COLUMNS = np.array(
    [image.ENDPOINT, image.LOWER_HIGH, image.LOWER_LOW, image.UPPER_HIGH, image.UPPER_LOW, image.KEY2],
    np.int64,
)
_FLOW_WORDS = len(_KEY_COLUMNS)
_TAG_LENGTH = (8 * _FLOW_WORDS + TAG_OFFSET) << 56
"""SipHash's last word has the number of bytes above those that are left over."""
assert TAG_OFFSET & 7 == 4
assert _TAG_LENGTH < 1 << 63

# The initial state of SipHash, "somepseudorandomlygeneratedbytes".
_V0 = 0x736F6D6570736575
_V1 = 0x646F72616E646F6D
_V2 = 0x6C7967656E657261
_V3 = 0x7465646279746573


def derive_keys(*secrets: bytes) -> npt.NDArray[np.int64]:
    """The keys of field and tag, two words each, from the cluster secret.

    With two secrets, those of the second follow: it is read, while the first one is read and written
    (``secret`` of the functions below counts them from 0).

    Raises ValueError when a secret is shorter than 32 bytes, for none and for more than two.
    """
    if not 1 <= len(secrets) <= CLUSTER_SECRETS_MAX:
        raise ValueError(f"a cluster has one secret, or two of them, not {len(secrets)}")
    return np.concatenate([_derive(secret) for secret in secrets])


def _derive(secret: bytes) -> npt.NDArray[np.int64]:
    if len(secret) < CLUSTER_SECRET_BYTES_MIN:
        raise ValueError(
            f"the cluster secret must have at least {CLUSTER_SECRET_BYTES_MIN} bytes, got {len(secret)}"
        )
    keys = b"".join(
        hashlib.blake2b(secret, digest_size=16, person=purpose).digest()
        for purpose in (b"everwall field", b"everwall tag")
    )
    return np.frombuffer(keys, "<i8").astype(np.int64)


def fingerprints(keys: npt.NDArray[np.int64]) -> list[str]:
    """What people compare secrets by, the one that is written first: 32 bits that tell nothing else about them."""
    return [
        hashlib.blake2b(each.tobytes(), digest_size=4, person=b"everwall name").hexdigest()
        for each in keys.reshape(-1, KEY_WORDS)
    ]


@inlined
def _rotate(word, bits):
    return (word << bits) | ((word >> (64 - bits)) & ((1 << bits) - 1))


@inlined
def _round(v0, v1, v2, v3):
    # np.add wraps silently in both modes; the plain operator warns when interpreted.
    v0 = np.add(v0, v1)
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = np.add(v2, v3)
    v3 = _rotate(v3, 16) ^ v2
    v0 = np.add(v0, v3)
    v3 = _rotate(v3, 21) ^ v0
    v2 = np.add(v2, v1)
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@inlined
def _begin(k0, k1):
    return k0 ^ _V0, k1 ^ _V1, k0 ^ _V2, k1 ^ _V3


@inlined
def _absorb(v0, v1, v2, v3, word):
    v3 ^= word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ word, v1, v2, v3


@inlined
def _finish(v0, v1, v2, v3):
    v2 ^= 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@inlined
def _little_endian(data, offset, size):
    """The word of ``size`` bytes, at most 8, that starts at ``offset``."""
    word = np.int64(0)
    for j in range(size):
        word |= np.int64(data[offset + j]) << (8 * j)
    return word


@inlined
def _swap(word):
    """The same eight bytes from the other end."""
    return (
        ((word >> 56) & 0xFF)
        | ((word >> 40) & 0xFF00)
        | ((word >> 24) & 0xFF0000)
        | ((word >> 8) & 0xFF000000)
        | ((word & 0xFF000000) << 8)
        | ((word & 0xFF0000) << 24)
        | ((word & 0xFF00) << 40)
        | ((word & 0xFF) << 56)
    )


@kernel
def siphash24(k0, k1, data, size):
    """SipHash-2-4 of the first ``size`` bytes of uint8[] ``data``, which must be that long, as int64."""
    v0, v1, v2, v3 = _begin(k0, k1)
    whole = size >> 3
    for i in range(whole):
        v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, _little_endian(data, 8 * i, 8))
    last = _little_endian(data, 8 * whole, size & 7) | (np.int64(size & 0xFF) << 56)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, last)
    return _finish(v0, v1, v2, v3)


@inlined
def _absorb_flow(v0, v1, v2, v3, rows, i):
    for j in range(_FLOW_WORDS):
        v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, rows[i, _KEY_COLUMNS[j]])
    return v0, v1, v2, v3


@kernel
def field_of(rows, i, keys, secret):
    """The store's name of the session in row ``i``: 64 bits."""
    first = KEY_WORDS * secret
    v0, v1, v2, v3 = _begin(keys[first], keys[first + 1])
    v0, v1, v2, v3 = _absorb_flow(v0, v1, v2, v3, rows, i)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, np.int64(8 * _FLOW_WORDS) << 56)
    return _finish(v0, v1, v2, v3)


@kernel
def _tag_of(rows, i, keys, secret, data, at):
    """The tag over the flow key of row ``i`` and the 44 bytes from ``at`` on."""
    first = KEY_WORDS * secret + 2
    v0, v1, v2, v3 = _begin(keys[first], keys[first + 1])
    v0, v1, v2, v3 = _absorb_flow(v0, v1, v2, v3, rows, i)
    for j in range(TAG_OFFSET >> 3):
        v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, _little_endian(data, at + 8 * j, 8))
    last = _little_endian(data, at + (TAG_OFFSET & ~7), TAG_OFFSET & 7)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, last | _TAG_LENGTH)
    return _finish(v0, v1, v2, v3)


@inlined
def put_word(out, at, word):
    """Eight bytes, the highest first."""
    for j in range(8):
        out[at + j] = (word >> (56 - 8 * j)) & 0xFF


@inlined
def _get(data, offset, size):
    number = np.int64(0)
    for j in range(size):
        number = (number << 8) | np.int64(data[offset + j])
    return number


@inlined
def _number(rows, i, column, bits):
    """What only names something is cut to its field."""
    return rows[i, column] & ((np.int64(1) << bits) - 1)


@inlined
def _quantity(rows, i, column, bits):
    """What only grows stops at the greatest value of its field."""
    return min(max(rows[i, column], 0), (np.int64(1) << bits) - 1)


@kernel
def seal(rows, i, keys, out, at):
    """Write the 52 bytes of row ``i`` into uint8[] ``out`` from ``at`` on, under the first secret.

    The numbers are put together in words of eight bytes, so that none has to be read back for the tag.
    """
    application, start = _number(rows, i, image.APPLICATION, 16), _quantity(rows, i, image.START, 48)
    host, expiry = _number(rows, i, image.HOST, 32), _quantity(rows, i, image.EXPIRY, 32)
    octets = _quantity(rows, i, image.BYTES, 48)
    words = (
        (np.int64(VERSION) << 60)
        | (_number(rows, i, image.STATE, 4) << 56)
        | (_number(rows, i, image.FLAGS, 8) << 48)
        | (_number(rows, i, image.SCALES, 8) << 40)
        | (_number(rows, i, image.FROM_ZONE, 16) << 24)
        | (_number(rows, i, image.TO_ZONE, 16) << 8)
        | (application >> 8),
        ((application & 0xFF) << 56) | (_number(rows, i, image.RULE, 32) << 24) | (host >> 8),
        ((host & 0xFF) << 56) | (_number(rows, i, image.OWNER, 32) << 24) | (start >> 24),
        ((start & 0xFFFFFF) << 40) | (_quantity(rows, i, image.GENERATION, 16) << 24) | (expiry >> 8),
        ((expiry & 0xFF) << 56) | (_quantity(rows, i, image.PACKETS, 40) << 16) | (octets >> 32),
        (octets & 0xFFFFFFFF) << 32,
    )
    v0, v1, v2, v3 = _begin(keys[2], keys[3])
    v0, v1, v2, v3 = _absorb_flow(v0, v1, v2, v3, rows, i)
    for j in range(5):
        put_word(out, at + 8 * j, words[j])
        v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, _swap(words[j]))
    put_word(out, at + 40, words[5])
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, _swap(words[5]) | _TAG_LENGTH)
    put_word(out, at + TAG_OFFSET, _finish(v0, v1, v2, v3))


@kernel
def open_record(rows, i, keys, secret, data, at):
    """Read the 52 bytes of uint8[] ``data`` from ``at`` on into row ``i``, whose flow key is already there.

    ``OP`` becomes FOUND; REFUSED where the record was altered, or written for another flow or with another secret; or
    FOREIGN where all that is well and it is of another version. Only what is found changes anything else in the row.
    """
    if _get(data, at + TAG_OFFSET, 8) != _tag_of(rows, i, keys, secret, data, at):
        rows[i, image.OP] = image.REFUSED
        return
    if data[at] >> 4 != VERSION:
        rows[i, image.OP] = image.FOREIGN
        return
    rows[i, image.OP] = image.FOUND
    rows[i, image.STATE] = np.int64(data[at]) & 0xF
    for j in range(_LAYOUT.shape[0]):
        rows[i, _LAYOUT[j, 0]] = _get(data, at + _LAYOUT[j, 1], _LAYOUT[j, 2])


@inlined
def expiry_in(data, at):
    """When the record from ``at`` on ends to be true, in seconds of store time; of any version, and not believed."""
    return _get(data, at + EXPIRY_OFFSET, 4)


@inlined
def is_later(rows, i, others, k):
    """Whether the record read into row ``i`` comes after that in row ``k`` of ``others``, of the same flow."""
    if rows[i, image.START] != others[k, image.START]:
        return rows[i, image.START] > others[k, image.START]
    return rows[i, image.GENERATION] > others[k, image.GENERATION]
