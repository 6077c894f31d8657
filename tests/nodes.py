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
SOURCE_PORT = 25678
"""Outer; below the ports that the system gives to whoever asks for any."""
SECRET = "5f" * 32
PLUGIN = "plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable"
START_S = 300.0  # a cold cache is compiled first
ANSWER_S = 30.0
"""For whatever has to come true, on a machine that has other work to do."""
_TOO_LATE = ("lookup-timeout", "store-unavailable")
"""Names by which a packet is dropped whose session the store did not tell in time."""

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


def ask_health(address: str, port: int, seconds: float = ANSWER_S) -> tuple[int, str]:
    """Status and body of the answer to a health check. Raises OSError where nobody listens."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def is_returned(listener: socket.socket, packet: bytes, source: tuple[str, int], seconds: float) -> bool:
    """Whether something comes within the time, which has to be this packet, from there."""
    listener.settimeout(seconds)
    try:
        data, came_from = listener.recvfrom(9999)
    except (TimeoutError, BlockingIOError):
        return False
    assert came_from == source
    assert data == packet
    return True


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
                f"everwall-join-grace={ANSWER_S:g}",
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
        return request(self.control, command, ANSWER_S, **arguments)

    def counters(self) -> dict[str, int]:
        return self.ask("counters")["counters"]

    def said(self) -> str:
        self.log.flush()
        return (self.folder / "log").read_text()

    def last_line(self) -> str:
        """The last line of the start; others may follow while it runs, as after it stood still."""
        return next(line for line in self.said().splitlines() if "session resiliency is" in line)

    def health(self) -> tuple[int, str]:
        """Status and body; asked again where nobody listens, as for a moment after the machine stood still."""
        found: tuple[int, str] = until(self._probe, ANSWER_S, "the answer to a health check")
        return found

    def _probe(self) -> tuple[int, str]:
        return ask_health(self.address, 8099)

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
        self.sender.bind((BALANCER, SOURCE_PORT))

    def through(self, node: Process, inner: bytes, endpoint: int = 0xAA) -> bool:
        """Whether the node returns the packet, byte for byte, to port 6081 from the same source port."""
        packet = self._send(node, inner, endpoint)
        return self._returned(node, packet, ANSWER_S)

    def through_in_time(self, node: Process, inner: bytes) -> bool:
        """As ``through``, for a packet whose session the store has: it is sent again, as its sender would, when the
        node has dropped it because the answer came too late. A machine may stand still for longer than it waits."""
        before, deadline = _too_late(node.counters()), time.monotonic() + ANSWER_S
        packet = self._send(node, inner)
        while time.monotonic() < deadline:
            if self._returned(node, packet, 0.05):
                return True
            if (now := _too_late(node.counters())) > before:
                before, packet = now, self._send(node, inner)
        return False

    def dropped(self, node: Process, inner: bytes, why: str, endpoint: int = 0xAA) -> bool:
        """Whether the node drops the packet by that name and does not return it; sent again as ``through_in_time``."""
        before, deadline = node.counters(), time.monotonic() + ANSWER_S
        packet = self._send(node, inner, endpoint)
        while time.monotonic() < deadline and not self._returned(node, packet, 0.005):
            now = node.counters()
            if now.get(why, 0) > before.get(why, 0):
                return not self._returned(node, packet, 0.0)
            if _too_late(now) > _too_late(before):
                before, packet = now, self._send(node, inner, endpoint)
        return False

    def _send(self, node: Process, inner: bytes, endpoint: int = 0xAA) -> bytes:
        packet = packets.geneve(inner, endpoint=endpoint)
        self.sender.sendto(packet, (node.address, GENEVE_PORT))
        return packet

    def _returned(self, node: Process, packet: bytes, seconds: float) -> bool:
        return is_returned(self.listener, packet, (node.address, SOURCE_PORT), seconds)

    def close(self) -> None:
        self.listener.close()
        self.sender.close()


def _too_late(counters: dict[str, int]) -> int:
    """Packets that a node dropped because the store did not answer in time."""
    return sum(counters.get(name, 0) for name in _TOO_LATE)


def c2s(**fields: Any) -> bytes:
    return packets.tcp(CLIENT, SERVER, 33000, 80, **fields)


def s2c(**fields: Any) -> bytes:
    return packets.tcp(SERVER, CLIENT, 80, 33000, **fields)


def handshake(balancer: Balancer, node: Process) -> None:
    assert balancer.through(node, c2s(flags="S", seq=1000))
    assert balancer.through(node, s2c(flags="SA", seq=5000, ack=1001))
    assert balancer.through(node, c2s(flags="A", seq=1001, ack=5001))
