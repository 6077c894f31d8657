"""Requests to the store as the bytes that go over the wire: RESP, the protocol of Redis and Valkey.

A command is an array of bulk strings: ``*count`` and then ``$length`` and the bytes for each, every line ended
by CR LF. One pass seals the records and writes their commands, because a Python object for each of key,
field and value costs more than all that the server does with them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import inlined, kernel
from everwall.limits import BUCKET_TTL_S, FIELD_BYTES, STORE_PLACES_MAX
from everwall.session import image, record

SCRIPT_RECORDS = 32
"""Records of one script call, of whatever buckets. Measured: 3 us of the server's time per record instead of 5
with a call for each, and 0.1 ms in which nobody else is served."""

FIRSTS, WRITES, DELETES, CLEARS, LOOKUPS, LOOKUPS_ELSEWHERE, HOUSEKEEPING = range(7)
"""Index into ``counts``: places in ``order`` of each kind, as they are sent, and commands after them.

CLEARS and LOOKUPS_ELSEWHERE go to the other places in which a record may lie: as many of each for one place as for
the next, or, where places are apart, each to the place that its row says.
"""
KINDS = 7

# Indices of ``cursor``; the others are those of ``replies``
AWAITED = 8  # 1 when a packet waits for one of the answers
CALL_RECORDS = 11  # records of one script call, at most
OTHERS = 12  # other places than the one that is written to
ENTRIES = 13  # of ``order``
APART = 17  # as OTHERS where each place is asked by a request of its own, else 0
_CURSOR_WORDS = 18

# Columns of ``others``
SECRET = 0  # which of the secrets
EPOCH = 1
BUCKETS = 2

_LOW = (1 << 63) - 1
_SAID_BYTES = 256


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
_VALUE_OVER = _text(b"$%d\r\n" % (record.RECORD_BYTES + 4))


class Wording(NamedTuple):
    """What all commands of a cluster have in common."""

    keys: npt.NDArray[np.int64]  # of the records, those of the secret that is written first
    prefix: npt.NDArray[np.uint8]  # of a bucket's key, up to its number
    shas: npt.NDArray[np.uint8]  # uint8[2, 40], the names of the scripts of write and delete
    lives_until: npt.NDArray[np.int64]  # int64[buckets]: store time, s, until which each certainly lives
    call_records: np.int64  # of one script call, at most
    stem: npt.NDArray[np.uint8]  # of a bucket's key, up to its epoch
    others: npt.NDArray[np.int64]  # int64[n, 3]: where else a record may lie
    apart: np.int64  # 1: places are on different servers, and a row goes to one of them at a time


class Pipeline(NamedTuple):
    """Requests, the commands made of them, and how far the replies have come (``replies.py``)."""

    rows: npt.NDArray[np.int64]  # int64[room, COLUMNS]
    fields: npt.NDArray[np.int64]  # int64[room]
    buckets: npt.NDArray[np.int64]  # int64[room]
    order: npt.NDArray[
        np.int64
    ]  # int64[room * places]: the row that each command or script argument speaks for
    others: npt.NDArray[np.int64]  # int64[places - 1, 3]: those of the wording it was encoded with
    outcomes: npt.NDArray[np.int64]  # int64[room]: what became of each row, 0 = not known yet
    counts: npt.NDArray[np.int64]  # int64[KINDS]
    cursor: npt.NDArray[np.int64]  # see ``replies``
    said: npt.NDArray[np.uint8]  # the last bulk string that was the reply to a housekeeping command
    out: npt.NDArray[np.uint8]  # room_for(room) bytes


def make_pipeline(room: int, prefix_bytes: int) -> Pipeline:
    """An empty pipeline for so many requests."""
    return Pipeline(
        rows=np.zeros((room, image.COLUMNS), np.int64),
        fields=np.zeros(room, np.int64),
        buckets=np.zeros(room, np.int64),
        order=np.zeros(room * STORE_PLACES_MAX, np.int64),
        others=np.zeros((STORE_PLACES_MAX - 1, 3), np.int64),
        outcomes=np.zeros(room, np.int64),
        counts=np.zeros(KINDS, np.int64),
        cursor=np.zeros(_CURSOR_WORDS, np.int64),
        said=np.zeros(_SAID_BYTES, np.uint8),
        out=np.empty(room_for(room, prefix_bytes), np.uint8),
    )


def room_for(count: int, prefix_bytes: int) -> int:
    """Bytes that are enough for the commands of ``count`` rows."""
    # A script call of its own and two EXPIRE beside: 340 bytes and three keys, of which 9 are the bucket. A change goes
    # to each other place by a call of its own: 200 bytes and a key, of which 20 are epoch and bucket.
    return count * (400 + 3 * prefix_bytes + (STORE_PLACES_MAX - 1) * (220 + prefix_bytes))


@inlined
def _put_text(out, at, text):
    for j in range(text.shape[0]):
        out[at + j] = text[j]
    return at + text.shape[0]


@inlined
def _put_line_end(out, at):
    out[at], out[at + 1] = 13, 10
    return at + 2


@inlined
def _decimal_digits(number):
    digits = np.int64(1)
    while number >= 10:
        number //= 10
        digits += 1
    return digits


@inlined
def _hexadecimal_digits(number):
    digits = np.int64(1)
    while number >= 16:
        number >>= 4
        digits += 1
    return digits


@kernel
def _put_decimal(out, at, number):
    """A number that is not negative."""
    digits = _decimal_digits(number)
    for j in range(digits):
        out[at + digits - 1 - j] = 48 + number % 10
        number //= 10
    return at + digits


@kernel
def _put_length(out, at, size):
    out[at] = 36  # $
    return _put_line_end(out, _put_decimal(out, at + 1, size))


@inlined
def _put_key(out, at, prefix, bucket):
    """A bucket's key, its number in lower-case hexadecimal."""
    digits = _hexadecimal_digits(bucket)
    at = _put_text(out, _put_length(out, at, prefix.shape[0] + digits + 1), prefix)
    for j in range(digits):
        digit = (bucket >> (4 * (digits - 1 - j))) & 0xF
        out[at + j] = 48 + digit if digit < 10 else 87 + digit
    out[at + digits] = 125  # }
    return _put_line_end(out, at + digits + 1)


