"""Offloading: sessions whose packets the cut-through program bounces in the driver, and what is known of them here.

To offload a session is to write its CONTROL; to withdraw it is to set CONTROL to 0. While CONTROL stands, the program
repeats the engine's decision and notes in the hot line what it saw: when, how much, and up to which sequence. ``sync``
takes that over into the cold part, after which everybody else (time-outs, records, the log, the TCP tracking) reads
the session as if the engine had seen every packet.

A packet of an offloaded session that reaches the engine nevertheless (a FIN, a fragment, a segment far off) ends the
offload before it is judged; the session is offloaded again after it, if it is still one that nobody has to look at.

Withdrawing all at once raises the epoch that the program asks for. Flags of older epochs are dead, and are cleared as
somebody comes by; when the epoch begins anew at 0, all of them at once, so that none comes to life again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.counters import Counter
from everwall.kernels import fence, inlined, kernel, store32_release
from everwall.limits import LOOP_GAP_NS_MAX, SEQUENCE_JUMP_MAX
from everwall.session import control, image, state, tcp
from everwall.session import table as t
from everwall.session.state import Sessions

_OFFLOADED = int(Counter.OFFLOADED)

_LOW = 0xFFFFFFFF
_EPOCHS = 1 << 15
_VERSIONS = 1 << 15
_LEARNED = t.LEARNED_LOWER | t.LEARNED_UPPER


@inlined
def want_of(sessions):
    """What CONTROL & EPOCH_MASK of an offloaded session is in this epoch."""
    return sessions.words[state.EPOCH] << 16 | 1


@inlined
def is_offloaded(sessions, slot):
    """Whether the program bounces packets of a session."""
    return np.int64(sessions.table.hot32[slot, t.CONTROL]) & control.EPOCH_MASK == want_of(sessions)


@inlined
def may_offload(sessions, slot):
    """Whether a session is one whose packets need no look: established with known windows, or answered."""
    short = sessions.table.short
    current = np.int64(short[slot, t.STATE])
    if sessions.table.hot[slot, t.KEY2] == 0:
        return False
    if np.int64(short[slot, t.LOCAL]) & t.UNACKNOWLEDGED != 0 and sessions.words[state.RESILIENCY] != 0:
        return False
    if current == tcp.UDP:
        return np.int64(short[slot, t.FLAGS]) & image.REPLIED != 0
    if current != tcp.TCP_ESTABLISHED:
        return False
    # A SYN into the connection does not matter: what answers it is the engine's as well.
    if np.int64(short[slot, t.LOCAL]) & (_LEARNED | t.RELEARNING) != _LEARNED:
        return False
    return tcp.windows_known(sessions.table.small, slot)


@inlined
def offload(sessions, slot):
    """Let the program bounce a session's packets from now on, if it may; its flag is written last."""
    if sessions.words[state.CUT_THROUGH] != 0 and may_offload(sessions, slot):
        _hand_out(sessions, slot)


@kernel
def _hand_out(sessions, slot):
    withdraw(sessions, slot)
    sync(sessions, slot)  # a packet that was on its way when the flag went may have been counted since
    hot32, small = sessions.table.hot32, sessions.table.small
    hot32[slot, t.SEEN] = (sessions.table.cold[slot, t.LAST_SEEN] >> t.SEEN_SHIFT) & _LOW
    for end in range(2):
        hot32[slot, t.END_LOWER + end] = small[slot, t.SEQUENCE_END + end]
    sessions.words[state.OFFLOADS] += 1
    version = sessions.words[state.OFFLOADS] % _VERSIONS
    store32_release(
        sessions.table.hot32.ctypes.data + slot * t.LINE_BYTES + t.CONTROL * 4,
        want_of(sessions) | version << 1,
    )
    sessions.counters[_OFFLOADED] += 1


@inlined
def withdraw(sessions, slot):
    """Take a session back from the program, with all that the program knows of it; nothing where it is not there."""
    if sessions.table.hot32[slot, t.CONTROL] != 0:
        _take_back(sessions, slot)


@kernel
def _take_back(sessions, slot):
    sessions.table.hot32[slot, t.CONTROL] = 0
    fence()
    sessions.counters[_OFFLOADED] -= 1
    sync(sessions, slot)


@kernel
def withdraw_all(sessions):
    """Take every session back; what the program knows of each is read when somebody comes by it."""
    epoch = (sessions.words[state.EPOCH] + 1) % _EPOCHS
    sessions.words[state.EPOCH] = epoch
    want = _word(sessions, control.WANT)
    if epoch == 0:
        sessions.shared[want] = 0  # nothing is bounced while flags of the first epoch 0 may still stand
        fence()
        for slot in range(sessions.table.hot.shape[0]):
            withdraw(sessions, slot)
    sessions.shared[want] = want_of(sessions)
    fence()


