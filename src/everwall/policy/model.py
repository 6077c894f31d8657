"""What a policy is once it has been read: zones and rules with every name resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from everwall.policy.match import INTERZONE_DEFAULT, INTRAZONE_DEFAULT, ZONE_DATA
from everwall.policy.settings import DEFAULT_SETTINGS, SessionSettings

ACTIONS = ("allow", "deny", "drop", "reset-client", "reset-server", "reset-both")
RULE_TYPES = ("universal", "intrazone", "interzone")
PORT_MAX = 65535
ADDRESS_BITS = {4: 32, 6: 128}


class AddressRange(NamedTuple):
    """Addresses from ``first`` to ``last``, both included."""

    family: int
    first: int
    last: int


class HostName(NamedTuple):
    """A name whose addresses are asked for while the node runs."""

    name: str


Address = AddressRange | HostName


class Service(NamedTuple):
    """One protocol with its ports; ``family`` 0 means both, ports are 0..65535 where there are none."""

    family: int
    protocol: int
    first_port: int
    last_port: int
    first_source_port: int
    last_source_port: int


def ports_of(family: int, protocol: int, first: int = 0, last: int = PORT_MAX) -> Service:
    """A service with any source port."""
    return Service(family, protocol, first, last, 0, PORT_MAX)


ICMP = (ports_of(4, 1), ports_of(6, 58))
"""``icmp`` means ICMP in IPv4 and ICMPv6 in IPv6."""
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Zone:
    """A zone and the load balancer endpoints whose traffic is in it."""

    name: str
    endpoints: tuple[int, ...] = ()
    line: int = 0
    interfaces: tuple[str, ...] = ()
    """Subinterfaces that endpoints may be associated with, as ``ethernet1/1.10``."""


@dataclass(frozen=True)
class Rule:
    """One rule with every name resolved; None stands for ``any``.

    What is matched: zones as ``rule_type`` says (universal: every pair of ``from`` and ``to``; intrazone: from a
    zone of ``from_zones`` to the same; interzone: pairs that differ), ranges, services, applications and hosts.
    """

    name: str
    action: str
    from_zones: tuple[str, ...] | None = None
    to_zones: tuple[str, ...] | None = None
    source: tuple[AddressRange, ...] | None = None
    destination: tuple[AddressRange, ...] | None = None
    service: tuple[Service, ...] | None = None
    applications: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    negate_source: bool = False
    """Every address of either family that is not in ``source``, which is not None then."""
    negate_destination: bool = False
    rule_type: str = "universal"
    tags: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ()
    """Names whose addresses belong to ``source`` too, as soon as they are known (``everwall.policy.names``)."""
    destination_names: tuple[str, ...] = ()
    log_start: bool = False
    log_end: bool = True
    icmp_unreachable: bool = False
    """What it refuses is answered by ICMP where no reset says it."""
    disabled: bool = False
    description: str = ""
    mode: int | None = None
    """When the store gets its sessions (``everwall.modes``); None: as the node does by default."""
    line: int = 0


@dataclass(frozen=True)
class DefaultRule:
    """What happens where no rule matches."""

    name: str
    action: str = "deny"
    log_start: bool = False
    log_end: bool = False
    icmp_unreachable: bool = False
    mode: int | None = None


@dataclass(frozen=True)
class Policy:
    """Everything a policy file says; without one, the policy that denies everything."""

    file: str = ""
    zones: tuple[Zone, ...] = ()
    rules: tuple[Rule, ...] = ()
    intrazone_default: DefaultRule = DefaultRule(INTRAZONE_DEFAULT)
    interzone_default: DefaultRule = DefaultRule(INTERZONE_DEFAULT)
    default_zone: str = ZONE_DATA
    """What everything is in as long as no endpoint is mapped."""
    settings: SessionSettings = DEFAULT_SETTINGS
    """What it says about sessions beside the rules."""
    warnings: tuple[str, ...] = ()

    @property
    def mapped(self) -> bool:
        """Whether any endpoint has a zone; without, everything is in ``default_zone``."""
        return any(zone.endpoints for zone in self.zones)

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names whose addresses its rules ask for, sorted."""
        active = [rule for rule in self.rules if not rule.disabled]
        return tuple(sorted({name for rule in active for name in rule.source_names + rule.destination_names}))

    @property
    def summary(self) -> str:
        """One sentence for the start-up line."""
        if not self.file:
            return "no policy file: everything is denied"
        active = sum(not rule.disabled for rule in self.rules)
        return (
            f"policy {self.file}: {active} rule{'' if active == 1 else 's'}, "
            f"{self.intrazone_default.name} {self.intrazone_default.action}, "
            f"{self.interzone_default.name} {self.interzone_default.action}"
        )
