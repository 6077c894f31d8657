"""How much memory sessions need: in the store, and in the nodes.

The figures were measured as the growth of the server's ``used_memory``, keys, expiries and allocator
included: a million sessions of 8 + 52 bytes, 64 to a bucket, then 20 thousand host names (docs/doctor.md says
how).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from everwall.limits import (
    GWLB_TARGETS_MAX,
    NODE_SESSION_BYTES,
    NODE_WORKER_BYTES,
    REPLICAS_MAX,
    SESSIONS_MAX,
)

MB = 1_000_000
GB = 1_000_000_000

VENDOR_SESSION_BYTES = 128
"""The other vendor's figure: bytes of one entry (the page "Enable Session Resiliency on VM-Series for AWS")."""


@dataclass(frozen=True)
class Figure:
    """Bytes of one thing, and where the number comes from."""

    bytes: float
    source: str


@dataclass(frozen=True)
class Server:
    """What a kind of server needs."""

    session: Figure
    host_name: Figure
    session_hashed: Figure
    """A session whose bucket is too large for the server's compact encoding."""


_REDIS = Server(
    session=Figure(73.3, "measured, redis 7.0.15"),
    host_name=Figure(55, "measured, redis 7.0.15"),
    session_hashed=Figure(131, "measured, redis 7.0.15"),
)
_UNMEASURED = "not measured, redis figure used"
SERVERS = {
    "redis7": _REDIS,
    "valkey8": Server(
        session=Figure(_REDIS.session.bytes, _UNMEASURED),
        host_name=Figure(_REDIS.host_name.bytes, _UNMEASURED),
        session_hashed=Figure(_REDIS.session_hashed.bytes, _UNMEASURED),
    ),
    "valkey9": Server(
        session=Figure(65.7, "measured, valkey 9.1.2"),
        host_name=Figure(_REDIS.host_name.bytes, _UNMEASURED),
        session_hashed=Figure(94.8, "measured, valkey 9.1.2"),
    ),
}

CHURN = 0.15
"""Of the sessions: records of dead sessions that wait for their expiry, and lists that grow by halves."""
BUFFERS = 0.10
"""Of the sessions: what a server holds for clients that are behind, and its table of keys while that doubles."""
SERVER_BYTES = 2 * MB
"""A server without data (measured: 0.95 to 1.1 MB), and the scripts."""
CONNECTION_BYTES = MB
"""For the connections of one node: four pipelines of 256 records and their answers, for a few workers."""
BACKLOG_BYTES = MB
"""``repl-backlog-size`` as servers come; it counts as used memory once there is a replica."""
RESERVED = 0.25
"""Of a machine's memory, not for data: fragmentation, copies of pages while a replica is filled, the system.
ElastiCache reserves as much (its page "Managing reserved memory")."""
MACHINE_GB = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class SizeError(ValueError):
    """Numbers that make no sense; says which and what was expected."""


@dataclass(frozen=True)
class Size:
    """What a cluster needs, in bytes."""

    sessions: int
    """In all: those of each firewall, times firewalls."""
    vendor: int
    data: int
    session_bytes: Figure
    host_names: int
    """Part of ``data``."""
    host_name_bytes: Figure
    headroom: int
    fixed: int
    """Server, connections, and the backlog of replication."""
    maxmemory: int
    machine_gb: int
    """Memory of a machine for it, a usual size; 0 where there is none so large."""
    servers: int
    """Machines: the primary and its replicas."""
    node: int
    """Memory of one firewall for its sessions."""


def size(
    sessions: int, firewalls: int = 1, host_names: int = 0, replicas: int = 0, server: str = "redis7"
) -> Size:
    """The memory for ``sessions`` on each of ``firewalls``; raises SizeError for numbers without sense."""
    _within("sessions", sessions, 1, SESSIONS_MAX, "a node has room for no more")
    _within("firewalls", firewalls, 1, GWLB_TARGETS_MAX, "a load balancer has no more targets")
    _within("host-names", host_names, 0, sessions * firewalls, "no more names than sessions")
    _within("replicas", replicas, 0, REPLICAS_MAX, "each costs as much memory as the primary")
    if server not in SERVERS:
        raise SizeError(f"server: {server!r}: expected one of {', '.join(SERVERS)}")
    figures = SERVERS[server]
    total = sessions * firewalls
    names = round(host_names * figures.host_name.bytes)
    data = round(total * figures.session.bytes) + names
    headroom = round(data * (CHURN + BUFFERS))
    fixed = SERVER_BYTES + firewalls * CONNECTION_BYTES + (BACKLOG_BYTES if replicas else 0)
    maxmemory = -(-(data + headroom + fixed) // MB) * MB
    needed = math.ceil(maxmemory / (1 - RESERVED))
    return Size(
        sessions=total,
        vendor=total * VENDOR_SESSION_BYTES,
        data=data,
        session_bytes=figures.session,
        host_names=names,
        host_name_bytes=figures.host_name,
        headroom=headroom,
        fixed=fixed,
        maxmemory=maxmemory,
        machine_gb=next((gb for gb in MACHINE_GB if gb * GB >= needed), 0),
        servers=1 + replicas,
        node=sessions * NODE_SESSION_BYTES + NODE_WORKER_BYTES,
    )


def amount(count: float) -> str:
    """Bytes as people say them: ``7.33 GB``, ``95 MB``; decimal units."""
    if count >= GB:
        return f"{count / GB:,.2f} GB"
    if count >= MB:
        return f"{count / MB:,.0f} MB" if count >= 10 * MB else f"{count / MB:,.1f} MB"
    return f"{count:,.0f} bytes"


def _within(name: str, value: int, low: int, high: int, why: str) -> None:
    if not low <= value <= high:
        raise SizeError(f"{name}: {value}: expected {low} to {high} ({why})")
