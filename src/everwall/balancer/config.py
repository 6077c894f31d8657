"""The load balancer's configuration: one YAML file whose keys are AWS's attribute names where AWS has one.

Ranges are AWS's as well, but times may be shorter where AWS begins at two or five seconds: a lab or a
rack does not have to wait as long as a region. The table of all keys is in docs/gwlb.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from everwall.config import ConfigError, Node, load_yaml
from everwall.limits import (
    GENEVE_PORT,
    GWLB_ENDPOINTS_MAX,
    GWLB_FLOWS_DEFAULT,
    GWLB_TARGETS_MAX,
    INNER_MTU_MAX,
    LB_IDLE_TCP_S,
    SESSIONS_MAX,
    SESSIONS_MIN,
)

_VPC_ENDPOINT = re.compile(r"(?:vpce-|0x)0*([0-9a-fA-F]{1,16})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_DEVICE = re.compile(r"[^\s/]{1,15}")
_PATH = re.compile(r"/[\x21-\x7e]{0,1023}")
_ENDPOINT_KINDS = ("tun", "packet", "udp")
_ON_UNHEALTHY = "target_failover.on_unhealthy"
_ON_DEREGISTRATION = "target_failover.on_deregistration"

MTU_MIN = 576

Value = TypeVar("Value")
AddressPort = tuple[str, int]


@dataclass(frozen=True)
class EndpointConfig:
    """One gateway load balancer endpoint: a device that the kernel routes into or, without privilege, UDP."""

    id: int
    """64 bits as int64, as the data path holds them."""
    kind: str
    """``tun``, ``packet`` or ``udp``."""
    device: str | None = None
    mtu: int = 1500
    """Of the device; packets by UDP may be as long."""
    listen: AddressPort | None = None
    """Own address where inner packets come in as datagrams."""
    peer: AddressPort | None = None
    """Where they come from and go to."""

    @property
    def place(self) -> str:
        """The device or the address, for people."""
        return self.device or "udp {}:{}".format(*self.listen or ("", 0))


@dataclass(frozen=True)
class TargetConfig:
    """One registered target."""

    id: str
    address: str


@dataclass(frozen=True)
class GwlbConfig:
    """The file as a whole; times in seconds."""

    address: str
    endpoints: tuple[EndpointConfig, ...]
    targets: tuple[TargetConfig, ...] = ()
    device: str | None = None
    transport: str = "auto"
    max_flows: int = GWLB_FLOWS_DEFAULT
    health_check_protocol: str = "TCP"
    health_check_port: int = 80
    health_check_path: str = "/"
    health_check_interval: float = 10.0
    health_check_timeout: float = 5.0
    healthy_threshold: int = 5
    unhealthy_threshold: int = 2
    matcher: tuple[tuple[int, int], ...] = ((200, 399),)
    rebalance: bool = False
    deregistration_delay: float = 300.0
    tcp_idle: int = LB_IDLE_TCP_S


KEYS = (
    "address",
    "device",
    "transport",
    "max_flows",
    "endpoints",
    "targets",
    "protocol",
    "port",
    "health_check_protocol",
    "health_check_port",
    "health_check_path",
    "health_check_interval_seconds",
    "health_check_timeout_seconds",
    "healthy_threshold_count",
    "unhealthy_threshold_count",
    "matcher",
    _ON_UNHEALTHY,
    _ON_DEREGISTRATION,
    "deregistration_delay.timeout_seconds",
    "tcp.idle_timeout.seconds",
)


def load(path: str | Path, text: str | None = None) -> GwlbConfig:
    """The configuration in the file at ``path``; ``text`` replaces reading it.

    Raises ConfigError, which names file, line, key, value and what was expected.
    """
    node = load_yaml(path, text)
    if node is None:
        raise ConfigError(path, "the keys address and endpoints (see docs/gwlb.md)", line=1)
    keys = node.mapping(KEYS, required=("address", "endpoints"))

    def read(key: str, reader: Callable[[Node], Value], default: Value) -> Value:
        return reader(keys[key]) if key in keys else default

    # Of AWS's target group, so that its attributes can be pasted; there is no other value.
    read("protocol", lambda value: value.one_of("GENEVE"), "")
    read("port", lambda value: value.one_of(str(GENEVE_PORT)), "")
    interval = read("health_check_interval_seconds", _seconds(0.05, 300), 10.0)
    return GwlbConfig(
        address=_address(keys["address"]),
        endpoints=_endpoints(keys["endpoints"]),
        targets=read("targets", _targets, ()),
        device=read("device", _device, None),
        transport=read("transport", lambda value: value.one_of("auto", "raw", "udp"), "auto"),
        max_flows=read("max_flows", _whole(SESSIONS_MIN, SESSIONS_MAX), GWLB_FLOWS_DEFAULT),
        health_check_protocol=read(
            "health_check_protocol", lambda value: value.one_of("TCP", "HTTP", "HTTPS"), "TCP"
        ),
        health_check_port=read("health_check_port", _whole(1, 65535), 80),
        health_check_path=read("health_check_path", _path, "/"),
        health_check_interval=interval,
        health_check_timeout=_timeout(node, keys, interval),
        healthy_threshold=read("healthy_threshold_count", _whole(2, 10), 5),
        unhealthy_threshold=read("unhealthy_threshold_count", _whole(2, 10), 2),
        matcher=read("matcher", _codes, ((200, 399),)),
        rebalance=_rebalance(node, keys),
        deregistration_delay=read("deregistration_delay.timeout_seconds", _seconds(0, 3600), 300.0),
        tcp_idle=read("tcp.idle_timeout.seconds", _whole(60, 6000), LB_IDLE_TCP_S),
    )


def _whole(low: int, high: int) -> Callable[[Node], int]:
    return lambda node: node.integer(low, high)


def _seconds(low: float, high: float) -> Callable[[Node], float]:
    def read(node: Node) -> float:
        expected = f"{low:g} to {high:g} seconds"
        text = node.text(expected)
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise node.error(expected)
        return float(text)

    return read


def _matching(node: Node, pattern: re.Pattern[str], expected: str) -> str:
    text = node.text(expected)
    if not pattern.fullmatch(text):
        raise node.error(expected)
    return text


def _device(node: Node) -> str:
    return _matching(node, _DEVICE, "a device name of 1 to 15 characters")


def _path(node: Node) -> str:
    return _matching(node, _PATH, "a path that begins with / and has no spaces")


def _address(node: Node) -> str:
    expected = "the IPv4 address of one host"
    try:
        address = IPv4Address(node.text(expected))
    except ValueError:
        raise node.error(expected) from None
    if address.is_unspecified or address.is_multicast:
        raise node.error(expected)
    return str(address)


def _address_port(node: Node) -> AddressPort:
    expected = "IPv4 address:port, for example 127.0.0.1:7001"
    host, _, port = node.text(expected).rpartition(":")
    try:
        if not 0 < int(port) < 1 << 16:
            raise ValueError
        return str(IPv4Address(host)), int(port)
    except ValueError:
        raise node.error(expected) from None


def _endpoint_id(node: Node) -> int:
    expected = "an endpoint id, for example vpce-0123456789abcdef0 or 0x1 (64 bits)"
    written = _VPC_ENDPOINT.fullmatch(node.text(expected))
    if written is None:
        raise node.error(expected)
    number = int(written[1], 16)
    return number - (1 << 64) if number >> 63 else number


def _endpoints(node: Node) -> tuple[EndpointConfig, ...]:
    expected = f"a list of 1 to {GWLB_ENDPOINTS_MAX} endpoints"
    items = node.items(expected)
    if not 1 <= len(items) <= GWLB_ENDPOINTS_MAX:
        raise node.error(expected)
    found: list[EndpointConfig] = []
    for item in items:
        keys = item.mapping(("id", "mtu", *_ENDPOINT_KINDS), required=("id",))
        number = _endpoint_id(keys["id"])
        if any(other.id == number for other in found):
            raise keys["id"].error("an id that no other endpoint has")
        kinds = [kind for kind in _ENDPOINT_KINDS if kind in keys]
        if len(kinds) != 1:
            raise item.error("an endpoint with either tun, packet or udp")
        (kind,) = kinds
        mtu = keys["mtu"].integer(MTU_MIN, INNER_MTU_MAX) if "mtu" in keys else 1500
        if kind == "udp":
            udp = keys["udp"].mapping(("listen", "peer"), required=("listen", "peer"))
            listen, peer = _address_port(udp["listen"]), _address_port(udp["peer"])
            found.append(EndpointConfig(number, kind, mtu=mtu, listen=listen, peer=peer))
        else:
            found.append(EndpointConfig(number, kind, device=_device(keys[kind]), mtu=mtu))
    return tuple(found)


def _targets(node: Node) -> tuple[TargetConfig, ...]:
    expected = f"a list of up to {GWLB_TARGETS_MAX} targets"
    items = node.items(expected)
    if len(items) > GWLB_TARGETS_MAX:
        raise node.error(expected)
    found: list[TargetConfig] = []
    for item in items:
        if isinstance(item.data, str):
            address = _address(item)
            target = TargetConfig(address, address)
        else:
            keys = item.mapping(("id", "address"), required=("address",))
            address = _address(keys["address"])
            name = (
                _matching(keys["id"], _NAME, "a name of up to 63 letters, digits and .:_-")
                if "id" in keys
                else address
            )
            target = TargetConfig(name, address)
        for other in found:
            if other.id == target.id or other.address == target.address:
                raise item.error("a target whose id and address no other target has", target.id)
        found.append(target)
    return tuple(found)


def _codes(node: Node) -> tuple[tuple[int, int], ...]:
    expected = "HTTP codes from 200 to 499, for example 200-399 or 200,204"
    ranges = []
    for part in node.text(expected).split(","):
        written = re.fullmatch(r"\s*([0-9]{3})(?:-([0-9]{3}))?\s*", part)
        if written is None:
            raise node.error(expected)
        low, high = int(written[1]), int(written[2] or written[1])
        if not 200 <= low <= high <= 499:
            raise node.error(expected)
        ranges.append((low, high))
    return tuple(ranges)


def _timeout(node: Node, keys: dict[str, Node], interval: float) -> float:
    """AWS: the interval must be greater than or equal to the time-out."""
    written = keys.get("health_check_timeout_seconds")
    timeout = _seconds(0.02, 120)(written) if written else 5.0
    if timeout > interval:
        expected = f"no more than health_check_interval_seconds, which is {interval:g}"
        if written:
            raise written.error(expected)
        raise keys.get("health_check_interval_seconds", node).error(
            f"at least health_check_timeout_seconds, which is {timeout:g} unless given"
        )
    return timeout


def _rebalance(node: Node, keys: dict[str, Node]) -> bool:
    """AWS: both attributes must have the same value."""
    values = {
        key: keys[key].one_of("rebalance", "no_rebalance") if key in keys else "no_rebalance"
        for key in (_ON_UNHEALTHY, _ON_DEREGISTRATION)
    }
    if values[_ON_UNHEALTHY] != values[_ON_DEREGISTRATION]:
        key, other = _ON_DEREGISTRATION, _ON_UNHEALTHY
        if key not in keys:
            key, other = other, key
        raise keys[key].error(f"the value of {other}, which is {values[other]}: both must be the same")
    return values[_ON_UNHEALTHY] == "rebalance"
