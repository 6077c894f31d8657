"""What the settings of a target group mean for sessions; docs/failover.md has the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from everwall.doctor import node_checks
from everwall.doctor.balancer_facts import BalancerFacts
from everwall.doctor.findings import Finding, error, ok, warning
from everwall.limits import (
    DEREGISTRATION_S_ADVISED,
    GENEVE_PORT,
    HEALTH_INTERVAL_S_ADVISED,
    HEALTH_THRESHOLD_ADVISED,
    HEALTH_TIMEOUT_S_ADVISED,
    LB_IDLE_TCP_S,
)
from everwall.policy.settings import DEFAULT_SETTINGS, SessionSettings

UNHEALTHY, DEREGISTRATION = "target_failover.on_unhealthy", "target_failover.on_deregistration"
RESETS = (
    "send_tcp_reset.on_unhealthy.enabled",
    "send_tcp_reset.on_deregistration.enabled",
    "send_tcp_reset.on_idle_timeout.enabled",
)
DELAY = "deregistration_delay.timeout_seconds"
CROSS_ZONE = "load_balancing.cross_zone.enabled"
IDLE = "tcp.idle_timeout.seconds"


def findings(
    facts: BalancerFacts, health_port: int | None = None, settings: SessionSettings = DEFAULT_SETTINGS
) -> list[Finding]:
    """All findings; ``health_port`` and ``settings`` are the node's, where they are known."""
    return [
        *_group(facts),
        *_failover(facts),
        *_resets(facts),
        *_stickiness(facts),
        *_delay(facts),
        *_health(facts, health_port),
        *_zones(facts),
        *node_checks.idle(_whole(facts.listener_attributes.get(IDLE), LB_IDLE_TCP_S), settings),
    ]


def _group(facts: BalancerFacts) -> Iterator[Finding]:
    protocol, port = facts.group.get("Protocol"), facts.group.get("Port")
    if (protocol, port) != ("GENEVE", GENEVE_PORT):
        yield error(
            "target-group",
            f"{protocol} on port {port}",
            f"a gateway load balancer's: GENEVE on {GENEVE_PORT}",
        )
    elif not facts.attached:
        yield warning("target-group", "no load balancer sends to it", "make it the action of a listener")
    else:
        yield ok("target-group", f"{protocol} on port {port}")
    states = Counter(state for state, _ in facts.targets)
    text = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none"
    if len(facts.targets) < 2:
        yield error("targets", text, "a flow can only move where there is a second firewall")
    elif states["healthy"] < len(facts.targets):
        yield warning("targets", text, "see why: target health in AWS, `everwall show status` on the node")
    else:
        yield ok("targets", text)


def _failover(facts: BalancerFacts) -> Iterator[Finding]:
    values = {name: facts.attributes.get(name, "no_rebalance") for name in (UNHEALTHY, DEREGISTRATION)}
    text = ", ".join(f"{name.removeprefix('target_failover.')} {value}" for name, value in values.items())
    if set(values.values()) == {"rebalance"}:
        yield ok("target-failover", text)
        return
    what = "they differ" if len(set(values.values())) > 1 else "flows stay with a dead firewall"
    yield error(
        "target-failover", f"{text}: {what}", f"set {UNHEALTHY} and {DEREGISTRATION} both to rebalance"
    )


def _resets(facts: BalancerFacts) -> Iterator[Finding]:
    every = {**facts.attributes, **facts.listener_attributes}
    on = [name for name in RESETS if every.get(name) == "true"]
    failover = [name for name in on if "idle" not in name]
    if failover:
        yield error(
            "tcp-reset",
            f"{', '.join(failover)}: connections of a failed firewall are reset",
            "switch it off: reset and rebalance exclude each other",
        )
    elif on:
        yield warning(
            "tcp-reset",
            f"{on[0]}: a packet that no flow is known for is answered by a reset",
            "switch it off, unless your hosts shall learn of idle time-outs",
        )
    else:
        yield ok("tcp-reset", "off")


def _stickiness(facts: BalancerFacts) -> Iterator[Finding]:
    if facts.attributes.get("stickiness.enabled") == "true":
        kind = facts.attributes.get("stickiness.type", "?")
        yield warning(
            "stickiness",
            f"{kind}: all flows of two hosts go to one firewall, and the TCP idle time-out cannot be set",
            "leave it off (five-tuple) unless an application needs its connections on one firewall",
        )
    else:
        yield ok("stickiness", "five-tuple")


def _delay(facts: BalancerFacts) -> Iterator[Finding]:
    seconds = _whole(facts.attributes.get(DELAY), 300)
    if seconds > DEREGISTRATION_S_ADVISED:
        yield warning(
            "deregistration-delay",
            f"{seconds} s: flows of a firewall that was taken out move only after that",
            f"set {DELAY} to {DEREGISTRATION_S_ADVISED}: nodes need no long drain, sessions move with their state",
        )
    else:
        yield ok("deregistration-delay", f"{seconds} s")


def _health(facts: BalancerFacts, health_port: int | None) -> Iterator[Finding]:
    group = facts.group
    protocol, port = group.get("HealthCheckProtocol", "TCP"), group.get("HealthCheckPort", "80")
    if protocol == "TCP":
        yield warning(
            "health-protocol",
            "TCP: a process that hangs still accepts connections until its backlog is full",
            "use HTTP with path / and matcher 200-399",
        )
    else:
        yield ok("health-protocol", protocol)
    if health_port is not None and port != str(health_port):
        yield error("health-port", f"{port}, the node answers on {health_port}", "make them equal")
    slow = []
    interval = int(group.get("HealthCheckIntervalSeconds", 10))
    failures = int(group.get("UnhealthyThresholdCount", 2))
    timeout = int(group.get("HealthCheckTimeoutSeconds", 5))
    for name, value, advised in (
        ("interval", interval, HEALTH_INTERVAL_S_ADVISED),
        ("timeout", timeout, HEALTH_TIMEOUT_S_ADVISED),
        ("unhealthy threshold", failures, HEALTH_THRESHOLD_ADVISED),
        ("healthy threshold", int(group.get("HealthyThresholdCount", 5)), HEALTH_THRESHOLD_ADVISED),
    ):
        if value > advised:
            slow.append(f"{name} {value} (advised {advised})")
    seen = f"a failure is seen after about {failures * interval + timeout} s"
    if slow:
        yield warning(
            "health-check", f"{', '.join(slow)}: {seen}", "the sooner it is seen, the shorter the gap"
        )
    else:
        yield ok("health-check", seen)


def _zones(facts: BalancerFacts) -> Iterator[Finding]:
    if not facts.attached:
        return
    if facts.balancer_attributes.get(CROSS_ZONE) == "true":
        yield ok(
            "cross-zone", "on: a zone's firewalls stand in for another's; traffic between zones is charged"
        )
        return
    zones = Counter(zone for _, zone in facts.targets if zone)
    alone = sorted(zone for zone, number in zones.items() if number < 2)
    if alone or not zones:
        where = f"only one firewall in {', '.join(alone)}" if alone else "zones of the targets not known"
        yield warning(
            "cross-zone",
            f"off, {where}: flows of a zone without a healthy firewall go nowhere",
            f"set {CROSS_ZONE}, or have two firewalls in each zone",
        )
    else:
        yield ok("cross-zone", "off: each zone has firewalls enough to stand in for one another")


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() else default
