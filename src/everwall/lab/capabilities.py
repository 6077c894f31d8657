"""What this machine allows, found out by doing it; and which rung the lab takes because of that.

``python -m everwall.lab.capabilities`` prints the table.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from everwall.lab import rundir, store, topology, user_namespace
from everwall.lab.launch import inside
from everwall.lab.processes import LabError, Programs
from everwall.limits import BUCKET_SLOTS, GENEVE_PORT
from everwall.ports.bpf import BpfError, CutThrough
from everwall.ports.packet import open_packet
from everwall.ports.port import close as close_port
from everwall.ports.port import open_xdp
from everwall.ports.umem import is_zero_copy

ROOT = "root"
USER_NAMESPACE = "user-namespace"
LOOPBACK = "loopback"
XDP, RAW, UDP = "xdp", "raw", "udp"
_INSIDE = "--inside"
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
    why_rung: str = ""
    """Why it is not a better rung; empty where there is none, or where it was asked for."""


def _try(name: str, needed_by: str, attempt: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, attempt(), needed_by)
    except (OSError, LabError, ImportError, BpfError) as error:
        reason = str(error).strip().splitlines()
        return Capability(name, False, reason[0] if reason else type(error).__name__, needed_by)
    except Exception as error:  # netlink has errors of its own
        return Capability(name, False, f"{type(error).__name__}: {error}", needed_by)


@contextlib.contextmanager
def _network() -> Iterator[topology.Topology]:
    """The lab's network for one firewall, not built yet, and removed afterwards."""
    directory = rundir.create()
    network = topology.Topology(directory, 1)
    try:
        yield network
    finally:
        network.remove()
        directory.close(remove=True)


def _root() -> list[Capability]:
    """Tries what the parts of a lab do in its network: the root rung, and the xdp port on it."""
    with _network() as network:
        found = [_try("network namespaces", ROOT, lambda: _namespaces(network, _tun))]
        if found[0].works:
            with contextlib.ExitStack() as opened, inside(network.path("fw1")):
                found += _xdp(opened)
        return found


def _user_namespace() -> str:
    """Tries the same in a user namespace of our own, with packet sockets; raises LabError."""
    user_namespace.run([sys.executable, "-m", "everwall.lab.capabilities", _INSIDE])
    return "namespaces, veth, bridge, packet and raw sockets, all within a user namespace"


def _inside_user_namespace() -> None:
    """The part of ``_user_namespace`` that runs in there; ends with the reason as its last line."""
    with _network() as network:
        found = _try("", USER_NAMESPACE, lambda: _namespaces(network, _packet))
    if not found.works:
        sys.exit(found.detail)


def _namespaces(network: topology.Topology, endpoint: Callable[[], None]) -> str:
    if os.geteuid() != 0:
        raise LabError("we are not root")
    network.build()
    with inside(network.path("gwlb")):
        endpoint()
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


def _packet() -> None:
    open_packet(topology.ENDPOINT_DEVICE, topology.MTU).close()


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
    """Try everything; takes two seconds."""
    return [
        *_root(),
        _try("user namespace", USER_NAMESPACE, _user_namespace),
        _try("session store", LOOPBACK, _store),
        _try("loopback addresses", LOOPBACK, _loopback),
    ]


def choose(rung: str | None = None, port: str | None = None) -> Choice:
    """What the lab takes here, of what was asked for (None: the best there is).

    Raises LabError, with the reason, where that is impossible.
    """
    if user_namespace.is_inside():
        return _in_user_namespace(port, "")
    if rung == LOOPBACK:
        return _on_loopback(port, "")
    refused = []
    if rung in (None, ROOT):
        found = _root()
        if found[0].works and store.server_binary():
            return _as_root(found, port)
        refused.append(f"not the root rung: {_missing(found[0])}")
    if rung in (None, USER_NAMESPACE):
        tried = _try("user namespace", USER_NAMESPACE, _user_namespace)
        if tried.works and store.server_binary():
            return _in_user_namespace(port, "; ".join(refused))
        refused.append(f"not in a user namespace: {_missing(tried)}")
    if rung is not None:
        raise LabError(refused[0])
    return _on_loopback(port, "; ".join(refused))


def _missing(tried: Capability) -> str:
    """Why a rung with namespaces is none for us: what was tried, or the store that it wants besides."""
    return "there is no redis-server or valkey-server" if tried.works else tried.detail


def _as_root(found: list[Capability], port: str | None) -> Choice:
    if port not in (None, XDP):
        return Choice(ROOT, port, "")
    refused = next((each for each in found if each.needed_by == XDP and not each.works), None)
    if refused is None:
        return Choice(ROOT, XDP, "")
    why = f"no xdp port: {refused.name}: {refused.detail}"
    if port == XDP:
        raise LabError(why)
    return Choice(ROOT, RAW, why)


def _in_user_namespace(port: str | None, why: str) -> Choice:
    if port == XDP:
        raise LabError("--port xdp loads a BPF program, and that needs root")
    return Choice(USER_NAMESPACE, port or RAW, "" if port else "BPF programs are for root", why)


def _on_loopback(port: str | None, why: str) -> Choice:
    if port not in (None, UDP):
        raise LabError(f"--port {port} needs network namespaces" + (f": {why}" if why else ""))
    return Choice(LOOPBACK, UDP, "", why)


def main() -> None:
    if sys.argv[1:] == [_INSIDE]:
        _inside_user_namespace()
        return
    found = check()
    for each in found:
        print(f"{'yes' if each.works else 'no ':4}{each.name}: {each.detail}")
    works = {
        need: all(each.works for each in found if each.needed_by == need)
        for need in (ROOT, USER_NAMESPACE, LOOPBACK, XDP)
    }
    real_store = store.server_binary() is not None
    if works[ROOT] and real_store:
        print("The lab takes the root rung: namespaces, real TCP, a real store with TLS.")
        port = "xdp, with the cut-through" if works[XDP] else "raw, because of what says no above"
        print(f"Its firewalls take the port {port}.")
    elif works[USER_NAMESPACE] and real_store:
        print("The lab takes the user-namespace rung: the same without root, and without XDP.")
    elif works[LOOPBACK]:
        print("The lab takes the loopback rung: packet-level flows, no privileges.")
    else:
        print("The lab cannot run here; see the lines that say no.")


if __name__ == "__main__":
    main()
