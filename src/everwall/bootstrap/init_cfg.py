"""What a node is told before it starts, as fields: keys and values of an init-cfg.txt, of user data, of a secret.

``docs/configuration.md`` has the table of all keys. Secrets are held in pydantic's secret types and never shown: not in
reprs, warnings or errors.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretBytes, SecretStr

from everwall.bootstrap.associations import Association
from everwall.bootstrap.networking import Networking
from everwall.limits import (
    HEALTH_PORT_DEFAULT,
    JOIN_GRACE_S_DEFAULT,
    SESSIONS_DEFAULT,
    STORE_PREFIX_DEFAULT,
)
from everwall.modes import ASYNC

PORTS = ("auto", "xdp", "raw", "udp")
"""What ``everwall-port`` may be; ``auto`` is the first of the others that the machine allows."""
NO_SECRET = "no everwall-cluster-secret: nothing is written or restored"


class Resiliency(NamedTuple):
    """Whether sessions are written to the store and restored from it, and why (not)."""

    enabled: bool
    why: str


@dataclass(frozen=True)
class RedisEndpoint:
    """Where the store is; ``host`` is an address without brackets, or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True for 127.0.0.0/8, ::1 and ``localhost``: what is said there stays on the machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower().rstrip(".") == "localhost"


@dataclass(frozen=True)
class InitCfg:
    """Everything a node is told; a path is absolute or relative to the working directory."""

    file: str = ""
    hostname: str | None = None
    networking: Networking = field(default_factory=Networking)
    mgmt_interface_swap: bool = False
    """The machine's first interface carries data and the second management, not the other way round."""
    jumbo_frame: bool = False
    """Jumbo packets are expected, so a data interface that cannot take them is worth a warning."""
    session_resiliency: bool = False
    """``set-sess-ress:True`` was given; ``resiliency`` says whether that is enough."""
    gwlb_inspect: bool = False
    """``aws-gwlb-inspect:enable`` was given; GENEVE is refused otherwise."""
    associations: tuple[Association, ...] = ()
    """Of ``aws-gwlb-associate-vpce``; each endpoint stands there once."""
    redis_endpoint: RedisEndpoint | None = None
    redis_auth: SecretStr | None = None
    redis_auth_file: Path | None = None
    """A file with the password instead, which may change while the node runs."""
    redis_sentinels: tuple[RedisEndpoint, ...] = ()
    """Sentinels that know the primary of ``redis_sentinel_service``, instead of ``redis_endpoint``."""
    redis_sentinel_service: str | None = None
    redis_sentinel_user: str | None = None
    redis_sentinel_auth: SecretStr | None = None
    """Of the Sentinels themselves, where it is not ``redis_auth``."""
    redis_cluster: tuple[RedisEndpoint, ...] = ()
    """Nodes of a Redis Cluster, instead of ``redis_endpoint``."""
    wait_replicas: int = 0
    """Replicas that must have a strict session before its first answer goes."""
    redis_user: str | None = None
    """The ACL user that ``redis_auth`` belongs to; None: the default user."""
    redis_certificate: bytes | None = field(default=None, repr=False)
    """PEM of the certificates that the store's certificate is checked against; None: the system's."""
    redis_tls: bool = True
    redis_server_name: str | None = None
    """Name in the store's certificate where it is not the endpoint's host."""
    redis_prefix: str = STORE_PREFIX_DEFAULT
    """Names the cluster in the store; clusters that share a server have different ones."""
    cluster_secret: SecretBytes | None = None
    cluster_secret_id: str | None = None
    """Name or ARN of the secret in AWS Secrets Manager that holds it."""
    cluster_secret_awaited: str = ""
    """Where a secret that is not there yet may come from."""
    cluster_secret_second: SecretBytes | None = None
    """Another secret whose records are believed, while nothing is written with it."""
    resiliency_mode: int = ASYNC
    """Of rules that say nothing about it (``everwall.modes``)."""
    geneve_sources: tuple[ipaddress.IPv4Network, ...] | None = None
    """None: the subnets of the data interface."""
    health_port: int = HEALTH_PORT_DEFAULT
    max_sessions: int = SESSIONS_DEFAULT
    join_grace_s: float = JOIN_GRACE_S_DEFAULT
    policy: Path | None = None
    """A YAML file, or a bootstrap.xml."""
    accept_ports: bool = False
    """A rule that names applications is taken for one that names their standard ports."""
    data_interface: str | None = None
    mgmt_interface: str | None = None
    data_address: ipaddress.IPv4Address | None = None
    """None: all addresses of the data interface."""
    port: str = "auto"
    """One of ``PORTS``."""
    cut_through: bool = True
    """Established flows are answered in the kernel where the port is ``xdp``."""
    workers: int = 1
    worker_cores: tuple[int, ...] | None = None
    """Processor of each worker; None: one each where there are enough, for more than one worker."""
    control_socket: Path | None = None
    traffic_log: Path | None = None

    @property
    def resiliency(self) -> Resiliency:
        """Whether sessions are kept in the store: a sentence for the start-up line."""
        if not self.session_resiliency:
            return Resiliency(False, "set-sess-ress:True is not in plugin-op-commands")
        return self.store

    @property
    def store(self) -> Resiliency:
        """The same, asked for or not: what a node that is switched on while it runs has to have."""
        if not self.redis_servers:
            return Resiliency(False, "redis-endpoint is not set")
        if self.cluster_secret is None:
            awaited = self.cluster_secret_awaited
            return Resiliency(False, f"{NO_SECRET}{f' until it comes from {awaited}' if awaited else ''}")
        how = "over TLS" if self.redis_tls else "without TLS"
        return Resiliency(True, f"sessions are kept in {self.redis_where} {how}")

    @property
    def redis_servers(self) -> tuple[RedisEndpoint, ...]:
        """Who is asked first: the one server, the Sentinels, or nodes of the cluster."""
        single = () if self.redis_endpoint is None else (self.redis_endpoint,)
        return single + self.redis_sentinels + self.redis_cluster

    @property
    def redis_where(self) -> str:
        """The store as an operator knows it."""
        servers = ", ".join(map(str, self.redis_servers))
        if self.redis_sentinels:
            return f"{self.redis_sentinel_service} (Sentinel: {servers})"
        return f"the cluster of {servers}" if self.redis_cluster else servers

    @property
    def cluster_secrets(self) -> tuple[bytes, ...]:
        """All that records are believed by; the first is what they are written with."""
        both = (self.cluster_secret, self.cluster_secret_second)
        return tuple(secret.get_secret_value() for secret in both if secret is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the last start-up line says: resiliency, and GENEVE where it is refused."""
        notes = [f"session resiliency is {self.standing}: {self.resiliency.why}"]
        if not self.gwlb_inspect:
            notes.append("GENEVE is refused: aws-gwlb-inspect:enable is not in plugin-op-commands")
        return tuple(notes)

    @property
    def standing(self) -> str:
        """Of resiliency: ``on``, ``off``, or ``held back``, asked for and waiting for the cluster secret."""
        if self.resiliency.enabled:
            return "on"
        waiting = self.session_resiliency and self.store.why.startswith(NO_SECRET)
        return "held back" if waiting else "off"

    def interfaces(self, present: Sequence[str]) -> tuple[str | None, str | None]:
        """Data and management interface on a machine that has these, in order, without loopback.

        Named ones are taken as they are. Else the first is management and the second data, the
        other way round with mgmt-interface-swap; where there is one only, it is both.
        """
        data, mgmt = self.data_interface, self.mgmt_interface
        if data is None:
            free = [name for name in present if name != mgmt] or list(present)
            second = mgmt is None and not self.mgmt_interface_swap
            data = free[1 if second and len(free) > 1 else 0] if free else None
        if mgmt is None:
            mgmt = next((name for name in present if name != data), data)
        return data, mgmt
