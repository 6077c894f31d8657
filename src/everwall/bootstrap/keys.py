"""The words that may stand in a bootstrap: what is used, and what is recognised only, with the reason.

``docs/configuration.md`` has a row for each of them; a test compares.
"""

from __future__ import annotations

NETWORKING_KEYS = (
    "type",
    "ip-address",
    "default-gateway",
    "netmask",
    "ipv6-address",
    "ipv6-default-gateway",
    "dns-primary",
    "dns-secondary",
)
"""Without a value in most files that there are, which is not worth a word."""
USED_KEYS = (
    *NETWORKING_KEYS,
    "hostname",
    "op-command-modes",
    "plugin-op-commands",
    "redis-endpoint",
    "redis-auth",
    "redis-certificate",
    "everwall-cluster-secret",
    "everwall-cluster-secret-file",
    "everwall-cluster-secret-id",
    "everwall-cluster-secret-second",
    "everwall-cluster-secret-second-file",
    "everwall-resiliency-mode",
    "everwall-redis-user",
    "everwall-redis-auth-file",
    "everwall-redis-sentinel",
    "everwall-redis-sentinel-service",
    "everwall-redis-sentinel-user",
    "everwall-redis-sentinel-auth",
    "everwall-redis-cluster",
    "everwall-wait-replicas",
    "everwall-redis-tls",
    "everwall-redis-server-name",
    "everwall-redis-prefix",
    "everwall-geneve-sources",
    "everwall-health-port",
    "everwall-max-sessions",
    "everwall-join-grace",
    "everwall-policy",
    "everwall-accept-ports-for-applications",
    "everwall-data-interface",
    "everwall-mgmt-interface",
    "everwall-data-address",
    "everwall-port",
    "everwall-cut-through",
    "everwall-workers",
    "everwall-worker-cores",
    "everwall-control-socket",
    "everwall-traffic-log",
)

_PANORAMA = "each node reads its own files, and there is no management server"
_DHCP = "the operating system asks for the node's addresses"
_LICENCE = "Everwall needs no licence"

UNUSED_KEYS = {
    "panorama-server": _PANORAMA,
    "panorama-server-2": _PANORAMA,
    "tplname": _PANORAMA,
    "dgname": _PANORAMA,
    "cgname": _PANORAMA,
    "vm-auth-key": _PANORAMA,
    "op-cmd-dpdk-pkt-io": "packets come through AF_XDP or sockets; everwall-port chooses",
    "dhcp-send-hostname": _DHCP,
    "dhcp-send-client-id": _DHCP,
    "dhcp-accept-server-hostname": _DHCP,
    "dhcp-accept-server-domain": _DHCP,
    "vm-series-auto-registration-pin-id": _LICENCE,
    "vm-series-auto-registration-pin-value": _LICENCE,
    "authcodes": _LICENCE,
    "license-authcode": _LICENCE,
}
"""The vendor's keys that mean nothing here, and why."""

SWAP_KEY = "mgmt-interface-swap"
BUCKET_KEY = "vmseries-bootstrap-aws-s3bucket"
SECRET_NAME_KEYS = ("everwall-bootstrap-secret", "secret_name", "secret-name")
"""A secret that holds more keys. The vendor shows the name of its key in a picture only: both spellings are taken."""
USER_DATA_KEYS = (SWAP_KEY, BUCKET_KEY, *SECRET_NAME_KEYS)
"""Keys of user data and of secrets, not of an init-cfg.txt."""
SECRET_KEYS = (
    "redis-auth",
    "everwall-redis-sentinel-auth",
    "everwall-cluster-secret",
    "everwall-cluster-secret-second",
)

UNUSED_TOKENS = {
    "sriov-access-mode-on": "the driver's own XDP path is used where there is one",
    "aws-gwlb-overlay-routing": "a packet always goes back to the load balancer that sent it; nothing is routed or "
    "translated here, so traffic that relies on it does not leave by another interface",
    "set-cores": "set-dp-cores says how many workers there are",
    "numa-perf-optimize": "everwall-worker-cores places the workers",
    "advance-routing": "nothing is routed here",
    "panorama-licensing-mode-on": _LICENCE,
}
RESILIENCY_TOKENS = ("set-sess-ress", "setsess-ress")
INSPECT_TOKEN = "aws-gwlb-inspect"
WORKERS_TOKEN = "set-dp-cores"
ASSOCIATE_TOKEN = "aws-gwlb-associate-vpce"
TOKENS = (*RESILIENCY_TOKENS, INSPECT_TOKEN, WORKERS_TOKEN, ASSOCIATE_TOKEN)
SWAP_MODE = SWAP_KEY
JUMBO_MODE = "jumbo-frame"
MODES = (SWAP_MODE, JUMBO_MODE)
UNUSED_MODES = {"multi-vsys": "a node has one policy; run another node for another"}


def not_used(reason: str) -> str:
    """How a recognised word is spoken of in warnings."""
    return f"recognised, not used by Everwall, because {reason}"
