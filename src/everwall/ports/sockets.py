"""Ports over sockets: an ordinary UDP socket receives on port 6081, and sends from its own port only.

A return has to keep its packet's outer source port, so there are two ways to send one:

* ``RAW`` (privileged): the outer IPv4 and UDP headers are written in place before the packet and
  sent through one raw socket (IP_HDRINCL). The UDP checksum is 0, which RFC 8926 section 3.3
  allows and which cannot be left half-done by checksum offload.
* ``UDP`` (no privilege): one socket for each outer source port, bound when first needed, at most
  ``UDP_SOURCE_PORTS_MAX``. For loopback and tests.

Packets move in batches (recvmmsg, sendmmsg).
"""

from __future__ import annotations

import socket

import numpy as np

from everwall.kernels import external, kernel
from everwall.limits import BATCH_PACKETS, GENEVE_PORT, HEADROOM_BYTES, OUTER_TTL
from everwall.ports.layout import (
    CONTROL_ROOM,
    KIND,
    RAW,
    RECEIVER,
    SENDER,
    SHARED,
    SOCKETS,
    UDP,
    Port,
    make_port,
)
from everwall.verdict import Verdict
from everwall.wire.meta import (
    BARE,
    END,
    FRAME,
    LOCAL_ADDRESS,
    PEER_ADDRESS,
    PEER_MAC,
    PEER_PORT,
    START,
    VERDICT,
)

_recvmmsg = external("recvmmsg", "i32", "i32", "pointer", "i32", "i32", "pointer")
_sendmmsg = external("sendmmsg", "i32", "i32", "pointer", "i32", "i32")
_socket = external("socket", "i32", "i32", "i32", "i32")
_bind = external("bind", "i32", "i32", "pointer", "i32")
_setsockopt = external("setsockopt", "i32", "i32", "i32", "i32", "pointer", "i32")
_close = external("close", "i32", "i32")

_FORWARD = int(Verdict.FORWARD)
_TRANSMIT = int(Verdict.TRANSMIT)
_SOURCE_PORTS = int(Verdict.SOURCE_PORTS)
_OVERSIZE = int(Verdict.OVERSIZE)

_MSG_DONTWAIT = 0x40
_MSG_TRUNC = 0x20
_SOCK_DGRAM_NONBLOCK = 2 | 0o4000 | 0o2000000
_IP_PKTINFO = 8
_SOL_SOCKET = 1
_SO_REUSEPORT = 15
_RECEIVE_BUFFER_BYTES = 8 << 20

# A mmsghdr is 64 bytes on 64-bit Linux: name, namelen, iov, iovlen, control, controllen, flags, len.
_NAME, _NAME_BYTES, _VECTOR, _VECTORS, _CONTROL, _CONTROL_BYTES, _FLAGS, _LENGTH = range(8)

_OUTER_BYTES = 28
_PKTINFO_ADDRESS = 24  # cmsghdr 16 bytes, interface index 4, local address 4, then the header's destination


def _receiver(address: str, device: str | None, shared: bool, number: int = GENEVE_PORT) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        receiver.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
        force = getattr(socket, "SO_RCVBUFFORCE", 33)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, force, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if device:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        receiver.bind((address, number))
    except OSError:
        receiver.close()
        raise
    return receiver


def open_raw(
    address: str = "0.0.0.0", device: str | None = None, batch: int = BATCH_PACKETS, shared: bool = False
) -> Port:
    """Receive GENEVE on ``address``, return it through a raw socket.

    ``shared``: for the ports of several workers, over which the system spreads what comes.
    Raises PermissionError without CAP_NET_RAW, OSError when the address or UDP 6081 is taken.
    """
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        sender.setsockopt(socket.SOL_IP, socket.IP_HDRINCL, 1)
        sender.setblocking(False)
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        receiver = _receiver(address, device, shared)
    except OSError:
        sender.close()
        raise
    return make_port(RAW, receiver.detach(), sender.detach(), batch=batch, shared=shared)


