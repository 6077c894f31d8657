"""What happens in a run: all of it drawn from the seed, before the first packet."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from everwall.session import tcp
from everwall.sim.loop import MS, SECOND, US
from everwall.sim.network import Quality
from everwall.sim.packets import ICMP, TCP, UDP
from everwall.sim.rulebook import Rule, Rulebook

WEB, ALT, PUSH, DNS = 443, 8080, 5353, 53
CLOSED_TCP, CLOSED_UDP = 23, 69
SPARE_FIRST, SPARE_LAST = 5000, 5010

CLIENT_NETWORKS = ("10.1.0.0/16", "2001:db8:1::/64")
SERVER_NETWORKS = ("10.2.0.0/16", "2001:db8:2::/64")

RECOVERY = 14 * SECOND
"""Between two faults, beyond what the first one lasts: connections have found their new node by then."""


class Kind(StrEnum):
    """Faults, by the name they are reported with."""

    KILL = "kill"
    HANG = "hang"
    DRAIN = "drain"
    PARTITION = "partition"
    ISOLATE = "isolate"
    STORE_SLOW = "store-slow"
    STORE_DOWN = "store-down"
    STORE_HUNG = "store-hung"
    STORE_FULL = "store-full"
    STORE_RESTARTED = "store-restarted"
    STORE_EMPTIED = "store-emptied"
    STORE_FAILED_OVER = "store-failed-over"
    STORE_SPLIT = "store-split"
    STORE_CLOCK = "store-clock"

    @property
    def is_of_store(self) -> bool:
        """Whether it is the store that is hurt, not a node."""
        return self.value.startswith("store-")


class Moment(StrEnum):
    """What a fault waits for, so that it strikes when it hurts."""

    NONE = "at its time"
    ASKED = "a node asks for a first write"
    ANSWERED = "a node is told that a session is written"
    LET_OUT = "a node lets a SYN-ACK out"


MOMENT_WAIT = 2 * SECOND
"""A fault whose moment does not come strikes after so long."""


@dataclass(frozen=True)
class Fault:
    """One fault; times in ns."""

    kind: Kind
    at: int
    detection: int = 0
    """Until the load balancer has noticed."""
    lasts: int = 0
    """A hang, a partition, a bad store; a hang of 0 ends in death."""
    back: int = 0
    """When a killed or drained node is started again, after the fault; 0: it stays away."""
    delay: int = 0
    """Additional delay of a slow store, one way."""
    step: int = 0
    """By how much the store's clock is set, also by a fail-over: the replica has a clock of its own."""
    moment: Moment = Moment.NONE
    after: int = 0
    """From the moment to the strike."""


@dataclass(frozen=True)
class PolicyChange:
    """From ``at`` on, node after node decides by another rulebook."""

    at: int
    apart: int
    rulebook: Rulebook


@dataclass(frozen=True)
class Rotation:
    """From ``at`` on the cluster's secret is changed, step after step as an operator does it; each node is told
    ``apart`` after the one before."""

    at: int
    apart: int
    steps: int
    """All accept both secrets; all write with the new one; the old one is dropped."""


