"""The compiled matcher decides as a person would who reads the rules from the top."""

from __future__ import annotations

import ipaddress
import json
import os
import random
from typing import Any

import numpy as np
import pytest

from everwall.kernels import JIT, kernel
from everwall.policy.compile import compile_policy, default_names
from everwall.policy.match import (
    ACTION_ALLOW,
    ACTION_DENY,
    ANY,
    RULE_ACTION,
    RULE_ID,
    RULE_SERVICE,
    allow_all,
    deny_all,
    match,
    rule_id,
    zone_id,
    zone_of,
)
from everwall.policy.rules import read_policy
from tests.naive import match as naive

pytestmark = pytest.mark.kernel

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
PACKETS = 20_000
POLICIES = 40


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def row_of(packet: naive.Packet, from_index: int, to_index: int) -> list[int]:
    """The arguments of ``match`` after the policy."""
    source, destination = int(packet.source), int(packet.destination)
    low = (1 << 64) - 1
    return [
        from_index,
        to_index,
        packet.source.version,
        signed(source >> 64),
        signed(source & low),
        signed(destination >> 64),
        signed(destination & low),
        packet.protocol,
        packet.sport,
        packet.dport,
    ]


@kernel
def match_all(policy, packets, found):
    for i in range(packets.shape[0]):
        found[i] = match(
            policy,
            packets[i, 0],
            packets[i, 1],
            packets[i, 2],
            packets[i, 3],
            packets[i, 4],
            packets[i, 5],
            packets[i, 6],
            packets[i, 7],
            packets[i, 8],
            packets[i, 9],
            0,
        )


# Random policies over a small world, so that rules overlap and edges are hit.
# The corners of unsigned comparison are in it: halves with the sign bit set, /0, the last address.
EDGES_4 = [
    0,
    1,
    0x0A000000,
    0x0A0000FF,
    0x0A000100,
    0x7FFFFFFF,
    0x80000000,
    0xC0A80001,
    0xFFFFFFFE,
    0xFFFFFFFF,
]
EDGES_6 = [
    0,
    1,
    0xFFFF_FFFF_FFFF_FFFF,
    1 << 63,
    1 << 64,
    (1 << 64) + 1,
    0x2001_0DB8 << 96,
    (0x2001_0DB8 << 96) + (1 << 63),
    (0x2001_0DB8 << 96) + (1 << 64) - 1,
    1 << 127,
    (1 << 127) - 1,
    0xFE80 << 112,
    (1 << 128) - 2,
    (1 << 128) - 1,
]
PORTS = [0, 1, 53, 80, 443, 444, 8000, 8100, 65534, 65535]


def random_address(draw: random.Random, family: int) -> naive.Address:
    kind = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    limit = (1 << (32 if family == 4 else 128)) - 1
    value = draw.choice(EDGES_4 if family == 4 else EDGES_6) + draw.choice([-1, 0, 0, 0, 1, 2])
    return kind(min(max(value, 0), limit))


def random_address_text(draw: random.Random) -> str:
    family = draw.choice([4, 6])
    first = random_address(draw, family)
    kind = draw.randrange(4)
    if kind == 0:
        return str(first)
    if kind == 1:
        length = draw.choice([0, 1, 8, 24, 31, 32] if family == 4 else [0, 1, 32, 63, 64, 65, 127, 128])
        return str(ipaddress.ip_network(f"{first}/{length}", strict=False))
    low, high = sorted([first, random_address(draw, family)], key=int)
    return f"{low}-{high}"


def random_ports(draw: random.Random) -> str:
    low, high = sorted(draw.choices(PORTS, k=2))
    return str(low) if draw.random() < 0.4 else f"{low}-{high}"


def random_service(draw: random.Random) -> Any:
    kind = draw.randrange(5)
    if kind == 0:
        return "icmp"
    if kind == 1:
        return f"protocol/{draw.choice([0, 1, 6, 17, 47, 58, 255])}"
    if kind == 2:
        return {"protocol": draw.choice(["tcp", "udp"]), "source-port": random_ports(draw)}
    return f"{draw.choice(['tcp', 'udp'])}/{random_ports(draw)}"


def random_document(draw: random.Random) -> dict[str, Any]:
    zones: dict[str, list[int]] = {f"zone-{k}": [] for k in range(draw.randrange(4))}
    names = list(zones)
    if names and draw.random() < 0.7:
        for endpoint in [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]:
            zones[draw.choice(names)].append(endpoint)
    else:
        names.append("data")
    addresses: dict[str, Any] = {f"host {k}": random_address_text(draw) for k in range(4)}
    addresses["group"] = ["host 1", random_address_text(draw), "host 2"]
    addresses["outer"] = ["group", "host 3"]
    services: dict[str, Any] = {f"service {k}": random_service(draw) for k in range(3)}
    services["group"] = ["service 1", "service 2", random_service(draw)]

    def some(names: list[str], fresh: Any) -> Any:
        if draw.random() < 0.4:
            return "any"
        if draw.random() < 0.3:
            return fresh()
        return draw.choices(names, k=draw.randint(1, 2))

    rules = []
    for k in range(draw.randrange(12)):
        rule = {
            "name": f"rule {k}",
            "source": some(list(addresses), lambda: random_address_text(draw)),
            "destination": some(list(addresses), lambda: random_address_text(draw)),
            "service": some(list(services), lambda: random_service(draw)),
            "action": draw.choice(["allow", "deny", "drop"]),
            "disabled": draw.random() < 0.1,
        }
        if draw.random() < 0.5:
            rule["from"] = some(names, lambda: draw.choice(names))
            rule["to"] = some(names, lambda: draw.choice(names))
        rules.append(rule)
    return {"zones": zones, "addresses": addresses, "services": services, "rules": rules}


