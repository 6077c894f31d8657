"""How packets come to a node's workers: the data interface, the best port that it allows, the cut-through.

``everwall-port=auto`` takes the first of xdp, raw and udp that works here, and says in one log line each why the
ones before it do not. A port that was asked for by name works or is an error.

The xdp port is two things: a program on the interface that decides which packets are ours, and one AF_XDP socket for
each of its queues. What is not ours (ARP, health checks, other protocols) goes on to the kernel. With
``everwall-cut-through=on`` the program also shares the workers' session tables, and answers what they have
marked without waking them.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import numpy as np
import numpy.typing as npt
import structlog

from everwall.bootstrap.init_cfg import InitCfg
from everwall.limits import SESSIONS_MIN, sessions_per_worker
from everwall.ports import port as ports
from everwall.ports.bpf import BpfError, CutThrough, Outcome
from everwall.ports.interface import mtu_of
from everwall.ports.port import Port
from everwall.ports.umem import is_zero_copy, needs_pieces
from everwall.session import control as words
from everwall.session.table import SharedTable, slots_for

log = structlog.get_logger()

_CUT_THROUGH = "cut-through-"
_PORT = "port-"
BOUNCED = _CUT_THROUGH + Outcome.BOUNCED.label
"""The counter of packets that the program answered."""
BOUNCED_BYTES = _CUT_THROUGH + Outcome.BOUNCED_BYTES.label

_SIOCETHTOOL = 0x8946
_ETHTOOL_GCHANNELS = 0x3C
# Of struct ethtool_channels: command, four maxima, then the counts of receive, transmit, other and combined.
_CHANNELS_RECEIVE = 5
_CHANNELS_COMBINED = 8


class DataPlaneError(RuntimeError):
    """Packets cannot come to this node; the message says why and what to do."""


@dataclass(frozen=True)
class DataInterface:
    """Where GENEVE and health checks arrive."""

    name: str
    address: str
    interfaces: tuple[IPv4Interface, ...]
    """The addresses of the interface with their subnets."""
    mtu: int
    """Packet slots are as large as it asks for (``limits.frame_bytes_for``)."""

    @property
    def where(self) -> str:
        """For log lines."""
        return f"{self.name} {self.address}"

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        return tuple(interface.network for interface in self.interfaces)


@dataclass(frozen=True)
class ManagementInterface:
    """Where the store, and whatever else is management, is reached."""

    name: str
    addresses: tuple[str, ...]
    """IPv4 and IPv6, without those of the link."""
    shared: bool
    """It carries data as well, or cannot be used by itself: the routing table decides."""

    @property
    def where(self) -> str:
        """For log lines."""
        return " ".join((self.name, ", ".join(self.addresses))).strip()

    @property
    def device(self) -> str | None:
        """The interface that management's sockets are bound to."""
        return None if self.shared else self.name


def find_management_interface(config: InitCfg, data: DataInterface) -> ManagementInterface:
    """The management interface that goes with a data interface. Raises DataPlaneError for one that is not there."""
    present = [name for _, name in sorted(socket.if_nameindex()) if name != "lo"]
    name = replace(config, data_interface=data.name).interfaces(present)[1] or data.name
    if data.name == "lo" or name == data.name:
        return ManagementInterface(data.name, (data.address,), shared=True)
    if name not in present:
        raise DataPlaneError(f"the management interface {name} is missing")
    addresses = tuple(_all_addresses(name))
    return ManagementInterface(name, addresses, shared=not addresses)


def describe_interfaces(
    config: InitCfg, data: DataInterface, management: ManagementInterface
) -> tuple[str, list[str]]:
    """Why each is what it is, and a warning for whatever this machine has not as the configuration wants it."""
    why = f"mgmt-interface-swap is {'on' if config.mgmt_interface_swap else 'off'}"
    warnings = []
    if management.name == data.name:
        why = f"there is one interface for both: {why}, and nothing is swapped"
    elif not management.addresses:
        warnings.append(
            f"the management interface {management.name} has no address: the routing table decides how the store is "
            "reached"
        )
    for wanted in (config.networking.address, config.networking.address6):
        if wanted is not None and str(wanted.ip) not in management.addresses:
            warnings.append(
                f"type=static: {wanted.ip} is not an address of {management.name}; the system sets addresses, "
                "Everwall does not"
            )
    return why, warnings