@inlined
def _put_field(out, at, field):
    at = _put_text(out, at, _FIELD)
    record.put_word(out, at, field)
    return _put_line_end(out, at + FIELD_BYTES)


@inlined
def _put_value(out, at, rows, i, keys):
    at = _put_text(out, at, _VALUE)
    record.seal(rows, i, keys, out, at)
    return _put_line_end(out, at + record.RECORD_BYTES)


@kernel
def _put_compared(out, at, rows, i, keys):
    """As ``_put_value``; a write says of what it may be written over how long that was to live (``write.lua``)."""
    seen = rows[i, image.WALK] >> image.SEEN_SHIFT
    if seen == 0:
        return _put_value(out, at, rows, i, keys)
    at = _put_text(out, at, _VALUE_OVER)
    record.seal(rows, i, keys, out, at)
    at += record.RECORD_BYTES
    for j in range(4):
        out[at + j] = ((seen - 1) >> (8 * (3 - j))) & 0xFF
    return _put_line_end(out, at + 4)


@kernel
def bucket_of(field, buckets):
    """The bucket of a field: as a number without a sign, modulo the number of buckets."""
    rest = (field & _LOW) % buckets
    if field < 0:
        rest = (rest + (_LOW % buckets) + 1) % buckets
    return rest


@inlined
def _append(rows, count, order, filled, operation):
    """Put the numbers of the rows with an operation into ``order``; returns how far it is filled."""
    for i in range(count):
        if rows[i, image.OP] == operation:
            order[filled] = i
            filled += 1
    return filled


