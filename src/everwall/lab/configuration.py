"""The files a lab's cluster reads: the same kinds of files that a real cluster would be given."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from everwall.lab.store import Store

ZONE = "lab"
ENDPOINT_ID = "0x1"

HEALTH_INTERVAL_S = 0.2
HEALTH_TIMEOUT_S = 0.2
UNHEALTHY_COUNT = 2
DEREGISTRATION_DELAY_S = 2.0
DETECTION_BOUND_MS = (2 * HEALTH_INTERVAL_S + HEALTH_TIMEOUT_S) * 1000 + 200
"""By when the load balancer has to have noticed: two intervals, one time-out, and 200 ms of grace."""


@dataclass(frozen=True)
class NodePlace:
    """Where one firewall lives."""

    name: str
    netns: str | None
    data_address: str
    data_interface: str
    management_interface: str
    health_port: int
    port: str
    """The value of ``everwall-port``."""
    cut_through: bool = False


@dataclass(frozen=True)
class GatewayPlace:
    """Where the load balancer lives, and how traffic enters its endpoint."""

    netns: str | None
    address: str
    endpoint: dict[str, Any]
    """How packets come in and out: the keys of the endpoint beside its id."""
    health_port: int
    port: str
    """The value of ``transport``: sockets of the kind that the nodes can answer."""
    xdp_pass: tuple[str, ...] = ()
    """Devices toward nodes that bounce packets, see ``launch``."""


def new_secret() -> str:
    """A cluster secret for one run."""
    return secrets.token_hex(32)


def policy() -> dict[str, Any]:
    """One zone, and one explicit rule: without it a node lets nothing pass."""
    return {
        "zones": {ZONE: {"endpoints": [ENDPOINT_ID]}},
        "rules": [
            {
                "name": "lab-traffic",
                "from": ZONE,
                "to": ZONE,
                "source": "any",
                "destination": "any",
                "service": "any",
                "action": "allow",
            }
        ],
    }


def init_cfg(
    place: NodePlace, gateway: str, store: Store, secret: str, resiliency: bool, control: Path
) -> str:
    """The init-cfg.txt of one node, which believes GENEVE from ``gateway`` alone."""
    operations = "aws-gwlb-inspect:enable"
    if resiliency:
        operations = f"set-sess-ress:True,{operations}"
    text = [
        f"hostname={place.name}",
        "op-command-modes=mgmt-interface-swap",
        f"plugin-op-commands={operations}",
        f"redis-endpoint={store.host}:{store.port}",
        f"redis-auth={store.password}",
    ]
    text += [f"redis-certificate={store.authority_base64}"] if store.tls else ["everwall-redis-tls=no"]
    text += [
        f"everwall-cluster-secret={secret}",
        f"everwall-geneve-sources={gateway}/32",
        "everwall-policy=policy.yaml",
        f"everwall-data-interface={place.data_interface}",
        f"everwall-mgmt-interface={place.management_interface}",
        f"everwall-data-address={place.data_address}",
        f"everwall-health-port={place.health_port}",
        f"everwall-port={place.port}",
        f"everwall-cut-through={'on' if place.cut_through else 'off'}",
        f"everwall-control-socket={control}",
    ]
    return "\n".join(text) + "\n"


def gateway(place: GatewayPlace, nodes: list[NodePlace]) -> dict[str, Any]:
    """The load balancer's YAML: lab-quick health checks, flows of a failed target move."""
    return {
        "address": place.address,
        "transport": place.port,
        "endpoints": [{"id": ENDPOINT_ID, **place.endpoint}],
        "targets": [{"id": node.name, "address": node.data_address} for node in nodes],
        "health_check_protocol": "HTTP",
        "health_check_port": place.health_port,
        "health_check_path": "/",
        "health_check_interval_seconds": HEALTH_INTERVAL_S,
        "health_check_timeout_seconds": HEALTH_TIMEOUT_S,
        "healthy_threshold_count": 2,
        "unhealthy_threshold_count": UNHEALTHY_COUNT,
        "target_failover.on_unhealthy": "rebalance",
        "target_failover.on_deregistration": "rebalance",
        "deregistration_delay.timeout_seconds": DEREGISTRATION_DELAY_S,
    }


def write(path: Path, content: str | dict[str, Any]) -> Path:
    """Write a text, or an object as YAML, readable by us alone (secrets are among them)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path
