"""Policies as large companies have them, from a seed: every field is used, and most rules are about a few machines.

Fifteen zones, two hundred sites with a /16 each, their subnets, servers and ranges, IPv6 beside IPv4, partners
outside; wide rules beside narrow ones, negation, types, source ports, protocols, groups in groups, disabled rules.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.kernels import kernel
from everwall.policy.explain import Question
from everwall.policy.match import match
from everwall.policy.model import AddressRange, Policy, Rule, Service
from everwall.policy.rules import read_policy

SITES = 200
ZONES = 15
STRAYS = 0.35
"""Of the packets, those that no rule was asked about."""
COLUMNS = 10
"""Of a packet: the arguments of ``match`` after the policy, without the application."""

_COMMON = ("tcp/443", "tcp/80", "tcp/22", "tcp/3389", "udp/53", "tcp/53", "tcp/445", "tcp/1433", "tcp/5432")
_LOW_HALF = (1 << 64) - 1


def document(rules: int, seed: int) -> dict[str, Any]:
    """The policy file as Python objects; JSON of it is YAML."""
    draw = random.Random(f"{rules} rules of {seed}")
    zones = {f"zone-{k}": {"endpoints": [k + 1]} for k in range(ZONES)}
    addresses: dict[str, Any] = {}
    for site in range(SITES):
        addresses[f"site-{site}"] = [f"10.{site}.0.0/16", f"2001:db8:{site:x}::/48"]
    for k in range(40):
        addresses[f"region-{k}"] = [f"site-{draw.randrange(SITES)}" for _ in range(5)]
        addresses[f"partner-{k}"] = [_public(draw) for _ in range(draw.randint(1, 6))]
    services: dict[str, Any] = {"web": ["tcp/443", "tcp/80"], "dns": ["udp/53", "tcp/53"]}
    services["ntp"] = {"protocol": "udp", "port": "123", "source-port": "123"}
    services["old"] = ["web", {"protocol": "tcp", "port": "512-514", "source-port": "512-1023"}]
    return {
        "zones": zones,
        "addresses": addresses,
        "services": services,
        "rules": [_rule(draw, k) for k in range(rules)],
    }


def _rule(draw: random.Random, number: int) -> dict[str, Any]:
    kind = draw.choices(["universal", "intrazone", "interzone"], [80, 12, 8])[0]
    rule: dict[str, Any] = {"name": f"rule {number}", "rule-type": kind}
    rule["from"] = _zones(draw)
    if kind != "intrazone":
        rule["to"] = _zones(draw)
    rule["source"] = _source(draw)
    rule["destination"] = _destination(draw, rule["source"] == "any")
    if isinstance(rule["source"], list) and isinstance(rule["destination"], list) and draw.random() < 0.03:
        rule[f"negate-{draw.choice(['source', 'destination'])}"] = (
            True  # everything but these, on one side only
        )
    rule["service"] = _service(draw, rule["destination"] == "any")
    rule["action"] = draw.choices(["allow", "deny", "drop", "reset-client"], [80, 10, 8, 2])[0]
    if draw.random() < 0.02:
        rule["disabled"] = True
    if draw.random() < 0.05:
        rule["resiliency"] = draw.choice(["strict", "off", "min-age 3s"])
    return rule


def _zones(draw: random.Random) -> Any:
    if draw.random() < 0.2:
        return "any"
    return [f"zone-{zone}" for zone in draw.sample(range(ZONES), draw.randint(1, 4))]


def _public(draw: random.Random) -> str:
    return str(ipaddress.ip_network((draw.randrange(1 << 24, 224 << 24) & ~0xFF, 24)))


def _host(draw: random.Random) -> str:
    site = draw.randrange(SITES)
    if draw.random() < 0.2:
        return f"2001:db8:{site:x}::{draw.randrange(1, 1 << 16):x}"
    return f"10.{site}.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def _subnet(draw: random.Random) -> str:
    site = draw.randrange(SITES)
    if draw.random() < 0.2:
        return f"2001:db8:{site:x}:{draw.randrange(1 << 16):x}::/64"
    length = draw.randint(20, 27)
    address = (10 << 24 | site << 16 | draw.randrange(1 << 16)) & ~((1 << (32 - length)) - 1)
    return str(ipaddress.ip_network((address, length)))


def _range(draw: random.Random) -> str:
    third = draw.randrange(256)
    low, high = sorted(draw.sample(range(256), 2))
    site = draw.randrange(SITES)
    return f"10.{site}.{third}.{low}-10.{site}.{third}.{high}"


def _source(draw: random.Random) -> Any:
    kind = draw.choices(
        ["any", "region", "site", "subnet", "hosts", "range", "partner"], [10, 4, 22, 34, 20, 5, 5]
    )
    if kind[0] == "any":
        return "any"
    if kind[0] in ("region", "partner"):
        return f"{kind[0]}-{draw.randrange(40)}"
    if kind[0] == "site":
        return f"site-{draw.randrange(SITES)}"
    if kind[0] == "range":
        return _range(draw)
    made = _subnet if kind[0] == "subnet" else _host
    return [made(draw) for _ in range(draw.randint(1, 4))]


def _destination(draw: random.Random, narrow: bool) -> Any:
    kind = draw.choices(["any", "site", "subnet", "hosts", "range"], [0 if narrow else 6, 4, 20, 60, 10])[0]
    if kind == "any":
        return "any"
    if kind == "site":
        return f"site-{draw.randrange(SITES)}"
    if kind == "range":
        return _range(draw)
    made = _subnet if kind == "subnet" else _host
    return [made(draw) for _ in range(draw.randint(1, 4))]


def _service(draw: random.Random, narrow: bool) -> Any:
    rarely = 0 if narrow else 6
    kind = draw.choices(["any", "common", "named", "ports", "source", "other"], [rarely, 44, 15, 25, 5, 5])[0]
    if kind == "any":
        return "any"
    if kind == "common":
        return draw.sample(_COMMON, draw.randint(1, 3))
    if kind == "named":
        return draw.choice(["web", "dns", "ntp", "old"])
    if kind == "other":
        return draw.choice(["icmp", "protocol/47", "protocol/50", "protocol/132"])
    first = draw.randrange(1024, 60_000)
    ports = f"{first}-{first + draw.choice([0, 0, 0, 9, 99])}"
    if kind == "ports":
        return f"{draw.choice(['tcp', 'udp'])}/{ports}"
    return {"protocol": "udp", "port": ports, "source-port": f"{draw.choice([0, 1024, 32768])}-65535"}


def policy_text(rules: int, seed: int) -> str:
    """The policy as a file."""
    return json.dumps(document(rules, seed), indent=1)


def policy(rules: int, seed: int) -> Policy:
    """The policy as the compiler takes it."""
    return read_policy("company.yaml", policy_text(rules, seed))


# Packets ------------------------------------------------------------------------------------------------


def packets(policy_: Policy, count: int, seed: int) -> npt.NDArray[np.int64]:
    """int64[count, COLUMNS]: two thirds are what some rule asks for, the others come from anywhere."""
    draw = random.Random(f"{count} packets of {seed}")
    index = {zone.name: k for k, zone in enumerate(policy_.zones)}
    rules = [rule for rule in policy_.rules if not rule.disabled and rule.service != ()]
    rows = np.zeros((count, COLUMNS), np.int64)
    for row in rows:
        stray = not rules or draw.random() < STRAYS
        row[:] = _stray(draw) if stray else _asked_for(draw, draw.choice(rules), index)
    return rows


def _halves(address: int) -> tuple[int, int]:
    high, low = address >> 64, address & _LOW_HALF
    return (high - (1 << 64) if high >> 63 else high), (low - (1 << 64) if low >> 63 else low)


def _stray(draw: random.Random) -> tuple[int, ...]:
    site = draw.randrange(SITES)
    family = draw.choices([4, 6], [4, 1])[0]
    if family == 4:
        source, destination = (
            draw.randrange(1 << 24, 224 << 24),
            10 << 24 | site << 16 | draw.randrange(1 << 16),
        )
    else:
        source, destination = (0x2001_0DB8 << 96 | site << 80 | draw.randrange(1 << 64) for _ in range(2))
    protocol = draw.choice([6, 6, 6, 17, 17, 1 if family == 4 else 58])
    ports = (draw.randrange(1024, 1 << 16), draw.choice([443, 80, 22, draw.randrange(1 << 16)]))
    zones = draw.randrange(ZONES), draw.randrange(ZONES)
    return (*zones, family, *_halves(source), *_halves(destination), protocol, *ports)


def _asked_for(draw: random.Random, rule: Rule, index: dict[str, int]) -> tuple[int, ...]:
    """A packet that suits a rule, where its families fit together; an earlier rule may want it too."""
    from_zone = index[draw.choice(rule.from_zones or tuple(index))]
    to_zone = index[draw.choice(rule.to_zones or tuple(index))]
    if rule.rule_type == "intrazone":
        to_zone = from_zone
    service = draw.choice(rule.service) if rule.service else Service(0, 6, 443, 443, 1024, 65535)
    families = {entry.family for entry in rule.source or ()} or {4, 6}
    families &= {entry.family for entry in rule.destination or ()} or {4, 6}
    family = service.family or draw.choice(sorted(families) or [4])
    source, destination = (_within(draw, ranges, family) for ranges in (rule.source, rule.destination))
    sport = draw.randint(service.first_source_port, service.last_source_port)
    dport = draw.randint(service.first_port, service.last_port)
    return (
        from_zone,
        to_zone,
        family,
        *_halves(source),
        *_halves(destination),
        service.protocol,
        sport,
        dport,
    )


def _within(draw: random.Random, ranges: Sequence[AddressRange] | None, family: int) -> int:
    fitting = [entry for entry in ranges or () if entry.family == family]
    if fitting:
        entry = draw.choice(fitting)
        return draw.randint(entry.first, entry.last)
    if family == 4:
        return draw.randrange(1 << 24, 224 << 24)
    return 0x2001_0DB8 << 96 | draw.randrange(1 << 96)


def question(row: npt.NDArray[np.int64], zones: Sequence[str]) -> Question:
    """A row of ``packets`` as a person would ask about it; ``zones``: their names in the policy's order."""
    values = [int(value) for value in row]
    kind = ipaddress.IPv4Address if values[2] == 4 else ipaddress.IPv6Address
    source, destination = (
        kind((high & _LOW_HALF) << 64 | low & _LOW_HALF) for high, low in (values[3:5], values[5:7])
    )
    return Question(zones[values[0]], zones[values[1]], source, destination, *values[7:])


@kernel
def match_all(policy_, rows, found):
    """The deciding row of each packet."""
    for i in range(rows.shape[0]):
        found[i] = match(
            policy_,
            rows[i, 0],
            rows[i, 1],
            rows[i, 2],
            rows[i, 3],
            rows[i, 4],
            rows[i, 5],
            rows[i, 6],
            rows[i, 7],
            rows[i, 8],
            rows[i, 9],
            0,
        )
