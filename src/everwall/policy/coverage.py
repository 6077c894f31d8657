"""Which rules no packet can reach, because earlier ones match all that they would.

Each field of a rule is a set of intervals on a line: zones, addresses of both families, protocols with their
ports. A rule is covered where one earlier rule's set holds its own in every field, or where that is so in all
fields but one, and in this one several such rules hold it together. What is said to be covered truly is: where a
set is not known exactly (host names, source ports, applications), a rule covers with less than it matches, and is
covered only as more. Not every covered rule is found: a patchwork in two fields at once is not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from everwall.limits import POLICY_COVERAGE_RULES_MAX
from everwall.policy.model import ADDRESS_BITS, PORT_MAX, AddressRange, Policy, Rule, Service

Intervals = tuple[tuple[int, int], ...]
"""Ascending, apart from one another by at least one value that is in none."""

_V6 = 1 << ADDRESS_BITS[4]
_ADDRESSES = _V6 + (1 << ADDRESS_BITS[6])
_FAMILY_PORTS = 256 * (PORT_MAX + 1)
ZONE, SOURCE, DESTINATION, SERVICE = range(4)
TOGETHER_MAX = 64
"""Earlier rules that are tried as one."""
PIECES_MAX = 1024
"""Intervals of these rules in all; where there are more, nobody looks whether they fit together."""

FEW_PAIRS = 16
"""Up to so many are quicker one by one than all owners at once."""


def merged(intervals: Sequence[tuple[int, int]]) -> Intervals:
    """The same values, each once."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def address_line(ranges: tuple[AddressRange, ...] | None, negate: bool = False) -> Intervals:
    """Addresses as intervals: those of IPv4, then those of IPv6."""
    if ranges is None:
        return ((0, _ADDRESSES - 1),)
    start = {4: 0, 6: _V6}
    found = merged(
        [(start[entry.family] + entry.first, start[entry.family] + entry.last) for entry in ranges]
    )
    if not negate:
        return found
    edges = [-1, *(edge for interval in found for edge in interval), _ADDRESSES]
    gaps = [(edges[k] + 1, edges[k + 1] - 1) for k in range(0, len(edges), 2)]
    return tuple((first, last) for first, last in gaps if first <= last)


def _service_line(service: tuple[Service, ...] | None, exact: bool) -> Intervals:
    """Protocols with their ports, of IPv4, then of IPv6; ``exact``: without entries that ask for a source port."""
    if service is None:
        return ((0, 2 * _FAMILY_PORTS - 1),)
    found = []
    for entry in service:
        if exact and (entry.first_source_port > 0 or entry.last_source_port < PORT_MAX):
            continue
        for k, family in enumerate((4, 6)):
            if entry.family in (0, family):
                start = k * _FAMILY_PORTS + entry.protocol * (PORT_MAX + 1)
                found.append((start + entry.first_port, start + entry.last_port))
    return merged(found)


def zone_sets(policy: Policy) -> Iterator[frozenset[str]]:
    """For each rule the zones whose traffic it may match.

    Traffic of an endpoint returns through that endpoint, so that a session's zone is "from" and "to" at once; and
    zones without endpoints have no traffic.
    """
    live = frozenset(
        {zone.name for zone in policy.zones if zone.endpoints} if policy.mapped else {policy.default_zone}
    )
    for rule in policy.rules:
        zones = live if rule.from_zones is None else live.intersection(rule.from_zones)
        if rule.rule_type == "interzone":
            zones = frozenset()
        elif rule.to_zones is not None:
            zones = zones.intersection(rule.to_zones)
        yield zones


def families(policy_line: Intervals) -> set[int]:
    """The families that addresses as intervals are of."""
    return {4 for first, _ in policy_line if first < _V6} | {6 for _, last in policy_line if last >= _V6}


def _holds(outer: Intervals, inner: Intervals) -> bool:
    """Whether every value of ``inner`` is one of ``outer``."""
    for first, last in inner:
        k = bisect_right(outer, (first, _ADDRESSES)) - 1
        if k < 0 or outer[k][1] < last:
            return False
    return True


