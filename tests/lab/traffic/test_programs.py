"""The traffic programs at work on loopback, without any firewall between them."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from everwall.lab import rundir
from everwall.lab.processes import Program, Programs, wait_until
from everwall.lab.traffic.inner import parse
from everwall.lab.traffic.packets import SERVER

HERE = "127.0.0.1"
PATIENCE_S = 30


@pytest.fixture
def programs() -> Iterator[Programs]:
    directory = rundir.create()
    started = Programs(directory)
    yield started
    started.stop()
    directory.close(remove=True)


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"everwall.lab.traffic.{name}", *arguments]


def established(client: Program, wanted: int) -> None:
    wait_until("connections", lambda: client.ask("progress")["established"] == wanted, PATIENCE_S, [client])


def answered(client: Program, wanted: int) -> None:
    wait_until("answers", lambda: client.ask("progress")["answered"] == wanted, PATIENCE_S, [client])


def reported(program: Program, event: int) -> dict[str, Any]:
    """What a program reports once something of every UDP flow has arrived that was sent after the event."""
    reports: list[dict[str, Any]] = []

    def complete() -> bool:
        reports.append(program.ask("report", event_ns=event, effective_ns=event))
        probes = reports[-1].get("probes", reports[-1].get("udp"))
        return len(probes) == 4 and all(row["first_after_ns"] for row in probes)

    wait_until("probes after the event", complete, PATIENCE_S, [program])
    return reports[-1]


def test_real_connections_are_probed_and_every_byte_is_verified(programs: Programs) -> None:
    server = programs.start("server", module("server", HERE), pipes=True)
    server.ask("ready", PATIENCE_S)
    client = programs.start("client", module("client", HERE, "20", "4", "0"), pipes=True)
    client.ask("ready", PATIENCE_S)
    client.ask("start", PATIENCE_S)
    established(client, 20)
    client.tell("fast", flows=[0, 1])
    event = time.monotonic_ns()
    client.tell("probe")
    answered(client, 20)
    near, far = reported(client, event), reported(server, event)
    assert {row["kind"] for row in near["connections"]} == {"idle", "request", "bulk"}
    assert not any(row["corrupt"] or row["lost"] for row in near["connections"])
    assert all(row["verified"] > 0 for row in near["connections"] + far["connections"])
    assert [row["flow"] for row in near["udp"] if row["fast"]] == [0, 1]
    assert all(row["first_after_ns"] > event for row in far["probes"])
    assert {row["number"] for row in far["connections"]} == set(range(20))


def test_a_server_that_goes_away_is_a_lost_connection(programs: Programs) -> None:
    server = programs.start("server", module("server", HERE), pipes=True)
    server.ask("ready", PATIENCE_S)
    client = programs.start("client", module("client", HERE, "5", "0", "0"), pipes=True)
    client.ask("start", PATIENCE_S)
    established(client, 5)
    server.process.kill()
    wait_until("losses", lambda: client.ask("progress")["lost"] == 5, PATIENCE_S, [client])
    found = client.ask("report", event_ns=0, effective_ns=0)["connections"]
    assert {row["lost"] for row in found} <= {"closed by the server", "ConnectionResetError"}


class Wire(threading.Thread):
    """A load balancer's endpoint reduced to a wire: every packet comes back, but for those it drops."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HERE, 0))
        self.socket.settimeout(0.2)
        self.passed = 0
        self.lost: set[bytes] = set()
        """What was dropped once passes when it is sent again."""
        self.cut = False
        self.requests_cut = 0
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            try:
                packet, peer = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            self.passed += 1
            if self.cut:
                segment = parse(packet)
                self.requests_cut += bool(
                    segment.protocol == 6 and segment.destination == SERVER and segment.payload
                )
            elif self.passed % 10 == 0 and packet not in self.lost:
                self.lost.add(packet)
            else:
                self.socket.sendto(packet, peer)
        self.socket.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    made.start()
    yield made
    made.ended = True
    made.join()


def generator(programs: Programs, wire: Wire) -> Program:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((HERE, 0))
        own = free.getsockname()[1]
    gateway = wire.socket.getsockname()[1]
    line = module("packets", f"{HERE}:{own}", f"{HERE}:{gateway}", "20", "4")
    program = programs.start("packets", line, pipes=True)
    program.ask("start", PATIENCE_S)
    return program


def test_simulated_flows_survive_a_wire_that_loses_every_tenth_packet(programs: Programs, wire: Wire) -> None:
    packets = generator(programs, wire)
    established(packets, 20)
    event = time.monotonic_ns()
    packets.tell("probe")
    answered(packets, 20)
    found = reported(packets, event)
    assert not any(row["corrupt"] or row["lost"] for row in found["connections"])
    assert max(row["stall_ns"] for row in found["connections"]) > 200e6, "a lost packet is sent again"


def test_a_cut_shows_in_stalls_and_in_gaps(programs: Programs, wire: Wire) -> None:
    packets = generator(programs, wire)
    established(packets, 20)
    packets.tell("fast", flows=[0, 1, 2, 3])
    wire.cut = True
    event = time.monotonic_ns()
    packets.tell("probe")
    wait_until("requests that are not answered", lambda: wire.requests_cut >= 5, PATIENCE_S, [packets])
    time.sleep(0.5)  # the length of the cut is what is measured
    wire.cut = False
    answered(packets, 20)
    found = reported(packets, event)
    assert max(row["stall_ns"] for row in found["connections"]) > 0.4e9
    assert all(row["first_after_ns"] - event > 0.45e9 for row in found["probes"])
