"""A real redis-server or valkey-server for tests: TLS, AUTH, 127.0.0.1, certificates of its own, nothing on disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
import trustme

from everwall.lab.processes import ANSWER_DEADLINE_S, wait_stopped

PASSWORD = "correct horse battery staple"
_START_S_MAX = 60.0
SERVERS = ("redis-server", "valkey-server")
"""Programs that the store's main tests are run with; ``needs.server`` skips what is not installed."""


_kept: dict[int, socket.socket] = {}
"""Ports that were given out and not given back, and what holds them."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on; a server that sets SO_REUSEADDR may, and all of redis's do.

    It stays bound here, as long as this process lives or its server is not closed: the system gives it to nobody else
    meanwhile, neither to one who wants any port nor as that of an outgoing connection, which would reach itself.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    _kept[port] = probe
    return port


class RedisServer:
    """Started on a free port; ``kill`` and ``start`` keep port, password and certificates."""

    def __init__(
        self,
        *names: str,
        arguments: tuple[str, ...] = (),
        authority: trustme.CA | None = None,
        program: str = SERVERS[0],
    ) -> None:
        """``names``: what the certificate is for, by default localhost and 127.0.0.1; ``authority`` is its own, or one
        that several servers share."""
        self.directory = Path(tempfile.mkdtemp(prefix="everwall-redis-"))
        authority = authority or trustme.CA()
        certificate = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
        self.ca_pem: bytes = authority.cert_pem.bytes()
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(self.directory / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        self.port = free_port()
        self.program = program
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> RedisServer:
        """Start the server and wait until it listens. Raises RuntimeError with its log when it does not."""
        settings = {
            "port": "0",
            "tls-port": str(self.port),
            "bind": "127.0.0.1",
            "tls-cert-file": str(self.directory / "cert.pem"),
            "tls-key-file": str(self.directory / "key.pem"),
            "tls-ca-cert-file": str(self.directory / "ca.pem"),
            "tls-auth-clients": "no",
            "requirepass": PASSWORD,
            "save": "",
            "appendonly": "no",
            "dir": str(self.directory),
            "logfile": str(self.directory / "log"),
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            self._command([*options, *self._arguments]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_S_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.02)
        self.kill()
        log = self.directory / "log"
        raise RuntimeError(
            f"{self.program} did not start: {log.read_text()[-2000:] if log.exists() else 'no log'}"
        )

    def _command(self, options: list[str]) -> list[str]:
        return [self.program, *options]

    def client(self, **more: Any) -> redis.Redis:
        """An ordinary client, as the administrator; to be closed."""
        usual = {"port": self.port, "password": PASSWORD, "ssl": True, "protocol": 2}
        return redis.Redis(**{**usual, "ssl_ca_data": self.ca_pem.decode(), **more})

    def hang(self) -> None:
        """SIGSTOP, and it has come: nothing is answered any more."""
        os.kill(self.pid, signal.SIGSTOP)
        assert wait_stopped(self.pid, ANSWER_DEADLINE_S)

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: what is not in the clients' hands is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill the server, remove its directory and give its port back."""
        self.kill()
        if (probe := _kept.pop(self.port, None)) is not None:
            probe.close()
        shutil.rmtree(self.directory, ignore_errors=True)
