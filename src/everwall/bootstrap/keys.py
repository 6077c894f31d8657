"""The words that may stand in an init-cfg.txt: what is used, and what is recognised only."""

from __future__ import annotations

USED_KEYS = (
    "hostname",
    "op-command-modes",
    "plugin-op-commands",
    "redis-endpoint",
    "redis-auth",
    "redis-certificate",
    "everwall-cluster-secret",
    "everwall-cluster-secret-file",
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
UNUSED_KEYS = (
    "type",
    "ip-address",
    "default-gateway",
    "netmask",
    "ipv6-address",
    "ipv6-default-gateway",
    "panorama-server",
    "panorama-server-2",
    "tplname",
    "dgname",
    "cgname",
    "dns-primary",
    "dns-secondary",
    "vm-auth-key",
    "op-cmd-dpdk-pkt-io",
    "dhcp-send-hostname",
    "dhcp-send-client-id",
    "dhcp-accept-server-hostname",
    "dhcp-accept-server-domain",
    "vm-series-auto-registration-pin-id",
    "vm-series-auto-registration-pin-value",
    "authcodes",
    "mgmt-interface-swap",
)
"""The vendor's keys that mean nothing here yet."""
SECRET_KEYS = (
    "redis-auth",
    "everwall-redis-sentinel-auth",
    "everwall-cluster-secret",
    "everwall-cluster-secret-second",
)

UNUSED_TOKENS = (
    "sriov-access-mode-on",
    "aws-gwlb-associate-vpce",
    "aws-gwlb-overlay-routing",
    "set-cores",
    "numa-perf-optimize",
    "advance-routing",
    "panorama-licensing-mode-on",
)
RESILIENCY_TOKENS = ("set-sess-ress", "setsess-ress")
INSPECT_TOKEN = "aws-gwlb-inspect"
WORKERS_TOKEN = "set-dp-cores"
TOKENS = (*RESILIENCY_TOKENS, INSPECT_TOKEN, WORKERS_TOKEN)
SWAP_MODE = "mgmt-interface-swap"
JUMBO_MODE = "jumbo-frame"
MODES = (SWAP_MODE, JUMBO_MODE)
UNUSED_MODES = ("multi-vsys",)
