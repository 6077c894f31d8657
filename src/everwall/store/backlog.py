"""Requests that wait to be sent: look-ups in their order, and the last change of each session.

A session has at most one change here, the newest: a refresh takes the place of the write that still waits, a
delete that of both. Sessions are told apart by the field they have in the store, 64 bits of a keyed hash,
so that nobody can choose flows whose look-ups here collide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import inlined, kernel
from everwall.limits import STORE_QUEUE_ROWS
from everwall.rings import Ring, ring_release, ring_waiting
from everwall.session import image
from everwall.session.record import field_of

Rows = npt.NDArray[np.int64]

_ROWS = 2 * STORE_QUEUE_ROWS
"""Of each queue: the second half is for what comes back to be sent again."""
_PLACES = 4 * _ROWS
_PLACES_FEW = 1024

# Indices of ``words``: cursors that only grow
_FIRST, _END = 0, 1  # of ``changes``
_FIRST_LOOKUP, _END_LOOKUP = 2, 3
_LAST = 4  # number of the last place of the index that is in use
_TURNS = 5  # how often everything had been taken, and the cursors began again
_WORDS = 6


class Queue(NamedTuple):
    """Both queues are rings; ``places`` is an open-addressed index, linear probing, of changes by field.

    It uses few of its places while few changes wait, so that it stays in the cache.
    """

    changes: Rows  # int64[_ROWS, COLUMNS]
    fields: Rows  # of each change
    places: Rows  # position in ``changes`` + 1, 0 = free
    lookups: Rows  # int64[_ROWS, COLUMNS]
    words: Rows
    keys: Rows


@kernel
def _place_of(queue, field):
    """Where ``field`` stands in the index, or the free place where it would."""
    last = queue.words[_LAST]
    place = field & last  # it is a hash already
    while queue.places[place] != 0:
        if queue.fields[(queue.places[place] - 1) & (queue.fields.shape[0] - 1)] == field:
            return place
        place = (place + 1) & last
    return place


@kernel
def _strike(queue, place):
    """Free a place of the index; what was pushed past it moves up."""
    last = queue.words[_LAST]
    hole, at = place, (place + 1) & last
    while queue.places[at] != 0:
        home = queue.fields[(queue.places[at] - 1) & (queue.fields.shape[0] - 1)] & last
        if ((at - home) & last) >= ((at - hole) & last):
            queue.places[hole] = queue.places[at]
            hole = at
        at = (at + 1) & last
    queue.places[hole] = 0


@kernel
def _grow(queue):
    """Four times as many places for the index."""
    words, places = queue.words, queue.places
    places[: words[_LAST] + 1] = 0
    words[_LAST] = 4 * words[_LAST] + 3
    for position in range(words[_FIRST], words[_END]):
        places[_place_of(queue, queue.fields[position & (queue.fields.shape[0] - 1)])] = position + 1


@inlined
def _copy(source, i, target, k):
    for column in range(image.COLUMNS):
        target[k, column] = source[i, column]


@inlined
def _replace(queue, at, rows, i):
    """A newer change of the same session; whoever waits for the older one's answer gets this one's."""
    confirm, tag = queue.changes[at, image.CONFIRM], queue.changes[at, image.TAG]
    _copy(rows, i, queue.changes, at)
    _let_hear(queue, at, confirm, tag)


@inlined
def _let_hear(queue, at, confirm, tag):
    """Whoever waited for the answer to an older change hears of this one's."""
    if confirm > queue.changes[at, image.CONFIRM]:
        queue.changes[at, image.CONFIRM], queue.changes[at, image.TAG] = confirm, tag


@kernel
def _put_change(queue, rows, i, newer):
    """Queue change ``i``; one of the same session that waits is replaced if this one is ``newer``."""
    field = field_of(rows, i, queue.keys, 0)
    place = _place_of(queue, field)
    if queue.places[place] != 0:
        at = (queue.places[place] - 1) & (queue.changes.shape[0] - 1)
        if newer:
            _replace(queue, at, rows, i)
        else:
            _let_hear(queue, at, rows[i, image.CONFIRM], rows[i, image.TAG])
        return
    words = queue.words
    if 2 * (words[_END] - words[_FIRST]) > words[_LAST]:
        _grow(queue)
        place = _place_of(queue, field)
    position = words[_END]
    at = position & (queue.changes.shape[0] - 1)
    _copy(rows, i, queue.changes, at)
    queue.fields[at] = field
    queue.places[place] = position + 1
    words[_END] = position + 1


