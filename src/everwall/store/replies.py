"""Replies of the store, read from the bytes that came: each settles the rows that its command spoke for.

Replies come in the order of the commands of a pipeline (``resp.py``): the loading of scripts, if any, then first
writes, writes, deletes, look-ups and housekeeping. A reply is read once it is there as a whole. What
the server sends is not believed: nothing beyond the received bytes is read, and a reply of another kind than was
asked for ends the conversation.

While a record may lie in several places, a look-up is answered by the latest of the records found: of its start and
generation, whatever the place. A write that was made is sent AGAIN as what clears the other places: not together with
it, because a server that is out of memory refuses the one and carries out the other. So a record that moves is in two
places for a moment and never in none; but a look-up may ask for it here before it comes and there after it went, so one
that finds nothing is sent AGAIN as well, once.

Where places are apart, on the servers of a Redis Cluster, a request goes to one of them and then, AGAIN, to the next
with what was found so far.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import inlined, kernel
from everwall.rings import ring_push
from everwall.session import image, record
from everwall.store.resp import (
    APART,
    CALL_RECORDS,
    CLEARS,
    DELETES,
    ENTRIES,
    FIRSTS,
    HOUSEKEEPING,
    LOOKUPS,
    LOOKUPS_ELSEWHERE,
    OTHERS,
    SECRET,
    WRITES,
    place_of,
)

# Indices of a pipeline's ``cursor``
NEXT = 0  # index into ``order`` of the first row without an outcome
LOADS = 1  # replies to the loading of scripts that are still to come
KEPT = 2  # housekeeping commands that were answered
TEXT, TEXT_END = 3, 4  # where an error's text lies in the buffer
SECONDS, MICROSECONDS = 5, 6  # the answer to TIME
GIVEN = 7  # rows whose answers the worker has
REPLICAS, HOLDERS = 9, 10  # how many replicas are waited for, and how many have it, as WAIT says last of all
SAID = 14  # bytes of ``said``
FOUND_ELSEWHERE = 15  # look-ups that were answered from another place than the one that is written to
AGAINS = 16  # rows that were given as AGAIN

# What became of a row beside the replies of ``image``
AGAIN = 1
"""To be sent once more: the scripts were lost, what stood against a write was no valid record and may be written over,
or the other places are to be cleared or asked once more."""
UNWRITTEN = 2
"""The server refused; refreshing tries again in its time."""

ELSEWHERE = 6
"""The server is not the one that has its slot; who is stands in the error."""
UNREPLICATED = 7
"""Written, and not by as many replicas as it should be; the engine waits in vain."""
UNCONFIRMED = 8
"""Written, but others may have agreed on another place since: nobody can say so; the engine waits in vain."""

# What ``read`` found
MORE = 0
"""The next reply is not there yet."""
DONE = 1
"""Every command is answered."""
ERROR = 2
"""An error is the reply; the caller says what it means for the rows of ``command``, then goes on."""
CONFUSED = 3
"""No reply to what was asked, or none at all."""
FULL = 4
"""Every command is answered, and the worker has not taken all of it yet."""

GIVEN_ANSWERS = 0
"""Index into the tally of outcomes: answers handed to the worker."""
FROM_ELSEWHERE = image.FOREIGN + 1
"""Index into the tally: look-ups that were answered from another place."""
TALLY = FROM_ELSEWHERE + 1

_NOT_YET = -1
_BROKEN = -2
_DEPTH_MAX = 4096  # replies within a reply

_STAR, _DOLLAR, _COLON, _PLUS, _MINUS = 42, 36, 58, 43, 45


@kernel
def _line_end(data, at, end):
    """Index of the CR that ends the line, _NOT_YET or _BROKEN; lines of numbers and errors are short."""
    for k in range(at, min(end - 1, at + 4096)):
        if data[k] == 13:
            return k if data[k + 1] == 10 else _BROKEN
    return _NOT_YET if end - at < 4096 else _BROKEN


@kernel
def _number(data, at, stop):
    """The decimal number in a line; -1 for the nil of RESP 2, _BROKEN for everything that is no length or count."""
    if stop - at == 2 and data[at] == _MINUS and data[at + 1] == 49:
        return np.int64(-1)
    if stop == at or stop - at > 18:
        return np.int64(_BROKEN)
    number = np.int64(0)
    for k in range(at, stop):
        if data[k] < 48 or data[k] > 57:
            return np.int64(_BROKEN)
        number = number * 10 + np.int64(data[k]) - 48
    return number


@kernel
def _whole(data, at, end):
    """Index behind the reply that begins at ``at``, _NOT_YET or _BROKEN."""
    wanted = np.int64(1)
    while wanted > 0:
        if at >= end:
            return np.int64(_NOT_YET)
        stop = _line_end(data, at + 1, end)
        if stop < 0:
            return np.int64(stop)
        kind = data[at]
        number = np.int64(0)
        if kind == _STAR or kind == _DOLLAR:
            number = _number(data, at + 1, stop)
            if number == _BROKEN:
                return np.int64(_BROKEN)
        elif kind != _COLON and kind != _PLUS and kind != _MINUS:
            return np.int64(_BROKEN)
        wanted -= 1
        at = stop + 2
        if kind == _STAR and number > 0:
            wanted += number
            if wanted > _DEPTH_MAX:
                return np.int64(_BROKEN)
        elif kind == _DOLLAR and number >= 0:
            if at + number + 2 > end:
                return np.int64(_NOT_YET)
            at += number + 2
    return at


@inlined
def command(pipeline):
    """(kind, first, count, place): whose turn it is; rows are ``order[first : first + count]``.

    The place is 0 for the one that is written to, else 1 more than an index into ``others``.
    """
    cursor, counts = pipeline.cursor, pipeline.counts
    first = cursor[NEXT]
    if cursor[LOADS] > 0:
        return HOUSEKEEPING, first, np.int64(0), np.int64(0)
    end = np.int64(0)
    for kind in range(HOUSEKEEPING):
        end += counts[kind]
        if first < end:
            if (kind == CLEARS or kind == LOOKUPS_ELSEWHERE) and cursor[APART] > 0:
                return kind, first, np.int64(1), place_of(pipeline.rows, pipeline.order[first])
            if kind == CLEARS or kind == LOOKUPS_ELSEWHERE:
                each, passed = counts[kind] // cursor[OTHERS], first - (end - counts[kind])
                size = min(cursor[CALL_RECORDS], each - passed % each) if kind == CLEARS else np.int64(1)
                return kind, first, size, passed // each + 1
            compared = kind == WRITES or kind == DELETES
            size = min(cursor[CALL_RECORDS], end - first) if compared else np.int64(1)
            return kind, first, size, np.int64(0)
    return HOUSEKEEPING, first, np.int64(0), np.int64(0)


@inlined
def is_answered(pipeline):
    """Whether every command has its reply."""
    cursor = pipeline.cursor
    return (
        cursor[LOADS] == 0
        and cursor[NEXT] == cursor[ENTRIES]
        and cursor[KEPT] == pipeline.counts[HOUSEKEEPING]
    )


@kernel
def advance(pipeline, count):
    """The command whose turn it is has been answered."""
    cursor = pipeline.cursor
    if count > 0:
        cursor[NEXT] += count
    elif cursor[LOADS] > 0:
        cursor[LOADS] -= 1
    else:
        cursor[KEPT] += 1


@inlined
def _copy_row(rows, i, target, k):
    for column in range(image.COLUMNS):
        target[k, column] = rows[i, column]


@inlined
def _walk(pipeline, i, place, found):
    """Send row ``i`` to the next place, if places are apart and there is one; returns whether."""
    further = place < pipeline.cursor[APART]
    if further:
        pipeline.outcomes[i] = AGAIN
        asked = pipeline.rows[i, image.WALK] & image.ASKED
        pipeline.rows[i, image.WALK] = asked | (place + 1) << image.PLACE_SHIFT | found << image.SO_FAR_SHIFT
    return further


@inlined
def _take_made(pipeline, i, kind, place):
    """A compared change was made: a write is to be followed by the clearing of the other places, if there are any."""
    outcomes = pipeline.outcomes
    if kind == WRITES and pipeline.cursor[OTHERS] > 0:
        outcomes[i] = AGAIN
        pipeline.rows[i, image.OP] = image.CLEAR
    if not _walk(pipeline, i, place, np.int64(0)) and outcomes[i] == 0:
        outcomes[i] = image.WRITTEN


@kernel
def _take_kept(pipeline, i, kind, place, secret, data, at, size, keys, scratch, now_s):
    """A compared change was not made because of the record at ``at``: the session is lost, if that is a valid one.

    A genuine record of another version counts, although nobody here can read it. One that is none, or is over, is
    written over, but nothing that comes there in the meantime is.
    """
    rows, outcomes = pipeline.rows, pipeline.outcomes
    if kind == DELETES:
        outcomes[i] = image.LOST
        return
    valid = False
    if size == record.RECORD_BYTES:
        _copy_row(rows, i, scratch, 0)
        record.open_record(scratch, 0, keys, secret, data, at)
        genuine = scratch[0, image.OP] == image.FOUND or scratch[0, image.OP] == image.FOREIGN
        valid = genuine and record.expiry_in(data, at) >= now_s
    if valid:
        outcomes[i] = image.LOST
    elif kind == WRITES:
        outcomes[i] = AGAIN
        expiry = record.expiry_in(data, at) if size >= record.EXPIRY_OFFSET + 4 else np.int64(0)
        rows[i, image.WALK] = (expiry + 1) << image.SEEN_SHIFT
    else:
        _take_made(pipeline, i, kind, place)  # what cannot be cleared there is no record


@kernel
def _take_array(pipeline, kind, first, count, place, data, at, keys, scratch, now_s):
    """The reply of a script: for each record 1, or the record that stays instead. Returns whether it is one."""
    stop = at
    while data[stop] != 13:
        stop += 1
    if data[at] != _STAR or _number(data, at + 1, stop) != count:
        return False
    at = stop + 2
    secret = pipeline.others[place - 1, SECRET] if place > 0 else np.int64(0)
    for k in range(first, first + count):
        i = pipeline.order[k]
        stop = at
        while data[stop] != 13:
            stop += 1
        number = _number(data, at + 1, stop)
        if data[at] == _COLON and number == 1:
            _take_made(pipeline, i, kind, place)
        elif data[at] == _DOLLAR and number >= 0:
            _take_kept(pipeline, i, kind, place, secret, data, stop + 2, number, keys, scratch, now_s)
            stop += number + 2
        else:
            return False
        at = stop + 2
    return True


@inlined
def _open(rows, i, keys, secret, data, at, size, now_s):
    """Read the record of so many bytes into row ``i``, -1 = there is none; returns what it is. OP is LOOKUP again."""
    if size < 0:
        return image.MISSING
    if size != record.RECORD_BYTES:
        return image.REFUSED
    record.open_record(rows, i, keys, secret, data, at)
    outcome = rows[i, image.OP]
    rows[i, image.OP] = image.LOOKUP
    if outcome == image.FOUND and rows[i, image.EXPIRY] < now_s:
        return image.MISSING
    return outcome


@kernel
def _take_lookup(pipeline, i, data, at, keys, now_s):
    """The reply to HGET in the place that is written to. Returns whether it is one."""
    stop = at
    while data[stop] != 13:
        stop += 1
    if data[at] != _DOLLAR:
        return False
    size = _number(data, at + 1, stop)
    pipeline.outcomes[i] = _open(pipeline.rows, i, keys, np.int64(0), data, stop + 2, size, now_s)
    _walk(pipeline, i, np.int64(0), pipeline.outcomes[i])
    return True


@kernel
def _take_elsewhere(pipeline, i, place, data, at, keys, scratch, now_s):
    """The reply to HGET in another place. Returns whether it is one."""
    stop = at
    while data[stop] != 13:
        stop += 1
    if data[at] != _DOLLAR:
        return False
    size = _number(data, at + 1, stop)
    rows, outcomes, cursor = pipeline.rows, pipeline.outcomes, pipeline.cursor
    _copy_row(rows, i, scratch, 0)
    found = _open(scratch, 0, keys, pipeline.others[place - 1, SECRET], data, stop + 2, size, now_s)
    if found == image.FOUND:
        first = outcomes[i] != image.FOUND
        if first or record.is_later(scratch, 0, rows, i):
            _copy_row(scratch, 0, rows, i)
            outcomes[i] = image.FOUND
            cursor[FOUND_ELSEWHERE] += first
    elif outcomes[i] == image.MISSING:
        outcomes[i] = found
    again = _walk(pipeline, i, place, outcomes[i])
    if place == cursor[OTHERS] and not again and outcomes[i] == image.MISSING:
        if rows[i, image.WALK] & image.ASKED == 0:
            rows[i, image.WALK] = image.ASKED
            outcomes[i] = AGAIN
    return True


@kernel
def _take_time(pipeline, data, at):
    """The reply to TIME, two bulk strings."""
    if data[at + 1] != 50:
        return
    at += 4
    for word in range(2):
        stop = at
        while data[stop] != 13:
            stop += 1
        size = _number(data, at + 1, stop)
        if data[at] != _DOLLAR or size < 1:
            return
        at = stop + 2
        pipeline.cursor[SECONDS + word] = _number(data, at, at + size)
        at += size + 2


@kernel
def _take_holders(pipeline, data, at):
    """The reply to WAIT, a number after which nothing comes; numbers before it say nothing."""
    stop = at
    while data[stop] != 13:
        stop += 1
    pipeline.cursor[HOLDERS] = _number(data, at + 1, stop)


@kernel
def _take_said(pipeline, data, at):
    """A bulk string, as much of it as there is room for."""
    stop = at
    while data[stop] != 13:
        stop += 1
    size = min(max(_number(data, at + 1, stop), 0), pipeline.said.shape[0])
    for k in range(size):
        pipeline.said[k] = data[stop + 2 + k]
    pipeline.cursor[SAID] = size


@kernel
def read(pipeline, data, start, end, keys, scratch, now_s):
    """Take the replies to one pipeline from ``data[start:end]``: (index of the first byte not taken, what is next).

    ``outcomes`` gets what became of each row; rows that were found carry the stored session. ``scratch``: one row.
    """
    at = start
    while not is_answered(pipeline):
        behind = _whole(data, at, end)
        if behind == _NOT_YET:
            return at, MORE
        if behind == _BROKEN:
            return at, CONFUSED
        if data[at] == _MINUS:
            pipeline.cursor[TEXT], pipeline.cursor[TEXT_END] = at + 1, behind - 2
            return behind, ERROR
        kind, first, count, place = command(pipeline)
        understood = True
        if kind == FIRSTS:
            understood = data[at] == _COLON
            pipeline.outcomes[pipeline.order[first]] = image.WRITTEN
        elif kind == WRITES or kind == DELETES or kind == CLEARS:
            understood = _take_array(pipeline, kind, first, count, place, data, at, keys, scratch, now_s)
        elif kind == LOOKUPS:
            understood = _take_lookup(pipeline, pipeline.order[first], data, at, keys, now_s)
        elif kind == LOOKUPS_ELSEWHERE:
            i = pipeline.order[first]
            understood = _take_elsewhere(pipeline, i, place, data, at, keys, scratch, now_s)
        elif data[at] == _STAR:
            _take_time(pipeline, data, at)
        elif data[at] == _DOLLAR:
            _take_said(pipeline, data, at)
        elif data[at] == _COLON:
            _take_holders(pipeline, data, at)
        if not understood:
            return at, CONFUSED
        advance(pipeline, count)
        at = behind
    return at, DONE


@inlined
def _is_answer(outcome, confirm):
    """Whether the worker wants to know: of a change that was made only if it asked."""
    if outcome == image.WRITTEN:
        return confirm != 0
    return outcome == image.FOUND or outcome == image.MISSING or outcome >= image.REFUSED


@inlined
def _judged(pipeline, i, doubt, tally):
    """What became of a row, in view of how many replicas have it and of a doubt about its place."""
    cursor, rows, outcome = pipeline.cursor, pipeline.rows, pipeline.outcomes[i]
    if rows[i, image.CONFIRM] == image.REPLICATED:
        enough = cursor[HOLDERS] >= cursor[REPLICAS]
        if outcome == image.WRITTEN and not enough:
            outcome = np.int64(UNREPLICATED)
        elif outcome == AGAIN and place_of(rows, i) == 1:
            # It goes on to other servers, which have nothing to say of this one's replicas.
            rows[i, image.CONFIRM] = image.PRIMARY if enough else 0
            tally[UNREPLICATED] += not enough
    if doubt != 0 and outcome == image.MISSING:
        outcome = np.int64(image.FAILED)
    if doubt != 0 and outcome == image.WRITTEN and rows[i, image.CONFIRM] != 0:
        outcome = np.int64(UNCONFIRMED)
    return outcome


@kernel
def _give(pipeline, count, late, doubt, ring, scratch, tally):
    """Hand the answers of an answered pipeline to the worker; whether the ring had room for all."""
    cursor, rows = pipeline.cursor, pipeline.rows
    while cursor[GIVEN] < count:
        i = cursor[GIVEN]
        outcome, operation = _judged(pipeline, i, doubt, tally), rows[i, image.OP]
        if operation != image.LOOKUP or late == 0:
            if _is_answer(outcome, rows[i, image.CONFIRM]):
                _copy_row(rows, i, scratch, 0)
                scratch[0, image.OP] = image.REFUSED if outcome == image.FOREIGN else outcome
                if ring_push(ring, scratch, 1) == 0:
                    return False
                tally[GIVEN_ANSWERS] += 1
            tally[outcome] += 1
            if outcome == image.WRITTEN and operation != image.WRITE_FIRST:
                tally[operation] += 1
        cursor[GIVEN] += 1
    return True


@kernel
def settle(pipeline, count, late, doubt, data, start, end, keys, now_s, ring, scratch, tally):
    """``read``, and once every command is answered hand the answers over: (as ``read``, or FULL while there is no room;
    so; whether some of its rows are to be sent AGAIN).

    ``tally`` counts by outcome, of compared writes and deletes that were made by WRITE and DELETE as well.
    ``late``: 1 when look-ups were answered otherwise. ``doubt``: 1 when records may have another place by now, so that
    a record that is not here may be there, and one that is written here may not be looked for.
    """
    at, found = read(pipeline, data, start, end, keys, scratch, now_s)
    if found != DONE:
        return at, found, False
    cursor, before = pipeline.cursor, tally[AGAIN]
    given = _give(pipeline, count, late, doubt, ring, scratch, tally)
    cursor[AGAINS] += tally[AGAIN] - before
    if not given:
        return at, FULL, False
    tally[FROM_ELSEWHERE] += cursor[FOUND_ELSEWHERE]
    return at, DONE, cursor[AGAINS] > 0
