"""What an operator should hear about a policy that is right as it stands: rules that do nothing, or too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everwall.limits import POLICY_COVERAGE_RULES_MAX, POLICY_WARNINGS_SHOWN
from everwall.policy.coverage import address_line, covered_rules, families, zone_sets
from everwall.policy.model import AddressRange, Policy, Rule


def findings(policy: Policy) -> Iterator[str]:
    """One line each; of a kind that is frequent only the first, and how many there are."""
    yield from _zones(policy)
    yield from _shortened(policy, "rules that match nothing", _empty_rules(policy))
    yield from _shortened(policy, "rules that are never reached", _covered(policy))
    yield from _shortened(policy, "rules that refuse by host names", _named_refusals(policy))
    yield from _shortened(policy, "rules that allow much", _open_rules(policy))
    yield from _default(policy)
    actions = [rule.action for rule in policy.rules if not rule.disabled]
    actions += [policy.intrazone_default.action, policy.interzone_default.action]
    if "allow" not in actions:
        yield f"{policy.file}: no rule allows anything: everything is denied"


def _shortened(policy: Policy, what: str, lines: Iterator[str]) -> Iterator[str]:
    count = 0
    for count, line in enumerate(lines, 1):
        if count <= POLICY_WARNINGS_SHOWN:
            yield line
    if count > POLICY_WARNINGS_SHOWN:
        yield f"{policy.file}: {what}: {count} in all"


def _zones(policy: Policy) -> Iterator[str]:
    for zone in policy.zones:
        if not zone.endpoints and (policy.mapped or zone.name != policy.default_zone):
            why = (
                ""
                if policy.mapped
                else f" (no endpoint is mapped: everything is in zone {policy.default_zone})"
            )
            where = f", and no endpoint is on {', '.join(zone.interfaces)}" if zone.interfaces else ""
            yield f"{policy.file}:{zone.line}: zone {zone.name} has no endpoints{where}: nothing is in it{why}"


def _empty_rules(policy: Policy) -> Iterator[str]:
    # Rules that name the same group share one tuple, which may be long: each is looked at once.
    known: dict[tuple[int, bool], set[int]] = {}

    def families_of(ranges: tuple[AddressRange, ...], negate: bool) -> set[int]:
        key = id(ranges), negate
        if key not in known:
            known[key] = families(address_line(ranges, negate))
        return known[key]

    for rule, zones in zip(policy.rules, zone_sets(policy), strict=True):
        why = "" if rule.disabled else _nothing(rule, zones, families_of)
        if why:
            yield f"{policy.file}:{rule.line}: rule {rule.name} matches nothing: {why}"


def _nothing(
    rule: Rule, zones: frozenset[str], families_of: Callable[[tuple[AddressRange, ...], bool], set[int]]
) -> str:
    """Why no packet matches the rule, or nothing."""
    if not zones:
        return (
            "there is no traffic from its zones to its zones "
            "(behind a gateway load balancer a session stays in one zone)"
        )
    known: set[int] = {4, 6}
    for key, ranges, negate, names in (
        ("source", rule.source, rule.negate_source, rule.source_names),
        ("destination", rule.destination, rule.negate_destination, rule.destination_names),
    ):
        # What is a name now may have addresses of both families later.
        if ranges is None or names:
            continue
        found = families_of(ranges, negate)
        if not found:
            return f"its {key} is no address at all"
        known = known & found
    if rule.service is not None:
        known &= {
            family for entry in rule.service for family in ((entry.family,) if entry.family else (4, 6))
        }
    return "" if known else "its source, destination and service are of different families"


def _covered(policy: Policy) -> Iterator[str]:
    if len(policy.rules) > POLICY_COVERAGE_RULES_MAX:
        yield (
            f"{policy.file}: rules that are never reached are looked for in up to "
            f"{POLICY_COVERAGE_RULES_MAX} rules only"
        )
    for number, by in covered_rules(policy).items():
        rule, others = policy.rules[number], [policy.rules[k] for k in by]
        if len(others) == 1:
            who = f"rule {others[0].name} (line {others[0].line}) matches"
        else:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            who = f"rules {', '.join(other.name for other in others[:3])}{more} together match"
        yield f"{policy.file}:{rule.line}: rule {rule.name} is never reached: {who} all that it would"


def _named_refusals(policy: Policy) -> Iterator[str]:
    for rule in policy.rules:
        names = rule.source_names + rule.destination_names
        if names and not rule.disabled and rule.action != "allow":
            yield (
                f"{policy.file}:{rule.line}: rule {rule.name} refuses by host names ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}): what they stand for passes until they are resolved"
            )


def _open_rules(policy: Policy) -> Iterator[str]:
    for rule in policy.rules:
        if rule.disabled or rule.action != "allow":
            continue
        if (rule.source, rule.destination, rule.service) == (None, None, None) and _asks_no_more(rule):
            zones = ""
            if rule.from_zones is not None or rule.to_zones is not None:
                zones = " in its zones"
            yield f"{policy.file}:{rule.line}: rule {rule.name} allows everything{zones}"
        for key, ranges, negate in (
            ("source", rule.source, rule.negate_source),
            ("destination", rule.destination, rule.negate_destination),
        ):
            if negate and ranges and len({entry.family for entry in ranges}) == 1:
                other = 6 if ranges[0].family == 4 else 4
                yield (
                    f"{policy.file}:{rule.line}: rule {rule.name} names no IPv{other} address in its negated {key}: "
                    "all of them match"
                )


def _default(policy: Policy) -> Iterator[str]:
    # Nothing reaches the other one: behind a gateway load balancer a session stays in one zone.
    if policy.intrazone_default.action == "allow":
        yield f"{policy.file}: {policy.intrazone_default.name} allows everything that no rule matches"


def _asks_no_more(rule: Rule) -> bool:
    return rule.applications is None and rule.hosts is None
