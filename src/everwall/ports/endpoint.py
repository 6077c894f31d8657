"""Endpoints of the load balancer: where bare IP packets come in and go out again.

An endpoint is a non-blocking descriptor that gives one packet for each read and takes one for each
write: a TUN device (``ports/tun.py``), or a connected UDP socket that carries inner packets as
datagrams, for where TUN is not allowed.
"""

from __future__ import annotations

import socket

import numpy as np

from everwall.kernels import external, kernel
from everwall.limits import FRAME_BYTES, HEADROOM_BYTES
from everwall.verdict import Verdict
from everwall.wire.geneve import ENCAPSULATION_BYTES
from everwall.wire.meta import BARE, END, ENDPOINT, START, VERDICT

_read = external("read", "i64", "i32", "pointer", "i64")
_write = external("write", "i64", "i32", "pointer", "i64")

_FORWARD = int(Verdict.FORWARD)
_OVERSIZE = int(Verdict.OVERSIZE)

START_BYTES = HEADROOM_BYTES + ENCAPSULATION_BYTES
"""Where a packet from an endpoint starts in its row: GENEVE and the outer headers come before it."""
PACKET_BYTES_MAX = FRAME_BYTES - START_BYTES - 1
"""The longest packet that an endpoint takes."""

_RECEIVE_BUFFER_BYTES = 4 << 20


def open_udp(listen: tuple[str, int], peer: tuple[str, int]) -> int:
    """A descriptor that exchanges packets with ``peer`` as datagrams; needs no privilege.

    Raises OSError when the address cannot be bound.
    """
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        endpoint.setblocking(False)
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        endpoint.bind(listen)
        # Connected, so that the system takes datagrams of the peer only.
        endpoint.connect(peer)
    except OSError:
        endpoint.close()
        raise
    return endpoint.detach()


@kernel
def receive(descriptor, endpoint, batch, limit):
    """Take up to ``limit`` waiting packets of ``endpoint`` into the first rows; returns how many.

    Never blocks. A packet of more than PACKET_BYTES_MAX bytes is kept as an empty one with VERDICT
    ``OVERSIZE``; all others have ``FORWARD`` until they are judged.
    """
    data, meta = batch.data, batch.meta
    stride = data.shape[1]
    room = stride - START_BYTES
    at = np.int64(data.ctypes.data) + START_BYTES
    count = 0
    while count < limit:
        length = _read(np.int32(descriptor), at + count * stride, room)
        if length <= 0:
            break
        # A read that fills the row may have cut the packet.
        fits = length < room
        meta[count, START] = START_BYTES
        meta[count, END] = START_BYTES + (length if fits else 0)
        meta[count, ENDPOINT] = endpoint
        meta[count, BARE] = 1
        meta[count, VERDICT] = _FORWARD if fits else _OVERSIZE
        count += 1
    return count


@kernel
def send(descriptor, data, row, start, end):
    """Send ``data[row, start:end]`` as one packet; returns whether the system took it."""
    at = np.int64(data.ctypes.data) + row * data.shape[1] + start
    if _write(np.int32(descriptor), at, end - start) == end - start:
        return True
    # A UDP socket reports an earlier datagram's refusal instead of sending this one: once more.
    return _write(np.int32(descriptor), at, end - start) == end - start
