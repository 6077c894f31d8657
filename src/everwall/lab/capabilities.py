"""What this machine allows, found out by doing it; and which rung the lab takes because of that.

``python -m everwall.lab.capabilities`` prints the table.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from everwall.lab import rundir, store, topology
from everwall.lab.launch import inside
from everwall.lab.processes import LabError, Programs
from everwall.limits import GENEVE_PORT

ROOT = "root"
LOOPBACK = "loopback"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000


@dataclass(frozen=True)
class Capability:
    """One thing that was tried."""

    name: str
    works: bool
    detail: str
    """Why not, or what was found."""
    rung: str
    """The rung that needs it; empty when no rung depends on it."""


def _try(name: str, rung: str, attempt: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, attempt(), rung)
    except (OSError, LabError, ImportError) as error:
        reason = str(error).strip().splitlines()
        return Capability(name, False, reason[0] if reason else type(error).__name__, rung)
    except Exception as error:  # netlink has errors of its own
        return Capability(name, False, f"{type(error).__name__}: {error}", rung)


def _namespaces() -> str:
    """Builds the lab's own network for one firewall, and takes it down again."""
    directory = rundir.create()
    network = topology.Topology(directory, 1)
    try:
        network.build()
        with inside(network.path("gwlb")):
            _tun()
        with inside(network.path("fw1")):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
        with inside(network.path("clients")):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    finally:
        network.remove()
        directory.close(remove=True)
    return "namespaces, veth, bridge, TUN and raw sockets"


def _tun() -> None:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"everwall-probe", _IFF_TUN_NO_PI))
    finally:
        os.close(descriptor)


def _store() -> str:
    """Starts the store the lab would use, and speaks with it once."""
    directory = rundir.create()
    programs = Programs(directory)
    try:
        host = "127.0.0.1"
        started = store.start(programs, host, store.free_port(host), None)
        binary = store.server_binary() or store.embedded_binary()
        return f"{binary}, {'TLS' if started.tls else 'no TLS'} and AUTH"
    finally:
        programs.stop()
        directory.close(remove=True)


def _loopback() -> str:
    """Binds the ports of two nodes on two loopback addresses."""
    with contextlib.ExitStack() as opened:
        for host in ("127.63.1.1", "127.63.1.11"):
            geneve = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            geneve.bind((host, GENEVE_PORT))
    return f"UDP {GENEVE_PORT} on several addresses of 127.0.0.0/8"


def check() -> list[Capability]:
    """Try everything; takes about a second."""
    return [
        _try("network namespaces", ROOT, _namespaces),
        _try("session store", LOOPBACK, _store),
        _try("loopback addresses", LOOPBACK, _loopback),
    ]


def rung() -> str:
    """The rung the lab takes here; raises LabError when there is none."""
    if _try("network namespaces", ROOT, _namespaces).works and store.server_binary():
        return ROOT
    return LOOPBACK


def main() -> None:
    found = check()
    for each in found:
        print(f"{'yes' if each.works else 'no ':4}{each.name}: {each.detail}")
    if all(each.works for each in found if each.rung == ROOT) and store.server_binary():
        print("The lab takes the root rung: namespaces, real TCP, a real store with TLS.")
    elif all(each.works for each in found if each.rung == LOOPBACK):
        print("The lab takes the loopback rung: packet-level flows, no privileges.")
    else:
        print("The lab cannot run here; see the lines that say no.")


if __name__ == "__main__":
    main()
