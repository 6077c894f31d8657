"""AF_XDP in kernels: packets from the rings of an interface's queues into a batch, and back.

Every queue has a socket, memory cut into frames, and four rings shared with the kernel. A frame goes round::

    free ──► fill ring ──► kernel, a packet comes ──► rx ring ──► held ──► tx ring ──► completion ring ──► free
                                                                    └──── not sent, at the next receive ──────► free

Free frames lie on a stack: what was used last is used first, so that a few hundred frames stay in the
processor's cache and not all of them. A packet is copied into its row of the batch and its frame kept until
the next ``receive``; a forwarded packet goes out from that frame, with new headers before the same bytes. A
row without a frame is copied into a free one.

Nothing that a ring or a packet says is believed before it was compared with what there is. Ring indices are
free-running numbers of 32 bits.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import (
    external,
    fence,
    inlined,
    kernel,
    load32,
    load32_acquire,
    load64,
    prefetch,
    store32_release,
    store64,
)
from everwall.limits import HEADROOM_BYTES, XDP_FILL_FRAMES, XDP_PIECES_MAX
from everwall.ports import outer
from everwall.ports.layout import (
    BUSY,
    CHUNK_BYTES,
    DESCRIPTOR,
    DONE_CONSUMER,
    DONE_MASK,
    DONE_NEXT,
    DONE_PRODUCER,
    DONE_RING,
    FILL_CONSUMER,
    FILL_FLAGS,
    FILL_MASK,
    FILL_NEXT,
    FILL_PRODUCER,
    FILL_RING,
    FRAMES_AT,
    FRAMES_BYTES,
    FREE,
    GENERATION,
    HELD,
    HELD_FRAME,
    HELD_LENGTH,
    HELD_MORE,
    HELD_QUEUE,
    LINK,
    PIECES,
    QUEUES,
    ROOM_AT,
    RX_CONSUMER,
    RX_MASK,
    RX_NEXT,
    RX_PRODUCER,
    RX_RING,
    TURN,
    TX_CONSUMER,
    TX_FLAGS,
    TX_MASK,
    TX_NEXT,
    TX_PRODUCER,
    TX_RING,
)
from everwall.ports.outer import OUTER_BYTES
from everwall.session.control import HANDED, LIMIT
from everwall.verdict import Verdict
from everwall.wire.meta import (
    BARE,
    END,
    FRAME,
    PEER_MAC,
    PEER_PORT,
    START,
    VERDICT,
)

_memcpy = external("memcpy", "i64", "pointer", "pointer", "i64")
_sendto = external("sendto", "i64", "i32", "pointer", "i64", "i32", "pointer", "i32")
_recvfrom = external("recvfrom", "i64", "i32", "pointer", "i64", "i32", "pointer", "pointer")

_FORWARD = int(Verdict.FORWARD)
_TRANSMIT = int(Verdict.TRANSMIT)
_OVERSIZE = int(Verdict.OVERSIZE)
_OUTER_HEADER = int(Verdict.OUTER_HEADER)

_MSG_DONTWAIT = 0x40
_NEED_WAKEUP = 1
_PACKET_CONTINUES = 1  # XDP_PKT_CONTD
_INDEX = 0xFFFF_FFFF
_TOKEN_BITS = 16
_GENERATIONS = (1 << 40) - 1

_AHEAD = 4


# Receive --------------------------------------------------------------------------------------------


@kernel
def receive(port, batch, limit):
    """Take up to ``limit`` waiting packets of all queues; see ``ports/port.py``."""
    info = port.info
    queues = info[QUEUES]
    _let_go(port)
    info[GENERATION] = (info[GENERATION] + 1) & _GENERATIONS
    info[TURN] = info[TURN] + 1 if info[TURN] + 1 < queues else 0
    count = 0
    for k in range(queues):
        q = info[TURN] + k
        q = q if q < queues else q - queues
        count = _receive_queue(port, q, batch, count, limit)
        _tell_room(port, q)
    return count


@kernel
def _let_go(port):
    """Frames of the last batch that were not sent, and those that were and are done, become free."""
    held, info = port.held, port.info
    for k in range(info[HELD]):
        if held[k, HELD_FRAME] >= 0:
            _free(port, held[k, HELD_QUEUE], held[k, HELD_FRAME])
    info[HELD] = 0
    for q in range(info[QUEUES]):
        _reap(port, q)
        fill(port, q)
        _kick(port, q)  # what the system had no room for a moment ago


@kernel
def _free(port, q, at):
    """Frame memory at ``at`` is nobody's any more."""
    queues = port.queues
    port.free[q, queues[q, FREE]] = at & -port.info[CHUNK_BYTES]
    queues[q, FREE] += 1


