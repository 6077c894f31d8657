"""A real node behind a veth: who answers a packet, the node or the program before it, and for how long."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everwall.dataplane import BOUNCED, BOUNCED_BYTES
from everwall.lab import launch, rundir, topology
from everwall.lab.launch import inside
from everwall.lab.processes import wait_stopped
from everwall.lab.topology import Topology
from everwall.limits import BEAT_STALE_NS, GENEVE_PORT, RELOAD_TIMEOUT_S, SECOND_NS
from everwall.management.control import request
from everwall.ports.bpf import attach_pass
from tests import company, needs, packets
from tests.conversations import Connection
from tests.namespaces import ip
from tests.nodes import ANSWER_S, CLIENT, POLICY, SERVER, START_S, ask_health, is_returned, until

NODE = topology.node_data_address(0)
HEALTH_PORT = 8099
SOURCE_PORT = 45678


class Behind:
    """A node in its namespace, and a load balancer's sockets at the other end of its veth."""

    def __init__(self, network: Topology, folder: Path, *lines: str, policy: str = POLICY) -> None:
        self.network = network
        self.control = folder / "control.sock"
        (folder / "policy.yaml").write_text(policy)
        text = [
            "hostname=fw1",
            "plugin-op-commands=aws-gwlb-inspect:enable",
            "everwall-data-interface=data0",
            f"everwall-geneve-sources={topology.GATEWAY_DATA}/32",
            f"everwall-health-port={HEALTH_PORT}",
            "everwall-policy=policy.yaml",
            *lines,
        ]
        (folder / "init-cfg.txt").write_text("\n".join(text) + "\n")
        self.log = folder / "log"
        program = [sys.executable, "-m", "everwall", "firewall", "--bootstrap", str(folder / "init-cfg.txt")]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                launch.command(
                    [*program, "--control", str(self.control)], network.path("fw1"), outlive=False
                ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        with inside(network.path("gwlb")):
            self.listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.listener.bind((topology.GATEWAY_DATA, GENEVE_PORT))
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sender.bind((topology.GATEWAY_DATA, SOURCE_PORT))

    def ready(self) -> Behind:
        last_line = "session resiliency is"
        until(lambda: last_line in self.said() or self.process.poll() is not None, START_S, "the start")
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        return self.log.read_text()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return request(self.control, command, ANSWER_S, **arguments)

    def counters(self) -> dict[str, int]:
        return self.ask("counters")["counters"]

    def through(self, inner: bytes) -> bool:
        """Whether the packet comes back, byte for byte, to port 6081 from the same source port."""
        return self.returned(self.send(inner), ANSWER_S)

    def dropped(self, inner: bytes, why: str) -> bool:
        """Whether the node drops the packet by that name, and does not return it."""
        before, packet = self.counters().get(why, 0), self.send(inner)
        until(lambda: self.counters().get(why, 0) > before, ANSWER_S, f"a packet to be dropped as {why}")
        return not self.returned(packet, 0.0)

    def send(self, inner: bytes) -> bytes:
        packet = packets.geneve(inner, endpoint=0xAA)
        self.sender.sendto(packet, (NODE, GENEVE_PORT))
        return packet

    def returned(self, packet: bytes, seconds: float) -> bool:
        return is_returned(self.listener, packet, (NODE, SOURCE_PORT), seconds)

    def exchange(self, rounds: int, judged: int, port: int = 33000) -> int:
        """So many packets to and fro, of which the engine judges so few at most; returns how many rounds it took.

        A worker that stood still takes its sessions back from the kernel, and judges more: then there are more rounds.
        """
        done, deadline = 0, time.monotonic() + ANSWER_S
        while True:
            before = self.counters()[BOUNCED]
            for number in range(done, done + rounds):
                assert self.through(upload(1001 + 4 * number, port=port))
                assert self.through(download(5001 + 9 * number, port=port))
            done += rounds
            if self.counters()[BOUNCED] - before >= 2 * rounds - judged:
                return done
            assert time.monotonic() < deadline, f"the kernel answers too few: {self.counters()}"

    def all_through(self, inners: list[bytes]) -> None:
        """Every packet, and nothing else, comes back."""
        waiting = {packets.geneve(inner, endpoint=0xAA) for inner in inners}
        assert len(waiting) == len(inners), "no two are alike"
        for packet in waiting:
            self.sender.sendto(packet, (NODE, GENEVE_PORT))
        self.listener.settimeout(ANSWER_S)
        while waiting:
            try:
                waiting.remove(self.listener.recv(4096))
            except TimeoutError:
                pytest.fail(f"{len(waiting)} of {len(inners)} packets are lost: {self.counters()}")

    def health(self) -> int:
        found: int = until(self._probe, ANSWER_S, "the answer to a health check")
        return found

    def _probe(self) -> int:
        with inside(self.network.path("gwlb")):
            return ask_health(NODE, HEALTH_PORT)[0]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.listener.close()
        self.sender.close()


@pytest.fixture
def network() -> Iterator[Topology]:
    needs.xdp()
    directory = rundir.create()
    made = Topology(directory, 1)
    try:
        made.build()
        with inside(made.path("gwlb")):
            link = attach_pass("fw1")
        yield made
        link.close()
    finally:
        made.remove()
        directory.close(remove=True)


@contextlib.contextmanager
def a_node(network: Topology, folder: Path, *lines: str, policy: str = POLICY) -> Iterator[Behind]:
    made = Behind(network, folder, *lines, policy=policy)
    try:
        yield made.ready()
    finally:
        made.end()


def upload(sequence: int, payload: bytes = b"data", port: int = 33000) -> bytes:
    return packets.tcp(CLIENT, SERVER, port, 80, flags="PA", seq=sequence, ack=5001, payload=payload)


def download(sequence: int, payload: bytes = b"more data", port: int = 33000) -> bytes:
    return packets.tcp(SERVER, CLIENT, 80, port, flags="PA", seq=sequence, ack=1001, payload=payload)


def handshake(node: Behind, port: int = 33000) -> None:
    assert node.through(packets.tcp(CLIENT, SERVER, port, 80, flags="S", seq=1000))
    assert node.through(packets.tcp(SERVER, CLIENT, 80, port, flags="SA", seq=5000, ack=1001))
    assert node.through(packets.tcp(CLIENT, SERVER, port, 80, flags="A", seq=1001, ack=5001))


def test_an_established_connection_is_answered_in_the_kernel(network: Topology, tmp_path: Path) -> None:
    with a_node(network, tmp_path, "everwall-port=xdp") as node:
        status = node.ask("status")
        assert status["port"] == "xdp"
        assert status["cut_through"] == {"enabled": True, "why": ""}
        assert node.health() == 200, "what is not GENEVE reaches the kernel"
        handshake(node)
        assert node.counters()[BOUNCED] == 0, "a handshake is judged by the engine"
        rounds = node.exchange(20, judged=2)
        count, size = 3 + 2 * rounds, 3 * 40 + rounds * (44 + 49)
        counters = node.counters()
        assert counters["forward"] == counters["received"] == count, "totals are of both"
        assert counters["bytes"] == size
        (row,) = node.ask("sessions")["sessions"]
        assert (row["packets"], row["bytes"]) == (count, size), "a session's own as well"

        stray = packets.tcp(CLIENT, SERVER, 33001, 80, flags="A")
        assert node.dropped(stray, "non-syn-tcp"), "an unknown flow is not answered by anybody"
        sequence, acknowledged = 1001 + 4 * rounds, 5001 + 9 * rounds
        end = packets.tcp(CLIENT, SERVER, 33000, 80, flags="FA", seq=sequence, ack=acknowledged)
        assert node.through(end)
        (row,) = node.ask("sessions")["sessions"]
        assert row["state"] != "established", "its end is seen by the engine"
        assert row["packets"] == count + 1, "which has taken over what the kernel counted"


def test_two_workers_and_one_queue_answer_in_the_kernel_what_either_has_judged(
    network: Topology, tmp_path: Path
) -> None:
    """The second worker has no queue: it gets its flows from the first, and sends them by a raw socket."""
    with a_node(network, tmp_path, "everwall-port=xdp", "everwall-workers=2") as node:
        created = [0, 0]
        # A hash that is drawn anew at each start deals them out: now and then one of the two gets many in a row.
        while sum(created) < 12 or not all(created):
            port = 33000 + sum(created)
            assert port < 33100
            handshake(node, port)
            node.exchange(5, judged=1, port=port)
            before, created = (
                created,
                [counts["sessions-created"] for counts in node.ask("counters")["workers"]],
            )
            assert sum(created) == sum(before) + 1


def test_a_stopped_node_falls_silent_within_half_a_second(network: Topology, tmp_path: Path) -> None:
    """The dead man's word: a hung firewall that went on answering could not be told from a healthy one."""
    with a_node(network, tmp_path, "everwall-port=xdp") as node:
        handshake(node)
        deadline, sequence, answered = time.monotonic() + START_S, 1001, False
        while not answered:  # at once, unless this machine stood still for as long as it has to
            assert time.monotonic() < deadline, "the kernel answers for a moment"
            sent: dict[bytes, int] = {}
            stopped = stop(node.process)
            while time.monotonic_ns() - stopped < BEAT_STALE_NS + SECOND_NS // 2:
                now = time.monotonic_ns()
                sent[node.send(upload(sequence))] = now
                sequence += 4
                time.sleep(0.02)
            times = [sent[packet] - stopped for packet in came_back(node) if packet in sent]
            assert all(after <= BEAT_STALE_NS for after in times), "and not for longer than it is allowed to"
            answered = len(times) > 0
            node.process.send_signal(signal.SIGCONT)
            node.listener.settimeout(ANSWER_S)
            assert node.listener.recv(4096), "what it did not answer waited for the engine"


def stop(process: subprocess.Popen[bytes]) -> int:
    """Have a process stand still; returns a time at which all of its threads do, CLOCK_MONOTONIC ns."""
    process.send_signal(signal.SIGSTOP)
    assert wait_stopped(process.pid, ANSWER_S)
    return time.monotonic_ns()


def came_back(node: Behind) -> list[bytes]:
    """What has come back by now."""
    node.listener.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(node.listener.recv(4096))
    return found


def test_nothing_is_left_on_the_interface_of_a_node_that_was_killed(
    network: Topology, tmp_path: Path
) -> None:
    def attached() -> bool:
        with inside(network.path("fw1")):
            return "prog/xdp" in ip("link", "show", "data0")

    with a_node(network, tmp_path, "everwall-port=auto") as node:
        assert attached(), node.said()
        node.process.kill()
        node.process.wait()
        until(lambda: not attached(), ANSWER_S, "the program to go")


@pytest.mark.parametrize(
    ("lines", "port", "why"),
    [
        (["everwall-port=xdp", "everwall-cut-through=off"], "xdp", "everwall-cut-through is off"),
        (["everwall-port=raw"], "raw", "only the xdp port has it"),
    ],
    ids=["xdp", "raw"],
)
def test_without_the_cut_through_every_packet_goes_through_the_engine(
    network: Topology, tmp_path: Path, lines: list[str], port: str, why: str
) -> None:
    with a_node(network, tmp_path, *lines) as node:
        status = node.ask("status")
        assert (status["port"], status["cut_through"]) == (port, {"enabled": False, "why": why})
        handshake(node)
        for exchange in range(5):
            assert node.through(upload(1001 + 4 * exchange))
        counters = node.counters()
        assert counters.get(BOUNCED, 0) == counters.get(BOUNCED_BYTES, 0) == 0
        assert counters["forward"] == 8


# Another policy under traffic -----------------------------------------------------------------------------

RULES = 10_000 if needs.DEEP else 500


def companys(name: str) -> str:
    """A company's rules, of which none speaks about our hosts, and a last one that does."""
    document = company.document(RULES, 1)
    document["zones"]["ours"] = {"endpoints": [0xAA]}
    ours = {"from": "ours", "to": "ours", "source": "any", "destination": "any", "service": "any"}
    document["rules"].append({"name": name, **ours, "action": "allow"})
    return json.dumps(document)


def reload(node: Behind, told: list[dict[str, Any]]) -> None:
    told.append(request(node.control, "policy", RELOAD_TIMEOUT_S, do="reload"))


@pytest.mark.parametrize(
    "lines", [["everwall-port=xdp"], ["everwall-port=raw", "everwall-workers=2"]], ids=["cut-through", "raw"]
)
def test_a_reload_under_traffic_loses_nothing_and_touches_no_session(
    network: Topology, tmp_path: Path, lines: list[str]
) -> None:
    talks = [Connection("172.16.0.1", "172.16.1.1", port) for port in range(41_000, 41_012)]
    with a_node(network, tmp_path, *lines, policy=companys("before")) as node:
        for step in zip(*(talk.handshake() for talk in talks)):
            node.all_through(list(step))
        for _ in range(3):
            node.all_through([talk.data() for talk in talks])
            node.all_through([talk.data(talk.server) for talk in talks])
        ids = {row["id"]: row["rule"] for row in node.ask("sessions")["sessions"]}
        before = node.counters()
        assert set(ids.values()) == {"before"}
        rounds, fresh, names = 0, 42_000, ["after", "before"]
        while rounds < 3:  # at once, unless the node is done before a single packet has passed
            name, names = names[0], names[::-1]
            (tmp_path / "policy.yaml").write_text(companys(name))
            told: list[dict[str, Any]] = []
            reloading = threading.Thread(target=reload, args=(node, told))
            reloading.start()
            while reloading.is_alive() or node.ask("policy")["rematch_percent"] < 100:
                node.all_through([talk.data() for talk in talks])
                node.all_through([talk.data(talk.server) for talk in talks])
                node.all_through(
                    [packets.udp("172.16.0.1", "172.16.1.1", fresh, 53)]
                )  # always finds a policy
                rounds, fresh = rounds + 1, fresh + 1
            reloading.join()
            assert told[0]["ok"], told
        rows = [
            row for row in node.ask("sessions", limit=10_000)["sessions"] if row["state"] == "established"
        ]
        assert {row["id"] for row in rows} == set(ids), "the very same sessions"
        assert {row["rule"] for row in rows} == {name}
        after = node.counters()
        assert after["received"] == after["forward"], "nothing was dropped by any name"
        assert after["sessions-ruled-out"] == 0
        bounced = after.get(BOUNCED, 0) - before.get(BOUNCED, 0)
        assert (bounced > 0) == (lines == ["everwall-port=xdp"]), "the cut-through has gone on"

        def bounced_now() -> int:
            counted = node.counters().get(BOUNCED, 0)
            node.all_through([talk.data() for talk in talks])
            return node.counters().get(BOUNCED, 0) - counted

        if bounced:
            until(lambda: bounced_now() == len(talks), ANSWER_S, "the kernel to answer for all of them")
        else:
            assert bounced_now() == 0
