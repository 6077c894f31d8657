"""The compiled matcher decides as a person would who reads the rules from the top."""

from __future__ import annotations

import ipaddress
import json
import os
import random
from typing import Any

import numpy as np
import pytest

from everwall.kernels import JIT
from everwall.policy.compile import compile_policy, default_names
from everwall.policy.explain import explain
from everwall.policy.match import (
    ACTION_ALLOW,
    ACTION_DENY,
    RULE_ACTION,
    RULE_ID,
    allow_all,
    deny_all,
    match,
    rule_id,
    zone_id,
    zone_of,
)
from everwall.policy.model import AddressRange, Policy, Rule, ports_of
from everwall.policy.rules import read_policy
from tests import company
from tests.naive import match as naive

pytestmark = pytest.mark.kernel

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
DEEP = os.environ.get("EVERWALL_DEEP") == "1"
PACKETS = 1_000_000 if DEEP else 20_000
POLICIES = 2_000 if DEEP else 40


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


def random_ports(draw: random.Random, narrow: bool = False) -> str:
    low, high = sorted(draw.choices(PORTS, k=2))
    return str(low) if narrow or draw.random() < 0.4 else f"{low}-{high}"


def random_service(draw: random.Random) -> Any:
    kind = draw.randrange(5)
    if kind == 0:
        return "icmp"
    if kind == 1:
        return f"protocol/{draw.choice([0, 1, 6, 17, 47, 58, 255])}"
    if kind == 2:
        return {"protocol": draw.choice(["tcp", "udp"]), "source-port": random_ports(draw)}
    return f"{draw.choice(['tcp', 'udp'])}/{random_ports(draw)}"


def random_document(draw: random.Random, count: int | None = None) -> dict[str, Any]:
    """A policy of so many rules, or of a few."""
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
    for k in range(draw.randrange(12) if count is None else count):
        rule = {
            "name": f"rule {k}",
            "rule-type": draw.choice(["universal", "universal", "intrazone", "interzone"]),
            "source": some(list(addresses), lambda: random_address_text(draw)),
            "destination": some(list(addresses), lambda: random_address_text(draw)),
            "service": some(list(services), lambda: random_service(draw)),
            "action": draw.choice(["allow", "deny", "drop"]),
            "disabled": draw.random() < 0.1,
        }
        for side in ("source", "destination"):
            if rule[side] != "any" and draw.random() < 0.2:
                rule[f"negate-{side}"] = True
        if draw.random() < 0.5:
            rule["from"] = some(names, lambda: draw.choice(names))
            if rule["rule-type"] != "intrazone":
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


def decided(document: dict[str, Any], draw: random.Random, count: int) -> dict[str, int]:
    """Packets by the rule that decides, after the compiled policy has agreed with the plain reading on each."""
    policy, names = compile_policy(read_policy("random.yaml", yaml_text(document)))
    index = {names.zone(int(number)): k for k, number in enumerate(policy.zones)}
    zones: list[str | None] = [*index] * 4 + [None]
    packets = [random_packet(draw, zones) for _ in range(count)]
    rows = [
        row_of(packet, index.get(packet.from_zone or "", -1), index.get(packet.to_zone or "", -1))
        for packet in packets
    ]
    found = np.zeros(count, np.int64)
    company.match_all(policy, np.array(rows, np.int64), found)
    counted: dict[str, int] = {}
    for packet, row in zip(packets, found, strict=True):
        expected = naive.decide(document, packet)
        assert names.rule(int(policy.rules[row, RULE_ID])) == expected, (SEED, document, packet)
        counted[expected] = counted.get(expected, 0) + 1
    for endpoint in [0, 1, 2, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1]:
        zone = naive.zone_of(document["zones"], endpoint)
        assert zone_of(policy, np.int64(signed(endpoint))) == index.get(zone or "", -1), (SEED, document)
    return counted


