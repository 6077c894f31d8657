"""What a takeover adds to the first packet of a flow: ``python bench/takeover.py [--quick] [--json FILE]``.

Sessions that another node has written lie in a real redis-server with TLS and AUTH. A node's worker on loopback UDP,
with the store's thread, gets one packet of each flow in the middle of its TCP connection, ten thousand flows a
second: it does not know them, asks the store, and lets them pass. Then the same packets come again at the same pace,
now of known sessions. Rounds of both alternate. What a takeover adds to a flow is the difference of its two packets'
times from send to the kernel's time stamp at their return. Worker and store's thread have one processor, sender and
redis-server the other one. Exit status 1: nothing here counts, for what came out was not restored from the store.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

import json  # noqa: E402
import os  # noqa: E402

from bench import store  # noqa: E402  (the path has to be set before)
from everwall.counters import Counter  # noqa: E402
from everwall.engine import EngineConfig  # noqa: E402
from everwall.limits import GENEVE_PORT  # noqa: E402
from everwall.policy.match import allow_all  # noqa: E402
from everwall.ports import port as ports  # noqa: E402
from everwall.session import image, record  # noqa: E402
from everwall.store.connection import StoreConfig  # noqa: E402
from everwall.store.protocol import buckets_for  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402
from everwall.workers import Workers  # noqa: E402
from tests import packets  # noqa: E402
from tests.redis_server import PASSWORD, RedisServer  # noqa: E402

Times = npt.NDArray[np.int64]

FLOWS_PER_S = 10_000
ROUNDS, QUICK_ROUNDS = 20, 8
BOUNDS = {"takeover_p99_ms": ("<=", 5.0), "lost": ("<=", 0)}
"""What the project holds its figures against."""
NODE, BALANCER = "127.0.84.11", "127.0.84.12"
SOURCE_PORT = 45_000
_ENDPOINT = 0xAA
_SO_TIMESTAMPNS = 35
"""Linux, asm-generic/socket.h: each packet comes with the kernel's time of its arrival."""
_SETTLE_S = 0.5
_PATIENCE_S = 30.0
_NEVER = -1
_SEQUENCE_AT = 24
"""Offset of a TCP sequence number in an IPv4 packet without options: it carries the flow's number."""


def packet_of(row: npt.NDArray[np.int64], number: int) -> bytes:
    """A segment from the lower end of a session, in GENEVE; its sequence number is the flow's number."""
    ends = [socket.inet_ntoa(struct.pack("!I", int(row[c]))) for c in (image.LOWER_LOW, image.UPPER_LOW)]
    key = int(row[image.KEY2])
    segment = packets.tcp(*ends, key & 0xFFFF, key >> 16 & 0xFFFF, "A", number, 1, payload=b"x" * 24)
    return packets.geneve(segment, endpoint=_ENDPOINT)


def percentiles(times: Times) -> dict[str, float]:
    """p50, p99 and the greatest of some ns, in ms."""
    p50, p99 = np.percentile(times, (50, 99))
    return {"p50": float(p50) / 1e6, "p99": float(p99) / 1e6, "max": float(times.max()) / 1e6}


def outcome(first: Times, known: Times) -> dict[str, Any]:
    """What the times of all flows' packets mean; ``_NEVER`` is that of a packet that did not come out.

    Raises RuntimeError when no flow has both.
    """
    both = (first != _NEVER) & (known != _NEVER)
    if not both.any():
        raise RuntimeError("no packet came out")
    added = percentiles(first[both] - known[both])
    return {
        "flows": len(first),
        "lost": int((first == _NEVER).sum()),
        "lost_known": int((known == _NEVER).sum()),
        "takeover_ms": added,
        "takeover_p99_ms": added["p99"],
        "first_ms": percentiles(first[both]),
        "known_ms": percentiles(known[both]),
    }


# The sender -----------------------------------------------------------------------------------------------


