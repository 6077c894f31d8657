"""Whatever passes by a policy that was brought along would have passed where it came from.

Random configurations are read by the translation and, as they were made, by a plain reading of the vendor's rules that
shares nothing with it. Who the user is, what category a host has: nobody knows, so the vendor's firewall passes a
packet for sure only where it would for every answer.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
from dataclasses import dataclass, field

from everwall.config import ConfigError
from everwall.policy.model import Policy, Rule
from everwall.policy.panos import load_panos
from everwall.policy.rules import read_policy
from tests.policy.test_coverage import Packet, matches
from tests.policy.vendor import address, config, group, members, rule, service

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
CONFIGURATIONS = 150

HOSTS = [
    ipaddress.ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.1.9", "192.0.2.7", "2001:db8::1")
]
NETWORKS = {
    "one": ("ip-netmask", "10.0.0.1", ["10.0.0.1/32"]),
    "lan": ("ip-netmask", "10.0.0.77/24", ["10.0.0.0/24"]),
    "pair": ("ip-range", "10.0.0.2-10.0.0.3", ["10.0.0.2/31"]),
    "odd": ("ip-wildcard", "10.0.0.1/0.0.0.2", ["10.0.0.1/32", "10.0.0.3/32"]),
    "six": ("ip-netmask", "2001:db8::5/64", ["2001:db8::/64"]),
}
GROUPS = {"both": ["one", "six"], "all of it": ["lan", "both"], "tagged": None}
SERVICES = {
    "web": (6, "80,443", [80, 443]),
    "high": (6, "1024-65535", range(1024, 65536)),
    "dns": (17, "53", [53]),
}
PACKETS: list[Packet] = [
    (zone, (source.version, int(source)), (destination.version, int(destination)), port, 1024)
    for zone, source, destination, port in itertools.product(
        ("data", "elsewhere"), HOSTS, HOSTS, [(6, 80), (6, 443), (6, 8080), (17, 53), (1, 0)]
    )
    if source.version == destination.version
]


@dataclass
class Written:
    """A rule as the vendor's operator wrote it."""

    name: str
    action: str
    zones: tuple[list[str], list[str]]
    source: list[str]
    destination: list[str]
    service: list[str]
    rule_type: str
    negate: tuple[bool, bool]
    disabled: bool
    more: list[str] = field(default_factory=list)
    """What nobody knows about a packet."""

    def xml(self) -> str:
        flags = [
            ("rule-type", self.rule_type if self.rule_type != "universal" else ""),
            ("negate-source", "yes" if self.negate[0] else ""),
            ("negate-destination", "yes" if self.negate[1] else ""),
            ("disabled", "yes" if self.disabled else ""),
        ]
        more = "".join(f"<{tag}>{value}</{tag}>" for tag, value in flags if value) + "".join(self.more)
        return rule(
            self.name,
            self.action,
            more,
            from_=tuple(self.zones[0]),
            to=tuple(self.zones[1]),
            source=tuple(self.source),
            destination=tuple(self.destination),
            service=tuple(self.service),
        )

    def may_match(self, packet: Packet) -> bool:
        """Whether there is an answer to all that nobody knows with which the rule matches."""
        zone, source, destination, (protocol, port), _ = packet
        if self.disabled or self.rule_type == "interzone":
            return False
        sides = self.zones if self.rule_type == "universal" else (self.zones[0],)
        if any("any" not in names and zone not in names for names in sides):
            return False
        for address_of, names, negate in zip(
            (source, destination), (self.source, self.destination), self.negate
        ):
            if (
                "tagged" not in names
                and ("any" in names or any(holds(name, address_of) for name in names)) is negate
            ):
                return False
        return "any" in self.service or any(
            SERVICES[name][0] == protocol and port in SERVICES[name][2] for name in self.service
        )


def holds(name: str, address_of: tuple[int, int]) -> bool:
    members_of = GROUPS.get(name)
    if members_of is not None:
        return any(holds(member, address_of) for member in members_of)
    host = HOSTS[0].__class__(address_of[1]) if address_of[0] == 4 else ipaddress.IPv6Address(address_of[1])
    return any(host in ipaddress.ip_network(text) for text in NETWORKS[name][2])