def test_random_policies_decide_as_the_plain_reading_does() -> None:
    draw = random.Random(SEED)
    print(f"SEED={SEED}")
    # Interpreted, a fifth is plenty: the arithmetic differs, the logic does not.
    count = (PACKETS if JIT else PACKETS // 5) // POLICIES
    every: dict[str, int] = {}
    for _ in range(POLICIES):
        for name, hits in decided(random_document(draw), draw, count).items():
            every[name] = every.get(name, 0) + hits
    by_rules = sum(hits for name, hits in every.items() if name.startswith("rule"))
    assert len(every) >= 6, "the dice are loaded"
    assert by_rules * 20 >= count * POLICIES, f"the dice are loaded: {every}"


@pytest.mark.parametrize("rules", [511, 512, 513, 1100])
def test_policies_of_several_blocks_decide_as_the_plain_reading_does(rules: int) -> None:
    """512 rules are looked at together; these ask for so little that the first ones do not take everything."""
    draw = random.Random(SEED + rules)
    print(f"SEED={SEED}")
    document = random_document(draw, rules)
    for rule in document["rules"]:
        rule["service"] = f"{draw.choice(['tcp', 'udp'])}/{random_ports(draw, narrow=True)}"
        for side in ("source", "destination"):
            if draw.random() < 0.9:
                rule[side] = str(random_address(draw, draw.choice([4, 6])))
                rule.pop(f"negate-{side}", None)
    counted = decided(document, draw, 20_000 if DEEP else 600 if JIT else 60)
    late = sum(hits for name, hits in counted.items() if name.startswith("rule") and int(name[5:]) >= 256)
    assert late or not JIT, f"the dice are loaded: {counted}"


@pytest.mark.parametrize("rules", [10, 700])
def test_a_companys_policy_decides_as_the_plain_reading_does(rules: int) -> None:
    document = company.document(rules, SEED)
    print(f"SEED={SEED}")
    read = company.policy(rules, SEED)
    policy, names = compile_policy(read)
    rows = company.packets(read, (100_000 if DEEP else 1_000 if JIT else 100) // (1 + rules // 50), SEED)
    found = np.zeros(len(rows), np.int64)
    company.match_all(policy, rows, found)
    for row, deciding in zip(rows, found, strict=True):
        asked = company.question(row, [names.zone(int(number)) for number in policy.zones])
        expected = naive.decide(document, naive.Packet(**vars(asked)))
        assert names.rule(int(policy.rules[deciding, RULE_ID])) == expected, (SEED, asked)
        assert explain(read, asked).row == deciding, (SEED, asked)


def test_groups_of_thousands_are_cut_where_they_are_said_to_be() -> None:
    """More ends within 512 rules than are laid out at once, and a group that many rules share."""
    hosts = tuple(AddressRange(4, 2 * k, 2 * k) for k in range(3_000))
    wide = (AddressRange(4, 1_000, 4_001), AddressRange(6, 0, 1 << 127))
    rules = [Rule(f"shared {k}", "deny", source=hosts, service=(ports_of(0, 17, k, k),)) for k in range(40)]
    rules.append(Rule("wide", "allow", source=wide))
    policy, _ = compile_policy(Policy("p.yaml", rules=tuple(rules)))

    def row(source: int, protocol: int, port: int) -> int:
        return int(match(policy, 0, 0, 4, 0, source, 0, 1, protocol, 1, port, 0))

    for source in (0, 1, 998, 999, 1_000, 1_001, 3_999, 4_000, 4_001, 4_002, 4_003, 5_998, 5_999, 6_000):
        allowed = 40 if 1_000 <= source <= 4_001 else 41
        assert row(source, 17, 7) == (7 if source % 2 == 0 and source < 6_000 else allowed), source
        assert row(source, 6, 7) == allowed, source


def test_source_and_destination_ports_combine_within_one_entry_only() -> None:
    text = """
rules:
  - name: pairs
    source: any
    destination: any
    service:
      - {protocol: udp, port: 123, source-port: 123}
      - {protocol: udp, port: 500, source-port: 500}
      - udp/53
    action: allow
"""
    policy, _ = compile_policy(read_policy("p.yaml", text))
    assert len(policy.places) == 3, "one for each range of source ports"
    for sport, dport, allowed in ((123, 123, 1), (500, 500, 1), (123, 500, 0), (500, 123, 0), (9, 53, 1)):
        row = match(policy, 0, 0, 4, 0, 1, 0, 2, 17, sport, dport, 0)
        assert row == (0 if allowed else 1), (sport, dport)


def test_what_is_not_listed_is_of_both_families() -> None:
    text = """
rules:
  - {name: abroad, source: 10.0.0.0/8, negate-source: true, destination: any, service: any, action: allow}
"""
    policy, _ = compile_policy(read_policy("p.yaml", text))
    assert match(policy, 0, 0, 4, 0, 10 << 24, 0, 2, 6, 1, 80, 0) == 1
    assert match(policy, 0, 0, 4, 0, 11 << 24, 0, 2, 6, 1, 80, 0) == 0
    assert match(policy, 0, 0, 6, 0, 10 << 24, 0, 2, 6, 1, 80, 0) == 0


def test_a_rule_without_a_service_that_it_could_match_matches_nothing() -> None:
    rule = Rule("nothing", "allow", service=())
    policy, _ = compile_policy(Policy("p.yaml", rules=(rule,)))
    assert match(policy, 0, 0, 4, 0, 1, 0, 2, 6, 1000, 80, 0) == 1


def test_the_arrays_of_all_policies_are_of_one_type() -> None:
    """Another policy takes the place of one that runs: nothing may have to be compiled for it."""
    companies = compile_policy(company.policy(600, 1))[0]
    for other in (allow_all(), deny_all(), compile_policy(Policy())[0]):
        for name, array in other._asdict().items():
            one = getattr(companies, name)
            assert (array.dtype, array.ndim, array.flags.c_contiguous, array.flags.aligned) == (
                one.dtype,
                one.ndim,
                True,
                True,
            ), name
    assert companies.lines.ctypes.data % 64 == 0, "a line of 64 bytes is one line of the cache"


def test_no_policy_denies_everything_and_the_open_one_allows_it() -> None:
    for policy, action in ((deny_all(), ACTION_DENY), (allow_all(), ACTION_ALLOW)):
        zone = zone_of(policy, 4711)
        assert zone == 0
        assert policy.zones[0] == zone_id("data")
        for from_zone, to_zone in ((0, 0), (0, -1)):
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


def test_ids_are_those_of_every_node_of_every_version() -> None:
    # Stored sessions name zones and rules by them: a changed number would orphan every session.
    assert (zone_id("data"), rule_id("intrazone-default"), rule_id("interzone-default")) == (
        26687,
        1695278404,
        3170043668,
    )
