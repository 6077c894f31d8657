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

import contextlib
import socket
import struct

import numpy as np

from everwall.kernels import external, kernel, load32, store32
from everwall.limits import BATCH_PACKETS, GENEVE_PORT, HEADROOM_BYTES
from everwall.ports.layout import (
    BATCH_DATA,
    BATCH_STRIDE,
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
from everwall.ports.outer import IP_UDP_BYTES, swap16, swap32, write_ip
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
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER_BYTES = 8 << 20
"""Of what waits to be received; and of what is on its way out, which a busy peer frees late."""

# A mmsghdr is 64 bytes on 64-bit Linux: name, namelen, iov, iovlen, control, controllen, flags, len.
_NAME, _NAME_BYTES, _VECTOR, _VECTORS, _CONTROL, _CONTROL_BYTES, _FLAGS, _LENGTH = range(8)

_MESSAGE_BYTES = 64
_NAME_ROOM = 16
_AF_INET = 2
_PKTINFO_ADDRESS = 24  # cmsghdr 16 bytes, interface index 4, local address 4, then the header's destination


def _receiver(address: str, device: str | None, shared: bool, number: int = GENEVE_PORT) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        receiver.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
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
    sender = _raw_sender(device)
    try:
        receiver = _receiver(address, device, shared)
    except OSError:
        sender.close()
        raise
    return _make(RAW, receiver.detach(), sender.detach(), batch, shared)


def open_raw_sender(device: str | None = None, batch: int = BATCH_PACKETS) -> Port:
    """A raw port that only sends, for a worker that gets all its packets from others.

    Raises PermissionError without CAP_NET_RAW, OSError when there is no such device.
    """
    return _make(RAW, -1, _raw_sender(device).detach(), batch, False)


def _raw_sender(device: str | None) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        sender.setsockopt(socket.SOL_IP, socket.IP_HDRINCL, 1)
        with contextlib.suppress(PermissionError):  # not of the first user namespace: the usual 208 kB
            sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
        sender.setblocking(False)
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    except OSError:
        sender.close()
        raise
    return sender


def open_udp(
    address: str, batch: int = BATCH_PACKETS, geneve_port: int = GENEVE_PORT, shared: bool = False
) -> Port:
    """Receive GENEVE on ``address``, return it through plain UDP sockets; needs no privilege.

    ``shared``: as for ``open_raw``.
    ``geneve_port`` 0 takes any free port, for a port that no packet will reach.
    Raises OSError when the address or UDP 6081 is taken.
    """
    return _make(UDP, _receiver(address, None, shared, geneve_port).detach(), -1, batch, shared)


def _make(kind: int, receiver: int, sender: int, batch: int, shared: bool) -> Port:
    """A port whose structures point at one another already: rows below ``batch`` receive, those above send."""
    port = make_port(kind, receiver, sender, batch=batch, shared=shared)
    rows = np.arange(2 * batch)
    port.messages[:, _NAME] = port.names.ctypes.data + rows * _NAME_ROOM
    port.messages[:, _NAME_BYTES] = _NAME_ROOM
    port.messages[:, _VECTOR] = port.vectors.ctypes.data + rows * 16
    port.messages[:, _VECTORS] = 1
    port.messages[:batch, _CONTROL] = port.control.ctypes.data + rows[:batch] * CONTROL_ROOM
    port.messages[:batch, _CONTROL_BYTES] = CONTROL_ROOM
    port.names[:, :4] = np.frombuffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", GENEVE_PORT), np.uint8
    )
    return port


