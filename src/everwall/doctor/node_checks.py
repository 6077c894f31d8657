"""What a node's init-cfg.txt, and a node's time-outs, mean for sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from everwall.bootstrap.init_cfg import InitCfg
from everwall.doctor.findings import Finding, error, ok, warning
from everwall.limits import (
    FAILOVER_S,
    LB_IDLE_OTHER_S,
    LB_IDLE_TCP_S,
    SECOND_NS,
    TCP_ESTABLISHED_NS,
    UDP_NS,
)

TCP_IDLE_S = TCP_ESTABLISHED_NS // SECOND_NS
UDP_IDLE_S = UDP_NS // SECOND_NS


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


def idle(balancer_tcp_s: int = LB_IDLE_TCP_S) -> list[Finding]:
    """Our idle time-outs beside the load balancer's, as far as that can be set."""
    others = ok(
        "idle-udp",
        f"UDP {UDP_IDLE_S} s here, {LB_IDLE_OTHER_S} s there; a stored session lives {LB_IDLE_OTHER_S + FAILOVER_S} s "
        "after its last packet and outlives both",
    )
    return [_idle_tcp(balancer_tcp_s), others]


def _idle_tcp(balancer_s: int) -> Finding:
    text = f"established TCP {TCP_IDLE_S} s here, {balancer_s} s at the load balancer"
    if balancer_s > TCP_IDLE_S:
        return warning(
            "idle-tcp",
            f"{text}: firewalls forget first and drop what comes later as non-syn-tcp",
            f"set tcp.idle_timeout.seconds to {TCP_IDLE_S} or less",
        )
    if balancer_s < TCP_IDLE_S:
        return ok(
            "idle-tcp", f"{text}: hosts that are silent for longer need keepalives below {balancer_s} s"
        )
    return ok("idle-tcp", text)
