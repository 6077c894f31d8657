"""Packets on their way from the worker they came to, to the worker that has their flow.

Workers share no session and no counter. A flow belongs to the worker that the top bits of its hash name,
whichever queue or socket its packets come by. For each ordered pair of workers there is a pool of
packet rows, used in turn as a ring: the one that received a packet copies it into the next row and
publishes it; the owner judges it and sends it through a port of its own, right from there, and gives the row back.
Each index has one writer. A pool that is full refuses, and the packet is dropped by name.

A fragment first goes to the worker of its *datagram* (hash of endpoint, addresses, protocol and identification), which
learns the ports from the first one and so knows, also for the later ones, who has the flow. All fragments of a
datagram take the same way, so none overtakes its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.counters import Counter
from everwall.flow import make_key
from everwall.kernels import external, fence, fence_acquire, fence_release, inlined, kernel
from everwall.limits import FRAGMENTS_MAX, HANDOVER_PACKETS
from everwall.rings import zeros_apart
from everwall.session import state
from everwall.session.fragments import complete, datagram_hash, remember
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch, make_batch

_memcpy = external("memcpy", "i64", "pointer", "pointer", "i64")

_FORWARD = int(Verdict.FORWARD)
_HANDOVER_FULL = int(Verdict.HANDOVER_FULL)
_HANDOVER_STOPPED = int(Verdict.HANDOVER_STOPPED)
_SESSIONS = int(Counter.SESSIONS)
_HANDED_OVER = int(Counter.HANDED_OVER)
_HANDED_IN = int(Counter.HANDED_IN)

# Indices of ``own``
WORKER = 0
WORKERS = 1

# Columns of ``index``: each written by one side, a cache line apart
_TAIL = 0  # packets given so far
_HEAD = 8  # packets taken so far


class Handover(NamedTuple):
    """How one worker reaches the others. The arrays of the first group are the same for all of them.

    A pair is ``giver * workers + owner``; its rows of ``packets`` begin at pair * HANDOVER_PACKETS.
    """

    packets: Batch
    index: npt.NDArray[np.int64]  # type: ignore[assignment]  # [pairs, 16]; hides tuple.index
    asleep: npt.NDArray[np.int64]  # [workers, 8]: 1 while the worker may be sleeping and wants to be woken
    wakes: npt.NDArray[np.int64]  # eventfd by worker
    live: npt.NDArray[np.int64]  # [workers, 8]: sessions by worker

    own: npt.NDArray[np.int64]
    datagrams: npt.NDArray[np.int64]  # as Sessions.fragments: ports of the datagrams whose worker this is
    staged: npt.NDArray[np.int64]  # by owner: packets copied but not published
    given: npt.NDArray[np.int64]  # by owner: 1 after publishing, until it is known to be awake


def make_handovers(wakes: Sequence[int], frame_bytes: int) -> list[Handover]:
    """The handover of each worker; ``wakes``: their eventfds."""
    workers = len(wakes)
    pairs = workers * workers if workers > 1 else 0
    shared = (
        make_batch(pairs * HANDOVER_PACKETS, frame_bytes),
        zeros_apart((pairs, 16)),
        zeros_apart((workers, 8)),
        np.array(wakes, np.int64),
        zeros_apart((workers, 8)),
    )
    return [
        Handover(
            *shared,
            own=np.array([worker, workers], np.int64),
            datagrams=np.zeros((FRAGMENTS_MAX if pairs else 0, state.FRAGMENT_COLUMNS), np.int64),
            staged=zeros_apart(workers),
            given=zeros_apart(workers),
        )
        for worker in range(workers)
    ]


@inlined
def worker_of(hashed, workers):
    """Which of ``workers`` has the flows of a hash: its upper 32 bits deal them out evenly."""
    return (((hashed >> 32) & 0xFFFFFFFF) * workers) >> 32


# The giver -------------------------------------------------------------------------------------------


@kernel
def spread(sessions, handover, batch, rows, count, now):
    """Give away what belongs to other workers of the packets ``rows[:count]``, which are read already.

    Returns how many stay; their rows are moved together in order. Those that found no room, and later
    fragments that nobody can place, stay too: their VERDICT says why.
    """
    meta = batch.meta
    own = handover.own[WORKER]
    kept = 0
    for k in range(count):
        i = rows[k]
        if meta[i, m.VERDICT] == _FORWARD:
            owner = _owner(sessions, handover, meta, i, now)
            if owner != own:
                if _give(handover, owner, batch, i):
                    sessions.counters[_HANDED_OVER] += 1
                    continue
                meta[i, m.VERDICT] = _HANDOVER_FULL
        rows[kept] = i
        kept += 1
    if kept < count:
        _publish(handover)
    return kept


@inlined
def _owner(sessions, handover, meta, i, now):
    """The worker that packet ``i`` has to go to next; our own number when there is none."""
    if meta[i, m.FRAGMENT] == m.NOT_FRAGMENT or meta[i, m.ROUTED] != 0:
        return worker_of(meta[i, m.HASH], handover.own[WORKERS])
    return _owner_of_fragment(handover, meta, i, sessions.words[state.SEED], now)


@kernel
def _owner_of_fragment(handover, meta, i, seed, now):
    """As ``_owner``, for a fragment that the worker of its datagram has not seen yet."""
    own, workers = handover.own[WORKER], handover.own[WORKERS]
    knows = worker_of(datagram_hash(meta, i, seed), workers)
    if knows != own:
        return knows
    meta[i, m.ROUTED] = 1
    if meta[i, m.FRAGMENT] == m.FIRST_FRAGMENT:
        # Whether it may pass is not known here: a flood of refused ones must not keep others out.
        remember(handover.datagrams, meta, i, seed, now, True)
    else:
        verdict = complete(handover.datagrams, meta, i, seed, now)
        if verdict != _FORWARD:
            meta[i, m.VERDICT] = verdict
            return own
        make_key(meta, i, seed)
    return worker_of(meta[i, m.HASH], workers)


@inlined
def _give(handover, owner, batch, i):
    """Copy packet ``i`` for its owner; returns whether there was room."""
    pair = handover.own[WORKER] * handover.own[WORKERS] + owner
    tail = handover.index[pair, _TAIL] + handover.staged[owner]
    if tail - handover.index[pair, _HEAD] >= HANDOVER_PACKETS:
        return False
    row = pair * HANDOVER_PACKETS + (tail & (HANDOVER_PACKETS - 1))
    packets = handover.packets
    for column in range(m.COLUMNS):
        packets.meta[row, column] = batch.meta[i, column]
    packets.meta[row, m.FRAME] = 0  # the port of the giver has that, not ours
    start = batch.meta[i, m.START]
    _memcpy(
        np.int64(packets.data.ctypes.data) + row * packets.data.shape[1] + start,
        np.int64(batch.data.ctypes.data) + i * batch.data.shape[1] + start,
        batch.meta[i, m.END] - start,
    )
    handover.staged[owner] += 1
    return True


@kernel
def _publish(handover):
    """Show the owners what was copied for them."""
    fence_release()
    first = handover.own[WORKER] * handover.own[WORKERS]
    for owner in range(handover.own[WORKERS]):
        if handover.staged[owner] > 0:
            handover.index[first + owner, _TAIL] += handover.staged[owner]
            handover.staged[owner] = 0
            handover.given[owner] = 1


@kernel
def next_to_wake(handover):
    """The next worker that was given packets and may be asleep, or -1; call again until -1."""
    fence()  # what we gave is visible before we look whether its owner sleeps
    for owner in range(handover.own[WORKERS]):
        if handover.given[owner] != 0:
            handover.given[owner] = 0
            if handover.asleep[owner, 0] != 0:
                return owner
    return -1


# The owner -------------------------------------------------------------------------------------------


@kernel
def arrivals(handover, giver, rows):
    """Fill ``rows`` with the row numbers of packets that a worker gave us, in order; returns how many."""
    pair = giver * handover.own[WORKERS] + handover.own[WORKER]
    head = handover.index[pair, _HEAD]
    count = min(handover.index[pair, _TAIL] - head, rows.shape[0])
    fence_acquire()
    for k in range(count):
        rows[k] = pair * HANDOVER_PACKETS + ((head + k) & (HANDOVER_PACKETS - 1))
    return count


@kernel
def give_back(sessions, handover, giver, count):
    """Give the rows of the last ``arrivals`` back; nothing of them is needed any more."""
    fence_release()
    handover.index[giver * handover.own[WORKERS] + handover.own[WORKER], _HEAD] += count
    sessions.counters[_HANDED_IN] += count


@kernel
def lie_down(handover):
    """Say that we are about to sleep; returns whether we may, for nothing has come meanwhile."""
    own, workers = handover.own[WORKER], handover.own[WORKERS]
    handover.asleep[own, 0] = 1
    fence()
    for giver in range(workers):
        pair = giver * workers + own
        if giver != own and handover.index[pair, _TAIL] != handover.index[pair, _HEAD]:
            handover.asleep[own, 0] = 0
            return False
    return True


@kernel
def get_up(handover):
    """Say that we are awake."""
    handover.asleep[handover.own[WORKER], 0] = 0


def abandon(sessions: state.Sessions, handover: Handover) -> None:
    """Drop by name what others gave a worker and nobody will judge any more: all of them have left their loops."""
    own, workers = (int(number) for number in handover.own)
    for giver in range(workers):
        if giver != own:
            index = handover.index[giver * workers + own]
            left = index[_TAIL] - index[_HEAD]
            index[_HEAD] += left
            sessions.counters[_HANDED_IN] += left
            sessions.verdicts[_HANDOVER_STOPPED] += left


@kernel
def share_counts(sessions, handover):
    """Tell the others how many sessions live here, and hear how many live there."""
    own = handover.own[WORKER]
    handover.live[own, 0] = sessions.counters[_SESSIONS]
    elsewhere = 0
    for worker in range(handover.own[WORKERS]):
        if worker != own:
            elsewhere += handover.live[worker, 0]
    sessions.words[state.ELSEWHERE] = elsewhere
