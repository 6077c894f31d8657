"""A machine with a data and a management interface, and a router at the other end of both."""

from __future__ import annotations

import subprocess

from tests.namespaces import Network, carries, ip

DATA, MANAGEMENT = "10.77.1.1", "10.77.2.1"
"""The machine's addresses, on ``eth0`` and ``eth1``."""
DATA_PEER, MANAGEMENT_PEER = "10.77.1.2", "10.77.2.2"
ELSEWHERE = "10.77.9.9"
"""An address behind both links; the routing table prefers the one of ``eth0``."""


class TwoInterfaces:
    """``machine`` and ``router`` are network namespaces."""

    def __init__(self) -> None:
        self.machine, self.router = Network(), Network()
        with self.machine.entered():
            ip("link", "set", "lo", "up")
            for name in ("eth0", "eth1"):
                done = subprocess.run(
                    [
                        "ip",
                        "link",
                        "add",
                        name,
                        "mtu",
                        "1700",
                        "type",
                        "veth",
                        "peer",
                        "name",
                        name,
                        "mtu",
                        "1700",
                    ]
                    + ["netns", f"/proc/self/fd/{self.router.descriptor}"],
                    capture_output=True,
                    text=True,
                    check=False,
                    pass_fds=[self.router.descriptor],
                )
                assert done.returncode == 0, done.stderr
            _up("eth0", DATA)
            _up("eth1", MANAGEMENT)
        with self.router.entered():
            ip("link", "set", "lo", "up")
            ip("addr", "add", f"{ELSEWHERE}/32", "dev", "lo")
            _up("eth0", DATA_PEER)
            _up("eth1", MANAGEMENT_PEER)
        for network in (self.machine, self.router):
            with network.entered():
                carries("eth0")
                carries("eth1")
        with self.machine.entered():
            ip("route", "add", "default", "via", DATA_PEER, "metric", "10")
            ip("route", "add", "default", "via", MANAGEMENT_PEER, "metric", "20")

    def close(self) -> None:
        self.machine.close()
        self.router.close()


def _up(interface: str, address: str) -> None:
    ip("addr", "add", f"{address}/24", "dev", interface)
    ip("link", "set", interface, "up")