class _Field:
    """One field of all rules: the sets it has, and which of them hold which."""

    def __init__(self) -> None:
        self.sets: list[Intervals] = []
        self._numbers: dict[Intervals, int] = {}
        self._holding: dict[int, npt.NDArray[np.bool_]] = {}
        self._at: dict[int, npt.NDArray[np.bool_]] = {}

    def number(self, intervals: Intervals) -> int:
        """The number of a set; the same for the same values."""
        if intervals not in self._numbers:
            self._numbers[intervals] = len(self.sets)
            self.sets.append(intervals)
        return self._numbers[intervals]

    def close(self, covering: list[int]) -> None:
        """All sets are known; ``covering`` holds, for each rule, the number of what it surely matches."""
        self.covering = np.array(covering, np.int32)
        # Addresses have 128 bits: places in the sorted list of all edges compare as they do.
        edges = sorted({edge for intervals in self.sets for interval in intervals for edge in interval})
        self._place = {edge: k for k, edge in enumerate(edges)}
        pairs: dict[tuple[int, int], list[int]] = {}
        for number, intervals in enumerate(self.sets):
            for interval in intervals:
                pairs.setdefault(interval, []).append(number)
        self._first = np.array([self._place[first] for first, _ in pairs], np.int32)
        self._last = np.array([self._place[last] for _, last in pairs], np.int32)
        # Of each pair of edges the sets that have it, one after the other.
        self._starts = np.cumsum([0, *(len(owners) for owners in pairs.values())])
        self._owners = np.array([owner for owners in pairs.values() for owner in owners], np.int32)
        self._pair_of = np.repeat(np.arange(len(pairs)), np.diff(self._starts))

    def _sets_around(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Of each set, whether one of its intervals holds all from ``first`` to ``last``."""
        low, high = self._place[first], self._place[last]
        found = np.zeros(len(self.sets), np.bool_)
        around = (self._first <= low) & (self._last >= high)
        pairs = np.flatnonzero(around)
        if pairs.size > FEW_PAIRS:
            found[self._owners[around[self._pair_of]]] = True
        else:
            for k in pairs:
                found[self._owners[self._starts[k] : self._starts[k + 1]]] = True
        return found

    def holding(self, number: int) -> npt.NDArray[np.bool_]:
        """Of each set, whether it holds all of set ``number``; nobody is said to hold an empty one."""
        if number not in self._holding:
            intervals = self.sets[number]
            found = np.zeros(len(self.sets), np.bool_)
            if intervals:
                found |= self._sets_around(*intervals[0])
            if len(intervals) > 1:
                # Few sets have both ends; those are looked at whole.
                found &= self._sets_around(*intervals[-1])
                for other in np.flatnonzero(found):
                    found[other] = other == number or _holds(self.sets[other], intervals)
            self._holding[number] = found
        return self._holding[number]

    def holding_start(self, number: int) -> npt.NDArray[np.bool_]:
        """Of each set, whether the first value of set ``number`` is in it."""
        start = self.sets[number][0][0]
        if start not in self._at:
            self._at[start] = self._sets_around(start, start)
        return self._at[start]


def covered_rules(policy: Policy) -> dict[int, tuple[int, ...]]:
    """Index of each active rule that no packet reaches: the indices of the earlier rules that match all of it.

    Rules that match nothing at all are not among them. In a policy of more than POLICY_COVERAGE_RULES_MAX rules
    nothing is looked for: the time grows with the square of their number.
    """
    if len(policy.rules) > POLICY_COVERAGE_RULES_MAX:
        return {}
    active = [k for k, rule in enumerate(policy.rules) if not rule.disabled]
    rules = [policy.rules[k] for k in active]
    zones = list(zone_sets(policy))
    places = {name: k for k, name in enumerate(sorted({name for names in zones for name in names}))}
    fields = [_Field() for _ in range(4)]
    covering: list[list[int]] = [[], [], [], []]
    wanted: list[list[int]] = [[], [], [], []]
    # Rules that say the same share their tuples: each is turned into intervals once.
    known: dict[tuple[int, int, bool], int] = {}

    def once(field: int, value: object, flag: bool, intervals: Intervals | None) -> int:
        key = (field, id(value), flag)
        if key not in known:
            assert intervals is not None
            known[key] = fields[field].number(intervals)
        return known[key]

    def is_new(field: int, value: object, flag: bool) -> bool:
        return (field, id(value), flag) not in known

    for k, rule in zip(active, rules, strict=True):
        zone_number = fields[ZONE].number(merged([(places[name], places[name]) for name in zones[k]]))
        covering[ZONE].append(zone_number)
        wanted[ZONE].append(zone_number)
        for field, ranges, negate, names in (
            (SOURCE, rule.source, rule.negate_source, rule.source_names),
            (DESTINATION, rule.destination, rule.negate_destination, rule.destination_names),
        ):
            line = address_line(ranges, negate) if is_new(field, ranges, negate) else None
            sure = once(field, ranges, negate, line)
            covering[field].append(sure)
            wanted[field].append(fields[field].number(address_line(None)) if names else sure)
        for exact, numbers in ((True, covering[SERVICE]), (False, wanted[SERVICE])):
            line = _service_line(rule.service, exact) if is_new(SERVICE, rule.service, exact) else None
            numbers.append(once(SERVICE, rule.service, exact, line))
    for which, numbers in zip(fields, covering, strict=True):
        which.close(numbers)

    covers = np.array([_covers(rule) for rule in rules], np.bool_)
    found: dict[int, tuple[int, ...]] = {}
    for k in range(1, len(rules)):
        numbers = [wanted[field][k] for field in range(4)]
        if not all(fields[field].sets[number] for field, number in enumerate(numbers)):
            continue
        by = _covered_by(fields, numbers, covers[:k])
        if by:
            found[active[k]] = tuple(active[other] for other in by)
            covers[k] = False  # what it matches, the others match
    return found


def _covers(rule: Rule) -> bool:
    """Whether the intervals of a rule are all that it asks for."""
    return rule.applications is None and rule.hosts is None


def _covered_by(fields: list[_Field], numbers: list[int], covers: npt.NDArray[np.bool_]) -> list[int]:
    """The earlier rules that hold the given sets: one, or several that are alike but for one field; or none."""
    earlier = len(covers)
    holds = [covers] * len(fields)
    bare = 0
    # Addresses first: in most rules nobody holds either of them, and that settles it.
    for k in (DESTINATION, SOURCE, SERVICE, ZONE):
        holds[k] = fields[k].holding(numbers[k])[fields[k].covering[:earlier]] & covers
        bare += not holds[k].any()
        if bare == 2:
            return []
    whole = np.flatnonzero(holds[0] & holds[1] & holds[2] & holds[3])
    if whole.size:
        return [int(whole[0])]
    for open_field, field in enumerate(fields):
        others = covers.copy()
        for k in range(4):
            if k != open_field:
                others &= holds[k]
        if not others.any():
            continue
        number = numbers[open_field]
        starts = others & field.holding_start(number)[field.covering[:earlier]]
        if not starts.any():
            continue
        rest = np.flatnonzero(others & ~starts)
        chosen = [int(k) for k in (*np.flatnonzero(starts), *rest)][:TOGETHER_MAX]
        together = _needed(field, number, chosen)
        if together:
            return together
    return []


def _needed(field: _Field, number: int, chosen: list[int]) -> list[int]:
    """Those of the chosen rules that hold the set together, as few as a walk along it takes; or none."""
    pieces: list[tuple[int, int, int]] = []
    for k in chosen:
        pieces += [(first, last, k) for first, last in field.sets[int(field.covering[k])]]
        if len(pieces) > PIECES_MAX:
            return []
    pieces.sort()
    needed: set[int] = set()
    at = 0
    for first, last in field.sets[number]:
        reached, best = first - 1, -1
        farthest = reached
        while reached < last:
            while at < len(pieces) and pieces[at][0] <= reached + 1:
                if pieces[at][1] > farthest:
                    farthest, best = pieces[at][1], pieces[at][2]
                at += 1
            if farthest <= reached:
                return []
            needed.add(best)
            reached = farthest
    return sorted(needed)