@kernel
def _sort(rows, count, order, counts, others):
    """Row numbers by kind, in each kind as they came; ``counts`` gets how many of each.

    Returns how many rows have a kind, and how many entries that makes.
    """
    counts[:] = 0
    counts[FIRSTS] = end = _append(rows, count, order, np.int64(0), image.WRITE_FIRST)
    end, start = _append(rows, count, order, end, image.WRITE), end
    counts[WRITES] = end - start
    end, start = _append(rows, count, order, end, image.DELETE), end
    counts[DELETES] = end - start
    seen, start = end, end
    for _ in range(others):
        end = _append(rows, count, order, end, image.DELETE)
        end = _append(rows, count, order, end, image.CLEAR)
    counts[CLEARS] = end - start
    if others > 0:
        seen += counts[CLEARS] // others - counts[DELETES]
    end, start = _append(rows, count, order, end, image.LOOKUP), end
    counts[LOOKUPS] = end - start
    for k in range(others * counts[LOOKUPS]):
        order[end + k] = order[start + k % counts[LOOKUPS]]
    counts[LOOKUPS_ELSEWHERE] = others * counts[LOOKUPS]
    return seen + counts[LOOKUPS], end + counts[LOOKUPS_ELSEWHERE]


@inlined
def place_of(rows, i):
    """Which place a row is for, where places are apart: 0 is the one that is written to."""
    return (rows[i, image.WALK] >> image.PLACE_SHIFT) & image.PLACE_BITS


@inlined
def so_far(rows, i):
    """What the places that a look-up has passed have answered, where places are apart; else 0."""
    return (rows[i, image.WALK] >> image.SO_FAR_SHIFT) & image.SO_FAR_BITS


@inlined
def _append_apart(rows, count, order, filled, operation, elsewhere):
    """As ``_append``, of rows for the place that is written to or of those for others."""
    for i in range(count):
        if rows[i, image.OP] == operation and (place_of(rows, i) > 0) == elsewhere:
            order[filled] = i
            filled += 1
    return filled


@kernel
def _sort_apart(rows, count, order, counts):
    """As ``_sort``, where each row is for one place."""
    counts[:] = 0
    counts[FIRSTS] = end = _append(rows, count, order, np.int64(0), image.WRITE_FIRST)
    end, start = _append(rows, count, order, end, image.WRITE), end
    counts[WRITES] = end - start
    end, start = _append_apart(rows, count, order, end, image.DELETE, False), end
    counts[DELETES] = end - start
    start = end
    end = _append_apart(rows, count, order, end, image.DELETE, True)
    end = _append_apart(rows, count, order, end, image.CLEAR, True)
    counts[CLEARS] = end - start
    end, start = _append_apart(rows, count, order, end, image.LOOKUP, False), end
    counts[LOOKUPS] = end - start
    end, start = _append_apart(rows, count, order, end, image.LOOKUP, True), end
    counts[LOOKUPS_ELSEWHERE] = end - start
    return end, end


@inlined
def _begin(rows, i, others):
    """A row for a place that there is not any more, or not yet, begins its walk again."""
    if rows[i, image.OP] == image.CLEAR and (others == 0 or place_of(rows, i) > others):
        rows[i, image.OP] = image.WRITE  # the place to be cleared is not asked any more
    if place_of(rows, i) > others:
        rows[i, image.WALK] = 0


@kernel
def _put_script_calls(pipeline, at, start, count, wording, sha):
    """EVALSHA for rows ``order[start : start + count]``, so many records a call: all keys, then all pairs."""
    out, order = pipeline.out, pipeline.order
    for first in range(start, start + count, wording.call_records):
        end = min(first + wording.call_records, start + count)
        size = end - first
        out[at] = 42  # *
        at = _put_text(out, _put_decimal(out, at + 1, 3 + 3 * size), _EVALSHA)
        at = _put_line_end(out, _put_text(out, at, sha))
        at = _put_length(out, at, _decimal_digits(size))
        at = _put_line_end(out, _put_decimal(out, at, size))
        for k in range(first, end):
            at = _put_key(out, at, wording.prefix, pipeline.buckets[order[k]])
        for k in range(first, end):
            at = _put_field(out, at, pipeline.fields[order[k]])
            at = _put_compared(out, at, pipeline.rows, order[k], wording.keys)
    return at


