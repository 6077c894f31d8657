"""The figures of a run: arithmetic on what traffic, load balancer and nodes wrote down.

No sockets and no clock; all of it can be tested on recorded samples. Times are nanoseconds of
CLOCK_MONOTONIC until they become figures in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CPU_SHARE_WANTED = 0.40
"""The part of the machine that traffic is paced to."""
_PACE_MIN, _PACE_MAX = 0.25, 4.0

PROBES_ON_VICTIM = 20
VICTIM_SHARE_MIN = 0.25
GAP_OVER_DETECTION_MS = 100
GAP_DRAIN_MS = 60
STALL_OVER_DETECTION_MS = 300
BOUNCED_SHARE_MIN = 0.5
"""The part of all forwarded packets that the cut-through, where it is on, has to have answered: the traffic is
established connections for the most part, and these are what it is for."""

HISTOGRAM_MS = (10, 30, 100, 300, 600, 1000, 2000, 5000)
"""Upper bounds of the histogram's bars; the last bar is open."""

NON_SYN = "non-syn-tcp"

COMES_BACK = ("hang", "partition", "isolate")
"""Failures whose victim is back at two thirds of the run."""


@dataclass
class Connection:
    """One TCP connection (or packet-level flow) and all that is known of it."""

    number: int
    kind: str
    client: str
    target: str = ""
    """The firewall that carried it at the event."""
    target_after: str = ""
    exchanges: int = 0
    verified: int = 0
    """Bytes compared with the ones that were sent, both directions."""
    corrupt: str = ""
    lost: str = ""
    stall_ms: float = 0.0
    stall_began_ms: float = 0.0
    """When the longest stall began, from the event."""
    answered_ms: float | None = None
    """From its last probe (after the event, or after the victim's return) to the answer."""
    first_target: str = ""
    """The firewall that carried it when it was opened."""


@dataclass
class Probe:
    """One UDP probe flow."""

    number: int
    client: str
    target: str = ""
    fast: bool = False
    sent: int = 0
    delivered: int = 0
    gap_ms: float | None = None


@dataclass
class Node:
    """What one firewall carried."""

    name: str
    victim: bool = False
    flows_before: int = 0
    flows_after: int = 0
    packets: int = 0
    """Packets that came back to the load balancer."""
    sessions: int | None = None
    restored: int | None = None
    forwarded: int = 0
    bounced: int = 0
    """Of the forwarded packets those that the cut-through answered."""
    health: str = ""