def open_udp(
    address: str, batch: int = BATCH_PACKETS, geneve_port: int = GENEVE_PORT, shared: bool = False
) -> Port:
    """Receive GENEVE on ``address``, return it through plain UDP sockets; needs no privilege.

    ``shared``: as for ``open_raw``.
    ``geneve_port`` 0 takes any free port, for a port that no packet will reach.
    Raises OSError when the address or UDP 6081 is taken.
    """
    return make_port(
        UDP, _receiver(address, None, shared, geneve_port).detach(), -1, batch=batch, shared=shared
    )


@kernel
def _read32(octets, row, at):
    return (
        (np.int64(octets[row, at]) << 24)
        | (np.int64(octets[row, at + 1]) << 16)
        | (np.int64(octets[row, at + 2]) << 8)
        | np.int64(octets[row, at + 3])
    )


@kernel
def _write16(octets, row, at, value):
    octets[row, at] = (value >> 8) & 0xFF
    octets[row, at + 1] = value & 0xFF


@kernel
def _write32(octets, row, at, value):
    _write16(octets, row, at, (value >> 16) & 0xFFFF)
    _write16(octets, row, at + 2, value & 0xFFFF)


@kernel
def _write_name(names, row, address, port_number):
    """A ``struct sockaddr_in``; the family is in the machine's own order, little-endian here."""
    names[row, 0] = 2
    names[row, 1] = 0
    _write16(names, row, 2, port_number)
    _write32(names, row, 4, address)


@kernel
def receive(port, batch, limit):
    """Take up to ``limit`` waiting packets into the first rows; returns how many, never blocks.

    A packet longer than its row is kept as an empty one (START = END) with VERDICT ``OVERSIZE``;
    all others have VERDICT ``FORWARD`` until the engine judges them.
    """
    messages, vectors = port.messages, port.vectors
    limit = min(limit, messages.shape[0])
    base = batch.data.ctypes.data
    stride = batch.data.shape[1]
    names_at = port.names.ctypes.data
    vectors_at = vectors.ctypes.data
    control_at = port.control.ctypes.data
    for i in range(limit):
        vectors[i, 0] = np.int64(base) + i * stride + HEADROOM_BYTES
        vectors[i, 1] = stride - HEADROOM_BYTES
        messages[i, _NAME] = np.int64(names_at) + i * 16
        messages[i, _NAME_BYTES] = 16
        messages[i, _VECTOR] = np.int64(vectors_at) + i * 16
        messages[i, _VECTORS] = 1
        messages[i, _CONTROL] = np.int64(control_at) + i * CONTROL_ROOM
        messages[i, _CONTROL_BYTES] = CONTROL_ROOM
        messages[i, _FLAGS] = 0
    count = _recvmmsg(np.int32(port.info[RECEIVER]), messages.ctypes.data, limit, _MSG_DONTWAIT, 0)
    meta = batch.meta
    for i in range(count):
        meta[i, START] = HEADROOM_BYTES
        meta[i, END] = HEADROOM_BYTES + (messages[i, _LENGTH] & 0xFFFFFFFF)
        meta[i, PEER_ADDRESS] = _read32(port.names, i, 4)
        meta[i, PEER_PORT] = (np.int64(port.names[i, 2]) << 8) | np.int64(port.names[i, 3])
        meta[i, LOCAL_ADDRESS] = _read32(port.control, i, _PKTINFO_ADDRESS)
        meta[i, BARE] = 0
        meta[i, FRAME] = 0
        meta[i, PEER_MAC] = 0
        meta[i, VERDICT] = _FORWARD
        if messages[i, _FLAGS] & _MSG_TRUNC:
            meta[i, END] = HEADROOM_BYTES
            meta[i, VERDICT] = _OVERSIZE
    return max(count, 0)


@kernel
def _write_outer(data, row, start, end, local_address, source_port, peer_address):
    """IPv4 and UDP headers in the 28 bytes before ``start``; the system fills length, id, checksum."""
    at = start - _OUTER_BYTES
    data[row, at] = 0x45
    data[row, at + 1] = 0
    _write16(data, row, at + 2, end - at)
    _write16(data, row, at + 4, 0)
    _write16(data, row, at + 6, 0x4000)  # do not fragment
    data[row, at + 8] = OUTER_TTL
    data[row, at + 9] = 17
    _write16(data, row, at + 10, 0)
    _write32(data, row, at + 12, local_address)
    _write32(data, row, at + 16, peer_address)
    _write16(data, row, at + 20, source_port)
    _write16(data, row, at + 22, GENEVE_PORT)
    _write16(data, row, at + 24, end - start + 8)
    _write16(data, row, at + 26, 0)


