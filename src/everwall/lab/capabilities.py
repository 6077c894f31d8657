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
from typing import NamedTuple

from everwall.lab import rundir, store, topology
from everwall.lab.launch import inside
from everwall.lab.processes import LabError, Programs
from everwall.limits import BUCKET_SLOTS, GENEVE_PORT
from everwall.ports.bpf import BpfError, CutThrough
from everwall.ports.port import close as close_port
from everwall.ports.port import open_xdp
from everwall.ports.umem import is_zero_copy

ROOT = "root"
LOOPBACK = "loopback"
XDP, RAW, UDP = "xdp", "raw", "udp"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000


@dataclass(frozen=True)
class Capability:
    """One thing that was tried."""

    name: str
    works: bool
    detail: str
    """Why not, or what was found."""
    needed_by: str
    """The rung that needs it, or ``xdp`` for the port of that name."""


class Choice(NamedTuple):
    """What the lab runs on."""

    rung: str
    port: str
    """Of the firewalls."""
    why: str
    """Why it is not the best port; empty where it is, or where it was asked for."""


def _try(name: str, needed_by: str, attempt: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, attempt(), needed_by)
    except (OSError, LabError, ImportError, BpfError) as error:
        reason = str(error).strip().splitlines()
        return Capability(name, False, reason[0] if reason else type(error).__name__, needed_by)
    except Exception as error:  # netlink has errors of its own
        return Capability(name, False, f"{type(error).__name__}: {error}", needed_by)


def _network() -> list[Capability]:
    """Builds the lab's own network for one firewall, tries what the parts of a lab do in it, and removes it."""
    directory = rundir.create()
    network = topology.Topology(directory, 1)
    try:
        found = [_try("network namespaces", ROOT, lambda: _namespaces(network))]
        if found[0].works:
            with contextlib.ExitStack() as opened, inside(network.path("fw1")):
                found += _xdp(opened)
        return found
    finally:
        network.remove()
        directory.close(remove=True)


def _namespaces(network: topology.Topology) -> str:
    network.build()
    with inside(network.path("gwlb")):
        _tun()
    with inside(network.path("fw1")):
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    with inside(network.path("clients")):
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "namespaces, veth, bridge, TUN and raw sockets"


def _xdp(opened: contextlib.ExitStack) -> list[Capability]:
    """What the xdp port does, step by step; the calling thread is in a firewall's namespace."""
    program: list[CutThrough] = []

    def load() -> str:
        program.append(CutThrough(workers=1, slots=BUCKET_SLOTS, queues=1))
        opened.callback(program[0].close)
        return "the cut-through and its maps"

    def attach() -> str:
        return f"{program[0].attach(topology.NODE_DATA_DEVICE)} on veth"

    def receive() -> str:
        port = open_xdp(topology.NODE_DATA_DEVICE, [0])
        opened.callback(close_port, port)
        return "zero-copy" if is_zero_copy(port) else "copy mode"

    found = [_try("BPF program", XDP, load)]
    if found[0].works:
        found.append(_try("XDP", XDP, attach))
    return [*found, _try("AF_XDP socket", XDP, receive)]


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
        *_network(),
        _try("session store", LOOPBACK, _store),
        _try("loopback addresses", LOOPBACK, _loopback),
    ]


def choose(rung: str | None = None, port: str | None = None) -> Choice:
    """What the lab takes here, of what was asked for (None: the best there is).

    Raises LabError, with the reason, where that is impossible.
    """
    if rung == LOOPBACK:
        return _on_loopback(port)
    found = _network()
    if rung is None and not (found[0].works and store.server_binary()):
        return _on_loopback(port)
    if not found[0].works:
        raise LabError(f"no {found[0].name}: {found[0].detail}")
    if port in (None, XDP):
        refused = next((each for each in found if each.needed_by == XDP and not each.works), None)
        if refused is None:
            return Choice(ROOT, XDP, "")
        why = f"no xdp port: {refused.name}: {refused.detail}"
        if port == XDP:
            raise LabError(why)
        return Choice(ROOT, RAW, why)
    return Choice(ROOT, port, "")


def _on_loopback(port: str | None) -> Choice:
    if port not in (None, UDP):
        raise LabError(f"--port {port} needs network namespaces, and these need root")
    return Choice(LOOPBACK, UDP, "")


def main() -> None:
    found = check()
    for each in found:
        print(f"{'yes' if each.works else 'no ':4}{each.name}: {each.detail}")
    works = {
        need: all(each.works for each in found if each.needed_by == need) for need in (ROOT, LOOPBACK, XDP)
    }
    if works[ROOT] and store.server_binary():
        print("The lab takes the root rung: namespaces, real TCP, a real store with TLS.")
        port = "xdp, with the cut-through" if works[XDP] else "raw, because of what says no above"
        print(f"Its firewalls take the port {port}.")
    elif works[LOOPBACK]:
        print("The lab takes the loopback rung: packet-level flows, no privileges.")
    else:
        print("The lab cannot run here; see the lines that say no.")


if __name__ == "__main__":
    main()
