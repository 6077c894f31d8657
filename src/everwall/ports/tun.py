"""TUN devices: the kernel routes packets into an endpoint of the load balancer, and on from it.

That is what route tables of a cloud do with a gateway load balancer endpoint. Packets are bare IP,
one for each read and write (``ports/endpoint.py``).
"""

from __future__ import annotations

import fcntl
import os

from everwall.limits import INNER_MTU_MAX
from everwall.ports import interface

DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000


def open_tun(name: str, mtu: int) -> int:
    """The descriptor of TUN device ``name`` in the current network namespace, non-blocking, link up.

    A device that does not exist is made, and disappears when the descriptor is closed. Raises
    ValueError for a name or MTU that cannot be, PermissionError without CAP_NET_ADMIN, OSError when
    somebody else has the device open or there is no TUN driver.
    """
    interface.check_name(name)
    if not 68 <= mtu <= INNER_MTU_MAX:
        raise ValueError(f"the MTU of {name} must be 68 to {INNER_MTU_MAX}, not {mtu}")
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, interface.request(name, "H", _IFF_TUN | _IFF_NO_PI))
        interface.set_no_router_solicitation(name)
        interface.set_mtu(name, mtu)
        # Without multicast, since membership reports of the kernel are nobody's traffic.
        interface.set_flags(name, interface.UP, interface.MULTICAST)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