@kernel
def stamp(sessions, now):
    """The dead man's word, once in each pass of the loop.

    A loop that stood still comes back to sessions that may be another node's by now: they are unconfirmed, and
    withdrawn before the program hears that the loop is alive.
    """
    words = sessions.words
    stood_still = words[state.PASSED] != 0 and now - words[state.PASSED] > LOOP_GAP_NS_MAX
    words[state.PASSED] = now
    if stood_still:
        words[state.GAP] = now
    if words[state.CUT_THROUGH] == 0:
        return
    if stood_still:
        withdraw_all(sessions)
    sessions.shared[_word(sessions, control.BEAT)] = now


@kernel
def _word(sessions, which):
    """Index of one of this worker's control words."""
    return control.WORKER + sessions.words[state.WORKER] * control.WORKER_WORDS + which


@kernel
def sync(sessions, slot):
    """Take over what the program has noted of a session since the last time."""
    hot32, cold, small = sessions.table.hot32, sessions.table.cold, sessions.table.small
    lower = _counted(hot32, small, slot, 0)
    upper = _counted(hot32, small, slot, 1)
    if lower + upper == 0:
        return
    cold[slot, t.PACKETS] += lower + upper
    small[slot, t.PACKETS_BASE] = (np.int64(small[slot, t.PACKETS_BASE]) + lower) & _LOW
    small[slot, t.PACKETS_BASE + 1] = (np.int64(small[slot, t.PACKETS_BASE + 1]) + upper) & _LOW
    seen = _seen(hot32, slot, cold[slot, t.LAST_SEEN])
    if seen > cold[slot, t.LAST_SEEN]:
        cold[slot, t.LAST_SEEN] = seen
    if np.int64(sessions.table.short[slot, t.LOCAL]) & _LEARNED == _LEARNED:
        _advance(sessions.table, slot, lower, upper)


@kernel
def _counted(hot32, small, slot, end):
    """Packets of one end that the program has bounced since the last ``sync``."""
    return (np.int64(hot32[slot, t.PACKETS_LOWER + end]) - np.int64(small[slot, t.PACKETS_BASE + end])) & _LOW


@kernel
def _seen(hot32, slot, last):
    """When the program saw a packet, in whole SEEN units; ``last`` is at most 26 days away from it."""
    units = last >> t.SEEN_SHIFT
    ahead = (np.int64(hot32[slot, t.SEEN]) - units) & _LOW
    ahead = (ahead ^ 0x80000000) - 0x80000000
    return (units + ahead) << t.SEEN_SHIFT


@kernel
def _advance(table, slot, lower, upper):
    """Go on with TCP where the program has come: ``lower`` and ``upper`` packets of either end were bounced.

    The program follows sequences, not windows. An end that has spoken may have opened its window as far as its scale
    goes, and acknowledged all that was sent.
    """
    short, small = table.short, table.small
    for end in range(2):
        if (lower if end == 0 else upper) == 0:
            continue
        reached = np.int64(table.hot32[slot, t.END_LOWER + end])
        ahead = (reached - np.int64(small[slot, t.SEQUENCE_END + end])) & _LOW
        # The program only goes forward from what it was given, also by more than half the sequence space. A little
        # backward is a packet that was counted late, after the flag had gone.
        if ahead <= _LOW - SEQUENCE_JUMP_MAX:
            small[slot, t.SEQUENCE_END + end] = reached
        widest = tcp.widest_window(short, slot, end)
        if widest > np.int64(small[slot, t.WINDOW_MAX + end]):
            small[slot, t.WINDOW_MAX + end] = widest
    for end in range(2):
        window = np.int64(small[slot, t.WINDOW_MAX + 1 - end])
        small[slot, t.SEQUENCE_MAX + end] = (np.int64(small[slot, t.SEQUENCE_END + end]) + window) & _LOW


def totals(sessions: Sessions, slots: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    """(last seen, packets, bytes) of some sessions as ``sync`` would have them, for readers: nothing is written."""
    table = sessions.table
    hot32, cold, small = table.hot32[slots], table.cold[slots], table.small[slots]
    both = slice(t.PACKETS_LOWER, t.PACKETS_UPPER + 1)
    counted = hot32[:, both] - small[:, t.PACKETS_BASE : t.PACKETS_BASE + 2]  # wraps with the counters
    packets = cold[:, t.PACKETS] + counted.sum(axis=1, dtype=np.int64)
    octets = cold[:, t.BYTES] + table.hot[slots, t.BYTES_LOWER] + table.hot[slots, t.BYTES_UPPER]
    units = cold[:, t.LAST_SEEN] >> t.SEEN_SHIFT
    ahead = (hot32[:, t.SEEN] - units.astype(np.uint32)).astype(np.int32)
    seen = np.where(counted.any(axis=1), (units + ahead) << t.SEEN_SHIFT, 0)
    return np.maximum(cold[:, t.LAST_SEEN], seen), packets, octets
