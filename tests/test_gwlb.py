"""The running load balancer, unprivileged on loopback: real packets, real probes, real signals.

The targets are as small as a target can be: they send each GENEVE packet back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everwall.balancer.config import load
from everwall.gwlb import LoadBalancer, StartError
from everwall.management.control import request
from everwall.ports import tun
from tests import needs
from tests.packets import tcp, udp

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.10.0.10", "10.20.0.10"
PATIENCE_S = 30.0


class Target:
    """Sends GENEVE back, and answers health checks while it is well."""

    def __init__(self, address: str, health_port: int) -> None:
        self.address = address
        self.health_port = health_port
        self.well = True
        self.seen = 0

    async def __aenter__(self) -> Target:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Reflector(self), local_addr=(self.address, 6081)
        )
        self._server = await asyncio.start_server(self._answer, self.address, self.health_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            if not self.well:
                await asyncio.sleep(5)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nok")
            await writer.drain()
        writer.close()


class _Reflector(asyncio.DatagramProtocol):
    def __init__(self, target: Target) -> None:
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self._target.seen += 1
        if self._target.well:
            self._transport.sendto(data, (peer[0], 6081))


class Place:
    """Addresses of one story, and its configuration file."""

    def __init__(self, folder: Path, **settings: object) -> None:
        net = f"127.{random.randrange(100, 120)}.{random.randrange(1, 250)}"
        self.gateway = f"{net}.1"
        self.targets = {f"fw{n}": f"{net}.{10 + n}" for n in (1, 2)}
        self.ends = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.ends.bind((self.gateway, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((self.gateway, 0))
            self.endpoint = free.getsockname()
        self.health_port = self.endpoint[1]
        self.control = folder / "gwlb.sock"
        self.config = folder / "gwlb.yaml"
        keys = {
            "address": self.gateway,
            "transport": "udp",
            "endpoints": [
                {
                    "id": "vpce-7",
                    "udp": {
                        "listen": "{}:{}".format(*self.endpoint),
                        "peer": "{}:{}".format(*self.ends.getsockname()),
                    },
                }
            ],
            "targets": [{"id": name, "address": address} for name, address in self.targets.items()],
            "health_check_protocol": "HTTP",
            "health_check_port": self.health_port,
            "health_check_interval_seconds": 0.2,
            "health_check_timeout_seconds": 0.2,
            "healthy_threshold_count": 2,
            # A machine that is busy for a while makes nobody unhealthy.
            "unhealthy_threshold_count": 10,
            "target_failover.on_unhealthy": "rebalance",
            "target_failover.on_deregistration": "rebalance",
        }
        import yaml

        self.config.write_text(yaml.safe_dump(keys | settings))

    async def through(self, packet: bytes) -> bytes:
        """Send a packet into the endpoint and wait for what comes out of it."""
        loop = asyncio.get_running_loop()
        self.ends.setblocking(False)
        await loop.sock_sendto(self.ends, packet, self.endpoint)
        async with asyncio.timeout(PATIENCE_S):
            return await loop.sock_recv(self.ends, 4096)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = Place(tmp_path)
    yield here
    here.ends.close()


@contextlib.asynccontextmanager
async def running(place: Place):
    """The targets of a place and its load balancer, all healthy."""
    async with contextlib.AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(Target(address, place.health_port))
            for name, address in place.targets.items()
        }
        balancer = await stack.enter_async_context(LoadBalancer(load(place.config), place.control))
        await until(lambda: all(target.state == "healthy" for target in balancer.targets))
        yield balancer, targets


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def ask(place: Place, command: str, **arguments):
    return await asyncio.to_thread(lambda: request(place.control, command, PATIENCE_S, **arguments))


def active(place: Place) -> dict[str, Any]:
    """The status of a load balancer that works; one that has just stood still says otherwise for a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while (status := request(place.control, "status", PATIENCE_S))["state"] != "active":
        assert time.monotonic() < deadline, status
        time.sleep(0.01)
    return status


def test_packets_come_back_through_a_target_and_show_everywhere(place):
    async def story():
        async with running(place) as (_, targets):
            syn = tcp(CLIENT, SERVER, 4000, 80, "S")
            assert await place.through(syn) == syn
            answer = tcp(SERVER, CLIENT, 80, 4000, "SA")
            assert await place.through(answer) == answer
            (carrier,) = (name for name, target in targets.items() if target.seen)
            assert targets[carrier].seen == 2
            (flow,) = (await ask(place, "flows", limit=10))["flows"]
            assert (flow["src"], flow["sport"], flow["dst"], flow["dport"]) == (CLIENT, 4000, SERVER, 80)
            assert (flow["target"], flow["proto"], flow["endpoint"]) == (carrier, 6, 7)
            assert (flow["packets_out"], flow["packets_back"]) == (2, 2)
            rows = {row["id"]: row for row in (await ask(place, "targets"))["targets"]}
            assert (rows[carrier]["flows"], rows[carrier]["packets_back"]) == (1, 2)
            counted = await ask(place, "counters")
            assert counted["counters"] == {"to-target": 2, "to-endpoint": 2}
            assert counted["metrics"]["ActiveFlowCount"] == 1
            status = await asyncio.to_thread(active, place)
            assert (status["port"], status["flows"]) == ("udp", 1)

    asyncio.run(story())


