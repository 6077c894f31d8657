"""The port of GENEVE packets: receive on UDP 6081, return with the source port kept; one face for every kind.

A return goes from the address and to the port that its packet came by: outer addresses swapped, the outer
*source* port kept, destination port 6081, UDP checksum 0. Kinds:

* ``xdp``: rings shared with the driver's receive path (AF_XDP, ``ports/xdp.py``). Needs root and XDP;
* ``raw``: an ordinary UDP socket receives, a raw one sends (``ports/sockets.py``). Needs root;
* ``udp``: UDP sockets only, one for each outer source port. Needs nothing; for loopback and tests.

Packets move in batches; the caller names the rows to send. Between one ``receive`` and the next the port may keep the
received packets themselves, and a row with FRAME is sent from there; a row without, as any copy, is sent from
its own bytes. The load balancer sends through the same port: it sets the three outer columns instead of
keeping the received ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from everwall.kernels import kernel
from everwall.ports import sockets, xdp
from everwall.ports.layout import KIND, QUEUES, RAW, RECEIVER, SENDER, SOCKETS, XDP, Port
from everwall.ports.sockets import open_raw, open_raw_sender, open_udp
from everwall.ports.umem import open_xdp, queue_sockets, statistics, tell_room, unmap

__all__ = [
    "Port",
    "address_number",
    "close",
    "descriptor",
    "kind_of",
    "open_raw",
    "open_raw_sender",
    "open_udp",
    "open_xdp",
    "queue_sockets",
    "receive",
    "send",
    "statistics",
    "tell_room",
]


def kind_of(port: Port) -> str:
    """``xdp``, ``raw`` or ``udp``."""
    kind = port.info[KIND]
    return "xdp" if kind == XDP else "raw" if kind == RAW else "udp"


def descriptor(port: Port) -> int:
    """The descriptor to poll for packets; -1, which poll passes over, of a port that only sends."""
    return int(port.info[RECEIVER])


def close(port: Port) -> None:
    """Close every socket of the port and give its memory back; nobody may use it any more."""
    queued = {fd for _, fd in queue_sockets(port)}
    used = {int(port.info[RECEIVER]), int(port.info[SENDER])} | queued
    used |= {int(row[2]) for row in port.sockets[: int(port.info[SOCKETS])]}
    for number in used:
        if number >= 0:
            with contextlib.suppress(OSError):
                os.close(number)
    port.info[RECEIVER] = port.info[SENDER] = -1
    port.info[SOCKETS] = port.info[QUEUES] = 0
    unmap(port)


def address_number(address: str) -> int:
    """An IPv4 address as the number that descriptors hold."""
    return int(struct.unpack(">I", socket.inet_aton(address))[0])


@kernel
def receive(port, batch, limit):
    """Take up to ``limit`` waiting packets into the first rows; returns how many, never blocks.

    A packet longer than its row is kept as an empty one (START = END) with VERDICT ``OVERSIZE``, one whose outer
    headers do not add up with ``OUTER_HEADER``; all others have VERDICT ``FORWARD`` until the engine judges them.
    """
    if port.info[KIND] == XDP:
        return xdp.receive(port, batch, limit)
    return sockets.receive(port, batch, limit)


@kernel
def send(port, batch, rows, count):
    """Send START..END of each row in ``rows[:count]`` from LOCAL_ADDRESS:PEER_PORT to PEER_ADDRESS:6081.

    At least HEADROOM_BYTES stand before START. A row with FRAME has the bytes that were received; whoever changed
    them set FRAME to 0. Returns how many were not sent; their VERDICT says why.
    """
    if port.info[KIND] == XDP:
        return xdp.send(port, batch, rows, count)
    return sockets.send(port, batch, rows, count)
