"""Where the store is, who goes in and whom a node believes there: connections made by redis-py.

redis-py resolves the name, connects, speaks TLS and AUTH and knows the errors of all of these. TLS is checked by a
context of ours, and the password is asked for anew at every connection.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

from everwall.config import read_password
from everwall.limits import STORE_PREFIX_DEFAULT, STORE_TIMEOUT_S
from everwall.outward import Outward


class Address(NamedTuple):
    """Where one server listens; ``host`` is a name, or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class StoreConfig:
    """Where the store is and how it is reached: one of ``host``, ``sentinels`` and ``cluster`` says so."""

    host: str = ""
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    """A file with the password, read at every connection, so that it may change; instead of ``password``."""
    tls: bool = True
    ca_pem: bytes | str | None = None
    """The only authorities believed, PEM; None means those of the system."""
    server_name: str | None = None
    """The name the certificate must bear, where it is not ``host``; of Sentinels and of a cluster's nodes too."""
    prefix: str = STORE_PREFIX_DEFAULT
    """Names the cluster; clusters of one server have different ones."""
    owner: int = 0
    """The node's 32-bit id, shown in the server's client list."""
    outward: Outward = field(default_factory=Outward)
    """By which interface it is reached, and who knows its name."""
    sentinels: tuple[Address, ...] = ()
    """Sentinels that know the primary of ``service``."""
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    """Of the Sentinels, where it is not that of the server."""
    cluster: tuple[Address, ...] = ()
    """Nodes of a Redis Cluster, of which one at least must answer."""
    wait_replicas: int = 0
    """Replicas that must have an awaited write before it counts as acknowledged."""

    @property
    def address(self) -> Address:
        """Of the one server."""
        return Address(self.host, self.port)

    @property
    def where(self) -> str:
        """The store as an operator knows it."""
        if self.sentinels:
            return f"{self.service} of Sentinel {', '.join(map(str, self.sentinels))}"
        if self.cluster:
            return f"cluster {', '.join(map(str, self.cluster))}"
        return str(self.address)


class Login(CredentialProvider):  # type: ignore[misc]
    """User and password, asked for at every connection; ``renew`` changes them under a running node."""

    def __init__(self, username: str | None, password: str | None, file: Path | None = None) -> None:
        self._username, self._password, self._file = username, password, file

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to say."""
        return self._password is not None or self._file is not None

    def renew(self, username: str | None, password: str | None, file: Path | None) -> None:
        """From the next connection on; may be called from any thread."""
        self._username, self._password, self._file = username, password, file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Password, or user and password. Raises ConfigError for a file that holds none."""
        password = (self._password or "") if self._file is None else read_password(self._file)
        return (self._username, password) if self._username else (password,)


def login_of(config: StoreConfig) -> Login:
    return Login(config.username, config.password, config.password_file)


def tls_context(config: StoreConfig) -> ssl.SSLContext | None:
    """What is believed of a server, or None without TLS. Raises ValueError for an unreadable certificate."""
    if not config.tls:
        return None
    pem = config.ca_pem.decode() if isinstance(config.ca_pem, bytes) else config.ca_pem
    try:
        # With authorities of its own the context does not believe the system's beside them.
        context = ssl.create_default_context(cadata=pem)
    except ssl.SSLError as error:
        raise ValueError(f"the store's CA certificate cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _Timed:
    """A blocking socket whose every wait ends at one time, however many bytes dribble in until then."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self.until = math.inf
        """By CLOCK_MONOTONIC, seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def recv_into(self, buffer: Any) -> int:
        self._limit()
        return self._plain.recv_into(buffer)

    def sendall(self, data: Any) -> None:
        self._limit()
        self._plain.sendall(data)

    def _limit(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._plain.settimeout(left)


class Connection(redis.Connection):
    """redis-py's connection, except that the TLS context is ours, and that a reply is due as a whole.

    redis-py would believe the system's authorities beside the given one, and check the certificate against
    the address that was dialled. It would wait for each byte as long as for the first.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        server_name: str | None = None,
        outward: Outward | None = None,
        **options: Any,
    ) -> None:
        self._context, self._server_name = context, server_name
        self._outward = outward or Outward()
        self.socket: socket.socket | None = None
        self.ends_at = math.inf
        """When all that blocks has to be over, by CLOCK_MONOTONIC, seconds; each reply has its own time beside."""
        self._timed: _Timed | None = None
        super().__init__(**options)

    def send_packed_command(self, *arguments: Any, **more: Any) -> None:
        self._begin_wait()
        super().send_packed_command(*arguments, **more)

    def read_response(self, *arguments: Any, **more: Any) -> Any:
        self._begin_wait()
        return super().read_response(*arguments, **more)

    def _begin_wait(self) -> None:
        if self._timed is not None:
            self._timed.until = min(time.monotonic() + STORE_TIMEOUT_S, self.ends_at)

    def _connect(self) -> _Timed:
        self._timed = _Timed(self._dial())
        self._begin_wait()
        return self._timed

    def _dial(self) -> socket.socket:
        plain = self._outward.connect(self.host, self.port, STORE_TIMEOUT_S)
        if self._context is None:
            self.socket = plain
            return plain
        try:
            self.socket = self._context.wrap_socket(plain, server_hostname=self._server_name or self.host)
        except OSError:
            plain.close()
            raise
        return self.socket


def options(config: StoreConfig, context: ssl.SSLContext | None, login: Login) -> dict[str, Any]:
    """What every ``Connection`` of a store is made with, beside its address."""
    return {
        "context": context,
        "server_name": config.server_name,
        "outward": config.outward,
        "credential_provider": login if login.is_needed else None,
        "client_name": f"everwall-{config.owner:08x}",
        "protocol": 2,
        "socket_timeout": STORE_TIMEOUT_S,
        "socket_connect_timeout": STORE_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }


def require_private(config: StoreConfig, address: Address) -> None:
    """Without TLS nobody is spoken to but this machine, whatever Sentinels or nodes of a cluster name.

    Raises redis.ConnectionError.
    """
    if config.tls:
        return
    try:
        private = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        private = address.host.lower().rstrip(".") == "localhost"
    if not private:
        raise redis.ConnectionError(f"{address} is not on loopback, and TLS is off: nothing is said there")
