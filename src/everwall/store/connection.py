"""A connection to a Redis or Valkey server: made by redis-py, then read and written without blocking.

redis-py resolves the name, connects, speaks TLS and AUTH and knows the errors of all of these. From then on the
socket is ours: requests are written and replies read as bytes by kernels, and no reply that is late can hold
the thread.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from everwall.limits import STORE_PREFIX_DEFAULT, STORE_TIMEOUT_S
from everwall.store.protocol import Buffer, Command, ErrorReply

_BUFFER_BYTES = 1 << 18
"""Room for the replies to all pipelines under way, several times over."""
_TLS_RECORD_BYTES = 1 << 14
"""The longest plaintext of a TLS record (RFC 8446, section 5.1)."""


@dataclass(frozen=True)
class StoreConfig:
    """Where the store is and how it is reached."""

    host: str
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = True
    ca_pem: bytes | str | None = None
    """The only authorities believed, PEM; None means those of the system."""
    server_name: str | None = None
    """The name the certificate must bear, where it is not ``host``."""
    prefix: str = STORE_PREFIX_DEFAULT
    """Names the cluster; clusters of one server have different ones."""
    owner: int = 0
    """The node's 32-bit id, shown in the server's client list."""


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


class _Connection(redis.Connection):
    """redis-py's connection, except that the TLS context is ours.

    redis-py would believe the system's authorities beside the given one, and check the certificate against
    the address that was dialled.
    """

    def __init__(self, config: StoreConfig, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._server_name = config.server_name or config.host
        self.socket: socket.socket | None = None
        super().__init__(
            host=config.host,
            port=config.port,
            username=config.username,
            password=config.password,
            client_name=f"everwall-{config.owner:08x}",
            protocol=2,
            socket_timeout=STORE_TIMEOUT_S,
            socket_connect_timeout=STORE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def _connect(self) -> socket.socket:
        plain: socket.socket = super()._connect()
        if self._context is None:
            self.socket = plain
            return plain
        try:
            self.socket = self._context.wrap_socket(plain, server_hostname=self._server_name)
        except OSError:
            plain.close()
            raise
        return self.socket


class Link:
    """A connection that is ready: bytes out and in, never blocking.

    What came and was not taken yet is ``buffer[start:end]``; whoever takes some of it moves ``start``.
    """

    def __init__(self, connection: _Connection) -> None:
        assert connection.socket is not None
        self._connection = connection
        self._socket = connection.socket
        self._socket.setblocking(False)
        self._unsent: list[memoryview] = []
        self.buffer: Buffer = np.zeros(_BUFFER_BYTES, np.uint8)
        self.start = self.end = 0
        self._view = memoryview(self.buffer)  # type: ignore[arg-type]

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_to_send(self) -> bool:
        return bool(self._unsent)

    def send(self, data: memoryview) -> None:
        """Send ``data`` as far as the socket takes it; ``flush`` sends the rest, so it must stay as it is."""
        self._unsent.append(data)
        self.flush()

    def flush(self) -> None:
        """Send what is still unsent, as much as the socket takes.

        TLS writes each of its records by itself; those of one pipeline travel together all the same.
        """
        unsent = self._unsent
        corked = bool(unsent) and len(unsent[0]) > _TLS_RECORD_BYTES
        if corked:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        try:
            while unsent:
                sent = self._socket.send(unsent[0])
                if sent == len(unsent[0]):
                    unsent.pop(0)
                else:
                    unsent[0] = unsent[0][sent:]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if corked:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def receive(self) -> bool:
        """Take some of what has come into ``buffer``; whether there was anything.

        TLS gives a record at a time, and there is room for a whole one: what is left is still in the socket, where poll
        sees it. Raises ConnectionError when the server has hung up, or sends more than anybody asked for.
        """
        if self.start == self.end:
            self.start = self.end = 0
        if _BUFFER_BYTES - self.end < _TLS_RECORD_BYTES:
            self._make_room()
        try:
            received = self._socket.recv_into(self._view[self.end :])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if not received:
            raise ConnectionError("the server closed the connection")
        self.end += received
        return True

    def _make_room(self) -> None:
        if self.end - self.start > _BUFFER_BYTES - _TLS_RECORD_BYTES:
            raise ConnectionError("the server sends more than it was asked for")
        left = self.buffer[self.start : self.end].copy()
        self.buffer[: len(left)] = left
        self.start, self.end = 0, len(left)

    def close(self) -> None:
        self._connection.disconnect()


@dataclass
class Arrival:
    """A connection was made: the replies to the greeting, and store time as it was at ``monotonic_ns``."""

    link: Link
    replies: list[Any]
    monotonic_ns: int
    rtt_ns: int


def connect(config: StoreConfig, context: ssl.SSLContext | None, greeting: list[Command]) -> Arrival:
    connection = _Connection(config, context)
    try:
        connection.connect()
        before = time.monotonic_ns()
        connection.send_packed_command(connection.pack_commands(greeting))
        replies: list[Any] = []
        for _ in greeting:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as error:
                replies.append(ErrorReply(str(error)))
        after = time.monotonic_ns()
        return Arrival(Link(connection), replies, (before + after) // 2, after - before)
    except BaseException:
        connection.disconnect()
        raise