@dataclass(frozen=True)
class Relayout:
    """At ``at`` another number of buckets is announced."""

    at: int
    buckets: int
    watched: int
    """Until an operator looks whether it is over, and asks for it again where nobody carries it out any more."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    nodes: int
    endpoints: tuple[int, ...]
    rulebook: Rulebook
    change: PolicyChange | None
    faults: tuple[Fault, ...]
    """In order; the first kill is the one that every run has."""
    duration: int
    long: bool
    """Flows live beyond the expiry of the record that was written when they were opened."""
    edge: Quality
    data: Quality
    store_delay: int
    lag: int
    """How far the store's replica is behind."""
    wait_replicas: bool
    """An answer that a node waits for says that the replica has it too."""
    moving: bool
    """Records lie in several places from the beginning to the end: secret and number of buckets are being changed."""
    rotation: Rotation | None
    relayout: Relayout | None
    deregistration_delay: int
    timeouts: dict[int, int]
    steady: int
    """TCP connections that live all the time."""
    passing: int
    """TCP connections that come and go, some on the tuple of one before."""
    datagrams: int
    pings: int
    intrusions: int


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    random, lagging = Random(f"{seed}/plan"), Random(f"{seed}/lag")
    long = random.random() < 0.35
    timeouts = {
        tcp.TCP_ESTABLISHED: random.choice((120, 200, 300)) * SECOND,
        tcp.TCP_HALF_CLOSED_CLIENT: 60 * SECOND,
        tcp.TCP_HALF_CLOSED_SERVER: 60 * SECOND,
    }
    endpoints = (101,) if random.random() < 0.5 else (101, 202)
    rulebook = _rulebook(random, Random(f"{seed}/modes"), endpoints)
    # A record is good for 350 s and 120 s after the flow was last seen, or longer.
    first = random.randint(520, 640) * SECOND if long else random.randint(6_000, 14_000) * MS
    nodes = random.choice((2, 3, 3, 4))
    faults, end = _faults(random, first, nodes)
    change = _change(random, rulebook, faults) if random.random() < 0.4 else None
    lag = lagging.choice((1, 5, 20, 200, 1_500)) * MS
    wait_replicas = lag <= 20 * MS and lagging.random() < 0.5
    moving = lagging.random() < 0.3
    places = Random(f"{seed}/places")
    rotation = _rotation(places, faults) if not moving and places.random() < 0.3 else None
    relayout = None
    if not moving and places.random() < 0.4:
        relayout, faults, end = _relayout(places, faults, end, nodes)
    return Plan(
        seed=seed,
        nodes=nodes,
        endpoints=endpoints,
        rulebook=rulebook,
        change=change,
        faults=faults,
        duration=end + RECOVERY,
        long=long,
        edge=_quality(random, 1 * MS),
        data=_quality(random, 300 * US),
        store_delay=random.choice((100, 200, 500, 2_000)) * US,
        lag=lag,
        wait_replicas=wait_replicas,
        moving=moving,
        rotation=rotation,
        relayout=relayout,
        deregistration_delay=random.randint(500, 4_000) * MS,
        timeouts=timeouts,
        steady=random.randint(10, 16),
        passing=random.randint(3, 7),
        datagrams=random.randint(3, 6),
        pings=random.randint(1, 2),
        intrusions=random.choice((0, 5, 20)),
    )


def draw_strict(seed: int) -> Plan:
    """A plan in which every rule is strict, connections are opened all the time, and node after node is killed."""
    random = Random(f"{seed}/strict")
    endpoints = (101,) if random.random() < 0.5 else (101, 202)
    nodes = random.choice((2, 3, 4))
    faults: list[Fault] = []
    at = over = random.randint(4_000, 7_000) * MS
    for number in range(random.randint(3, 5)):
        kill = Fault(Kind.KILL, at, random.randint(100, 900) * MS, back=random.randint(1_500, 4_000) * MS)
        over = at + kill.detection + kill.back
        if random.random() < 0.5:
            faults.append(_store_trouble(random, at))
            over = max(over, faults[-1].at + faults[-1].lasts)
        faults.append(_at_a_moment(random, kill) if number else kill)
        at = over + RECOVERY // 2 + random.randint(0, 3_000) * MS
    lag = random.choice((1, 5, 20, 200, 1_500)) * MS
    return Plan(
        seed=seed,
        nodes=nodes,
        endpoints=endpoints,
        rulebook=_rulebook(random, None, endpoints),
        change=None,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        duration=over + RECOVERY,
        long=False,
        edge=_quality(random, 1 * MS),
        data=_quality(random, 300 * US),
        store_delay=random.choice((100, 500, 2_000, 10_000)) * US,
        lag=lag,
        wait_replicas=lag <= 20 * MS and random.random() < 0.5,
        moving=False,
        rotation=None,
        relayout=None,
        deregistration_delay=SECOND,
        timeouts={tcp.TCP_ESTABLISHED: 120 * SECOND},
        steady=random.randint(4, 8),
        passing=random.randint(20, 40),
        datagrams=random.randint(3, 6),
        pings=random.randint(1, 2),
        intrusions=0,
    )


