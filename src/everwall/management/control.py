"""The control socket: how `everwall show`, the lab and tests talk to a running process.

A UNIX stream socket, one JSON object per line in both directions. A request names its ``command``;
its other keys are arguments. An answer is ``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``.
Only the owner of the process may connect (mode 0600), so there is no other authentication.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from everwall.limits import (
    CONTROL_ANSWER_BYTES_MAX,
    CONTROL_CONNECTIONS_MAX,
    CONTROL_REQUEST_BYTES_MAX,
    CONTROL_TIMEOUT_S,
)

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Answer | Awaitable[Answer]]

_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un on Linux, without its final zero byte

log = structlog.get_logger()


class ControlError(ConnectionError):
    """The other side of a control socket does not speak the protocol, or the path cannot serve."""


class ControlServer:
    """Serves ``handlers`` (command name to function of the request) on the socket at ``path``.

    A handler returns the answer without ``ok``, at once or as an awaitable. A ``ValueError``,
    ``KeyError`` or ``TypeError`` of a handler is the client's mistake and is answered with its text; any
    other exception is ours: it is logged and answered without details. The server never stops for either.
    """

    def __init__(self, path: str | Path, handlers: Mapping[str, Handler]) -> None:
        self._path = Path(path)
        self._handlers = dict(handlers)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Create the socket and serve. A dead process's socket is replaced, a live one's is not.

        Raises ControlError when the path is too long, is taken by a live process or is no socket.
        """
        listener = _bind(self._path)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=CONTROL_REQUEST_BYTES_MAX
        )

    async def stop(self) -> None:
        """Close the socket, remove its file and end open connections."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= CONTROL_CONNECTIONS_MAX:
            await _send(writer, {"ok": False, "error": "too many control connections"})
            writer.close()
            return
        self._writers.add(writer)
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    # What follows an overlong line cannot be told from its middle: end here.
                    error = f"a request is at most {CONTROL_REQUEST_BYTES_MAX} bytes"
                    await _send(writer, {"ok": False, "error": error})
                    return
                if not line:
                    return
                await _send(writer, await self._answer(line))
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": "a request is one JSON object per line"}
        if not isinstance(asked, dict):
            return {"ok": False, "error": "a request is one JSON object per line"}
        command = asked.pop("command", None)
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"unknown command {command!r}; known: {known}"}
        try:
            answer = handler(asked)
            if inspect.isawaitable(answer):
                answer = await answer
        except KeyError as error:
            return {
                "ok": False,
                "error": f"{command}: missing or unknown {error.args[0] if error.args else ''}",
            }
        except (ValueError, TypeError) as error:
            return {"ok": False, "error": f"{command}: {error}"}
        except Exception:
            log.exception("control command failed", command=command)
            return {"ok": False, "error": f"{command}: internal error, see the log"}
        return {"ok": True, **answer}


def request(path: str | Path, command: str, timeout_s: float = CONTROL_TIMEOUT_S, **arguments: Any) -> Answer:
    """Ask the process behind ``path`` once and return its answer, ``ok`` included.

    Raises OSError when nobody listens there or no answer came in ``timeout_s`` (TimeoutError), and
    ControlError (an OSError too) when the answer is not one.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(_checked(Path(path)))
        connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        parts: list[bytes] = []
        size = 0
        while True:
            part = connection.recv(65536)
            if not part:
                raise ControlError(f"{path}: the connection ended without an answer")
            parts.append(part)
            size += len(part)
            if part.endswith(b"\n"):
                break
            if size > CONTROL_ANSWER_BYTES_MAX:
                raise ControlError(f"{path}: the answer is longer than {CONTROL_ANSWER_BYTES_MAX} bytes")
    try:
        answer = json.loads(b"".join(parts))
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ControlError(f"{path}: the answer is not one of a control socket")
    return answer


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    # Addresses, StrEnums and NumPy numbers become what they print as or count as.
    writer.write(json.dumps(answer, default=_plain).encode() + b"\n")
    await writer.drain()


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def _checked(path: Path) -> str:
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
        raise ControlError(
            errno.ENAMETOOLONG, f"a socket's path has at most {_SOCKET_PATH_BYTES_MAX} bytes", str(path)
        )
    return str(path)


def _bind(path: Path) -> socket.socket:
    name = _checked(path)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(errno.EEXIST, "exists and is not a socket", name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(name)
            except OSError:
                path.unlink()
            else:
                raise ControlError(errno.EADDRINUSE, "another process serves this control socket", name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before bind, so that the file never exists with more permission than this.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(name)
        os.chmod(name, 0o600)
    except OSError:
        listener.close()
        raise
    return listener