@kernel
def _put_other_key(out, at, stem, others, p, field):
    """The key of a field's bucket in other place ``p``."""
    bucket = bucket_of(field, others[p, BUCKETS])
    digits = _hexadecimal_digits(bucket)
    at = _put_length(out, at, stem.shape[0] + _decimal_digits(others[p, EPOCH]) + digits + 2)
    at = _put_decimal(out, _put_text(out, at, stem), others[p, EPOCH])
    out[at] = 58  # :
    for j in range(digits):
        digit = (bucket >> (4 * (digits - 1 - j))) & 0xF
        out[at + 1 + j] = 48 + digit if digit < 10 else 87 + digit
    out[at + digits + 1] = 125  # }
    return _put_line_end(out, at + digits + 2)


@kernel
def _put_clear(pipeline, at, first, end, wording, p):
    """EVALSHA of the delete script for rows ``order[first : end]`` in other place ``p``, as ``_put_script_calls``."""
    out, order, rows, others = pipeline.out, pipeline.order, pipeline.rows, wording.others
    secret, size = others[p, SECRET], end - first
    out[at] = 42  # *
    at = _put_text(out, _put_decimal(out, at + 1, 3 + 3 * size), _EVALSHA)
    at = _put_line_end(out, _put_text(out, at, wording.shas[1]))
    at = _put_length(out, at, _decimal_digits(size))
    at = _put_line_end(out, _put_decimal(out, at, size))
    for k in range(first, end):
        field = record.field_of(rows, order[k], wording.keys, secret)
        at = _put_other_key(out, at, wording.stem, others, p, field)
    for k in range(first, end):
        at = _put_field(out, at, record.field_of(rows, order[k], wording.keys, secret))
        at = _put_value(out, at, rows, order[k], wording.keys)
    return at


@kernel
def _put_clears(pipeline, at, start, wording):
    """``_put_clear`` for each other place, so many records a call; where places are apart for the row's own."""
    count = pipeline.counts[CLEARS]
    if wording.apart != 0:
        for k in range(start, start + count):
            p = place_of(pipeline.rows, pipeline.order[k]) - 1
            at = _put_clear(pipeline, at, k, k + 1, wording, p)
        return at
    each = count // wording.others.shape[0]
    for p in range(wording.others.shape[0]):
        stop = start + each
        for first in range(start, stop, wording.call_records):
            end = min(first + wording.call_records, stop)
            at = _put_clear(pipeline, at, first, end, wording, np.int64(p))
        start = stop
    return at


@kernel
def _put_lookup_elsewhere(pipeline, at, i, wording, p):
    """HGET for row ``i`` in other place ``p``."""
    out, others = pipeline.out, wording.others
    field = record.field_of(pipeline.rows, i, wording.keys, others[p, SECRET])
    at = _put_other_key(out, _put_text(out, at, _HGET), wording.stem, others, p, field)
    return _put_field(out, at, field)


@kernel
def _put_lookups_elsewhere(pipeline, at, start, wording):
    """``_put_lookup_elsewhere`` for each look-up and other place; where places are apart for the row's own."""
    order, count = pipeline.order, pipeline.counts[LOOKUPS]
    if wording.apart != 0:
        for k in range(start, start + pipeline.counts[LOOKUPS_ELSEWHERE]):
            p = place_of(pipeline.rows, order[k]) - 1
            at = _put_lookup_elsewhere(pipeline, at, order[k], wording, p)
        return at
    for p in range(wording.others.shape[0]):
        for k in range(start + p * count, start + (p + 1) * count):
            at = _put_lookup_elsewhere(pipeline, at, order[k], wording, np.int64(p))
    return at