@dataclass
class Run:
    """One run of the lab, with or without session resiliency."""

    resiliency: str
    fail: str
    traffic: str
    firewalls: int
    rung: str = ""
    port: str = ""
    """How packets come to the firewalls: ``xdp``, ``raw`` or ``udp``."""
    cut_through: str = "off"
    """Whether established flows are answered in the kernel: ``on`` or ``off``."""
    workers: int = 1
    """Of each firewall."""
    seconds: float = 0.0
    victim: str = ""
    connections: list[Connection] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    icmp_flows: int = 0
    icmp_recovered: int = 0
    nodes: list[Node] = field(default_factory=list)
    detection_ms: float | None = None
    detection_bound_ms: float = 0.0
    returned_ms: float | None = None
    """From the victim's return to the load balancer's healthy mark."""
    resync: dict[str, Any] = field(default_factory=dict)
    """How the firewalls filled the store again that came back empty; nothing where it was never lost."""
    drops: dict[str, int] = field(default_factory=dict)
    refused_after: int = 0
    """Of the drops that there are for want of a session, those since the event."""
    drops_by_node: dict[str, dict[str, int]] = field(default_factory=dict)
    kernel_drops: dict[str, int] = field(default_factory=dict)
    """Packets that the kernel dropped between the parts, by namespace and device."""
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    """Every counter of every process at the end, for the evidence."""
    flapped: list[str] = field(default_factory=list)
    """Whom each unhealthy mark of a firewall met that was well: the machine was too busy to answer in time."""
    restored: int = 0
    cpu_share: float = 0.0
    pace: float = 1.0
    store: dict[str, Any] = field(default_factory=dict)
    opened: int = 0
    """Connections that were asked for; those that never opened are not in ``connections``."""

    @property
    def on_victim(self) -> list[Connection]:
        return [each for each in self.connections if each.target == self.victim]

    @property
    def lost(self) -> list[Connection]:
        return [each for each in self.connections if each.lost]

    @property
    def lost_by_flaps(self) -> list[Connection]:
        """Lost ones that the victim did not carry, but a firewall that was marked unhealthy though it was well.

        Without resiliency that mark is the end of its connections, as it is of the victim's; with it no mark is.
        """
        if self.resiliency == "on":
            return []
        return [
            each
            for each in self.lost
            if each.target != self.victim and not {each.first_target, each.target}.isdisjoint(self.flapped)
        ]

    @property
    def spared_by_flaps(self) -> list[Connection]:
        """The victim's that live on without resiliency: moved by such a mark to or from a firewall that knew them."""
        if self.resiliency == "on" or not self.flapped:
            return []
        return [
            each
            for each in self.on_victim
            if not each.lost and (each.first_target in self.flapped or each.target_after == self.victim)
        ]

    @property
    def forwarded(self) -> int:
        return sum(node.forwarded for node in self.nodes)

    @property
    def bounced(self) -> int:
        return sum(node.bounced for node in self.nodes)

    @property
    def bounced_share(self) -> float:
        """Part of the forwarded packets that the cut-through answered."""
        return self.bounced / self.forwarded if self.forwarded else 0.0

    @property
    def probes_on_victim(self) -> list[Probe]:
        return [each for each in self.probes if each.fast and each.target == self.victim]

    @property
    def gap_ms(self) -> dict[str, float | None]:
        return quantiles([each.gap_ms for each in self.probes_on_victim if each.gap_ms is not None])

    @property
    def stall_ms(self) -> dict[str, float | None]:
        return quantiles([each.stall_ms for each in self.connections])

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` writes for this run."""
        lost_on_victim = [each for each in self.on_victim if each.lost]
        return {
            "resiliency": self.resiliency,
            "fail": self.fail,
            "traffic": self.traffic,
            "rung": self.rung,
            "port": self.port,
            "cut_through": self.cut_through,
            "workers": self.workers,
            "forwarded": self.forwarded,
            "bounced": self.bounced,
            "bounced_share": round(self.bounced_share, 3),
            "seconds": self.seconds,
            "firewalls": self.firewalls,
            "connections": len(self.connections),
            "victim": self.victim,
            "on_victim": len(self.on_victim),
            "lost": len(self.lost),
            "lost_on_victim": len(lost_on_victim),
            "lost_by_flaps": len(self.lost_by_flaps),
            "spared_by_flaps": len(self.spared_by_flaps),
            "survived": len(self.connections) - len(self.lost),
            "bytes_verified": sum(each.verified for each in self.connections),
            "corrupt": sum(bool(each.corrupt) for each in self.connections),
            "detection_ms": rounded(self.detection_ms),
            "returned_ms": rounded(self.returned_ms),
            "resync": self.resync,
            "gap_ms": self.gap_ms,
            "stall_ms": self.stall_ms,
            "stall_histogram": [
                {"below_ms": bound, "connections": count}
                for bound, count in histogram([each.stall_ms for each in self.connections])
            ],
            "probes_on_victim": len(self.probes_on_victim),
            "icmp": {"flows": self.icmp_flows, "recovered": self.icmp_recovered},
            "flaps": len(self.flapped),
            "restored": self.restored,
            "drops": {NON_SYN: 0} | self.drops,
            "refused_after": self.refused_after,
            "drops_by_node": self.drops_by_node,
            "kernel_drops": self.kernel_drops,
            "cpu_share": round(self.cpu_share, 3),
            "pace": round(self.pace, 3),
            "nodes": [vars(node) for node in self.nodes],
            "store": self.store,
            "broken": broken_promises(self),
        }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Median, 99th percentile and maximum by nearest rank; null where there is nothing."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return rounded(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) if ordered else None

    return {"p50": at(0.50), "p99": at(0.99), "max": at(1.0)}


def histogram(values: Iterable[float]) -> list[tuple[int | None, int]]:
    """How many values are below each bound of ``HISTOGRAM_MS`` and not below the one before."""
    bounds: list[int | None] = [*HISTOGRAM_MS, None]
    counts = [0] * len(bounds)
    for value in values:
        counts[next(i for i, bound in enumerate(bounds) if bound is None or value < bound)] += 1
    return list(zip(bounds, counts, strict=True))


def next_pace(pace: float, cpu_share: float) -> float:
    """The pace that brings the machine to the wanted share, as far as one step can tell.

    Only half of the correction is made, in logarithms: part of the load does not follow the pace.
    """
    step = math.sqrt(CPU_SHARE_WANTED / max(cpu_share, 0.02))
    return min(_PACE_MAX, max(_PACE_MIN, pace * min(2.0, max(0.4, step))))


def cpu_share(before: Sequence[int], after: Sequence[int]) -> float:
    """Busy part of all processors between two readings of /proc/stat's first line.

    Idle and waiting for I/O (the 4th and 5th figure) are not busy; guest time is in user time already.
    """
    spent = [later - earlier for earlier, later in zip(before[:8], after[:8], strict=True)]
    total = sum(spent)
    return (total - spent[3] - spent[4]) / total if total > 0 else 0.0


def choose_victim(targets: Iterable[str]) -> str:
    """The target with most flows; of equals the first by name."""
    counts: dict[str, int] = {}
    for target in targets:
        counts[target] = counts.get(target, 0) + 1
    if not counts:
        return ""
    return min(counts, key=lambda name: (-counts[name], name))


def mark_ms(events: Iterable[Mapping[str, Any]], victim: str, state: str, since_ns: int) -> float | None:
    """From a moment to the load balancer's next mark of that state; None when it never came."""
    marks = [
        int(each["time_ns"])
        for each in events
        if each["target"] == victim and each["state"] == state and int(each["time_ns"]) >= since_ns
    ]
    return (min(marks) - since_ns) / 1e6 if marks else None


def find_flaps(events: Iterable[Mapping[str, Any]], victim: str, since_ns: int, event_ns: int) -> list[str]:
    """Whom unhealthy marks met since traffic began: the victim before the event, others at any time."""
    return [
        str(each["target"])
        for each in events
        if each["state"] == "unhealthy"
        and int(each["time_ns"]) >= since_ns
        and (each["target"] != victim or int(each["time_ns"]) < event_ns)
    ]


def broken_promises(run: Run) -> list[str]:
    """What this run was to show and did not; empty when every promise was kept."""
    broken = []
    victims = run.on_victim
    lost_elsewhere = sum(each.target != run.victim for each in run.lost) - len(run.lost_by_flaps)
    corrupt = sum(bool(each.corrupt) for each in run.connections)

    def expect(kept: bool, otherwise: str) -> None:
        if not kept:
            broken.append(otherwise)

    expect(
        len(run.connections) >= run.opened,
        f"only {len(run.connections)} of {run.opened} connections were established before the event",
    )
    share = min(VICTIM_SHARE_MIN, 1 / run.firewalls)
    expect(
        len(victims) >= share * len(run.connections) > 0,
        f"the victim carried {len(victims)} of {len(run.connections)} connections, less than {share:.0%}",
    )
    expect(
        len(run.probes_on_victim) >= PROBES_ON_VICTIM,
        f"{len(run.probes_on_victim)} UDP probe flows on the victim, not {PROBES_ON_VICTIM}",
    )
    expect(corrupt == 0, f"{corrupt} connections carried other bytes than were sent")
    flaps = f" ({len(run.flapped)} times another firewall was marked unhealthy)" if run.flapped else ""
    expect(
        not lost_elsewhere,
        f"{lost_elsewhere} connections were lost that the victim did not carry{flaps}",
    )
    if run.cut_through == "on":
        expect(
            run.bounced_share >= BOUNCED_SHARE_MIN,
            f"the cut-through is on and answered {run.bounced_share:.0%} of the packets, "
            f"less than {BOUNCED_SHARE_MIN:.0%}",
        )
    if run.fail != "drain":
        expect(
            run.detection_ms is not None and run.detection_ms <= run.detection_bound_ms,
            f"detection took {_ms(run.detection_ms)}, the bound is {run.detection_bound_ms:.0f} ms",
        )
    if run.fail in COMES_BACK:
        expect(run.returned_ms is not None, "the victim came back and was not marked healthy again")
    if run.resiliency == "on":
        broken += _broken_with_resiliency(run)
    else:
        lost = sum(bool(each.lost) for each in victims)
        expect(
            lost + len(run.spared_by_flaps) == len(victims),
            f"without resiliency only {lost} of the victim's {len(victims)} connections were lost: "
            "this lab cannot tell the difference",
        )
        refused = run.drops.get(NON_SYN, 0)
        expect(
            refused >= len(victims) - len(run.spared_by_flaps),
            f"{NON_SYN} counts {refused}, fewer than the {len(victims)} connections that were to end by it",
        )
    return broken


def _broken_with_resiliency(run: Run) -> list[str]:
    broken = []
    if lost := sum(bool(each.lost) for each in run.on_victim):
        broken.append(f"{lost} of the victim's {len(run.on_victim)} connections were lost")
    if silent := sum(each.gap_ms is None for each in run.probes_on_victim):
        broken.append(f"{silent} UDP probe flows of the victim never came back")
    gap, stall = run.gap_ms["max"], run.stall_ms["max"]
    if run.fail == "drain" and gap is not None and gap > GAP_DRAIN_MS:
        broken.append(f"the longest gap is {_ms(gap)}, the bound is {GAP_DRAIN_MS} ms")
    if run.fail in ("kill", "store") and run.detection_ms is not None:
        bound = run.detection_ms + GAP_OVER_DETECTION_MS
        if gap is not None and gap > bound:
            broken.append(f"the longest gap is {_ms(gap)}, the bound is detection + 100 = {bound:.0f} ms")
        bound = 2 * run.detection_ms + STALL_OVER_DETECTION_MS
        if stall is not None and stall > bound:
            broken.append(
                f"the longest stall is {_ms(stall)}, the bound is 2 x detection + 300 = {bound:.0f} ms"
            )
    return broken


def _ms(value: float | None) -> str:
    return "for ever" if value is None else f"{value:.0f} ms"
