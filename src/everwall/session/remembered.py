"""Flows that are remembered for a while: rows of an array, one for each hash.

A flow that comes later takes the place of another of the same hash, which is forgotten, and never taken for it. What an
array remembers of its flows beside the time stands in further columns, which are its user's.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.session import state
from everwall.session import table as t
from everwall.wire import meta as m

_NONE = -1


@kernel
def _row(rows, meta, i):
    return (meta[i, m.HASH] >> 17) & (rows.shape[0] - 1)


@kernel
def _holds(rows, row, meta, i):
    return (
        rows[row, t.KEY0] == meta[i, m.KEY0]
        and rows[row, t.KEY1] == meta[i, m.KEY1]
        and rows[row, t.KEY2] == meta[i, m.KEY2]
    )


@kernel
def remember(rows, meta, i, until):
    """Remember the flow of descriptor ``i`` until then; returns its row."""
    row = _row(rows, meta, i)
    rows[row, t.KEY0] = meta[i, m.KEY0]
    rows[row, t.KEY1] = meta[i, m.KEY1]
    rows[row, t.KEY2] = meta[i, m.KEY2]
    rows[row, state.REMEMBERED_UNTIL] = until
    return row


@kernel
def recall(rows, meta, i, now):
    """The row of the flow of packet ``i``, or -1 when it is not remembered, or not any more."""
    row = _row(rows, meta, i)
    return row if rows[row, state.REMEMBERED_UNTIL] > now and _holds(rows, row, meta, i) else _NONE


@kernel
def forget_flow(rows, meta, i):
    """The flow of packet ``i`` is not to be remembered any longer."""
    row = _row(rows, meta, i)
    if _holds(rows, row, meta, i):
        rows[row, state.REMEMBERED_UNTIL] = 0