@kernel
def _put(queue, rows, first, count):
    """Queue ``count`` rows of a ring, or of an array whose length is a power of two, from ``first`` on."""
    last = rows.shape[0] - 1
    for k in range(first, first + count):
        i = k & last
        if rows[i, image.OP] == image.LOOKUP:
            _put_lookup(queue, rows, i)
        else:
            _put_change(queue, rows, i, True)


@inlined
def _put_lookup(queue, rows, i):
    _copy(rows, i, queue.lookups, queue.words[_END_LOOKUP] & (queue.lookups.shape[0] - 1))
    queue.words[_END_LOOKUP] += 1


@inlined
def _begin_anew(words):
    """An empty queue uses the first rows again: they are in the cache."""
    if words[_FIRST] == words[_END] and words[_FIRST_LOOKUP] == words[_END_LOOKUP]:
        turns = words[_TURNS] + 1
        words[:] = 0
        words[_LAST], words[_TURNS] = _PLACES_FEW - 1, turns


@kernel
def _put_all(queue, rows):
    """Queue the rows of an array of any length."""
    _begin_anew(queue.words)
    for i in range(rows.shape[0]):
        if rows[i, image.OP] == image.LOOKUP:
            _put_lookup(queue, rows, i)
        else:
            _put_change(queue, rows, i, True)


@kernel
def waits_behind(queue, rows, fields, out):
    """Which of some rows go to a queue where replicas are waited for: those that want it, and those that follow a
    change which waits there. Returns how many."""
    found = np.int64(0)
    for i in range(rows.shape[0]):
        out[i] = rows[i, image.CONFIRM] == image.REPLICATED
        if rows[i, image.OP] != image.LOOKUP and queue.places[_place_of(queue, fields[i])] != 0:
            out[i] = True
        found += out[i]
    return found


@inlined
def _room(queue):
    """Rows of whatever kind for which there is room, with some left for what comes back to be sent again."""
    words = queue.words
    lookups, changes = words[_END_LOOKUP] - words[_FIRST_LOOKUP], words[_END] - words[_FIRST]
    return STORE_QUEUE_ROWS - max(lookups, changes)


@kernel
def collect(queue, ring):
    """Move requests out of the worker's ring while there is room for them; returns how many were look-ups."""
    words = queue.words
    _begin_anew(words)
    before = words[_END_LOOKUP]
    first, count = ring_waiting(ring)
    count = max(0, min(count, _room(queue)))
    _put(queue, ring.rows, first, count)
    ring_release(ring, count)
    return words[_END_LOOKUP] - before


@kernel
def take(queue, rows, fields, most):
    """Fill ``rows`` and ``fields`` with the next requests, at most so many, look-ups first; returns how many."""
    words = queue.words
    taken = np.int64(0)
    while taken < most and words[_FIRST_LOOKUP] < words[_END_LOOKUP]:
        _copy(queue.lookups, words[_FIRST_LOOKUP] & (queue.lookups.shape[0] - 1), rows, taken)
        fields[taken] = field_of(rows, taken, queue.keys, 0)
        words[_FIRST_LOOKUP] += 1
        taken += 1
    while taken < most and words[_FIRST] < words[_END]:
        at = words[_FIRST] & (queue.changes.shape[0] - 1)
        _copy(queue.changes, at, rows, taken)
        fields[taken] = queue.fields[at]
        _strike(queue, _place_of(queue, queue.fields[at]))
        words[_FIRST] += 1
        taken += 1
    return taken


@kernel
def _compare(queue):
    for position in range(queue.words[_FIRST], queue.words[_END]):
        at = position & (queue.changes.shape[0] - 1)
        if queue.changes[at, image.OP] == image.WRITE_FIRST:
            queue.changes[at, image.OP] = image.WRITE


@kernel
def _put_back(queue, rows, count):
    for i in range(count):
        if rows[i, image.OP] == image.LOOKUP:
            _put_lookup(queue, rows, i)
        else:
            _put_change(queue, rows, i, False)


