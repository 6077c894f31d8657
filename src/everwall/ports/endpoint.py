"""Endpoints of the load balancer: where bare IP packets come in and go out again.

Two kinds look the same from here:

* a non-blocking descriptor that gives one packet for each read and takes one for each write: a TUN device
  (``ports/tun.py``), or a connected UDP socket that carries inner packets as datagrams, for where no device is
  allowed;
* a packet socket (``ports/packet.py``), whose packets come by a ring in shared memory and go by write, both behind an
  Ethernet header.
"""

from __future__ import annotations

import os
import socket

import numpy as np
import numpy.typing as npt

from everwall.kernels import external, kernel, load32, load32_acquire, store32_release
from everwall.limits import HEADROOM_BYTES
from everwall.verdict import Verdict
from everwall.wire.geneve import ENCAPSULATION_BYTES
from everwall.wire.meta import BARE, END, ENDPOINT, FRAME, START, VERDICT

_read = external("read", "i64", "i32", "pointer", "i64")
_write = external("write", "i64", "i32", "pointer", "i64")
_memcpy = external("memcpy", "i64", "pointer", "pointer", "i64")

_FORWARD = int(Verdict.FORWARD)
_OVERSIZE = int(Verdict.OVERSIZE)

START_BYTES = HEADROOM_BYTES + ENCAPSULATION_BYTES
"""Where a packet from an endpoint starts in its row: GENEVE and the outer headers come before it."""

# Columns of an endpoint's row
_DESCRIPTOR = 0
_RING = 1  # address of the ring, 0 = packets come by read
_RING_FRAME_BYTES = 2
_RING_FRAMES = 3
_RING_NEXT = 4  # the frame to look at next
_COLUMNS = 8  # a cache line

# struct tpacket2_hdr at the start of a frame: status, length, captured, then both offsets of 16 bits
_STATUS, _LENGTH, _CAPTURED, _OFFSETS = 0, 4, 8, 12
_STATUS_KERNEL = 0
_STATUS_USER = 1

ETHERNET_BYTES = 14
NEAR_ADDRESS = b"\x02\x00\x00\x00\x60\x81"
"""The address of a device whose other end is a packet socket; locally administered."""
_NEAR_OCTETS = tuple(NEAR_ADDRESS)

_RECEIVE_BUFFER_BYTES = 4 << 20


class Endpoint:
    """An open endpoint."""

    def __init__(self, descriptor: int, ring: int = 0, frame_bytes: int = 0, frames: int = 0) -> None:
        """``ring``: address of ``frames`` times ``frame_bytes`` in shared memory."""
        self.descriptor = descriptor
        """To poll for packets."""
        self._row = (descriptor, ring, frame_bytes, frames)

    @property
    def lost(self) -> int:
        """Packets that found the ring full."""
        return 0

    def fill(self, row: npt.NDArray[np.int64]) -> None:
        """Write what the kernels of this module need to know."""
        row[: len(self._row)] = self._row

    def close(self) -> None:
        os.close(self.descriptor)


def rows_of(endpoints: list[Endpoint]) -> npt.NDArray[np.int64]:
    """The endpoints as ``receive`` and ``send`` take them: a row for each."""
    rows = np.zeros((len(endpoints), _COLUMNS), np.int64)
    for row, endpoint in zip(rows, endpoints):
        endpoint.fill(row)
    return rows


def open_udp(listen: tuple[str, int], peer: tuple[str, int]) -> Endpoint:
    """An endpoint that exchanges packets with ``peer`` as datagrams; needs no privilege.

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
    return Endpoint(endpoint.detach())


@kernel
def receive(rows, k, endpoint, batch, limit):
    """Take up to ``limit`` waiting packets of endpoint ``k`` of ``rows`` into the first rows of ``batch``.

    Never blocks; returns how many. ``endpoint`` is the id that they get. A packet that does not fit is kept as
    an empty one with VERDICT ``OVERSIZE``; all others have ``FORWARD`` until they are judged.
    """
    data, meta = batch.data, batch.meta
    stride = data.shape[1]
    room = stride - START_BYTES
    at = np.int64(data.ctypes.data) + START_BYTES
    count = 0
    while count < limit:
        if rows[k, _RING] == 0:
            length = _read(np.int32(rows[k, _DESCRIPTOR]), at + count * stride, room)
        else:
            length = _take(rows, k, at + count * stride, room)
        if length <= 0:
            break
        # A read that fills the row may have cut the packet.
        fits = length < room
        meta[count, START] = START_BYTES
        meta[count, END] = START_BYTES + (length if fits else 0)
        meta[count, ENDPOINT] = endpoint
        meta[count, BARE] = 1
        meta[count, FRAME] = 0
        meta[count, VERDICT] = _FORWARD if fits else _OVERSIZE
        count += 1
    return count


@kernel
def _take(rows, k, to, room):
    """Copy the next packet of a ring to address ``to``; returns its length, ``room`` for one that is cut,
    0 when there is none."""
    frame = rows[k, _RING] + rows[k, _RING_NEXT] * rows[k, _RING_FRAME_BYTES]
    if load32_acquire(frame + _STATUS) & _STATUS_USER == 0:
        return np.int64(0)
    offsets = load32(frame + _OFFSETS)
    link, network = offsets & 0xFFFF, offsets >> 16
    length = load32(frame + _LENGTH) - (network - link)
    if length >= room or load32(frame + _CAPTURED) < load32(frame + _LENGTH):
        length = room
    else:
        _memcpy(to, frame + network, length)
    # Only now may the kernel write into the frame again.
    store32_release(frame + _STATUS, _STATUS_KERNEL)
    rows[k, _RING_NEXT] = (rows[k, _RING_NEXT] + 1) % rows[k, _RING_FRAMES]
    return length


@kernel
def send(rows, k, data, row, start, end):
    """Send ``data[row, start:end]`` as one packet into endpoint ``k``; returns whether the system took it.

    The bytes before ``start`` may be written over.
    """
    if rows[k, _RING] != 0:
        start -= ETHERNET_BYTES
        for i in range(6):
            data[row, start + i] = data[row, start + 6 + i] = _NEAR_OCTETS[i]
        version = data[row, start + ETHERNET_BYTES] >> 4
        data[row, start + 12] = 0x86 if version == 6 else 0x08
        data[row, start + 13] = 0xDD if version == 6 else 0x00
    at = np.int64(data.ctypes.data) + row * data.shape[1] + start
    descriptor = np.int32(rows[k, _DESCRIPTOR])
    if _write(descriptor, at, end - start) == end - start:
        return True
    # A UDP socket reports an earlier datagram's refusal instead of sending this one: once more.
    return _write(descriptor, at, end - start) == end - start