def find_data_interface(config: InitCfg) -> DataInterface:
    """The interface, address and subnets that the configuration means on this machine.

    Raises DataPlaneError when there is no such interface or it has no IPv4 address.
    """
    addresses = _addresses()
    if config.data_interface is None and config.data_address is not None:
        wanted = str(config.data_address)
        for name, networks in addresses.items():
            for interface in networks:
                if str(interface.ip) == wanted or (name == "lo" and config.data_address in interface.network):
                    return DataInterface(name, wanted, (interface,), mtu_of(name))
        raise DataPlaneError(f"everwall-data-address {wanted} is not an address of this machine")
    present = [name for _, name in sorted(socket.if_nameindex()) if name != "lo"]
    data = config.interfaces(present)[0]
    if data is None:
        raise DataPlaneError("there is no network interface but loopback: set everwall-data-address")
    own = addresses.get(data, [])
    if not own:
        raise DataPlaneError(f"the data interface {data} is missing or has no IPv4 address")
    address = str(config.data_address or own[0].ip)
    return DataInterface(data, address, tuple(own), mtu_of(data))


def _addresses() -> dict[str, list[IPv4Interface]]:
    from pyroute2 import IPRoute  # slow to import, needed once

    found: dict[str, list[IPv4Interface]] = {}
    with IPRoute() as route:
        for message in route.get_addr(family=socket.AF_INET):
            name = socket.if_indextoname(message["index"])
            text = f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"
            found.setdefault(name, []).append(IPv4Interface(text))
    return found


def _all_addresses(interface: str) -> list[str]:
    from pyroute2 import IPRoute  # slow to import, needed once

    with IPRoute() as route:
        index = socket.if_nametoindex(interface)
        messages = list(route.get_addr(index=index))
    found = [each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS") for each in messages]
    return [text for text in found if not ipaddress.ip_address(text).is_link_local]


@dataclass(frozen=True)
class Wish:
    """What a node asks for."""

    config: InitCfg
    data: DataInterface
    sources: tuple[IPv4Network, ...]
    """Whose GENEVE is believed."""
    seed: int
    """Of the flow hash."""

    @property
    def everything(self) -> bool:
        """Receive on all addresses of the interface, not on one only."""
        return self.config.data_address is None and self.data.name != "lo"


@dataclass
class DataPlane:
    """The open ports of a node, one for each worker, and the program that stands before them."""

    kind: str
    """``xdp``, ``raw`` or ``udp``."""
    ports: list[Port]
    detail: str = ""
    """Which way of the kind it is, in words."""
    without: str = ""
    """Why there is no cut-through; empty where there is one."""
    program: CutThrough | None = None
    """Of the xdp port."""
    shared: list[SharedTable | None] = field(default_factory=list)
    """For each worker: what the program sees of its session table."""

    @property
    def control(self) -> npt.NDArray[np.int64] | None:
        """The words that the program reads, with a cut-through."""
        return None if self.without or self.program is None else self.program.control

    def counters(self) -> dict[str, int]:
        """What the program did with packets, and what became of them before the ports had them, by name."""
        if self.program is None:
            return {}
        counts = {f"{_CUT_THROUGH}{name}": count for name, count in self.program.counters().items()}
        for port in self.ports:
            for name, count in ports.statistics(port).items():
                counts[f"{_PORT}{name}"] = counts.get(f"{_PORT}{name}", 0) + count
        return counts

    def close(self) -> None:
        """Let go of everything, the program first; the workers have stopped."""
        if self.program is not None:
            self.program.close()
        for each in self.ports:
            ports.close(each)


def open_data_plane(wish: Wish) -> DataPlane:
    """The port that was asked for, or the best one; raises DataPlaneError."""
    kinds = tuple(_OPEN) if wish.config.port == "auto" else (wish.config.port,)
    for kind in kinds:
        try:
            return _OPEN[kind](wish)
        except DataPlaneError as error:
            if kind == kinds[-1]:
                raise
            # One line: what the kernel's verifier said follows in others.
            log.info(f"no {kind} port", why=str(error).partition("\n")[0])
    raise AssertionError("the last kind is open or has raised")


# The xdp port -----------------------------------------------------------------------------------------


def _open_xdp(wish: Wish) -> DataPlane:
    config, interface = wish.config, wish.data.name
    if interface == "lo":
        raise DataPlaneError("loopback has no native XDP")
    without = "" if config.cut_through else "everwall-cut-through is off"
    # Without a cut-through nobody fills the program's table.
    sessions = SESSIONS_MIN if without else sessions_per_worker(config.max_sessions, config.workers)
    slots = slots_for(sessions)
    queues = receive_queues(interface)
    plane = DataPlane("xdp", [], without=without)
    try:
        frags = needs_pieces(wish.data.mtu)
        program = plane.program = CutThrough(workers=config.workers, slots=slots, queues=queues, frags=frags)
        for worker in range(config.workers):
            own = slice(worker * slots, (worker + 1) * slots)
            table = SharedTable(program.hot[own], program.tags[own], program.addresses[own])
            plane.shared.append(None if without else table)
            plane.ports.append(_xdp_port(wish, range(worker, queues, config.workers)))
        _configure(program, wish)
        for port in plane.ports:
            for q, (queue, descriptor) in enumerate(ports.queue_sockets(port)):
                program.set_socket(queue, descriptor)
                ports.tell_room(port, q, program.room_at(queue))
        # Last: from here on packets are ours. What comes before the workers run waits in the sockets.
        attached = program.attach(interface)
    except (BpfError, OSError) as error:
        plane.close()
        raise DataPlaneError(str(error)) from error
    copies = "zero-copy" if is_zero_copy(plane.ports[0]) else "copy mode"
    plane.detail = f"{attached} XDP, {copies}, {queues} queue{'s' if queues > 1 else ''}"
    return plane


def _xdp_port(wish: Wish, queues: range) -> Port:
    if not queues:
        # More workers than queues: this one gets all its packets from the others, and sends them by itself. If it
        # received, it would be what the program leaves to the kernel, and hand others what their queues cannot send.
        return ports.open_raw_sender(wish.data.name)
    return ports.open_xdp(wish.data.name, list(queues))


def _configure(program: CutThrough, wish: Wish) -> None:
    """Tell the program what is ours; what it has no room for, it hands up for the engine to decide."""
    sources = list(ipaddress.collapse_addresses(wish.sources))
    if len(sources) > words.SOURCES_MAX and wish.config.cut_through:
        log.warning(
            f"only the first {words.SOURCES_MAX} GENEVE sources have the cut-through", of=len(sources)
        )
    addresses = [IPv4Address(wish.data.address)]
    if wish.everything:
        addresses = [each.ip for each in wish.data.interfaces]
    if len(addresses) > words.ADDRESSES_MAX:
        addresses = []  # every one
    program.configure(seed=wish.seed, sources=sources, addresses=addresses)
    program.control[words.ENABLED] = int(wish.config.cut_through)


def receive_queues(interface: str) -> int:
    """Receive queues in use, by ETHTOOL_GCHANNELS: sysfs shows another network namespace's interfaces."""
    channels = (ctypes.c_uint32 * 9)(_ETHTOOL_GCHANNELS)
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(channels))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
        except OSError:
            return 1  # a driver that does not say has one
    return max(1, channels[_CHANNELS_RECEIVE] + channels[_CHANNELS_COMBINED])