@kernel
def _put_expiries(pipeline, at, count, wording, now_s):
    """Let buckets outlive what was written into them; NX sets the first expiry, GT raises it, nothing shortens it."""
    rows, buckets, lives_until = pipeline.rows, pipeline.buckets, wording.lives_until
    for i in range(count):
        operation, expiry = rows[i, image.OP], rows[i, image.EXPIRY]
        written = operation == image.WRITE_FIRST or operation == image.WRITE
        if not written or expiry <= lives_until[buckets[i]]:
            continue
        life = max(BUCKET_TTL_S, 2 * (expiry - now_s))
        lives_until[buckets[i]] = now_s + life
        for condition in range(2):
            at = _put_key(pipeline.out, _put_text(pipeline.out, at, _EXPIRE), wording.prefix, buckets[i])
            at = _put_length(pipeline.out, at, _decimal_digits(life))
            at = _put_line_end(pipeline.out, _put_decimal(pipeline.out, at, life))
            at = _put_text(pipeline.out, at, _NX if condition == 0 else _GT)
            pipeline.counts[HOUSEKEEPING] += 1
    return at


@kernel
def name(pipeline, count, keys):
    """Fill the ``fields`` of rows that did not wait in a backlog."""
    for i in range(count):
        pipeline.fields[i] = record.field_of(pipeline.rows, i, keys, 0)


@kernel
def encode(pipeline, count, wording, now_s):
    """Write the commands for the first ``count`` rows of a pipeline, which have their ``fields``, into ``out``.

    Returns how many bytes, or -1 when there are other rows than requests among them.

    Of ``counts`` HOUSEKEEPING is how many commands there are beside the rows'.
    """
    rows, fields, buckets, order = pipeline.rows, pipeline.fields, pipeline.buckets, pipeline.order
    out, counts, others = pipeline.out, pipeline.counts, wording.others.shape[0]
    pipeline.cursor[:] = 0
    pipeline.cursor[CALL_RECORDS] = wording.call_records
    for i in range(count):
        buckets[i] = bucket_of(fields[i], wording.lives_until.shape[0])
        _begin(rows, i, others)
        pipeline.outcomes[i] = so_far(rows, i)
        if rows[i, image.OP] == image.LOOKUP or rows[i, image.CONFIRM] != 0:
            pipeline.cursor[AWAITED] = 1
    if others > 0:
        pipeline.cursor[OTHERS] = others
        for p in range(others):
            for column in range(wording.others.shape[1]):
                pipeline.others[p, column] = wording.others[p, column]
    if wording.apart != 0:
        pipeline.cursor[APART] = others
        sorted_, pipeline.cursor[ENTRIES] = _sort_apart(rows, count, order, counts)
    else:
        sorted_, pipeline.cursor[ENTRIES] = _sort(rows, count, order, counts, others)
    if sorted_ != count:
        return np.int64(-1)
    at = np.int64(0)
    for k in range(counts[FIRSTS]):
        i = order[k]
        at = _put_key(out, _put_text(out, at, _HSET), wording.prefix, buckets[i])
        at = _put_value(out, _put_field(out, at, fields[i]), rows, i, wording.keys)
    start = counts[FIRSTS]
    at = _put_script_calls(pipeline, at, start, counts[WRITES], wording, wording.shas[0])
    start += counts[WRITES]
    at = _put_script_calls(pipeline, at, start, counts[DELETES], wording, wording.shas[1])
    start += counts[DELETES]
    if counts[CLEARS] > 0:
        at = _put_clears(pipeline, at, start, wording)
        start += counts[CLEARS]
    for k in range(start, start + counts[LOOKUPS]):
        i = order[k]
        at = _put_key(out, _put_text(out, at, _HGET), wording.prefix, buckets[i])
        at = _put_field(out, at, fields[i])
    if counts[LOOKUPS_ELSEWHERE] > 0:
        at = _put_lookups_elsewhere(pipeline, at, start + counts[LOOKUPS], wording)
    return _put_expiries(pipeline, at, count, wording, now_s)