def _rotation(random: Random, faults: tuple[Fault, ...]) -> Rotation:
    """Somewhere before the first kill; the last step would have to wait for an hour after it."""
    kill = next(fault for fault in faults if fault.kind is Kind.KILL)
    return Rotation(random.randint(SECOND, kill.at), random.randint(0, 300) * MS, steps=2)


def _relayout(
    random: Random, faults: tuple[Fault, ...], end: int, nodes: int
) -> tuple[Relayout, tuple[Fault, ...], int]:
    """The faults with a change of the number of buckets among them, and when the last one is over.

    Around the first kill, which then comes at any step of it; or after all others, announced while a node is away that
    comes back when all others write elsewhere, and takes over from one that dies.
    """
    buckets, watched = random.choice((8, 32, 100, 256)), random.randint(1_000, 5_000) * MS
    kill = next(fault for fault in faults if fault.kind is Kind.KILL)
    if nodes < 3 or random.random() < 0.6:
        at = max(kill.at - random.randint(0, 22_000) * MS, SECOND)
        return Relayout(at, buckets, watched), faults, end
    kind = random.choice((Kind.HANG, Kind.ISOLATE))
    at = end + RECOVERY
    away = Fault(kind, at, random.randint(100, 900) * MS, lasts=random.randint(11_000, 17_000) * MS)
    death = replace(kill, at=at + away.lasts + random.randint(1, 3_000) * MS)
    over = death.at + death.detection + death.back
    return Relayout(at + random.randint(0, 1_000) * MS, buckets, watched), (*faults, away, death), over