def random_packet(draw: random.Random, zones: list[str | None]) -> naive.Packet:
    family = draw.choice([4, 6])
    protocol = draw.choice([6, 6, 6, 17, 17, 1, 58, 47, 0, 255])
    ports = [draw.choice(PORTS) + draw.choice([0, 0, 1]) for _ in range(2)] if protocol in (6, 17) else [0, 0]
    return naive.Packet(
        draw.choice(zones),
        draw.choice(zones),
        random_address(draw, family),
        random_address(draw, family),
        protocol,
        min(ports[0], 65535),
        min(ports[1], 65535),
    )


def yaml_text(document: dict[str, Any]) -> str:
    """JSON is YAML; an empty list of endpoints is left out, for the reader refuses it."""
    zones = {name: {"endpoints": ids} if ids else None for name, ids in document["zones"].items()}
    return json.dumps({**document, "zones": zones}, indent=1)


def test_random_policies_decide_as_the_plain_reading_does() -> None:
    draw = random.Random(SEED)
    print(f"SEED={SEED}")
    decided: dict[str, int] = {}
    # Interpreted, a fifth is plenty: the arithmetic differs, the logic does not.
    count = (PACKETS if JIT else PACKETS // 5) // POLICIES
    for _ in range(POLICIES):
        document = random_document(draw)
        policy, names = compile_policy(read_policy("random.yaml", yaml_text(document)))
        index = {names.zone(int(number)): k for k, number in enumerate(policy.zones)}
        zones: list[str | None] = [*index] * 4 + [None]
        packets = [random_packet(draw, zones) for _ in range(count)]
        rows = [
            row_of(packet, index.get(packet.from_zone or "", -1), index.get(packet.to_zone or "", -1))
            for packet in packets
        ]
        found = np.zeros(len(packets), np.int64)
        match_all(policy, np.array(rows, np.int64), found)
        for packet, row in zip(packets, found, strict=True):
            expected = naive.decide(document, packet)
            assert names.rule(int(policy.rules[row, RULE_ID])) == expected, (SEED, document, packet)
            decided[expected] = decided.get(expected, 0) + 1
        for endpoint in [0, 1, 2, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1]:
            zone = naive.zone_of(document["zones"], endpoint)
            assert zone_of(policy, np.int64(signed(endpoint))) == index.get(zone or "", -1), (SEED, document)
    by_rules = sum(hits for name, hits in decided.items() if name.startswith("rule"))
    assert len(decided) >= 6, "the dice are loaded"
    assert by_rules * 20 >= count * POLICIES, f"the dice are loaded: {decided}"


def test_no_policy_denies_everything_and_the_open_one_allows_it() -> None:
    for policy, action in ((deny_all(), ACTION_DENY), (allow_all(), ACTION_ALLOW)):
        zone = zone_of(policy, 4711)
        assert zone == 0
        assert policy.zones[0] == zone_id("data")
        for from_zone, to_zone in ((0, 0), (0, 1)):
            row = match(policy, from_zone, to_zone, 4, 0, 1, 0, 2, 6, 1000, 80, 0)
            assert policy.rules[row, RULE_ACTION] == action
    assert default_names().rule(int(allow_all().rules[0, RULE_ID])) == "intrazone-default"
    assert default_names().rule(int(allow_all().rules[1, RULE_ID])) == "interzone-default"


def test_an_endpoint_without_a_zone_is_in_no_rule_once_others_have_one() -> None:
    text = """
zones: {left: {endpoints: 7}}
rules: [{name: open, source: any, destination: any, service: any, action: allow}]
"""
    policy, names = compile_policy(read_policy("p.yaml", text))
    stranger = zone_of(policy, 8)
    assert stranger == -1
    row = match(policy, stranger, stranger, 4, 0, 1, 0, 2, 6, 1000, 80, 0)
    assert names.rule(int(policy.rules[row, RULE_ID])) == "interzone-default"
    home = zone_of(policy, 7)
    row = match(policy, home, home, 4, 0, 1, 0, 2, 6, 1000, 80, 0)
    assert names.rule(int(policy.rules[row, RULE_ID])) == "open"


def test_an_empty_slice_matches_nothing() -> None:
    text = "rules: [{name: web, source: any, destination: any, service: tcp/80, action: allow}]"
    policy, _ = compile_policy(read_policy("p.yaml", text))
    assert match(policy, 0, 0, 4, 0, 1, 0, 2, 6, 1000, 80, 0) == 0
    policy.rules[0, RULE_SERVICE + 1] = policy.rules[0, RULE_SERVICE]
    assert policy.rules[0, RULE_SERVICE] != ANY
    assert match(policy, 0, 0, 4, 0, 1, 0, 2, 6, 1000, 80, 0) == 1


def test_ids_are_those_of_every_node_of_every_version() -> None:
    # Stored sessions name zones and rules by them: a changed number would orphan every session.
    assert (zone_id("data"), rule_id("intrazone-default"), rule_id("interzone-default")) == (
        26687,
        1695278404,
        3170043668,
    )