@kernel
def _reap(port, q):
    """Take back the frames that the kernel has sent."""
    queues = port.queues
    done = queues[q, DONE_NEXT]
    end = load32_acquire(queues[q, DONE_PRODUCER])
    ring, mask = queues[q, DONE_RING], queues[q, DONE_MASK]
    if done == end or (end - done) & _INDEX > mask + 1:
        return
    while done != end:
        _free(port, q, load64(ring + (done & mask) * 8))
        done = (done + 1) & _INDEX
    queues[q, DONE_NEXT] = done
    store32_release(queues[q, DONE_CONSUMER], done)


@kernel
def fill(port, q):
    """Give the kernel frames for what comes: as many as it may hold, as long as there are free ones."""
    queues, free = port.queues, port.free
    following = queues[q, FILL_NEXT]
    there = (following - load32(queues[q, FILL_CONSUMER])) & _INDEX
    wanted = min(XDP_FILL_FRAMES - there, queues[q, FREE])
    if wanted <= 0:
        return
    ring, mask = queues[q, FILL_RING], queues[q, FILL_MASK]
    left = queues[q, FREE]
    for k in range(wanted):
        store64(ring + ((following + k) & mask) * 8, free[q, left - 1 - k])
    queues[q, FREE] = left - wanted
    queues[q, FILL_NEXT] = (following + wanted) & _INDEX
    store32_release(queues[q, FILL_PRODUCER], queues[q, FILL_NEXT])


@kernel
def _receive_queue(port, q, batch, count, limit):
    """Take packets of queue ``q`` into the rows from ``count`` on; returns how many rows are filled."""
    queues, info = port.queues, port.info
    following = queues[q, RX_NEXT]
    waiting = (load32_acquire(queues[q, RX_PRODUCER]) - following) & _INDEX
    if waiting == 0:
        if info[BUSY] == 0 and load32(queues[q, FILL_FLAGS]) & _NEED_WAKEUP == 0:
            return count
        _recvfrom(np.int32(queues[q, DESCRIPTOR]), 0, 0, _MSG_DONTWAIT, 0, 0)
        waiting = (load32_acquire(queues[q, RX_PRODUCER]) - following) & _INDEX
    if waiting > queues[q, RX_MASK] + 1:
        return count
    ring, mask, frames = queues[q, RX_RING], queues[q, RX_MASK], queues[q, FRAMES_AT]
    taken = 0
    while taken < waiting and count < limit and info[HELD] + XDP_PIECES_MAX <= port.held.shape[0]:
        prefetch(frames + load64(ring + ((following + taken + _AHEAD) & mask) * 16))
        pieces = 1
        while load32(ring + ((following + taken + pieces - 1) & mask) * 16 + 12) & _PACKET_CONTINUES != 0:
            pieces += 1
            if taken + pieces > waiting:
                break
        if taken + pieces > waiting:
            break  # the rest of this packet is still to come
        _take(port, q, batch, count, (following + taken) & _INDEX, pieces)
        count += 1
        taken += pieces
    if taken > 0:
        queues[q, RX_NEXT] = (following + taken) & _INDEX
        store32_release(queues[q, RX_CONSUMER], queues[q, RX_NEXT])
    return count


