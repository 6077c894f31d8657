"""Which rule decides about a new session: first match wins, then one of the two default rules.

A policy is compiled to a handful of int64 arrays. A rule row points at slices of the shared arrays
``members`` (zones), ``ranges`` (addresses) and ``services``; a slice whose start is ``ANY`` matches
everything, an empty slice matches nothing, so that a compiler's mistake closes and never opens.

Zones and rules are known outside a node by a hash of their name: nodes whose policies are ordered
differently still understand each other's sessions.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import kernel
from everwall.modes import ASYNC

ACTION_ALLOW = 1
ACTION_DENY = 2  # refused; a later version may answer the client
ACTION_DROP = 3  # refused without a word, always

# Columns of ``rules``
RULE_ACTION = 0
RULE_ID = 1  # 32-bit hash of the name, never 0
RULE_LOG_START = 2  # 0 or 1
RULE_LOG_END = 3
RULE_FROM = 4  # first row in ``members``, or ANY; the next column is one past the last
RULE_TO = 6
RULE_SOURCE = 8  # the same in ``ranges``
RULE_DESTINATION = 10
RULE_SERVICE = 12  # the same in ``services``
RULE_MODE = 14  # when the store gets its sessions, see ``everwall.modes``
RULE_COLUMNS = 15

ANY = -1

# Columns of ``ranges``: both ends belong to the range
RANGE_FAMILY = 0  # 4 or 6
RANGE_FIRST_HIGH = 1
RANGE_FIRST_LOW = 2
RANGE_LAST_HIGH = 3
RANGE_LAST_LOW = 4
RANGE_COLUMNS = 5

# Columns of ``services``: both ends belong to a range of ports
SERVICE_FAMILY = 0  # 4, 6 or ANY
SERVICE_PROTOCOL = 1  # IP protocol number
SERVICE_SOURCE_FIRST = 2
SERVICE_SOURCE_LAST = 3
SERVICE_FIRST = 4  # destination port
SERVICE_LAST = 5
SERVICE_COLUMNS = 6

ZONE_DATA = "data"
"""The one zone that everything is in as long as no endpoint is mapped."""
INTRAZONE_DEFAULT = "intrazone-default"
INTERZONE_DEFAULT = "interzone-default"


class CompiledPolicy(NamedTuple):
    """A policy as arrays; all are int64 and C-contiguous."""

    endpoints: npt.NDArray[np.int64]
    """[E, 2]: endpoint id (64 bits as int64, ascending), index of its zone."""
    zones: npt.NDArray[np.int64]
    """[Z]: zone ids; without any mapped endpoint, index 0 is the zone ``data``."""
    rules: npt.NDArray[np.int64]
    """[R + 2, RULE_COLUMNS]: the rules in order, then intrazone-default, then interzone-default."""
    members: npt.NDArray[np.int64]
    """[M]: indices of zones."""
    ranges: npt.NDArray[np.int64]
    """[K, RANGE_COLUMNS]: addresses, halves of 64 bits as int64 that compare unsigned."""
    services: npt.NDArray[np.int64]
    """[S, SERVICE_COLUMNS]."""


def zone_id(name: str) -> int:
    """The id of a zone in the store: 1..65535."""
    return _named_hash(b"everwall zone", name, 2)


def rule_id(name: str) -> int:
    """The id of a rule in the store: 1..2**32 - 1."""
    return _named_hash(b"everwall rule", name, 4)


def _named_hash(person: bytes, name: str, size: int) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=size, person=person).digest()
    # 0 means "none" in a record; the name that hashes to it shares 1, and a collision is a policy error.
    return int.from_bytes(digest, "big") or 1


def _only_defaults(action: int, log_end: int) -> CompiledPolicy:
    rules = np.full((2, RULE_COLUMNS), ANY, np.int64)
    for row, name in enumerate((INTRAZONE_DEFAULT, INTERZONE_DEFAULT)):
        rules[row, : RULE_LOG_END + 1] = (action, rule_id(name), 0, log_end)
        rules[row, RULE_MODE] = ASYNC
    return CompiledPolicy(
        endpoints=np.zeros((0, 2), np.int64),
        zones=np.array([zone_id(ZONE_DATA)], np.int64),
        rules=rules,
        members=np.zeros(0, np.int64),
        ranges=np.zeros((0, RANGE_COLUMNS), np.int64),
        services=np.zeros((0, SERVICE_COLUMNS), np.int64),
    )


def allow_all() -> CompiledPolicy:
    """Everything is allowed, by the default rules; for captures and tests."""
    return _only_defaults(ACTION_ALLOW, 1)


def deny_all() -> CompiledPolicy:
    """Nothing is allowed: what a node does that was given no policy."""
    return _only_defaults(ACTION_DENY, 0)


_SIGN = np.int64(-(2**63))
"""Flipping the sign bit makes a signed comparison an unsigned one."""


@kernel
def zone_of(policy, endpoint):
    """The index of the endpoint's zone; -1 when others are mapped and this one is not."""
    endpoints = policy.endpoints
    low = 0
    high = endpoints.shape[0]
    if high == 0:
        return 0
    while low < high:
        middle = (low + high) >> 1
        if endpoints[middle, 0] < endpoint:
            low = middle + 1
        else:
            high = middle
    if low < endpoints.shape[0] and endpoints[low, 0] == endpoint:
        return int(endpoints[low, 1])
    return -1