def test_flows_of_a_hung_target_move_once_its_probes_failed(tmp_path):
    place = Place(tmp_path, unhealthy_threshold_count=3)

    async def story():
        async with running(place) as (balancer, targets):
            packet = udp(CLIENT, SERVER, 4000, 53)
            await place.through(packet)
            (victim,) = (name for name, target in targets.items() if target.seen)
            hung = time.monotonic_ns()
            targets[victim].well = False
            await until(lambda: balancer.targets[victim].state == "unhealthy")
            assert await place.through(packet) == packet
            events = (await ask(place, "targets"))["events"]
            event = next(e for e in events if e["target"] == victim and e["state"] == "unhealthy")
            assert event["reason"] == "Target.Timeout"
            assert event["time_ns"] >= hung
            assert (await ask(place, "status"))["flows_moved"] == 1

    asyncio.run(story())
    place.ends.close()


def test_deregistered_target_drains_and_can_come_back(place):
    keys = place.config.read_text() + "deregistration_delay.timeout_seconds: 600\n"
    place.config.write_text(keys)

    async def story():
        async with running(place) as (balancer, targets):
            packet = udp(CLIENT, SERVER, 4000, 53)
            await place.through(packet)
            (leaving,) = (name for name, target in targets.items() if target.seen)
            assert (await ask(place, "deregister", target=leaving))["state"] == "draining"
            await place.through(packet)
            assert targets[leaving].seen == 2, "it serves its flows while it drains"
            balancer.targets[leaving].gone_at = time.monotonic_ns()  # ten minutes later
            await until(lambda: balancer.targets[leaving].state == "unused")
            await place.through(packet)
            assert targets[leaving].seen == 2
            assert (await ask(place, "deregister", target=leaving))["ok"] is False
            assert "nobody" in (await ask(place, "deregister", target="nobody"))["error"]
            assert (await ask(place, "register", target=leaving))["state"] == "initial"
            await until(lambda: balancer.targets[leaving].state == "healthy")

    asyncio.run(story())


def test_idle_load_balancer_costs_next_to_nothing(place):
    async def story() -> float:
        async with running(place):
            began, before = time.monotonic(), time.process_time()
            await asyncio.sleep(1)
            return (time.process_time() - before) / (time.monotonic() - began)

    assert asyncio.run(story()) < 0.5, "of a processor"


def test_taken_address_and_missing_device_are_told(place):
    async def story(text: str) -> str:
        place.config.write_text(text)
        with pytest.raises(StartError) as caught:
            async with LoadBalancer(load(place.config)):
                pass
        return str(caught.value)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((place.gateway, 6081))
        assert f"{place.gateway}:6081" in asyncio.run(story(place.config.read_text()))
    text = f"address: {place.gateway}\ntransport: udp\nendpoints: [{{id: 0x1, tun: 'no%such%d%d'}}]\n"
    assert "no%such%d%d" in asyncio.run(story(text))


def test_command_says_when_it_is_ready_and_ends_on_sigterm(place):
    command = [sys.executable, "-m", "everwall", "gwlb", "--config", str(place.config)]
    command += ["--control", str(place.control)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "ready" in line)
            assert f"{place.gateway}:6081 (udp)" in line
            active(place)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert not place.control.exists()


def test_command_tells_what_is_wrong_with_its_file(place):
    place.config.write_text("address: ten\nendpoints: []\n")
    command = [sys.executable, "-m", "everwall", "gwlb", "--config", str(place.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"{place.config}:1" in done.stderr
    assert "address" in done.stderr


# A client's datagram is routed into the endpoint, goes through a target that turns it around as a server
# behind it would, and comes back out of the endpoint to the client.
_PRIVILEGED_STORY = """
import asyncio, pathlib, socket, subprocess, sys
from everwall.balancer.config import load
from everwall.gwlb import LoadBalancer
def ip(*words): subprocess.run(["ip", *words], check=True)
said = bytes(range(256)) * 40
said = said[:int(sys.argv[2]) - 28]
ip("link", "set", "lo", "up")
for last in (1, 2): ip("addr", "add", f"10.40.0.{last}/32", "dev", "lo")
async def story():
    outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    outer.bind(("10.40.0.2", 6081)); outer.setblocking(False)
    loop = asyncio.get_running_loop()
    async with LoadBalancer(load(sys.argv[1])) as balancer:
        assert "(raw)" in balancer.describe(), balancer.describe()
        ip("addr", "add", "10.1.0.1/24", "dev", "gwlbe0")
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind(("10.1.0.1", 5000)); client.setblocking(False)
        async with asyncio.timeout(60):
            for number in range(20):
                await loop.sock_sendto(client, said, ("10.1.0.2", 6000 + number))
                packet, peer = await loop.sock_recvfrom(outer, 9999)
                assert peer[0] == "10.40.0.1" and peer[1] >= 49152, peer
                head, p = packet[:40], packet[40:]
                turned = p[:12] + p[16:20] + p[12:16] + p[22:24] + p[20:22] + p[24:]
                await loop.sock_sendto(outer, head + turned, ("10.40.0.1", 6081))
                assert await loop.sock_recv(client, 9999) == said
        assert balancer.gateway.counters == {"to-target": 20, "to-endpoint": 20}, balancer.gateway.counters
asyncio.run(story())
"""


@pytest.mark.parametrize("mtu", [1500, 8500])
@pytest.mark.parametrize("kind", ["tun", "packet"])
def test_kernel_traffic_through_a_device_and_the_raw_port(kind, mtu, tmp_path):
    """Packets as long as the endpoint takes, 8500 bytes being the longest that AWS's load balancer carries."""
    needs.namespaces()
    if kind == "tun":
        needs.device(tun.DEVICE)
    needs.binary("ip")
    config = tmp_path / "gwlb.yaml"
    config.write_text(
        "address: 10.40.0.1\ntransport: raw\ntargets: [10.40.0.2]\n"
        f"endpoints: [{{id: vpce-7, {kind}: gwlbe0, mtu: {mtu}}}]\n"
    )
    command = ["unshare", "--net", sys.executable, "-c", _PRIVILEGED_STORY, str(config), str(mtu)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
