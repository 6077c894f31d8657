"""The health listener: what the load balancer probes on the registered data address.

It tells one thing and offers no API. To an HTTP GET of any path it answers

========== ====== ========== =============================================================
node state status body       why
========== ====== ========== =============================================================
joining    -      -          not listening: no flow may come before the store is reached
active     200    ok
draining   200    draining   deregistration is what stops new flows; a failed check would
                             move the old ones at once and cut the drain short
failing    503    failing    the node knows that it cannot forward
========== ====== ========== =============================================================

A worker that does not pass its loop cannot be seen from here by asking a Python object, so the
listener watches its heartbeat: older than HEARTBEAT_STALE_NS, and the listening socket is closed and open
connections are reset, so that TCP checks fail as well. It opens again when the heart beats again.

Prefer HTTP checks: the kernel completes TCP handshakes for a stopped process until the backlog is
full, which is why the backlog is as small as the probers allow.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable

import structlog

from everwall.limits import (
    HEALTH_BACKLOG,
    HEALTH_CONNECTION_S_MAX,
    HEALTH_CONNECTIONS_MAX,
    HEALTH_REQUEST_BYTES_MAX,
    HEALTH_WATCH_S,
    HEARTBEAT_STALE_NS,
)

log = structlog.get_logger()

_ANSWERS = {
    "active": ("200 OK", "ok"),
    "draining": ("200 OK", "draining"),
    "failing": ("503 Service Unavailable", "failing"),
}


class HealthListener:
    """Answers health checks on ``address``:``port``.

    ``state`` returns the node's state (``joining``, ``active``, ``draining``, ``failing``), ``heartbeat`` the
    CLOCK_MONOTONIC nanoseconds at which the slowest worker last passed its loop. ``device`` binds the
    socket to one interface, which only root may do. Port 0 takes a free port, see ``port``.
    """

    def __init__(
        self,
        address: str,
        port: int,
        state: Callable[[], str],
        heartbeat: Callable[[], int],
        device: str | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.port = port
        self._address = address
        self._device = device
        self._state = state
        self._heartbeat = heartbeat
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.connections: set[_Check] = set()

    @property
    def listening(self) -> bool:
        """True while the socket is open."""
        return self._server is not None

    async def start(self) -> None:
        """Listen as soon as the state allows it. Raises OSError when the address cannot be bound."""
        await self._follow()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close the socket and reset open connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self._close()

    def answer(self) -> tuple[str, str] | None:
        """HTTP status and body of this moment; None while there must be no answer at all."""
        if self._clock() - self._heartbeat() > HEARTBEAT_STALE_NS:
            return None
        return _ANSWERS.get(self._state())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_WATCH_S)
            try:
                await self._follow()
            except OSError as error:
                # The address may be away for a moment, as when its interface is down.
                log.warning("health listener cannot open", address=self._address, error=str(error))

    async def _follow(self) -> None:
        if self.answer() is None:
            if self._server is not None:
                log.warning("health listener closed", state=self._state())
                self._close()
        elif self._server is None:
            await self._open()

    async def _open(self) -> None:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._device:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device.encode() + b"\0")
            listener.bind((self._address, self.port))
            self.port = listener.getsockname()[1]
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: _Check(self), sock=listener, backlog=HEALTH_BACKLOG
            )
        except OSError:
            listener.close()
            raise

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for check in list(self.connections):
            check.abort()


class _Check(asyncio.Protocol):
    """One connection of a prober: one request, one answer, closed."""

    def __init__(self, listener: HealthListener) -> None:
        self._listener = listener
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._listener.connections) >= HEALTH_CONNECTIONS_MAX:
            self.abort()
            return
        self._listener.connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(HEALTH_CONNECTION_S_MAX, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._reply()
        elif len(self._received) > HEALTH_REQUEST_BYTES_MAX:
            self._write("431 Request Header Fields Too Large", "", True)

    def abort(self) -> None:
        """Reset the connection: the prober shall see a failure, not an empty answer."""
        if self._transport is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)  # on, zero seconds: close resets instead of finishing
                connection = self._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()

    def _reply(self) -> None:
        words = self._received.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self._write("400 Bad Request", "", True)
            return
        if words[0] not in (b"GET", b"HEAD"):
            self._write("405 Method Not Allowed", "", True)
            return
        answer = self._listener.answer()
        if answer is None:
            self.abort()
            return
        self._write(*answer, with_body=words[0] == b"GET")

    def _write(self, status: str, body: str, with_body: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self._transport.write((head + (body if with_body else "")).encode())
        self._transport.close()