# Sockets ----------------------------------------------------------------------------------------------


def _open_raw(wish: Wish) -> DataPlane:
    data = wish.data
    device = data.name if data.name != "lo" else None
    try:
        return _one_each("raw", wish, ports.open_raw, "0.0.0.0" if wish.everything else data.address, device)
    except PermissionError as error:
        raise DataPlaneError("everwall-port=raw needs root (CAP_NET_RAW)") from error
    except OSError as error:
        raise _cannot_receive(data, error) from error


def _open_udp(wish: Wish) -> DataPlane:
    try:
        return _one_each("udp", wish, ports.open_udp, wish.data.address)
    except OSError as error:
        raise _cannot_receive(wish.data, error) from error


def _one_each(kind: str, wish: Wish, opener: Callable[..., Port], *arguments: object) -> DataPlane:
    """A socket port for each worker; where there are several, the system spreads packets over them."""
    workers = wish.config.workers
    plane = DataPlane(kind, [], without="only the xdp port has it", shared=[None] * workers)
    try:
        for _ in range(workers):
            plane.ports.append(opener(*arguments, shared=workers > 1))
    except OSError:
        plane.close()
        raise
    return plane


def _cannot_receive(data: DataInterface, error: OSError) -> DataPlaneError:
    return DataPlaneError(f"cannot receive GENEVE on {data.address}: {error.strerror or error}")


_OPEN: dict[str, Callable[[Wish], DataPlane]] = {"xdp": _open_xdp, "raw": _open_raw, "udp": _open_udp}
"""In the order in which ``auto`` tries them."""
