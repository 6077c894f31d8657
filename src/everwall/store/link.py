"""Bytes to and from a server over a socket that redis-py has opened, never blocking.

Requests are written and replies read as bytes by kernels, and no reply that is late can hold the thread.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis

from everwall.limits import STORE_DIAL_S, STORE_TIMEOUT_S
from everwall.store.connection import Address, Connection, Login, StoreConfig, login_of, options
from everwall.store.protocol import Buffer, Command, ErrorReply

_BUFFER_BYTES = 1 << 18
"""Room for the replies to all pipelines under way, several times over."""
_TLS_RECORD_BYTES = 1 << 14
"""The longest plaintext of a TLS record (RFC 8446, section 5.1)."""
_CONGESTION_CONTROL = b"cubic"
"""Requests go by as they come, a few pipelines at a time. What spaces them out by timers (BBR) would cost the core that
forwards packets two of these timers for each pipeline."""
_NO_LINGER = struct.pack("ii", 1, 0)
"""When the connection is given up, or the process killed, what was not received yet never will be: a first write that
arrived long after would overwrite whoever had the session by then."""
_UNACKNOWLEDGED_MS = int(STORE_TIMEOUT_S * 1000)
"""What the other end has not received by then the system gives up by itself, for the same reason: this process may
stand still while a partition ends."""


class Link:
    """A connection that is ready: bytes out and in, never blocking.

    What came and was not taken yet is ``buffer[start:end]``; whoever takes some of it moves ``start``.
    """

    def __init__(self, connection: Connection) -> None:
        assert connection.socket is not None
        self._connection = connection
        self.peer = str(Address(connection.host, connection.port))
        """Who is at the other end."""
        self._socket = connection.socket
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        with suppress(OSError):  # that of the system then
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_CONTROL)
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


def connect(
    config: StoreConfig,
    context: ssl.SSLContext | None,
    greeting: list[Command],
    address: Address | None = None,
    login: Login | None = None,
) -> Arrival:
    """Connect and greet; without ``address`` and ``login`` as the configuration says.

    Blocks, up to STORE_DIAL_S and as long as resolving takes; raises redis.RedisError, OSError, ConfigError.
    """
    host, port = address or config.address
    connection = Connection(host=host, port=port, **options(config, context, login or login_of(config)))
    connection.ends_at = time.monotonic() + STORE_DIAL_S
    try:
        connection.connect()
        before = time.monotonic_ns()
        connection.send_packed_command(connection.pack_commands(greeting))
        replies: list[Any] = []
        for _ in greeting:
            try:
                replies.append(connection.read_response())
            except redis.exceptions.OutOfMemoryError as error:
                replies.append(ErrorReply(f"OOM {error}"))  # redis-py takes the code off
            except redis.ResponseError as error:
                replies.append(ErrorReply(str(error)))
        after = time.monotonic_ns()
        return Arrival(Link(connection), replies, (before + after) // 2, after - before)
    except BaseException:
        connection.disconnect()
        raise