def _quality(random: Random, delay: int) -> Quality:
    bad = random.random() < 0.6
    return Quality(
        delay=delay,
        jitter=random.choice((0, delay // 10, delay)),
        loss=random.choice((0.001, 0.003, 0.006)) if bad else 0.0,
        straggle=random.choice((0.0, 0.005, 0.01)) if bad else 0.0,
        straggle_delay=random.randint(2, 30) * MS,
    )


def _rulebook(random: Random, modes: Random | None, endpoints: tuple[int, ...]) -> Rulebook:
    """``modes`` says which rules are strict; None: all of them."""
    servers = tuple(ipaddress.ip_network(text) for text in SERVER_NETWORKS)

    def strict() -> bool:
        return modes is None or modes.random() < 0.3

    rules = (
        Rule("web", True, TCP, WEB, WEB, servers, strict=strict()),
        Rule("alternative", True, TCP, ALT, ALT, servers, strict=strict()),
        Rule("spare", True, TCP, SPARE_FIRST, SPARE_LAST, strict=modes is None),
        Rule("push", True, UDP, PUSH, PUSH, strict=modes is None),
        Rule("names", True, UDP, DNS, DNS, servers, strict=strict()),
        Rule("ping", True, ICMP, strict=modes is None),
    )
    zones = tuple((f"zone-{endpoint}", endpoint) for endpoint in endpoints)
    return Rulebook(rules, zones if random.random() < 0.6 else ())


def _change(random: Random, rulebook: Rulebook, faults: tuple[Fault, ...]) -> PolicyChange:
    """Something that is allowed is not any more, shortly before a node fails."""
    kill = next(fault for fault in faults if fault.kind is Kind.KILL)
    port, protocol = random.choice(((WEB, TCP), (ALT, TCP), (ALT, TCP), (PUSH, UDP)))
    zone = random.choice(rulebook.zones)[0] if rulebook.zones and random.random() < 0.5 else None
    before = random.randint(500, 3_000) * MS
    stop = Rule("stop", False, protocol, port, port, zone=zone, answers=before // MS % 4 != 0)
    return PolicyChange(kill.at - before, random.randint(0, 100) * MS, rulebook.with_first(stop))


def _faults(random: Random, first: int, nodes: int) -> tuple[tuple[Fault, ...], int]:
    """The faults in order, and when the last of them is over."""
    twice = nodes > 2 and random.random() < 0.2
    kinds: list[Kind] = [Kind.KILL]
    for _ in range(random.choice((0, 1, 1, 2))):
        kinds.insert(random.randint(0, len(kinds)), random.choice(_OTHERS))
    faults: list[Fault] = []
    at, killed = first, False
    for kind in kinds:
        detection = random.randint(100, 900) * MS
        fault = _fault(random, kind, at, detection)
        if killed or kind is not Kind.KILL:  # the first kill is to hit connections that are there already
            fault = _at_a_moment(random, fault)
        killed = killed or kind is Kind.KILL
        over = at + max(fault.detection, fault.lasts, fault.back)
        if random.random() < 0.6:
            faults.append(_store_trouble(random, at))
            over = max(over, faults[-1].at + faults[-1].lasts)
        faults.append(fault)
        if twice and kind is Kind.KILL:
            # The next node dies while flows move to it.
            again = _fault(random, kind, at + random.randint(0, 1_500) * MS, random.randint(100, 900) * MS)
            faults.append(again)
            over = max(over, again.at + again.detection + again.back)
            twice = False
        at = over + RECOVERY + random.randint(0, 3_000) * MS
    return tuple(sorted(faults, key=lambda fault: fault.at)), over


_OTHERS = (Kind.KILL, Kind.HANG, Kind.HANG, Kind.DRAIN, Kind.PARTITION, Kind.ISOLATE, Kind.ISOLATE)
_STORE_TROUBLES = tuple(kind for kind in Kind if kind.is_of_store)


def _fault(random: Random, kind: Kind, at: int, detection: int) -> Fault:
    if kind is Kind.KILL:
        return Fault(kind, at, detection, back=random.randint(1_500, 6_000) * MS)
    if kind is Kind.HANG:
        # Shorter than it takes to be noticed, longer, or for ever.
        lasts = random.choice((detection // 2, detection + random.randint(500, 4_000) * MS, 0))
        back = 0 if lasts else random.randint(2_000, 6_000) * MS
        return Fault(kind, at, detection, lasts=lasts, back=back)
    if kind is Kind.PARTITION or kind is Kind.ISOLATE:
        return Fault(kind, at, detection, lasts=detection + random.randint(500, 5_000) * MS)
    return Fault(kind, at, back=random.randint(8_000, 10_000) * MS)


def _at_a_moment(random: Random, fault: Fault) -> Fault:
    """A node is hurt at any instant, or just when it speaks with the store."""
    if fault.kind not in (Kind.KILL, Kind.HANG, Kind.ISOLATE) or random.random() < 0.5:
        return fault
    moment = random.choice((Moment.ASKED, Moment.ANSWERED, Moment.LET_OUT))
    return replace(fault, moment=moment, after=random.choice((0, random.randint(0, 3_000))) * US)


def _store_trouble(random: Random, at: int) -> Fault:
    """A bad moment of the store: long enough before a fault to be over, or around it."""
    begin = max(at - random.choice((9_000, 5_000, 100, 0)) * MS, SECOND)
    lasts = random.randint(300, 2_500) * MS
    kind = random.choice(_STORE_TROUBLES)
    fault = Fault(kind, begin, lasts=lasts)
    if kind is Kind.STORE_SLOW:
        return replace(fault, delay=random.choice((5, 20, 60, 300)) * MS)
    step = random.choice((1, -1)) * random.choice(
        (30 * MS, 400 * MS, 5 * SECOND, 90 * SECOND, 1_000 * SECOND)
    )
    if kind is Kind.STORE_CLOCK:
        return replace(fault, step=step, lasts=0)
    if kind is Kind.STORE_FAILED_OVER and random.random() < 0.5:
        return replace(fault, step=step // 10)
    return fault