@kernel
def _in_members(members, first, last, zone):
    if first == ANY:
        return True
    for k in range(first, last):  # noqa: SIM110 (no generators in kernels)
        if members[k] == zone:
            return True
    return False


@kernel
def _in_ranges(ranges, first, last, family, high, low):
    """``high`` and ``low`` come with their sign bits flipped already."""
    if first == ANY:
        return True
    for k in range(first, last):
        if ranges[k, RANGE_FAMILY] != family:
            continue
        first_high = ranges[k, RANGE_FIRST_HIGH] ^ _SIGN
        last_high = ranges[k, RANGE_LAST_HIGH] ^ _SIGN
        if high < first_high or high > last_high:
            continue
        if high == first_high and low < ranges[k, RANGE_FIRST_LOW] ^ _SIGN:
            continue
        if high == last_high and low > ranges[k, RANGE_LAST_LOW] ^ _SIGN:
            continue
        return True
    return False


@kernel
def _in_services(services, first, last, family, protocol, sport, dport):
    if first == ANY:
        return True
    for k in range(first, last):
        if services[k, SERVICE_PROTOCOL] != protocol:
            continue
        if services[k, SERVICE_FAMILY] != ANY and services[k, SERVICE_FAMILY] != family:
            continue
        if sport < services[k, SERVICE_SOURCE_FIRST] or sport > services[k, SERVICE_SOURCE_LAST]:
            continue
        if services[k, SERVICE_FIRST] <= dport and dport <= services[k, SERVICE_LAST]:
            return True
    return False


@kernel
def match(
    policy,
    from_zone,
    to_zone,
    family,
    source_high,
    source_low,
    destination_high,
    destination_low,
    protocol,
    sport,
    dport,
    application,
):
    """The row in ``policy.rules`` that decides about a session, client as source.

    Zones are indices as ``zone_of`` gives them. An unmapped zone (-1) is for the caller to refuse;
    here it is in no rule, not even in one for any zone, and falls to interzone-default.
    ``application`` is 0 for "not known yet"; no rule asks for one so far.
    """
    rules = policy.rules
    last = rules.shape[0] - 2
    if from_zone < 0 or to_zone < 0:
        return last + 1
    source_high = source_high ^ _SIGN
    source_low = source_low ^ _SIGN
    destination_high = destination_high ^ _SIGN
    destination_low = destination_low ^ _SIGN
    for row in range(last):
        if (
            _in_members(policy.members, rules[row, RULE_FROM], rules[row, RULE_FROM + 1], from_zone)
            and _in_members(policy.members, rules[row, RULE_TO], rules[row, RULE_TO + 1], to_zone)
            and _in_services(
                policy.services,
                rules[row, RULE_SERVICE],
                rules[row, RULE_SERVICE + 1],
                family,
                protocol,
                sport,
                dport,
            )
            and _in_ranges(
                policy.ranges,
                rules[row, RULE_SOURCE],
                rules[row, RULE_SOURCE + 1],
                family,
                source_high,
                source_low,
            )
            and _in_ranges(
                policy.ranges,
                rules[row, RULE_DESTINATION],
                rules[row, RULE_DESTINATION + 1],
                family,
                destination_high,
                destination_low,
            )
        ):
            return row
    if from_zone == to_zone:
        return last
    return last + 1
