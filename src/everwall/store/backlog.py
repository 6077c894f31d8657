"""Requests that wait to be sent: look-ups in their order, and the last change of each session.

Rows are kept as bytes, which is the cheapest thing Python can queue. A session has at most one change here,
the newest: a refresh replaces the write before it, a delete replaces both.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np

from everwall.session import image
from everwall.store.protocol import Rows

_ROW_BYTES = 8 * image.COLUMNS
_OPERATION = slice(8 * image.OP, 8 * image.OP + 8)
_FLOW = slice(8 * image.ENDPOINT, 8 * image.KEY2 + 8)
_LOOKUP, _WRITE, _WRITE_FIRST, _DELETE = (
    np.int64(operation).tobytes()
    for operation in (image.LOOKUP, image.WRITE, image.WRITE_FIRST, image.DELETE)
)


class Backlog:
    """A queue of request rows; its length is the number of requests."""

    def __init__(self) -> None:
        self._lookups: deque[bytes] = deque()
        self._changes: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lookups) + len(self._changes)

    @property
    def has_lookups(self) -> bool:
        """Whether a packet waits for an answer."""
        return bool(self._lookups)

    def add(self, rows: Rows) -> None:
        """Queue new requests."""
        data = rows.tobytes()
        for at in range(0, len(data), _ROW_BYTES):
            row = data[at : at + _ROW_BYTES]
            if row[_OPERATION] == _LOOKUP:
                self._lookups.append(row)
            else:
                self._changes[row[_FLOW]] = row

    def take(self, count: int) -> Rows:
        """The next requests, look-ups first: a packet that waits for its session must not wait for writes."""
        taken = [self._lookups.popleft() for _ in range(min(count, len(self._lookups)))]
        more = min(count - len(taken), len(self._changes))
        taken += [self._changes.popitem(last=False)[1] for _ in range(more)]
        return _rows(taken)

    def take_lookups(self) -> Rows:
        """All look-ups, to be answered otherwise."""
        taken = _rows(list(self._lookups))
        self._lookups.clear()
        return taken

    def put_back(self, rows: Rows) -> None:
        """Queue changes that did not get through, unless a later one of the same session waits."""
        for row in rows:
            data = row.tobytes()
            self._changes.setdefault(data[_FLOW], data)

    def keep_writes(self, count: int) -> int:
        """Keep what outlives a lost connection, the newest ``count`` writes; returns how many were dropped.

        Somebody else may own a session by the time there is a connection again. So deletes are dropped
        and every write is compared, the first of a session too.
        """
        before = len(self._changes)
        kept = [(flow, row) for flow, row in self._changes.items() if row[_OPERATION] != _DELETE]
        self._changes = OrderedDict(
            (flow, _WRITE + row[_OPERATION.stop :] if row[_OPERATION] == _WRITE_FIRST else row)
            for flow, row in kept[max(0, len(kept) - count) :]
        )
        return before - len(self._changes)


def _rows(taken: list[bytes]) -> Rows:
    return np.frombuffer(b"".join(taken), np.int64).reshape(-1, image.COLUMNS).copy()