@kernel
def _sender_for(port, local_address, source_port):
    """The UDP socket bound to that address and port; -1 when there is none left."""
    sockets, info = port.sockets, port.info
    count = info[SOCKETS]
    for i in range(count):
        if sockets[i, 0] == local_address and sockets[i, 1] == source_port:
            return sockets[i, 2]
    if count == sockets.shape[0]:
        return -1
    opened = np.int64(_socket(2, _SOCK_DGRAM_NONBLOCK, 17))
    if opened < 0:
        return -1
    if info[SHARED] != 0:
        at = np.int64(info.ctypes.data) + SHARED * 8
        _setsockopt(np.int32(opened), _SOL_SOCKET, _SO_REUSEPORT, at, 4)
    # Not in ``names``: messages that wait to be sent have theirs there.
    _write_name(port.control, 0, local_address, source_port)
    if _bind(np.int32(opened), port.control.ctypes.data, 16) != 0:
        _close(np.int32(opened))
        return -1
    sockets[count, 0] = local_address
    sockets[count, 1] = source_port
    sockets[count, 2] = opened
    info[SOCKETS] = count + 1
    return opened


@kernel
def _flush(port, sender, meta, rows, first, count):
    """Send ``count`` prepared messages that stand for ``rows[first:]``; marks what was refused."""
    done = 0
    failed = 0
    size = np.int64(64)
    while done < count:
        at = np.int64(port.messages.ctypes.data) + done * size
        sent = _sendmmsg(np.int32(sender), at, count - done, _MSG_DONTWAIT)
        if sent <= 0:
            meta[rows[first + done], VERDICT] = _TRANSMIT
            failed += 1
            sent = 1
        done += sent
    return failed


@kernel
def send(port, batch, rows, count):
    """Send START..END of each row in ``rows[:count]`` from LOCAL_ADDRESS:PEER_PORT to PEER_ADDRESS:6081.

    At least HEADROOM_BYTES stand before START. Returns how many were not sent; their VERDICT says why.
    """
    data, meta = batch.data, batch.meta
    messages, vectors = port.messages, port.vectors
    base = np.int64(data.ctypes.data)
    stride = data.shape[1]
    raw = port.info[KIND] == RAW
    sender = port.info[SENDER]
    failed = 0
    first = 0
    filled = 0
    for k in range(count):
        row = rows[k]
        start, end = meta[row, START], meta[row, END]
        wanted = sender
        if not raw:
            wanted = _sender_for(port, meta[row, LOCAL_ADDRESS], meta[row, PEER_PORT])
        if filled == messages.shape[0] or (filled > 0 and wanted != sender):
            failed += _flush(port, sender, meta, rows, first, filled)
            filled = 0
        if wanted < 0:
            meta[row, VERDICT] = _SOURCE_PORTS
            failed += 1
            continue
        if filled == 0:
            first = k
            sender = wanted
        if raw:
            _write_outer(
                data, row, start, end, meta[row, LOCAL_ADDRESS], meta[row, PEER_PORT], meta[row, PEER_ADDRESS]
            )
            start -= _OUTER_BYTES
        _write_name(port.names, filled, meta[row, PEER_ADDRESS], GENEVE_PORT)
        vectors[filled, 0] = base + row * stride + start
        vectors[filled, 1] = end - start
        messages[filled, _NAME] = np.int64(port.names.ctypes.data) + filled * 16
        messages[filled, _NAME_BYTES] = 16
        messages[filled, _VECTOR] = np.int64(vectors.ctypes.data) + filled * 16
        messages[filled, _VECTORS] = 1
        messages[filled, _CONTROL] = 0
        messages[filled, _CONTROL_BYTES] = 0
        messages[filled, _FLAGS] = 0
        filled += 1
    if filled > 0:
        failed += _flush(port, sender, meta, rows, first, filled)
    return failed
