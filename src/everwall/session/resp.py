"""Requests to the store as the bytes that go over the wire: RESP, the protocol of Redis and Valkey.

A command is an array of bulk strings: ``*count`` and then ``$length`` and the bytes for each, every line ended
by CR LF. One pass seals the records and writes their commands, because a Python object for each of key,
field and value costs more than all that the server does with them.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import kernel
from everwall.limits import BUCKET_TTL_S, FIELD_BYTES
from everwall.session import image, record

SCRIPT_RECORDS = 32
"""Records of one script call, of whatever buckets. Measured: 3 us of the server's time per record instead of 5
with a call for each, and 0.1 ms in which nobody else is served."""

FIRSTS, WRITES, DELETES, LOOKUPS, HOUSEKEEPING = range(5)
"""Index into ``counts``: rows of each kind in the order in which they are sent, and commands after them."""
KINDS = 5

_OPERATIONS = np.array([image.WRITE_FIRST, image.WRITE, image.DELETE, image.LOOKUP], np.int64)


def _text(text):
    return np.array(list(text), np.uint8)


_HSET = _text(b"*4\r\n$4\r\nHSET\r\n")
_HGET = _text(b"*3\r\n$4\r\nHGET\r\n")
_EVALSHA = _text(b"\r\n$7\r\nEVALSHA\r\n$40\r\n")
_EXPIRE = _text(b"*4\r\n$6\r\nEXPIRE\r\n")
_NX = _text(b"$2\r\nNX\r\n")
_GT = _text(b"$2\r\nGT\r\n")
_FIELD = _text(b"$%d\r\n" % FIELD_BYTES)
_VALUE = _text(b"$%d\r\n" % record.RECORD_BYTES)


def room_for(count: int, prefix_bytes: int) -> int:
    """Bytes that are enough for the commands of ``count`` rows."""
    # A script call of its own and two EXPIRE beside: 340 bytes and three keys, of which 9 are the bucket.
    return count * (400 + 3 * prefix_bytes)


@kernel
def _put_text(out, at, text):
    for j in range(text.shape[0]):
        out[at + j] = text[j]
    return at + text.shape[0]


@kernel
def _put_line_end(out, at):
    out[at], out[at + 1] = 13, 10
    return at + 2


@kernel
def _digits(number, base):
    digits = np.int64(1)
    while number >= base:
        number //= base
        digits += 1
    return digits


@kernel
def _put_number(out, at, number, base):
    """A number that is not negative, in decimal or lower-case hexadecimal."""
    digits = _digits(number, base)
    for j in range(digits):
        digit = number % base
        out[at + digits - 1 - j] = 48 + digit if digit < 10 else 87 + digit
        number //= base
    return at + digits


@kernel
def _put_length(out, at, size):
    out[at] = 36  # $
    return _put_line_end(out, _put_number(out, at + 1, size, 10))


@kernel
def _put_key(out, at, prefix, bucket):
    at = _put_length(out, at, prefix.shape[0] + _digits(bucket, 16) + 1)
    at = _put_number(out, _put_text(out, at, prefix), bucket, 16)
    out[at] = 125  # }
    return _put_line_end(out, at + 1)


@kernel
def _put_field(out, at, field):
    return _put_line_end(out, _put_text(out, _put_text(out, at, _FIELD), field))


@kernel
def _put_value(out, at, value):
    return _put_line_end(out, _put_text(out, _put_text(out, at, _VALUE), value))


@kernel
def bucket_of(field, buckets):
    """The bucket of a field: as a number, big-endian and without a sign, modulo the number of buckets."""
    rest = np.int64(0)
    for j in range(FIELD_BYTES):
        rest = ((rest << 8) | np.int64(field[j])) % buckets
    return rest


@kernel
def _sort(rows, count, order, counts):
    """Row numbers by kind, in each kind as they came; ``counts`` gets how many of each."""
    counts[:] = 0
    filled = np.int64(0)
    for kind in range(_OPERATIONS.shape[0]):
        for i in range(count):
            if rows[i, image.OP] == _OPERATIONS[kind]:
                order[filled] = i
                filled += 1
                counts[kind] += 1


@kernel
def _put_script_calls(out, at, order, start, count, prefix, sha, buckets, fields, values):
    """EVALSHA for rows ``order[start : start + count]``, so many records a call: all keys, then all pairs."""
    for first in range(start, start + count, SCRIPT_RECORDS):
        end = min(first + SCRIPT_RECORDS, start + count)
        size = end - first
        out[at] = 42  # *
        at = _put_text(out, _put_number(out, at + 1, 3 + 3 * size, 10), _EVALSHA)
        at = _put_line_end(out, _put_text(out, at, sha))
        at = _put_length(out, at, _digits(size, 10))
        at = _put_line_end(out, _put_number(out, at, size, 10))
        for k in range(first, end):
            at = _put_key(out, at, prefix, buckets[order[k]])
        for k in range(first, end):
            at = _put_field(out, at, fields[order[k]])
            at = _put_value(out, at, values[order[k]])
    return at


@kernel
def encode(rows, count, keys, prefix, shas, lives_until, now_s, fields, values, buckets, order, counts, out):
    """Write the commands for the first ``count`` image rows into ``out``; returns how many bytes.

    ``prefix`` (uint8[]) is a bucket's key up to its number, ``shas`` (uint8[2, 40]) name the scripts of write
    and delete, ``lives_until`` (int64[buckets]) is raised for buckets that are told to live longer.
    ``fields``, ``values`` and ``buckets`` are for the rows' own; ``order`` (int64[count]) gets the row that each
    command or script argument speaks for, ``counts`` (int64[KINDS]) how many there are of each kind.

    ``out`` has ``room_for`` them. A bucket's expiry is never shortened: NX sets the first, GT raises it.
    """
    record.seal(rows, count, keys, fields, values)
    for i in range(count):
        buckets[i] = bucket_of(fields[i], lives_until.shape[0])
    _sort(rows, count, order, counts)
    at = np.int64(0)
    for k in range(counts[FIRSTS]):
        i = order[k]
        at = _put_key(out, _put_text(out, at, _HSET), prefix, buckets[i])
        at = _put_value(out, _put_field(out, at, fields[i]), values[i])
    start = counts[FIRSTS]
    at = _put_script_calls(out, at, order, start, counts[WRITES], prefix, shas[0], buckets, fields, values)
    start += counts[WRITES]
    at = _put_script_calls(out, at, order, start, counts[DELETES], prefix, shas[1], buckets, fields, values)
    start += counts[DELETES]
    for k in range(start, start + counts[LOOKUPS]):
        i = order[k]
        at = _put_key(out, _put_text(out, at, _HGET), prefix, buckets[i])
        at = _put_field(out, at, fields[i])
    for i in range(count):
        operation, expiry = rows[i, image.OP], rows[i, image.EXPIRY]
        written = operation == image.WRITE_FIRST or operation == image.WRITE
        if not written or expiry <= lives_until[buckets[i]]:
            continue
        life = max(BUCKET_TTL_S, 2 * (expiry - now_s))
        lives_until[buckets[i]] = now_s + life
        for condition in range(2):
            at = _put_key(out, _put_text(out, at, _EXPIRE), prefix, buckets[i])
            at = _put_length(out, at, _digits(life, 10))
            at = _put_line_end(out, _put_number(out, at, life, 10))
            at = _put_text(out, at, _NX if condition == 0 else _GT)
            counts[HOUSEKEEPING] += 1
    return at
