"""Firewall nodes as processes on loopback, and a load balancer that speaks with them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everwall.limits import GENEVE_PORT
from everwall.management.control import ControlError, request
from tests import packets
from tests.redis_server import PASSWORD, RedisServer

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"
BALANCER = "127.0.82.100"
SECRET = "5f" * 32
PLUGIN = "plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable"
START_S = 300.0  # a cold cache is compiled first
ANSWER_S = 5.0

POLICY = """
zones:
  spoke: {endpoints: [vpce-00000000000000aa, vpce-0a1b2c3d00000000]}
rules:
  - name: web
    from: spoke
    to: spoke
    source: any
    destination: any
    service: [tcp/80, udp/53]
    action: allow
"""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of ``condition``, polled; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ControlError, OSError):
            if answer := condition():
                return answer
        time.sleep(0.02)
    pytest.fail(f"waited {seconds} s for {what}")


class Process:
    """One ``everwall firewall``."""

    def __init__(
        self, folder: Path, number: int, redis: RedisServer | None, *, extra: str = "", policy: str = POLICY
    ) -> None:
        self.address = f"127.0.82.{number}"
        self.folder = folder / f"fw{number}"
        self.folder.mkdir()
        self.control = self.folder / "control.sock"
        (self.folder / "policy.yaml").write_text(policy)
        lines = [
            f"hostname=fw{number}",
            *([] if "plugin-op-commands" in extra else [PLUGIN]),
            f"everwall-data-address={self.address}",
            "everwall-port=udp",
            "everwall-health-port=8099",
            "everwall-policy=policy.yaml",
            f"everwall-cluster-secret={SECRET}",
            f"everwall-traffic-log={self.folder / 'traffic.log'}",
            extra,
        ]
        if redis is not None:
            lines += [
                f"redis-endpoint=127.0.0.1:{redis.port}",
                f"redis-auth={PASSWORD}",
                f"redis-certificate={base64.b64encode(redis.ca_pem).decode()}",
            ]
        (self.folder / "init-cfg.txt").write_text("\n".join(lines) + "\n")
        self.log = (self.folder / "log").open("w+")
        command = [
            sys.executable,
            "-m",
            "everwall",
            "firewall",
            "--bootstrap",
            str(self.folder / "init-cfg.txt"),
        ]
        self.process = subprocess.Popen(
            [*command, "--control", str(self.control), "--drain-timeout", "30"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def ready(self) -> Process:
        last_line = "session resiliency is"
        until(lambda: last_line in self.said() or self.process.poll() is not None, START_S, "the start")
        assert self.process.poll() is None, self.said()
        return self

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return request(self.control, command, **arguments)

    def counters(self) -> dict[str, int]:
        return self.ask("counters")["counters"]

    def said(self) -> str:
        self.log.flush()
        return (self.folder / "log").read_text()

    def health(self) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, 8099, timeout=ANSWER_S)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


class Balancer:
    """Speaks GENEVE with the nodes the way a load balancer does."""

    def __init__(self) -> None:
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listener.bind((BALANCER, GENEVE_PORT))
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind((BALANCER, 45678))

    def through(self, node: Process, inner: bytes, seconds: float = ANSWER_S, endpoint: int = 0xAA) -> bool:
        """Whether the node returns the packet, byte for byte, to port 6081 from the same source port."""
        packet = packets.geneve(inner, endpoint=endpoint)
        self.sender.sendto(packet, (node.address, GENEVE_PORT))
        self.listener.settimeout(seconds)
        try:
            data, source = self.listener.recvfrom(9999)
        except TimeoutError:
            return False
        assert source == (node.address, 45678)
        assert data == packet
        return True

    def close(self) -> None:
        self.listener.close()
        self.sender.close()


def c2s(**fields: Any) -> bytes:
    return packets.tcp(CLIENT, SERVER, 33000, 80, **fields)


def s2c(**fields: Any) -> bytes:
    return packets.tcp(SERVER, CLIENT, 80, 33000, **fields)


def handshake(balancer: Balancer, node: Process) -> None:
    assert balancer.through(node, c2s(flags="S", seq=1000))
    assert balancer.through(node, s2c(flags="SA", seq=5000, ack=1001))
    assert balancer.through(node, c2s(flags="A", seq=1001, ack=5001))
