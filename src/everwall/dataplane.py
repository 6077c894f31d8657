"""How packets come to a node's workers: the data interface, and the best port that it allows.

``everwall-port=auto`` takes the first port of ``PORTS`` that works here and says in one log line each why the
ones before it do not. A port that was asked for by name works or is an error.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from everwall.bootstrap.init_cfg import InitCfg
from everwall.ports import port as ports
from everwall.ports.interface import mtu_of
from everwall.ports.port import Port
from everwall.session.table import SharedTable

log = structlog.get_logger()


class DataPlaneError(RuntimeError):
    """Packets cannot come to this node; the message says why and what to do."""


@dataclass(frozen=True)
class DataInterface:
    """Where GENEVE and health checks arrive."""

    name: str
    address: str
    networks: tuple[ipaddress.IPv4Network, ...]
    mtu: int
    """Packet slots are as large as it asks for (``limits.frame_bytes_for``)."""


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
                    return DataInterface(name, wanted, (interface.network,), mtu_of(name))
        raise DataPlaneError(f"everwall-data-address {wanted} is not an address of this machine")
    present = [name for _, name in sorted(socket.if_nameindex()) if name != "lo"]
    data = config.interfaces(present)[0]
    if data is None:
        raise DataPlaneError("there is no network interface but loopback: set everwall-data-address")
    own = addresses.get(data, [])
    if not own:
        raise DataPlaneError(f"the data interface {data} is missing or has no IPv4 address")
    address = str(config.data_address or own[0].ip)
    return DataInterface(data, address, tuple(interface.network for interface in own), mtu_of(data))


def _addresses() -> dict[str, list[ipaddress.IPv4Interface]]:
    from pyroute2 import IPRoute  # slow to import, needed once

    found: dict[str, list[ipaddress.IPv4Interface]] = {}
    with IPRoute() as route:
        for message in route.get_addr(family=socket.AF_INET):
            name = socket.if_indextoname(message["index"])
            text = f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"
            found.setdefault(name, []).append(ipaddress.IPv4Interface(text))
    return found


@dataclass
class DataPlane:
    """The open ports of a node, one for each worker."""

    kind: str
    """``raw`` or ``udp``."""
    ports: list[Port]
    control: npt.NDArray[np.int64] | None = None
    """The words that the cut-through program reads, where there is one."""

    @property
    def shared(self) -> list[SharedTable | None]:
        """For each worker: what the program sees of its session table."""
        return [None] * len(self.ports)

    def close(self) -> None:
        """Let go of everything; the workers have stopped."""
        for each in self.ports:
            ports.close(each)


def open_data_plane(config: InitCfg, data: DataInterface) -> DataPlane:
    """Ports of the kind that ``everwall-port`` names, or of the best one; raises DataPlaneError."""
    kinds = ("raw", "udp") if config.port == "auto" else (config.port,)
    for kind in kinds:
        try:
            return _OPEN[kind](config, data)
        except DataPlaneError as error:
            if kind == kinds[-1]:
                raise
            log.info(f"no {kind} port", why=str(error))
    raise AssertionError("the last kind is open or has raised")


def _open_xdp(config: InitCfg, data: DataInterface) -> DataPlane:
    raise DataPlaneError("everwall-port=xdp is not there yet")


def _open_raw(config: InitCfg, data: DataInterface) -> DataPlane:
    # Without an address of its own: whatever comes to the interface.
    everything = config.data_address is None and data.name != "lo"
    device = data.name if data.name != "lo" else None
    try:
        return DataPlane(
            "raw", _one_each(config, ports.open_raw, "0.0.0.0" if everything else data.address, device)
        )
    except PermissionError as error:
        raise DataPlaneError("everwall-port=raw needs root (CAP_NET_RAW)") from error
    except OSError as error:
        raise _cannot_receive(data, error) from error


def _open_udp(config: InitCfg, data: DataInterface) -> DataPlane:
    try:
        return DataPlane("udp", _one_each(config, ports.open_udp, data.address))
    except OSError as error:
        raise _cannot_receive(data, error) from error


def _one_each(config: InitCfg, opener: Callable[..., Port], *arguments: object) -> list[Port]:
    """A socket port for each worker; where there are several, the system spreads packets over them."""
    opened: list[Port] = []
    try:
        for _ in range(config.workers):
            opened.append(opener(*arguments, shared=config.workers > 1))
    except OSError:
        for each in opened:
            ports.close(each)
        raise
    return opened


def _cannot_receive(data: DataInterface, error: OSError) -> DataPlaneError:
    return DataPlaneError(f"cannot receive GENEVE on {data.address}: {error.strerror or error}")


_OPEN: dict[str, Callable[[InitCfg, DataInterface], DataPlane]] = {
    "xdp": _open_xdp,
    "raw": _open_raw,
    "udp": _open_udp,
}