@inlined
def _tell_room(port, q):
    """Tell the program how many more packets the queue takes: as many as there are free descriptors.

    Frames say nothing of it: where the driver copies nothing, it has taken those for what is still to come already.
    """
    queues = port.queues
    room = queues[q, ROOM_AT]
    if room == 0:
        return
    # Read first, so that what comes meanwhile makes the limit too low and not too high.
    handed = load64(room + HANDED * 8)
    waiting = (load32_acquire(queues[q, RX_PRODUCER]) - queues[q, RX_NEXT]) & _INDEX
    store64(room + LIMIT * 8, handed + queues[q, RX_MASK] + 1 - waiting)


@inlined
def _take(port, q, batch, i, following, pieces):
    """One packet, of ``pieces`` descriptors, into row ``i``; its frames are held."""
    queues, info, held, meta = port.queues, port.info, port.held, batch.meta
    ring, mask, frames = queues[q, RX_RING], queues[q, RX_MASK], queues[q, FRAMES_AT]
    first = info[HELD]
    whole = pieces <= XDP_PIECES_MAX
    total = 0
    for k in range(pieces):
        at = ring + ((following + k) & mask) * 16
        frame = load64(at)
        length = load32(at + 8)
        if frame < 0 or length > info[CHUNK_BYTES] or frame + length > queues[q, FRAMES_BYTES]:
            whole = False  # and whose memory that is nobody knows
        elif k >= XDP_PIECES_MAX:
            _free(port, q, frame)
        else:
            held[info[HELD], HELD_QUEUE] = q
            held[info[HELD], HELD_FRAME] = frame
            held[info[HELD], HELD_LENGTH] = length
            held[info[HELD], HELD_MORE] = 1 if k + 1 < pieces else 0
            info[HELD] += 1
        total += length
    meta[i, START] = HEADROOM_BYTES
    meta[i, END] = HEADROOM_BYTES
    meta[i, BARE] = 0
    meta[i, FRAME] = 0
    meta[i, VERDICT] = _OUTER_HEADER
    if not whole:
        return
    at = frames + held[first, HELD_FRAME]
    payload = outer.payload_of(at, held[first, HELD_LENGTH], total)
    if payload < 0:
        return
    outer.read(at, meta, i)
    if payload > batch.data.shape[1] - HEADROOM_BYTES:
        meta[i, VERDICT] = _OVERSIZE
        return
    meta[i, END] = HEADROOM_BYTES + payload
    meta[i, FRAME] = (info[GENERATION] << _TOKEN_BITS) | (first + 1)
    meta[i, VERDICT] = _FORWARD
    to = np.int64(batch.data.ctypes.data) + i * batch.data.shape[1] + HEADROOM_BYTES
    offset = OUTER_BYTES
    k = first
    while payload > 0:
        part = min(held[k, HELD_LENGTH] - offset, payload)
        _memcpy(to, frames + held[k, HELD_FRAME] + offset, part)
        to += part
        payload -= part
        offset = 0
        k += 1


# Send -------------------------------------------------------------------------------------------------


@kernel
def send(port, batch, rows, count):
    """Send rows of a batch; see ``ports/port.py``."""
    failed = 0
    for k in range(count):
        row = rows[k]
        first = _held_of(port, batch.meta[row, FRAME])
        verdict = _send_held(port, batch, row, first) if first >= 0 else _send_copy(port, batch, row)
        if verdict != _FORWARD:
            batch.meta[row, VERDICT] = verdict
            failed += 1
    for q in range(port.info[QUEUES]):
        _kick(port, q)
    return failed


@inlined
def _held_of(port, token):
    """Where the frames of a row begin in ``held``; -1 when the port does not have them (any more)."""
    first = (token & ((1 << _TOKEN_BITS) - 1)) - 1
    if first < 0 or token >> _TOKEN_BITS != port.info[GENERATION] or first >= port.info[HELD]:
        return -1
    return first if port.held[first, HELD_FRAME] >= 0 else -1