def walking(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which rows are for another place than the one that is written to, where places are apart."""
    return (rows[:, image.WALK] >> image.PLACE_SHIFT) & image.PLACE_BITS > 0


class Backlog:
    """The queue of one worker; its length is the number of requests. ``keys`` are those of the records."""

    def __init__(self, keys: Rows) -> None:
        self.queue = Queue(
            changes=np.zeros((_ROWS, image.COLUMNS), np.int64),
            fields=np.zeros(_ROWS, np.int64),
            places=np.zeros(_PLACES, np.int64),
            lookups=np.zeros((_ROWS, image.COLUMNS), np.int64),
            words=np.zeros(_WORDS, np.int64),
            keys=keys,
        )
        self._words = self.queue.words
        self._words[_LAST] = _PLACES_FEW - 1

    def __len__(self) -> int:
        first, end, first_lookup, end_lookup, *_ = self._words.tolist()
        return int(end - first + end_lookup - first_lookup)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another change from the ring."""
        return bool(self._words[_END] - self._words[_FIRST] >= STORE_QUEUE_ROWS)

    @property
    def lookups(self) -> int:
        """How many look-ups wait."""
        return int(self._words[_END_LOOKUP] - self._words[_FIRST_LOOKUP])

    @property
    def lookup_mark(self) -> tuple[int, int]:
        """The place behind the last look-up that waits, for ``take_lookups``."""
        _, _, _, end, _, turns = self._words.tolist()
        return turns, end

    @property
    def mark(self) -> tuple[int, int] | None:
        """The place of the last change that waits, for ``is_past``; None when none does."""
        first, end, _, _, _, turns = self._words.tolist()
        return (turns, end) if end > first else None

    def is_past(self, mark: tuple[int, int]) -> bool:
        """Whether all changes that waited when ``mark`` was taken have been taken since."""
        turns, end = mark
        return bool(self._words[_TURNS] != turns or self._words[_FIRST] >= end)

    def collect(self, ring: Ring) -> int:
        """Take what is in the worker's ring, as far as there is room; returns how many look-ups came."""
        return int(collect(self.queue, ring))

    def put(self, rows: Rows) -> None:
        """Queue new requests, no more than there is room for."""
        _put_all(self.queue, rows)

    def take(self, most: int) -> Rows:
        """The next requests, look-ups first: a packet that waits for its session must not wait for writes."""
        rows, fields = np.empty((most, image.COLUMNS), np.int64), np.empty(most, np.int64)
        taken: Rows = rows[: take(self.queue, rows, fields, most)]
        return taken

    def lookups_before(self, mark: tuple[int, int]) -> int:
        """How many of the look-ups that waited when ``lookup_mark`` was taken still do."""
        turns, end = mark
        return max(int(end - self._words[_FIRST_LOOKUP]), 0) if self._words[_TURNS] == turns else 0

    def take_lookups(self, most: int | None = None) -> Rows:
        """The oldest look-ups, all of them where it is not said how many, to be answered otherwise."""
        return self.take(self.lookups if most is None else most)

    def put_back(self, rows: Rows) -> None:
        """Queue what did not get through; of changes only those for which no later one of the same session waits."""
        _put_back(self.queue, rows, len(rows))

    def use_keys(self, keys: Rows) -> None:
        """Tell sessions apart by other keys from now on: those of another secret."""
        waiting = self.take(len(self))
        self.queue = self.queue._replace(keys=keys)
        self.put_back(waiting)

    def compare(self) -> None:
        """Time has passed unnoticed: a session that was new when it was queued may be another's by now."""
        _compare(self.queue)

    def keep_writes(self, count: int) -> int:
        """Keep what outlives a lost connection, the newest ``count`` writes; returns how many were dropped.

        Somebody else may own a session by the time there is a connection again. So deletes are dropped
        and every write is compared, the first of a session too. What was written to another server and is only to be
        cleared here is still to be cleared.
        """
        assert self._words[_FIRST_LOOKUP] == self._words[_END_LOOKUP], "look-ups are answered first"
        changes = self.take(len(self))
        kept = changes[changes[:, image.OP] != image.DELETE]
        kept = kept[max(0, len(kept) - count) :]
        kept[~walking(kept), image.OP] = image.WRITE
        self.put_back(kept)
        return len(changes) - len(kept)
