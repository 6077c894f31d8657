"""A network interface of the current namespace: its MTU, flags, address and offloads; a veth pair made.

By ioctl and rtnetlink, a message at a time: what a process may do in the middle of its event loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

NAME_BYTES_MAX = 15

UP = 0x1
NO_ARP = 0x80
MULTICAST = 0x1000

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SIOCSIFHWADDR = 0x8924
_SIOCETHTOOL = 0x8946
_ARPHRD_ETHER = 1

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCLUSIVE, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_IFLA_NAME, _IFLA_LINKINFO = 3, 18
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1

_ETHTOOL_GET_TX_CHECKSUM = 0x16
_ETHTOOL_SET_TX_CHECKSUM = 0x17
_ETHTOOL_SET_TSO = 0x1F
_ETHTOOL_SET_GSO = 0x24


def request(name: str, form: str, *values: object) -> bytes:
    """A ``struct ifreq`` of 40 bytes."""
    return struct.pack("16s" + form, name.encode(), *values).ljust(40, b"\0")


def check_name(name: str) -> None:
    """Raises ValueError for what cannot be the name of a device."""
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise ValueError(f"a device name has 1 to {NAME_BYTES_MAX} bytes, not {name!r}")


def _ask(number: int, argument: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, number, argument)


def mtu_of(name: str) -> int:
    """Raises OSError when there is no such device."""
    answer: tuple[int] = struct.unpack("16xi20x", _ask(_SIOCGIFMTU, request(name, "i", 0)))
    return answer[0]


def set_mtu(name: str, mtu: int) -> None:
    """Raises OSError, also for an MTU that the device cannot have."""
    _ask(_SIOCSIFMTU, request(name, "i", mtu))


def set_flags(name: str, on: int, off: int = 0) -> None:
    """Set and clear interface flags (``UP``, ``NO_ARP``, ``MULTICAST``); raises OSError."""
    (flags,) = struct.unpack("16xH22x", _ask(_SIOCGIFFLAGS, request(name, "H", 0)))
    _ask(_SIOCSIFFLAGS, request(name, "H", (flags | on) & ~off))


def set_hardware_address(name: str, address: bytes) -> None:
    """Give an Ethernet device its address of 6 bytes; raises OSError."""
    _ask(_SIOCSIFHWADDR, request(name, "H6s", _ARPHRD_ETHER, address))


def set_no_router_solicitation(name: str) -> None:
    """No IPv6 address of its own: else the kernel would send its router solicitations."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1")


def complete_packets(name: str) -> None:
    """Have the kernel finish what it sends into the device: checksums written, no packet above the MTU.

    Without this a sender of the same machine leaves transport checksums to the "hardware", and hands over up to
    64 kB at a time. Raises OSError when the device keeps its offloads.
    """
    for command in (_ETHTOOL_SET_TSO, _ETHTOOL_SET_GSO, _ETHTOOL_SET_TX_CHECKSUM):
        _ethtool(name, command, 0)
    if _ethtool(name, _ETHTOOL_GET_TX_CHECKSUM, 0):
        raise OSError(f"{name} leaves checksums to the hardware and cannot be told not to")


def _ethtool(name: str, command: int, value: int) -> int:
    """One ``struct ethtool_value``: command and number."""
    words = (ctypes.c_uint32 * 2)(command, value)
    _ask(_SIOCETHTOOL, request(name, "P", ctypes.addressof(words)))
    return int(words[1])


# Devices made and removed ---------------------------------------------------------------------------


def make_veth(name: str, peer: str) -> None:
    """Make a pair of virtual Ethernet devices; raises OSError, FileExistsError when a name is taken."""
    far = _attribute(_VETH_PEER, _link() + _attribute(_IFLA_NAME, peer.encode() + b"\0"))
    info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, far)
    asked = _attribute(_IFLA_NAME, name.encode() + b"\0") + _attribute(_IFLA_LINKINFO, info)
    _netlink(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCLUSIVE, _link() + asked)


def remove(name: str) -> None:
    """Remove a device, of a pair both; raises OSError when it is gone already."""
    _netlink(_RTM_DELLINK, 0, _link(socket.if_nametoindex(name)))


def _link(index: int = 0) -> bytes:
    """A ``struct ifinfomsg``."""
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("HH", length, kind) + value + b"\0" * (-length % 4)


def _netlink(kind: int, flags: int, body: bytes) -> None:
    """One request and its acknowledgement; raises OSError as the kernel answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        flags |= _NLM_F_REQUEST | _NLM_F_ACK
        kernel.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answered, number = struct.unpack_from("4xH10xi", kernel.recv(1 << 16))
    assert answered == _NLMSG_ERROR, "an acknowledgement is an error of number 0"
    if number:
        raise OSError(-number, os.strerror(-number))