def random_rules(draw: random.Random) -> list[Written]:
    def some(names: list[str]) -> list[str]:
        return ["any"] if draw.random() < 0.4 else draw.sample(names, draw.randint(1, 2))

    found = []
    for k in range(draw.randint(1, 6)):
        addresses = [some([*NETWORKS, "both", "all of it"]) for _ in range(2)]
        if draw.random() < 0.05:
            addresses[0] = ["tagged"]
        more = [
            text
            for text, chance in (
                (members("source-user", "bob"), 0.06),
                (members("category", "any"), 0.5),
                ("<schedule>nights</schedule>", 0.04),
                ("<profile-setting><group><member>default</member></group></profile-setting>", 0.3),
            )
            if draw.random() < chance
        ]
        rule_type = draw.choice(["universal"] * 6 + ["intrazone", "interzone"])
        begin, end = some(["data", "elsewhere"]), some(["data", "elsewhere"])
        if rule_type == "intrazone":
            end = draw.choice([["any"], begin])
        found.append(
            Written(
                f"rule {k}",
                draw.choice(["allow", "allow", "deny", "drop", "reset-both"]),
                (begin, end),
                addresses[0],
                addresses[1],
                some([*SERVICES]),
                rule_type,
                (
                    addresses[0] != ["any"] and draw.random() < 0.2,
                    addresses[1] != ["any"] and draw.random() < 0.2,
                ),
                draw.random() < 0.1,
                more,
            )
        )
    return found


OBJECTS = (
    "".join(address(name, kind, text) for name, (kind, text, _) in NETWORKS.items())
    + "".join(group(name, *names) for name, names in GROUPS.items() if names)
    + '<address-group><entry name="tagged"><dynamic><filter>x</filter></dynamic></entry></address-group>'
    + "".join(
        service(name, {6: "tcp", 17: "udp"}[number], text) for name, (number, text, _) in SERVICES.items()
    )
)
ZONES = "".join(
    f'<entry name="{name}"><network><layer3><member>ethernet1/{k}</member></layer3></network></entry>'
    for k, name in enumerate(("data", "elsewhere"), 1)
)


def surely_passes(rules: list[Written], default: str, packet: Packet) -> bool:
    """Whether the vendor's firewall passes a packet, whatever nobody knows; what is not overridden allows there."""
    for one in rules:
        if one.may_match(packet):
            if one.action != "allow":
                return False
            if not [text for text in one.more if "source-user" in text or "schedule" in text] and (
                "tagged" not in one.source
            ):
                return True
    return default in ("allow", "")


def passes(policy: Policy, packet: Packet) -> bool:
    decides: Rule | None = next(
        (one for one in policy.rules if not one.disabled and matches(one, packet)), None
    )
    return (decides.action if decides else policy.intrazone_default.action) == "allow"


def test_nothing_passes_that_would_not_have_passed_for_sure() -> None:
    print(f"SEED={SEED}")
    draw = random.Random(SEED)
    loaded = passed = lost = 0
    refused: list[str] = []
    for _ in range(CONFIGURATIONS):
        rules = random_rules(draw)
        default = draw.choice(["deny", "deny", "allow", ""])
        entry = f'<entry name="intrazone-default"><action>{default}</action></entry>' if default else ""
        text = config(*(one.xml() for one in rules), objects=OBJECTS, zones=ZONES, defaults=entry)
        try:
            found = load_panos("random.xml", text, endpoints={"ethernet1/1": ["1"], "ethernet1/2": ["2"]})
        except ConfigError as error:
            refused.append(error.expected)
            continue
        loaded += 1
        again = read_policy("again.yaml", found.yaml())
        for packet in draw.sample(PACKETS, 60):
            here, there = passes(found.policy, packet), surely_passes(rules, default, packet)
            assert there or not here, (SEED, rules, default, packet)
            assert passes(again, packet) is here, (SEED, text)
            passed += here
            # What is refused here and not there: a default rule that nobody wrote.
            lost += there and not here and default != ""
    assert loaded > CONFIGURATIONS // 2
    assert len(refused) > CONFIGURATIONS // 100
    assert all("would allow what it refuses" in why for why in refused)
    assert passed > 20 * loaded // 10, "the dice are loaded"
    assert lost == 0, "what can be matched is loaded as it was written"