@kernel
def receive(port, batch, limit):
    """Take up to ``limit`` waiting packets into the first rows; returns how many, never blocks.

    A packet longer than its row is kept as an empty one (START = END) with VERDICT ``OVERSIZE``;
    all others have VERDICT ``FORWARD`` until the engine judges them.
    """
    messages, info, meta = port.messages, port.info, batch.meta
    if info[RECEIVER] < 0:
        return 0  # it only sends
    limit = min(limit, port.control.shape[0])
    data, stride = np.int64(batch.data.ctypes.data), batch.data.shape[1]
    if info[BATCH_DATA] != data or info[BATCH_STRIDE] != stride:
        for i in range(port.control.shape[0]):
            port.vectors[i, 0] = data + i * stride + HEADROOM_BYTES
            port.vectors[i, 1] = stride - HEADROOM_BYTES
        info[BATCH_DATA] = data
        info[BATCH_STRIDE] = stride
    count = _recvmmsg(np.int32(info[RECEIVER]), messages.ctypes.data, limit, _MSG_DONTWAIT, 0)
    name, control = np.int64(port.names.ctypes.data), np.int64(port.control.ctypes.data)
    for i in range(count):
        whole = messages[i, _FLAGS] & _MSG_TRUNC == 0
        meta[i, START] = HEADROOM_BYTES
        meta[i, END] = HEADROOM_BYTES + (messages[i, _LENGTH] & 0xFFFFFFFF if whole else 0)
        meta[i, PEER_ADDRESS] = swap32(load32(name + i * _NAME_ROOM + 4))
        meta[i, PEER_PORT] = swap16(load32(name + i * _NAME_ROOM) >> 16)
        meta[i, LOCAL_ADDRESS] = swap32(load32(control + i * CONTROL_ROOM + _PKTINFO_ADDRESS))
        meta[i, BARE] = 0
        meta[i, FRAME] = 0
        meta[i, PEER_MAC] = 0
        meta[i, VERDICT] = _FORWARD if whole else _OVERSIZE
        # What the system has written over.
        messages[i, _NAME_BYTES] = _NAME_ROOM
        messages[i, _CONTROL_BYTES] = CONTROL_ROOM
        messages[i, _FLAGS] = 0
    return max(count, 0)


@kernel
def _sender_for(port, local_address, source_port):
    """The UDP socket bound to that address and port; -1 when there is none left."""
    sockets, info = port.sockets, port.info
    count = info[SOCKETS]
    for i in range(count):
        if sockets[i, 0] == local_address and sockets[i, 1] == source_port:
            return sockets[i, 2]
    if count == sockets.shape[0] or source_port == GENEVE_PORT:
        return -1  # a second socket on GENEVE_PORT would take packets from the one that receives
    opened = np.int64(_socket(2, _SOCK_DGRAM_NONBLOCK, 17))
    if opened < 0:
        return -1
    if info[SHARED] != 0:
        at = np.int64(info.ctypes.data) + SHARED * 8
        _setsockopt(np.int32(opened), _SOL_SOCKET, _SO_REUSEPORT, at, 4)
    # In a row that receives: messages that wait to be sent have their names in the other half.
    name = np.int64(port.names.ctypes.data)
    store32(name, _AF_INET | swap16(source_port) << 16)
    store32(name + 4, swap32(local_address))
    if _bind(np.int32(opened), name, _NAME_ROOM) != 0:
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
    messages = np.int64(port.messages.ctypes.data) + port.control.shape[0] * _MESSAGE_BYTES
    while done < count:
        at = messages + done * _MESSAGE_BYTES
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
    meta, vectors = batch.meta, port.vectors
    half = port.control.shape[0]
    data, stride = np.int64(batch.data.ctypes.data), batch.data.shape[1]
    names = np.int64(port.names.ctypes.data) + half * _NAME_ROOM
    raw = port.info[KIND] == RAW
    sender = port.info[SENDER]
    failed = 0
    first = 0
    filled = 0
    for k in range(count):
        row = rows[k]
        wanted = sender
        if not raw:
            wanted = _sender_for(port, meta[row, LOCAL_ADDRESS], meta[row, PEER_PORT])
        if filled == half or (filled > 0 and wanted != sender):
            failed += _flush(port, sender, meta, rows, first, filled)
            filled = 0
        if wanted < 0:
            meta[row, VERDICT] = _SOURCE_PORTS
            failed += 1
            continue
        if filled == 0:
            first = k
            sender = wanted
        at = data + row * stride + meta[row, START]
        length = meta[row, END] - meta[row, START]
        if raw:
            at -= IP_UDP_BYTES
            length += IP_UDP_BYTES
            write_ip(at, meta, row)
        store32(names + filled * _NAME_ROOM + 4, swap32(meta[row, PEER_ADDRESS]))
        vectors[half + filled, 0] = at
        vectors[half + filled, 1] = length
        filled += 1
    if filled > 0:
        failed += _flush(port, sender, meta, rows, first, filled)
    return failed
