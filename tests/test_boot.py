"""A node boots from another vendor's package, on a machine with two interfaces: what it says, and by which one."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everwall.limits import GENEVE_PORT
from everwall.management.control import ControlError, request
from tests import needs, packets
from tests.examples import EXAMPLES, sources
from tests.nodes import ask_health
from tests.two_interfaces import DATA, DATA_PEER, ELSEWHERE, MANAGEMENT, TwoInterfaces

SECRET = "c0ffee5a17b3449d8e60f1a2b3c4d5e6f708192a3b4c5d6e7f80917263544536"
START_S = 120
"""Compiling may be part of it."""


@pytest.fixture(scope="module")
def place() -> Iterator[TwoInterfaces]:
    needs.namespaces()
    made = TwoInterfaces()
    yield made
    made.close()


class Booted:
    """``everwall firewall`` on the machine of the two interfaces."""

    def __init__(self, place: TwoInterfaces, folder: Path, *words: str | Path) -> None:
        self.control = folder / "control.sock"
        self._log = folder / "log"
        with self._log.open("w") as log, place.machine.entered():
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "everwall",
                    "firewall",
                    "--control",
                    str(self.control),
                    *map(str, words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said()
            if condition():
                return
            time.sleep(0.02)
        pytest.fail(f"waited for {what}: {self.said()}")

    def line(self, words: str) -> str:
        """The line of the log with these words."""
        return next(line for line in self.said().splitlines() if words in line)

    def ask(self, command: str) -> dict[str, Any]:
        return request(self.control, command, START_S)

    def dropped(self) -> int:
        """Packets that it has dropped by one of two names."""
        counters = self.ask("counters")["counters"]
        return sum(counters.get(name, 0) for name in ("policy-deny", "endpoint-unmapped"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def passes(place: TwoInterfaces, node: Booted, port: int, endpoint: int) -> bool:
    """Whether the node hands a SYN back to the load balancer, which speaks GENEVE with it, or drops it."""
    inner = packets.tcp("192.0.2.9", "10.20.0.5", 33000 + port, port, flags="S")
    packet = packets.geneve(inner, endpoint=endpoint)
    with place.router.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, sender:
        listener.bind((DATA_PEER, GENEVE_PORT))
        sender.bind((DATA_PEER, 45678))
        before, deadline = node.dropped(), time.monotonic() + START_S
        sender.sendto(packet, (DATA, GENEVE_PORT))
        listener.settimeout(0.02)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return listener.recvfrom(9999) == (packet, (DATA, 45678))
            if node.dropped() > before:
                return False
    pytest.fail(f"nothing became of a packet: {node.said()}")


def healthy(place: TwoInterfaces) -> bool:
    """Whether the load balancer's probe is answered; the listener is closed for a moment after a standstill."""
    with contextlib.suppress(OSError), place.router.entered():
        return ask_health(DATA, 80, 10)[1] == "ok"
    return False


def test_a_vendor_package_boots_and_resiliency_waits_for_the_secret(
    place: TwoInterfaces, tmp_path: Path
) -> None:
    package, late = tmp_path / "package", tmp_path / "late-secret"
    shutil.copytree(EXAMPLES / "vm-series", package)
    init_cfg = package / "config" / "init-cfg.txt"
    with place.router.entered():
        store = socket.create_server((ELSEWHERE, 0))
    store.settimeout(START_S)
    endpoint = f"redis-endpoint={ELSEWHERE}:{store.getsockname()[1]}"
    text = init_cfg.read_text()
    init_cfg.write_text(
        text.replace("redis-endpoint=master.sessions.abc123.use1.cache.amazonaws.com:6379", endpoint)
    )
    node = Booted(place, tmp_path, "--bootstrap", package, "--cluster-secret-file", late)
    try:
        node.until(lambda: "session resiliency is" in node.said(), "the last line of the start")
        said = node.said()
        last = node.line("Successful bootstrap: ")
        assert (
            "session resiliency is held back: no everwall-cluster-secret: nothing is written or restored "
            f"until it comes from {late}" in last
        )
        (interfaces,) = (line for line in said.splitlines() if "interfaces" in line and "data=" in line)
        assert (
            f"data='eth0 {DATA}' management='eth1 {MANAGEMENT}' why='mgmt-interface-swap is on'" in interfaces
        )
        assert "an-example-of-a-token-1" not in said

        # The load balancer's probe comes in by eth0 and is answered there, whatever else there is.
        node.until(lambda: healthy(place), "the probe to be answered")
        assert node.ask("status")["resiliency"]["enabled"] is False

        # Endpoints are on subinterfaces, these in zones, and the rules of bootstrap.xml are about zones.
        spoke1, spoke2 = 0x0A1B2C3D4E5F60718, 0x0B1B2C3D4E5F60719
        assert passes(place, node, 80, spoke1), "allowed there"
        assert not passes(place, node, 80, spoke2), "not in this zone"
        assert not passes(place, node, 22, spoke1), "nobody has allowed it"
        assert not passes(place, node, 80, 0xAA), "an endpoint that is on no interface"
        counters = node.ask("counters")["counters"]
        assert (counters["policy-deny"], counters["endpoint-unmapped"]) == (2, 1)

        late.touch(0o600)
        late.write_text(SECRET)
        node.until(lambda: "session resiliency is on" in node.said(), "the secret to be found")
        connection, peer = store.accept()
        connection.close()
        assert peer[0] == MANAGEMENT, "the store is reached through the management interface"
        assert SECRET not in node.said()
        status = node.ask("status")
        assert status["resiliency"]["enabled"]
        assert status["interfaces"] == {"data": "eth0", "management": "eth1"}
    finally:
        node.end()
        store.close()


@pytest.mark.parametrize("example", sources())
def test_every_example_boots_as_it_stands(
    place: TwoInterfaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    """Its store and its secret are nowhere near; traffic does not wait for them."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    node = Booted(place, tmp_path, "--bootstrap", sources()[example])
    try:
        node.until(lambda: "Successful bootstrap: " in node.said(), "the last line of the start")
        assert "session resiliency is held back" in node.line("Successful bootstrap: ")
        node.until(lambda: healthy(place), "the probe to be answered")
        assert node.ask("status")["state"] == "active"
    finally:
        node.end()


def test_a_package_that_cannot_be_used_is_one_line_with_the_name_of_the_error(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "everwall", "firewall", "--bootstrap", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        f"everwall: No bootstrap configuration file: {tmp_path}: expected a bootstrap package" in done.stderr
    )
    assert "Traceback" not in done.stderr
    with pytest.raises((ControlError, OSError)):
        request(tmp_path / "control.sock", "status")
