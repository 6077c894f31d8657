"""Which rule decides about a session and why, read from the rules as people write them.

It shares nothing with the compiled matcher but the rules, so that ``everwall policy test`` and the benchmark can hold
one against the other. One session at a time; slow and plain on purpose.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from everwall.policy.model import AddressRange, DefaultRule, Policy, Rule, Service

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Question:
    """A session's first packet, client as source; zones are names, None for an endpoint that has none."""

    from_zone: str | None
    to_zone: str | None
    source: Address
    destination: Address
    protocol: int
    sport: int
    dport: int


@dataclass(frozen=True)
class Miss:
    """A rule before the one that decides, and the fields by which it does not match."""

    rule: Rule
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The rule that decides."""

    rule: Rule | DefaultRule
    row: int
    """Its row in the compiled policy: active rules in order, then intrazone-default and interzone-default."""
    misses: tuple[Miss, ...]
    """Every active rule before it, in order."""

    def nearest(self, count: int) -> list[Miss]:
        """Those that came closest to deciding, in the order of the rules: fewest fields, then the later one."""
        order = sorted(enumerate(self.misses), key=lambda entry: (len(entry[1].fields), -entry[0]))
        return [miss for _, miss in sorted(order[:count], key=lambda entry: entry[0])]


def explain(policy: Policy, asked: Question) -> Decision:
    """The rule that decides about a session, and what kept those before it from deciding."""
    active = [rule for rule in policy.rules if not rule.disabled]
    misses: list[Miss] = []
    for row, rule in enumerate(active):
        fields = tuple(_misfits(rule, asked))
        if not fields:
            return Decision(rule, row, tuple(misses))
        misses.append(Miss(rule, fields))
    same = asked.from_zone is not None and asked.from_zone == asked.to_zone
    default = policy.intrazone_default if same else policy.interzone_default
    return Decision(default, len(active) + (0 if same else 1), tuple(misses))


def _misfits(rule: Rule, asked: Question) -> Iterator[str]:
    """The fields by which a rule does not match, as the policy file calls them."""
    if asked.from_zone is None or asked.to_zone is None:
        yield "zone"
        return
    if rule.from_zones is not None and asked.from_zone not in rule.from_zones:
        yield "from"
    if rule.to_zones is not None and asked.to_zone not in rule.to_zones:
        yield "to"
    if rule.rule_type == ("interzone" if asked.from_zone == asked.to_zone else "intrazone"):
        yield "rule-type"
    if _listed(rule.source, asked.source) == rule.negate_source:
        yield "source"
    if _listed(rule.destination, asked.destination) == rule.negate_destination:
        yield "destination"
    if rule.service is not None and not any(_serves(entry, asked) for entry in rule.service):
        yield "service"


def _listed(ranges: Sequence[AddressRange] | None, address: Address) -> bool:
    return ranges is None or any(
        entry.family == address.version and entry.first <= int(address) <= entry.last for entry in ranges
    )


def _serves(entry: Service, asked: Question) -> bool:
    return (
        entry.family in (0, asked.source.version)
        and entry.protocol == asked.protocol
        and entry.first_source_port <= asked.sport <= entry.last_source_port
        and entry.first_port <= asked.dport <= entry.last_port
    )
