"""A rule is said to be unreachable only where that is so, however the policy is put together."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from everwall.policy.coverage import address_line, covered_rules, merged
from everwall.policy.model import AddressRange, Policy, Rule, Service, Zone
from everwall.policy.rules import read_policy

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
POLICIES = 600

# A world so small that every packet of it can be tried: two zones, five addresses, a few ports.
ZONES = ("a", "b")
ADDRESSES = [(4, 0), (4, 1), (4, 2), (6, 0), (6, 1)]
SERVICES = [(6, 79), (6, 80), (6, 81), (6, 65535), (17, 0), (17, 53), (1, 0)]
SOURCE_PORTS = [0, 1024]
WORLD = list(itertools.product(ZONES, ADDRESSES, ADDRESSES, SERVICES, SOURCE_PORTS))

Packet = tuple[str, tuple[int, int], tuple[int, int], tuple[int, int], int]


def covers(name: str, text: str) -> list[str]:
    """The names of the rules that make the named one unreachable."""
    policy = read_policy("p.yaml", text)
    (number,) = [k for k, rule in enumerate(policy.rules) if rule.name == name]
    return [policy.rules[k].name for k in covered_rules(policy).get(number, ())]


def rule(
    name: str, source: str = "any", destination: str = "any", service: str = "any", more: str = ""
) -> str:
    return (
        f"- {{name: {name}, source: {source}, destination: {destination}, service: {service}, "
        f"action: allow{more}}}\n"
    )


def test_a_wider_rule_before_covers() -> None:
    text = "rules:\n" + rule("wide", "10.0.0.0/8") + rule("narrow", "10.1.0.0/16", service="tcp/80")
    assert covers("narrow", text) == ["wide"]
    assert covers("wide", text) == []
    text = "rules:\n" + rule("narrow", "10.1.0.0/16", service="tcp/80") + rule("wide", "10.0.0.0/8")
    assert covers("wide", text) == []


def test_several_rules_cover_together_where_they_differ_in_one_field() -> None:
    halves = rule("low", "10.0.0.0/9", service="tcp/1-100") + rule(
        "high", "10.128.0.0/9", service="tcp/1-100"
    )
    assert covers("all", "rules:\n" + halves + rule("all", "10.0.0.0/8", service="tcp/80")) == ["low", "high"]
    assert covers("all", "rules:\n" + halves + rule("all", "10.0.0.0/8", service="tcp/80-101")) == []
    ports = rule("http", service="[tcp/80, udp/1]") + rule("https", service="tcp/443")
    assert covers("web", "rules:\n" + ports + rule("web", service="[tcp/443, tcp/80]")) == ["http", "https"]


def test_of_many_rules_only_the_needed_ones_are_named() -> None:
    hosts = "".join(rule(f"host {k}", f"10.0.0.{k}") for k in range(8))
    wide = rule("half", "10.0.0.0/30")
    text = "rules:\n" + hosts + wide + rule("all", "10.0.0.0/29")
    assert covers("all", text) in (
        ["host 4", "host 5", "host 6", "host 7", "half"],
        [f"host {k}" for k in range(8)],
    )


def test_what_is_not_known_exactly_covers_nothing() -> None:
    later = rule("later", "10.0.0.1", service="tcp/80")
    for first in (
        rule("first", "{fqdn: a.example.com}"),
        rule("first", service="{protocol: tcp, port: 80, source-port: 1024-65535}"),
        rule("first", more=", application: ssl"),
        rule("first", more=", host: example.com"),
        rule("first", more=", disabled: true"),
    ):
        assert covers("later", "rules:\n" + first + later) == [], first


def test_a_name_is_covered_only_by_any_address() -> None:
    name = rule("name", "{fqdn: a.example.com}", service="tcp/80")
    assert covers("name", "rules:\n" + rule("web", service="tcp/80") + name) == ["web"]
    assert covers("name", "rules:\n" + rule("web", "10.0.0.0/8", service="tcp/80") + name) == []


def test_negation_counts() -> None:
    others = rule("others", "10.0.0.0/8", more=", negate-source: true")
    assert covers("far", "rules:\n" + others + rule("far", "[192.0.2.1, '::1']")) == ["others"]
    assert covers("near", "rules:\n" + others + rule("near", "[192.0.2.1, 10.0.0.1]")) == []


def test_zones_that_cannot_be_told_apart_are_one() -> None:
    # Behind a gateway load balancer a session's zone is both: from a to any is from a to a.
    zones = "zones: {a: {endpoints: 1}, b: {endpoints: 2}}\nrules:\n"
    text = zones + rule("out", more=", from: a") + rule("in", more=", to: a") + rule("b", more=", from: b")
    assert covers("in", text) == ["out"]
    assert covers("b", text) == []
    assert covers("pair", zones + rule("a", more=", from: a") + rule("b", more=", to: b") + rule("pair")) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("negate", [False, True])
def test_addresses_as_intervals_hold_what_they_should(negate: bool) -> None:
    ranges = (AddressRange(4, 1, 2), AddressRange(4, 3, 9), AddressRange(6, 0, 5))
    line = address_line(ranges, negate)
    assert merged(line) == line
    six = 1 << 32
    for value in (0, 1, 2, 3, 9, 10, six - 1, six, six + 5, six + 6, six + (1 << 128) - 1):
        listed = 1 <= value <= 9 or six <= value <= six + 5
        assert any(first <= value <= last for first, last in line) == (listed is not negate)


def test_nothing_is_outside_of_everything() -> None:
    everything = (AddressRange(4, 0, (1 << 32) - 1), AddressRange(6, 0, (1 << 128) - 1))
    assert address_line(everything, negate=True) == ()


# Every packet of a small world ---------------------------------------------------------------------------


def matches(one: Rule, packet: Packet) -> bool:
    """As a person would say it; shares nothing with the intervals."""
    zone, source, destination, (protocol, port), source_port = packet
    if one.rule_type == "interzone":
        return False
    for zones in (one.from_zones, one.to_zones):
        if zones is not None and zone not in zones:
            return False
    if source[0] != destination[0]:
        return False
    for address, ranges, negate in (
        (source, one.source, one.negate_source),
        (destination, one.destination, one.negate_destination),
    ):
        family, value = address
        listed = ranges is None or any(
            entry.family == family and entry.first <= value <= entry.last for entry in ranges
        )
        if listed is negate:
            return False
    return one.service is None or any(
        entry.family in (0, source[0])
        and entry.protocol == protocol
        and entry.first_port <= port <= entry.last_port
        and entry.first_source_port <= source_port <= entry.last_source_port
        for entry in one.service
    )


def random_rule(draw: random.Random, number: int) -> Rule:
    def addresses() -> tuple[AddressRange, ...] | None:
        if draw.random() < 0.5:
            return None
        found = []
        for _ in range(draw.randint(1, 3)):
            family = draw.choice([4, 6])
            first = draw.randint(0, 2)
            last = draw.choice([first, 2, (1 << (32 if family == 4 else 128)) - 1])
            found.append(AddressRange(family, first, last))
        return tuple(found)

    def services() -> tuple[Service, ...] | None:
        if draw.random() < 0.5:
            return None
        found = []
        for _ in range(draw.randint(1, 3)):
            first = draw.choice([0, 53, 79, 80, 81])
            ports = (first, draw.choice([first, 80, 81, 65535]))
            low = draw.choice([0, 0, 0, 1])
            found.append(
                Service(
                    draw.choice([0, 0, 4, 6]), draw.choice([6, 17, 1]), min(ports), max(ports), low, 65535
                )
            )
        return tuple(found)

    def zones() -> tuple[str, ...] | None:
        return draw.choice([None, None, ("a",), ("b",), ("a", "b")])

    source, destination = addresses(), addresses()
    return Rule(
        f"rule {number}",
        "allow",
        from_zones=zones(),
        to_zones=zones(),
        source=source,
        destination=destination,
        service=services(),
        negate_source=source is not None and draw.random() < 0.2,
        negate_destination=destination is not None and draw.random() < 0.2,
        rule_type=draw.choice(["universal"] * 8 + ["interzone"]),
        disabled=draw.random() < 0.1,
    )


def test_no_packet_reaches_a_rule_that_is_said_to_be_unreachable() -> None:
    print(f"SEED={SEED}")
    draw = random.Random(SEED)
    said = together = 0
    for _ in range(POLICIES):
        rules = tuple(random_rule(draw, k) for k in range(draw.randint(2, 9)))
        policy = Policy("p.yaml", zones=(Zone("a", (1,)), Zone("b", (2,))), rules=rules)
        found = covered_rules(policy)
        said += len(found)
        together += sum(len(by) > 1 for by in found.values())
        for packet in draw.sample(WORLD, 200) if found else ():
            for number, by in found.items():
                if matches(rules[number], packet):
                    assert any(k < number and matches(rules[k], packet) for k in by), (SEED, rules, packet)
                    assert not any(rules[k].disabled for k in by)
    assert said > POLICIES // 10, "the dice are loaded"
    assert together > 2, "the dice are loaded"
