"""TUN devices: the kernel routes packets into an endpoint of the load balancer, and on from it.

That is what route tables of a cloud do with a gateway load balancer endpoint. Packets are bare IP,
one for each read and write (``ports/endpoint.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

from everwall.ports.endpoint import PACKET_BYTES_MAX

DEVICE = "/dev/net/tun"
NAME_BYTES_MAX = 15

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFMTU = 0x8922
_IFF_UP = 0x1


def open_tun(name: str, mtu: int) -> int:
    """The descriptor of TUN device ``name`` in the current network namespace, non-blocking, link up.

    A device that does not exist is made, and disappears when the descriptor is closed. Raises
    ValueError for a name or MTU that cannot be, PermissionError without CAP_NET_ADMIN, OSError when
    somebody else has the device open or there is no TUN driver.
    """
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise ValueError(f"a device name has 1 to {NAME_BYTES_MAX} bytes, not {name!r}")
    if not 68 <= mtu <= PACKET_BYTES_MAX:
        raise ValueError(f"the MTU of {name} must be 68 to {PACKET_BYTES_MAX}, not {mtu}")
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _request(name, "H22x", _IFF_TUN | _IFF_NO_PI))
        _quiet(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFMTU, _request(name, "i20x", mtu))
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _request(name, "H22x", 0))
            (flags,) = struct.unpack("16xH22x", answer)
            fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, "H22x", flags | _IFF_UP))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _request(name: str, form: str, value: int) -> bytes:
    """A ``struct ifreq`` of 40 bytes."""
    return struct.pack("16s" + form, name.encode(), value)


def _quiet(name: str) -> None:
    """No IPv6 address of its own: else the kernel would send its router solicitations to the targets."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1")