class _Path:
    """To the node and back."""

    def __enter__(self) -> _Path:
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.bind((BALANCER, SOURCE_PORT))
        self._sender.connect((NODE, GENEVE_PORT))
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._listener.bind((BALANCER, GENEVE_PORT))
        self._listener.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._listener.close()

    def send(self, batch: list[bytes], first: int) -> tuple[Times, float]:
        """Send one packet of each flow from number ``first`` on, at FLOWS_PER_S: (ns until each came out, packets/s).

        A flow's number is what its packet carries.
        """
        sent, came = np.zeros(len(batch), np.int64), np.full(len(batch), _NEVER, np.int64)
        at = len(batch[0]) - len(packets.tcp("10.0.0.1", "10.0.0.2", 1, 1, payload=b"x" * 24)) + _SEQUENCE_AT
        gap = 1 / FLOWS_PER_S
        began, number = time.perf_counter(), 0
        took, end = 0.0, began + _PATIENCE_S
        while time.perf_counter() < end:
            due = min(int((time.perf_counter() - began) / gap) + 1, len(batch))
            for k in range(number, due):
                sent[k] = time.time_ns()
                self._sender.send(batch[k])
            if number < due == len(batch):
                took = time.perf_counter() - began
                end = time.perf_counter() + _SETTLE_S
            number = due
            self._receive(came, first, at)
            if number < len(batch):
                wait = began + number * gap - time.perf_counter()
            elif (came != _NEVER).all():
                break
            else:
                wait = 0.01
            select.select([self._listener], [], [], max(wait, 0))
        passed = came != _NEVER
        came[passed] -= sent[passed]
        return came, len(batch) / took

    def _receive(self, came: Times, first: int, at: int) -> None:
        while True:
            try:
                packet, extra, _, _ = self._listener.recvmsg(512, 64)
            except BlockingIOError:
                return
            seconds, ns = struct.unpack("qq", extra[0][2])
            came[int.from_bytes(packet[at : at + 4]) - first] = seconds * 1_000_000_000 + ns


# The node's process ---------------------------------------------------------------------------------------


def _serve(settings: dict[str, Any]) -> None:
    """A worker with its store, on one processor; each line on standard input is answered by its counters."""
    os.sched_setaffinity(0, {settings["core"]})
    workers = Workers(EngineConfig(owner=2), allow_all(), [ports.open_udp(NODE)], [settings["core"]])
    config = StoreConfig("127.0.0.1", settings["port"], password=PASSWORD, ca_pem=settings["ca_pem"], owner=2)
    workers.connect(config, record.derive_keys(store.SECRET), settings["buckets"])
    workers.start()
    while workers.heartbeat == 0 or not workers.store_status()["connected"]:
        time.sleep(0.01)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: int(number) for name, number in workers.counters().items()}), flush=True)
    workers.stop()


def _ask(node: subprocess.Popen[str]) -> dict[str, int]:
    assert node.stdin is not None
    assert node.stdout is not None
    node.stdin.write("counters\n")
    node.stdin.flush()
    answer: dict[str, int] = json.loads(node.stdout.readline())
    return answer


# Measuring ------------------------------------------------------------------------------------------------


def run(rounds: int) -> dict[str, Any]:
    """So many seconds of flows taken over, and as many of the same flows known."""
    warm(print, modules=FIREWALL)
    count = rounds * FLOWS_PER_S
    rows = store.sessions_of(4, count, time.time_ns() // 1_000_000)
    batch = [packet_of(row, number) for number, row in enumerate(rows)]
    own = os.sched_getaffinity(0)
    try:
        with store.apart() as server:
            with store.Client(server, buckets_for(count)) as client:
                rows[:, image.OP] = image.WRITE_FIRST
                client.write(rows)
                name = client.status()["server"]
            os.sched_setaffinity(0, {min(own)})
            return {"server": name, "tls": True, **_with_node(server, batch, rounds, max(own))}
    finally:
        os.sched_setaffinity(0, own)


def _with_node(server: RedisServer, batch: list[bytes], rounds: int, core: int) -> dict[str, Any]:
    settings = {
        "core": core,
        "port": server.port,
        "ca_pem": server.ca_pem.decode(),
        "buckets": buckets_for(len(batch)),
    }
    command = [sys.executable, __file__, "--serve", json.dumps(settings)]
    firsts, knowns, rates = [], [], []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            if node.stdout.readline().strip() != "ready":
                raise RuntimeError("the node did not start")
            with _Path() as path:
                for number in range(rounds):
                    begin = number * FLOWS_PER_S
                    some = batch[begin : begin + FLOWS_PER_S]
                    for times in (firsts, knowns):
                        passed, rate = path.send(some, begin)
                        times.append(passed)
                        rates.append(rate)
            counters = _ask(node)
        finally:
            node.kill()
    found = outcome(np.concatenate(firsts), np.concatenate(knowns))
    restored = counters[Counter.SESSIONS_RESTORED.label]
    # A flow whose first packet was lost is restored by its second one.
    if restored < len(batch) - found["lost"] or counters[Counter.SESSIONS_CREATED.label]:
        raise RuntimeError(f"{len(batch)} flows, {restored} of them restored: {counters}")
    return {
        "flows_per_s": min(rates),
        **found,
        "restored": restored,
        "lookup_failures": counters[Counter.LOOKUP_FAILURES.label],
    }


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: two rounds."""
    del seconds  # a round has a length of its own
    found = run(2)
    added = {f"added to a first packet, {name}, ms": value for name, value in found["takeover_ms"].items()}
    return {"flows per s": found["flows_per_s"], **added, "lost": found["lost"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/takeover.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(json.loads(options.serve))
        return 0
    return store.report(lambda: run(QUICK_ROUNDS if options.quick else ROUNDS), BOUNDS, options.json)


if __name__ == "__main__":
    sys.exit(main())