@kernel
def _room(port, q, wanted):
    """Whether a tx ring takes ``wanted`` more descriptors; asks the kernel to send when it does not."""
    queues = port.queues
    size = queues[q, TX_MASK] + 1
    if size - ((queues[q, TX_NEXT] - load32(queues[q, TX_CONSUMER])) & _INDEX) >= wanted:
        return True
    _kick(port, q)
    return size - ((queues[q, TX_NEXT] - load32(queues[q, TX_CONSUMER])) & _INDEX) >= wanted


@inlined
def _put(port, q, frame, length, more):
    """The next descriptor of a tx ring that has room."""
    queues = port.queues
    following = queues[q, TX_NEXT]
    at = queues[q, TX_RING] + (following & queues[q, TX_MASK]) * 16
    store64(at, frame)
    store64(at + 8, length | (more << 32))
    queues[q, TX_NEXT] = (following + 1) & _INDEX


@inlined
def _send_held(port, batch, row, first):
    """Send a packet from the frames that it came in."""
    held, meta = port.held, batch.meta
    q = held[first, HELD_QUEUE]
    length = OUTER_BYTES + meta[row, END] - meta[row, START]
    pieces = 1
    reach = held[first, HELD_LENGTH]
    while reach < length and held[first + pieces - 1, HELD_MORE] != 0:
        reach += held[first + pieces, HELD_LENGTH]
        pieces += 1
    if reach < length or not _room(port, q, pieces):
        return _TRANSMIT
    outer.write(port.queues[q, FRAMES_AT] + held[first, HELD_FRAME], port.info[LINK], meta, row)
    for k in range(first, first + pieces):
        part = min(held[k, HELD_LENGTH], length)
        length -= part
        _put(port, q, held[k, HELD_FRAME], part, 1 if length > 0 else 0)
        held[k, HELD_FRAME] = -1
    return _FORWARD


@kernel
def _send_copy(port, batch, row):
    """Send a packet from its row: by a queue that its source port names, so that its flow stays on one."""
    queues, info, meta = port.queues, port.info, batch.meta
    chunk = info[CHUNK_BYTES]
    length = OUTER_BYTES + meta[row, END] - meta[row, START]
    pieces = (length + chunk - 1) // chunk
    if pieces > info[PIECES]:
        return _OVERSIZE
    if info[QUEUES] == 0 or meta[row, PEER_MAC] == 0:
        return _TRANSMIT
    q = meta[row, PEER_PORT] % info[QUEUES]
    if queues[q, FREE] < pieces:
        _reap(port, q)
    if queues[q, FREE] < pieces or not _room(port, q, pieces):
        return _TRANSMIT
    data = np.int64(batch.data.ctypes.data) + row * batch.data.shape[1] + meta[row, START]
    offset = OUTER_BYTES
    for k in range(pieces):
        queues[q, FREE] -= 1
        frame = port.free[q, queues[q, FREE]]
        at = queues[q, FRAMES_AT] + frame
        if k == 0:
            outer.write(at, port.info[LINK], meta, row)
        part = min(chunk, length)
        _memcpy(at + offset, data, part - offset)
        data += part - offset
        length -= part
        offset = 0
        _put(port, q, frame, part, 1 if length > 0 else 0)
    return _FORWARD


@kernel
def _kick(port, q):
    """Have the kernel send what waits in a tx ring; what it has no room for stays there until the next time."""
    queues = port.queues
    end = queues[q, TX_NEXT]
    sent = load32_acquire(queues[q, TX_CONSUMER])
    if sent == end:
        return
    store32_release(queues[q, TX_PRODUCER], end)
    fence()  # the flag is read after the index was written
    if load32(queues[q, TX_FLAGS]) & _NEED_WAKEUP == 0:
        return
    before = end
    # A call takes 32 packets, or as many as the kernel was allowed to.
    while sent != end and sent != before:
        before = sent
        _sendto(np.int32(queues[q, DESCRIPTOR]), 0, 0, _MSG_DONTWAIT, 0, 0)
        sent = load32_acquire(queues[q, TX_CONSUMER])
