"""Which rule decides about a new session: first match wins, then one of the two default rules.

A rule asks for zones, addresses and a service, and matches where all of them fit. For every value that a field may
have, the policy was compiled to the *set* of rules that the value suits, as bits in the order of the rules; a rule
matches where all sets of a packet have its bit, and the first common bit decides. What is done for a packet:

    each field     value -> the interval it lies in -> its set      an index by the first bits, a few comparisons
    sets           512 rules at a time: one line of 64 bytes of each set, all of them and-ed

A set is not stored as its bits but as numbers of such lines, and every line stands once. Most values suit most rules
alike (those that ask for anything), so that nearly all lines that are read are the same few from packet to packet, and
stay in the processor's first cache. ``docs/decisions/0008`` has the reasons and the figures.

A rule whose service names several ranges of source ports has a *place* among the bits for each of them, one behind
the other, for only within one range do source and destination ports combine freely; ``places`` says whose they are.
A set without a bit matches nothing, so that a compiler's mistake closes and never opens.

Zones and rules are known outside a node by a hash of their name: nodes whose policies are ordered
differently still understand each other's sessions.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import inlined, kernel, lowest_bit
from everwall.modes import ASYNC

ACTION_ALLOW = 1
ACTION_DENY = 2  # refused; RULE_ANSWER says what is said about it
ACTION_DROP = 3  # refused without a word, unless an unreachable is asked for

# Columns of ``rules``
RULE_ACTION = 0
RULE_ID = 1  # 32-bit hash of the name, never 0
RULE_LOG_START = 2  # 0 or 1
RULE_LOG_END = 3
RULE_MODE = 4  # when the store gets its sessions, see ``everwall.modes``
RULE_ANSWER = 5  # what a refusal tells the ends: bits below
RULE_COLUMNS = 6

# Bits of RULE_ANSWER
ANSWER_RESET_CLIENT = 1  # TCP only
ANSWER_RESET_SERVER = 2
ANSWER_UNREACHABLE = 4  # to the client of anything but TCP
ANSWER_UNREACHABLE_TCP = 8  # and of TCP

# Columns of ``zone_sets``
ZONE_FROM_SAME = 0  # of a client in this zone whose server is in it too
ZONE_FROM_OTHER = 1  # whose server is in another one
ZONE_TO = 2  # of a server in this zone
ZONE_COLUMNS = 3

# Rows of ``tables``, fields with values of one int64
SOURCE_4 = 0
DESTINATION_4 = 1
SERVICE_4 = 2  # protocol << 16 | destination port
SERVICE_6 = 3
SOURCE_PORT = 4
TABLES = 5
# and their columns
TABLE_JUMPS = 0  # first entry in ``jumps``
TABLE_SHIFT = 1  # a value shifted right by this is its entry
TABLE_COLUMNS = 2

# Rows of ``tables6``, fields with IPv6 addresses, and its columns
SOURCE_6 = 0
DESTINATION_6 = 1
TABLE_FIRST = 0  # first interval in ``starts6``
TABLE_LAST = 1  # and the last

LINE_WORDS = 8
LINE_BITS = 64 * LINE_WORDS
_LINE_SHIFT = 9

ZONE_DATA = "data"
"""The one zone that everything is in as long as no endpoint is mapped."""
INTRAZONE_DEFAULT = "intrazone-default"
INTERZONE_DEFAULT = "interzone-default"


class CompiledPolicy(NamedTuple):
    """A policy as arrays, C-contiguous, of types that are the same for every policy."""

    endpoints: npt.NDArray[np.int64]
    """[E, 2]: endpoint id (64 bits as int64, ascending), index of its zone."""
    zones: npt.NDArray[np.int64]
    """[Z]: zone ids; without any mapped endpoint, index 0 is the zone ``data``."""
    rules: npt.NDArray[np.int64]
    """[R + 2, RULE_COLUMNS]: the rules in order, then intrazone-default, then interzone-default."""
    places: npt.NDArray[np.int32]
    """[P]: the row in ``rules`` that each bit stands for, ascending."""
    zone_sets: npt.NDArray[np.int32]
    """[Z, ZONE_COLUMNS]: the sets of each zone."""
    tables: npt.NDArray[np.int64]
    """[TABLES, TABLE_COLUMNS]."""
    jumps: npt.NDArray[np.int32]
    """The last interval that begins at or before the first value of each entry; and one entry more for each table."""
    starts: npt.NDArray[np.int64]
    """[N]: the first value of each interval, ascending within a table."""
    sets: npt.NDArray[np.int32]
    """[N]: the set of each interval."""
    tables6: npt.NDArray[np.int64]
    """[2, 2]."""
    starts6: npt.NDArray[np.int64]
    """[M, 2]: the same for IPv6 addresses, halves of 64 bits with flipped sign bits: they compare as unsigned."""
    sets6: npt.NDArray[np.int32]
    """[M]."""
    blocks: npt.NDArray[np.int32]
    """[S, blocks of LINE_BITS places]: the lines that each set consists of."""
    lines: npt.NDArray[np.int64]
    """[L, LINE_WORDS]: each on one line of the processor's cache."""


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
    rules = np.zeros((2, RULE_COLUMNS), np.int64)
    for row, name in enumerate((INTRAZONE_DEFAULT, INTERZONE_DEFAULT)):
        rules[row] = (action, rule_id(name), 0, log_end, ASYNC, 0)
    # One interval and one set of no blocks for whatever comes.
    return CompiledPolicy(
        endpoints=np.zeros((0, 2), np.int64),
        zones=np.array([zone_id(ZONE_DATA)], np.int64),
        rules=rules,
        places=np.zeros(0, np.int32),
        zone_sets=np.zeros((1, ZONE_COLUMNS), np.int32),
        tables=np.array([(0, 63)] * TABLES, np.int64),
        jumps=np.zeros(2, np.int32),
        starts=np.zeros(1, np.int64),
        sets=np.zeros(1, np.int32),
        tables6=np.zeros((2, 2), np.int64),
        starts6=np.zeros((1, 2), np.int64),
        sets6=np.zeros(1, np.int32),
        blocks=np.zeros((1, 0), np.int32),
        lines=np.zeros((0, LINE_WORDS), np.int64),
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


@inlined
def _set_of(policy, table, value):
    """The set of a value in ``tables``."""
    at = policy.tables[table, TABLE_JUMPS] + (value >> policy.tables[table, TABLE_SHIFT])
    low = np.int64(policy.jumps[at])
    count = np.int64(policy.jumps[at + 1]) - low
    while count > 0:
        half = (count + 1) >> 1
        low += half if policy.starts[low + half] <= value else 0
        count -= half
    return np.int64(policy.sets[low])


@inlined
def _set_of6(policy, table, high, low):
    """The set of an IPv6 address."""
    high, low = high ^ _SIGN, low ^ _SIGN
    at = policy.tables6[table, TABLE_FIRST]
    count = policy.tables6[table, TABLE_LAST] - at
    while count > 0:
        half = (count + 1) >> 1
        start = policy.starts6[at + half, 0]
        begun = (start < high) | ((start == high) & (policy.starts6[at + half, 1] <= low))
        at += half if begun else 0
        count -= half
    return np.int64(policy.sets6[at])


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
    last = policy.rules.shape[0] - 2
    if from_zone < 0 or to_zone < 0:
        return last + 1
    same = from_zone == to_zone
    service = protocol << 16 | dport
    client = np.int64(policy.zone_sets[from_zone, ZONE_FROM_SAME if same else ZONE_FROM_OTHER])
    server = np.int64(policy.zone_sets[to_zone, ZONE_TO])
    if family == 4:
        source = _set_of(policy, SOURCE_4, source_low)
        destination = _set_of(policy, DESTINATION_4, destination_low)
        service = _set_of(policy, SERVICE_4, service)
    else:
        source = _set_of6(policy, SOURCE_6, source_high, source_low)
        destination = _set_of6(policy, DESTINATION_6, destination_high, destination_low)
        service = _set_of(policy, SERVICE_6, service)
    port = _set_of(policy, SOURCE_PORT, sport)
    blocks, lines = policy.blocks, policy.lines
    for block in range(blocks.shape[1]):
        a, b = np.int64(blocks[client, block]), np.int64(blocks[server, block])
        c, d = np.int64(blocks[source, block]), np.int64(blocks[destination, block])
        e, f = np.int64(blocks[service, block]), np.int64(blocks[port, block])
        common = 0
        for k in range(LINE_WORDS):
            common |= lines[a, k] & lines[b, k] & lines[c, k] & lines[d, k] & lines[e, k] & lines[f, k]
        if common == 0:
            continue
        for k in range(LINE_WORDS):
            word = lines[a, k] & lines[b, k] & lines[c, k] & lines[d, k] & lines[e, k] & lines[f, k]
            if word != 0:
                return np.int64(policy.places[(block << _LINE_SHIFT) + (k << 6) + lowest_bit(word)])
    if same:
        return last
    return last + 1
