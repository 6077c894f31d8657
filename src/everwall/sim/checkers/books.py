"""Counters add up: every packet and every session is somewhere."""

from __future__ import annotations

from everwall.balancer.gateway import Gateway
from everwall.counters import Counter
from everwall.limits import SESSIONS_MAX
from everwall.sim.checkers import PromiseBroken
from everwall.sim.network import Link
from everwall.sim.node import Node
from everwall.verdict import Verdict


def _same(what: str, left: int, right: int) -> None:
    if left != right:
        raise PromiseBroken(f"counters do not add up: {what}: {left} and {right}")


def check_engine(node: Node) -> None:
    """What one engine says about its packets, sessions and look-ups; true at any moment."""
    sessions = node.engine.sessions_state
    count = {which: int(sessions.counters[which]) for which in Counter}
    verdicts = {which: int(sessions.verdicts[which]) for which in Verdict}
    name = node.name

    drops = sum(times for which, times in verdicts.items() if which > Verdict.PARK)
    _same(
        f"{name}: received = forwarded + dropped + parked",
        count[Counter.RECEIVED],
        verdicts[Verdict.FORWARD] + drops + count[Counter.PARKED],
    )
    _same(f"{name}: forwarded and let out", verdicts[Verdict.FORWARD], node.forwarded)
    _same(f"{name}: answers made", count[Counter.RESETS] + count[Counter.UNREACHABLES], node.made)
    if node.alive:
        taken = node.arrived - node.refused - node.abandoned - node.queued
        _same(f"{name}: received and taken from the queue", count[Counter.RECEIVED], taken)

    begun = count[Counter.SESSIONS_CREATED] + count[Counter.SESSIONS_RESTORED]
    over = count[Counter.SESSIONS_ENDED] + count[Counter.SESSIONS_DEMOTED]
    _same(f"{name}: sessions begun - over = live", begun - over, count[Counter.SESSIONS])
    _same(f"{name}: sessions in the table", len(node.engine.sessions(SESSIONS_MAX)), count[Counter.SESSIONS])

    answered = count[Counter.LOOKUP_HITS] + count[Counter.LOOKUP_MISSES] + count[Counter.RECORDS_REFUSED]
    under_way = count[Counter.LOOKUPS] - answered - count[Counter.LOOKUP_FAILURES]
    if under_way < 0:
        raise PromiseBroken(f"{name}: more look-ups were answered than asked")
    if count[Counter.LOOKUP_HITS] > node.found:
        raise PromiseBroken(f"{name}: more look-ups hit than the store found")


def check_events(node: Node) -> None:
    """The session log holds what the counters say; for a node that has just handed its events over."""
    count = node.engine.counters
    _same(f"{node.name}: ends logged", node.ended_events, count["sessions-ended"])
    taken_over = count["sessions-restored"] + count["sessions-adopted"]
    _same(f"{node.name}: takeovers logged", node.takeover_events, taken_over)


def check_network(
    gateway: Gateway,
    nodes: list[Node],
    edge_in: Link,
    edge_out: Link,
    to_nodes: dict[int, Link],
    from_nodes: dict[int, Link],
) -> None:
    """Every packet was delivered or lost; for a network in which nothing is on its way."""
    _same("packets into the balancer", edge_in.delivered, int(gateway.tables.out.sum()))
    _same(
        "packets from the balancer to nodes",
        int(gateway.tables.out[Verdict.FORWARD]),
        sum(link.sent for link in to_nodes.values()),
    )
    for links in (to_nodes, from_nodes):
        for link in links.values():
            _same("packets sent, lost and delivered", link.sent, link.lost + link.delivered)
    _same(
        "packets that came to nodes",
        sum(link.delivered for link in to_nodes.values()),
        sum(node.arrived for node in nodes),
    )
    _same(
        "packets that nodes let out",
        sum(node.forwarded + node.made for node in nodes),
        sum(link.sent for link in from_nodes.values()),
    )
    _same(
        "packets returned to the balancer",
        sum(link.delivered for link in from_nodes.values()),
        int(gateway.tables.back.sum()),
    )
    _same("packets out to hosts", int(gateway.tables.back[Verdict.FORWARD]), edge_out.sent)
