"""What would happen with a bootstrap: every fact a node takes from it, as a line to read. No secret is among them."""

from __future__ import annotations

from collections.abc import Iterator

from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.load import Bootstrap
from everwall.policy.model import Policy


def lines(bootstrap: Bootstrap, policy: Policy) -> Iterator[tuple[str, str]]:
    """What is told and what follows from it."""
    config = bootstrap.config
    yield "read", ", then ".join(bootstrap.read)
    yield "hostname", config.hostname or "the machine's"
    yield "networking", _networking(config)
    yield "interfaces", _interfaces(config)
    if config.networking.dns:
        yield "DNS", ", ".join(map(str, config.networking.dns))
    yield "jumbo frames", "expected" if config.jumbo_frame else "not expected"
    yield "workers", str(config.workers)
    yield "GENEVE", "accepted" if config.gwlb_inspect else "refused: aws-gwlb-inspect:enable is missing"
    sources = config.geneve_sources
    yield "believed from", ", ".join(map(str, sources)) if sources else "the data interface's subnets"
    for each in config.associations:
        zones = [zone.name for zone in policy.zones if each.endpoint in zone.endpoints]
        where = f"zone {zones[0]}" if zones else "no zone: its packets are dropped"
        yield "endpoint", f"{each.vpce} on {each.interface}, {where}"
    yield "store", _store(config)
    yield "cluster secret", _secret(bootstrap)
    yield "resiliency", f"{config.standing}: {config.resiliency.why}"
    yield "policy", policy.summary
    yield "health checks", f"port {config.health_port} of the data address"
    yield "sessions", f"{config.max_sessions} at most"


def _networking(config: InitCfg) -> str:
    told = config.networking
    parts = [told.type or "no type: the machine's addresses"]
    if told.address is not None:
        parts.append(f"{told.address} is expected on the management interface")
    if told.gateway is not None:
        parts.append(f"gateway {told.gateway}")
    if told.address6 is not None:
        parts.append(f"{told.address6}, gateway {told.gateway6}")
    return ", ".join(parts)


def _interfaces(config: InitCfg) -> str:
    swap = config.mgmt_interface_swap
    data = config.data_interface or ("the first" if swap else "the second")
    management = config.mgmt_interface or ("the second" if swap else "the first")
    why = f"mgmt-interface-swap is {'on' if swap else 'off'}"
    return f"data {data}, management {management} ({why}); where there is one only, it is both"


def _store(config: InitCfg) -> str:
    if not config.redis_servers:
        return "none"
    user = f", user {config.redis_user}" if config.redis_user else ""
    auth = "with a password" if config.redis_auth or config.redis_auth_file else "without a password"
    trust = "the given certificates" if config.redis_certificate else "the system's authorities"
    how = f"over TLS, checked against {trust}" if config.redis_tls else "without TLS"
    return f"{config.redis_where} {how}, {auth}{user}"


def _secret(bootstrap: Bootstrap) -> str:
    if bootstrap.config.cluster_secret is not None:
        return "present"
    late = bootstrap.late_secret
    return f"awaited from {late.place}" if late else "none, and no place where it may come from"
