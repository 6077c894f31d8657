"""What a node's init-cfg.txt, and a node's time-outs, mean for sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.zones import read_policy_of
from everwall.config import ConfigError
from everwall.doctor.findings import Finding, error, ok, warning
from everwall.limits import (
    FAILOVER_S,
    LB_IDLE_OTHER_S,
    LB_IDLE_TCP_S,
    SECOND_NS,
    STORED_IDLE_NS,
    TCP_ESTABLISHED_NS,
    UDP_NS,
)
from everwall.policy.settings import DEFAULT_SETTINGS, SessionSettings

TCP_IDLE_S = TCP_ESTABLISHED_NS // SECOND_NS
UDP_IDLE_S = UDP_NS // SECOND_NS
STORED_IDLE_S = STORED_IDLE_NS // SECOND_NS


def findings(cfg: InitCfg, warnings: Sequence[str]) -> list[Finding]:
    """All findings about a node; ``warnings`` are those of reading its file."""
    found = [warning("init-cfg", text, "see docs/configuration.md") for text in warnings]
    return [*found, *_resiliency(cfg), *_traffic(cfg)]


def _resiliency(cfg: InitCfg) -> Iterator[Finding]:
    enabled, why = cfg.resiliency
    if cfg.cluster_secret is None:
        awaited = cfg.cluster_secret_awaited
        held_back = "; resiliency is held back" if cfg.standing == "held back" else ""
        yield error(
            "cluster-secret",
            f"none{f', awaited from {awaited}' if awaited else ''}: this node writes no session and restores none"
            f"{held_back}",
            "the same secret on all nodes (openssl rand -hex 32): everwall-cluster-secret-file in the bootstrap, "
            "--cluster-secret-file or --cluster-secret-id beside it, or EVERWALL_CLUSTER_SECRET",
        )
    else:
        yield ok("cluster-secret", "present; that it is the same on all nodes cannot be seen from here")
    if enabled:
        yield ok("resiliency", why)
    elif not cfg.session_resiliency or not cfg.redis_servers:
        yield error(
            "resiliency", f"off: {why}", "plugin-op-commands=set-sess-ress:True, and a redis-endpoint"
        )


def _traffic(cfg: InitCfg) -> Iterator[Finding]:
    if not cfg.gwlb_inspect:
        yield error(
            "geneve",
            "every packet of the load balancer is refused",
            "plugin-op-commands=aws-gwlb-inspect:enable",
        )
    if cfg.policy is None:
        yield warning("policy", "none: everything is denied", "write one and name it in everwall-policy")


def settings_of(cfg: InitCfg) -> tuple[SessionSettings, list[Finding]]:
    """What a node's policy says about sessions; the defaults, and an error, where it cannot be read."""
    try:
        return read_policy_of(cfg).settings, []
    except ConfigError as problem:
        return DEFAULT_SETTINGS, [error("policy", str(problem), "everwall policy check FILE")]


def idle(balancer_tcp_s: int = LB_IDLE_TCP_S, settings: SessionSettings = DEFAULT_SETTINGS) -> list[Finding]:
    """Our idle time-outs, as the policy has them, beside the load balancer's, as far as that can be set."""
    tcp_s, udp_s = settings.tcp or TCP_IDLE_S, settings.udp or UDP_IDLE_S
    stored_s = max(min(udp_s, STORED_IDLE_S), LB_IDLE_OTHER_S) + FAILOVER_S
    text = f"UDP {udp_s} s here, {LB_IDLE_OTHER_S} s there; a stored session lives {stored_s} s after its last packet"
    return [
        *_idle_tcp(balancer_tcp_s, tcp_s),
        ok("idle-udp", f"{text} and outlives both") if stored_s > udp_s else _unstored("udp", udp_s, text),
    ]


def _idle_tcp(balancer_s: int, node_s: int) -> Iterator[Finding]:
    text = f"established TCP {node_s} s here, {balancer_s} s at the load balancer"
    if balancer_s > node_s:
        yield warning(
            "idle-tcp",
            f"{text}: firewalls forget first and drop what comes later as non-syn-tcp",
            f"set tcp.idle_timeout.seconds to {node_s} or less",
        )
    elif balancer_s < node_s:
        yield ok("idle-tcp", f"{text}: hosts that are silent for longer need keepalives below {balancer_s} s")
    else:
        yield ok("idle-tcp", text)
    if min(balancer_s, node_s) > STORED_IDLE_S:
        yield _unstored("tcp", node_s, text)


def _unstored(kind: str, node_s: int, text: str) -> Finding:
    return warning(
        f"stored-{kind}",
        f"{text}: the store keeps a silent session for {STORED_IDLE_S} s, not for {node_s} s",
        f"set timeout-{kind} to {STORED_IDLE_S} or less, or let hosts send keepalives",
    )
