"""Endpoints on AF_PACKET: what a TUN device does, for whoever may not open one.

An unprivileged user has everything but /dev/net/tun inside a user namespace of their own. There the device
that the kernel routes into is one end of a veth pair, and a packet socket holds the other::

    kernel ── routes ──► gwlbe0 ═══ veth ═══ gwlbe0-p ◄── socket (ring of received packets; write)

The pair is no Ethernet to anybody: no ARP, no multicast, one fixed address, so that every destination is
"on the link" and nothing comes that was not routed. Packets arrive complete, as a wire would carry them
(``interface.complete_packets``). The ring is memory of its own: how much may wait does not depend on
net.core.rmem_max, which an unprivileged user cannot raise.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct

import numpy as np

from everwall.limits import INNER_MTU_MAX, PACKET_RING_BYTES, frame_bytes_for
from everwall.ports import interface
from everwall.ports.endpoint import NEAR_ADDRESS, Endpoint

_PEER_SUFFIX = "-p"

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_PACKET_QDISC_BYPASS = 20
_PACKET_IGNORE_OUTGOING = 23
_TPACKET_V2 = 1
_SO_ATTACH_FILTER = 26
_BLOCK_BYTES = 1 << 16

_IP_ONLY = (
    (0x28, 0, 0, 12),  # ldh [12]: the ethertype
    (0x15, 1, 0, 0x0800),  # jeq IPv4, to the return of everything
    (0x15, 0, 1, 0x86DD),  # jeq IPv6, else to the return of nothing
    (0x06, 0, 0, 0xFFFF_FFFF),
    (0x06, 0, 0, 0),
)
"""A classic BPF program: (code, jump if true, jump if false, operand)."""


def peer_name(name: str) -> str:
    """The name of the socket's end of the pair."""
    return name[: interface.NAME_BYTES_MAX - len(_PEER_SUFFIX)] + _PEER_SUFFIX


def open_packet(name: str, mtu: int) -> Endpoint:
    """The endpoint behind device ``name`` in the current network namespace, link up.

    A pair that does not exist is made, and disappears when the endpoint is closed; one that was left by a
    process that was killed is taken over with its routes. Raises ValueError for a name or MTU that cannot be,
    PermissionError without CAP_NET_ADMIN and CAP_NET_RAW, OSError when the name belongs to another device.
    """
    interface.check_name(name)
    if not 68 <= mtu <= INNER_MTU_MAX:
        raise ValueError(f"the MTU of {name} must be 68 to {INNER_MTU_MAX}, not {mtu}")
    far = peer_name(name)
    made = _make_pair(name, far)
    try:
        return _open(name, far, mtu, made)
    except OSError:
        if made:
            interface.remove(name)
        raise


def _open(name: str, far: str, mtu: int, made: bool) -> Endpoint:
    for each in (name, far):
        interface.set_no_router_solicitation(each)
        interface.set_mtu(each, mtu)
        interface.set_flags(each, interface.NO_ARP, interface.MULTICAST)
    # Without ARP a device sends to its own address, and takes what comes for it.
    interface.set_hardware_address(name, NEAR_ADDRESS)
    interface.complete_packets(name)
    # Before its link is up: the first packet has to find the socket.
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        frame_bytes = 1 << (frame_bytes_for(mtu) - 1).bit_length()
        _prepare(opened, frame_bytes)
        ring = mmap.mmap(opened.fileno(), PACKET_RING_BYTES)
        opened.bind((far, _ETH_P_ALL))
        for each in (far, name):
            interface.set_flags(each, interface.UP)
    except OSError:
        opened.close()
        raise
    return _Opened(opened.detach(), ring, frame_bytes, name if made else None)


def _prepare(opened: socket.socket, frame_bytes: int) -> None:
    """Filter and ring of a socket that is not bound yet, so that nothing comes before them."""
    program = b"".join(struct.pack("HBBI", *step) for step in _IP_ONLY)
    memory = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(_IP_ONLY), ctypes.addressof(memory))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    # A link that has just come up drops what is queued on it for up to a second.
    opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    opened.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
    sizes = (_BLOCK_BYTES, PACKET_RING_BYTES // _BLOCK_BYTES, frame_bytes, PACKET_RING_BYTES // frame_bytes)
    opened.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("4I", *sizes))


class _Opened(Endpoint):
    """An endpoint with a ring, and a device to remove where we made it."""

    def __init__(self, descriptor: int, ring: mmap.mmap, frame_bytes: int, device: str | None) -> None:
        self._ring = ring
        self._lost = 0
        self._device = device
        address = int(np.frombuffer(ring, np.uint8).ctypes.data)
        super().__init__(descriptor, address, frame_bytes, PACKET_RING_BYTES // frame_bytes)

    @property
    def lost(self) -> int:
        """The kernel forgets its count when it is asked."""
        with socket.socket(fileno=os.dup(self.descriptor)) as opened:
            answer = opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._lost += struct.unpack("II", answer)[1]
        return self._lost

    def close(self) -> None:
        self._ring.close()
        super().close()
        if self._device is not None:
            # Somebody may have been faster, or it went with its namespace.
            with contextlib.suppress(OSError):
                interface.remove(self._device)


def _make_pair(name: str, far: str) -> bool:
    """Make the pair, unless it is there; returns whether it was made."""
    if {name, far} <= {each for _, each in socket.if_nameindex()}:
        return False
    interface.make_veth(name, far)
    return True
