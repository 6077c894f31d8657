"""Another policy of 10,000 rules under traffic: ``python bench/reload.py [--quick] [--json FILE]``. Needs root.

A node, as ``everwall firewall`` runs it, behind a veth, with a company's rules (``tests/company.py``) and a last one
that allows our flows. A load balancer sends at a steady rate: nine packets of ten belong to established sessions, which
the cut-through answers where there is one; every tenth begins a session, so that a worker and its policy are asked.
Meanwhile the policy is reloaded twice: with other rules that allow the same, and with one that refuses half of the
sessions. Each packet carries its number; one of a flow that is allowed throughout and does not come back is lost. Over
the raw port, and over AF_XDP with the cut-through, with few sessions and with a million, of which each is asked about.
Latencies are from send to the kernel's time stamp at the return: where all share two processors they tell of the
scheduler as well, so that those of quiet times stand beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from bench import store  # noqa: E402  (the path has to be set before)
from bench.rig import frames  # noqa: E402
from everwall.dataplane import BOUNCED  # noqa: E402
from everwall.lab import launch, rundir, topology  # noqa: E402
from everwall.lab.launch import inside  # noqa: E402
from everwall.lab.topology import Topology  # noqa: E402
from everwall.limits import GENEVE_PORT, RELOAD_TIMEOUT_S, SECOND_NS  # noqa: E402
from everwall.management.control import request  # noqa: E402
from everwall.ports.bpf import attach_pass  # noqa: E402
from everwall.session.tcp import RELEARN_NS  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402
from tests import company, packets  # noqa: E402

CASES = {
    "raw": ("raw", 10_000),
    "raw_1m": ("raw", 1_000_000),
    "xdp": ("xdp", 10_000),
    "xdp_1m": ("xdp", 1_000_000),
}
QUICK = ("raw", "xdp_1m")
RULES, SEED = 10_000, 1
PACKETS_PER_S = 5_000
FLOWS = 2_000
"""Of the sessions, that have packets."""
BOUNDS = {f"{case}_{what}": ("<=", 0) for case in CASES for what in ("lost", "touched")}
REFUSED = "198.18.0.128/25"
"""The servers of half of the flows."""
_NODE = topology.node_data_address(0)
_SOURCE_PORT, _HEALTH_PORT = 45_678, 8099
_INNER_BYTES, _NUMBER_AT = 100, 40
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_QUIET_S, _START_S, _LAST_S = 2.0, 300.0, 0.5
_PACKETS_MAX = 4_000_000
_NEVER = 0


def policy_text(name: str, refuse: bool = False) -> str:
    """A company's rules, none of which speaks about our endpoint's zone, and behind them ours."""
    document = company.document(RULES, SEED)
    for zone in document["zones"].values():
        if frames.ENDPOINT in zone["endpoints"]:
            zone["endpoints"] = [99]
    document["zones"]["ours"] = {"endpoints": [frames.ENDPOINT]}
    ours = {"from": "ours", "to": "ours", "source": "any", "destination": "any", "service": "any"}
    if refuse:
        document["rules"].append({"name": "refuse", **ours, "destination": REFUSED, "action": "drop"})
    document["rules"].append({"name": name, **ours, "action": "allow"})
    return json.dumps(document)


# Traffic ----------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """What was sent and when it came back, by the packets' numbers; ns of the wall clock, 0 for never."""

    network: Topology
    sent: Any = field(default_factory=lambda: np.zeros(_PACKETS_MAX, np.int64))
    came: Any = field(default_factory=lambda: np.zeros(_PACKETS_MAX, np.int64))
    fresh: Any = field(default_factory=lambda: np.zeros(_PACKETS_MAX, np.bool_))
    refused: Any = field(default_factory=lambda: np.zeros(_PACKETS_MAX, np.bool_))
    count: int = 0

    def __post_init__(self) -> None:
        with inside(self.network.path("gwlb")):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.bind((topology.GATEWAY_DATA, _SOURCE_PORT))
        self._sender.connect((_NODE, GENEVE_PORT))
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        # Beyond the system's limit: what waited while a worker stood still comes back in one burst.
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._listener.bind((topology.GATEWAY_DATA, GENEVE_PORT))
        self._listener.setblocking(False)
        self._templates = [[bytearray(_encapsulated(one)) for one in _data(flow)] for flow in range(FLOWS)]
        self._at = len(self._templates[0][0]) - _INNER_BYTES + _NUMBER_AT

    def close(self) -> None:
        self._sender.close()
        self._listener.close()

    def run(self, done: threading.Event) -> None:
        """Send at the rate until ``done``, and wait a moment for the last."""
        began = time.perf_counter()
        while not done.is_set():
            due = min(int((time.perf_counter() - began) * PACKETS_PER_S) + 1, _PACKETS_MAX)
            while self.count < due:
                self._send(self.count)
                self.count += 1
            self._receive()
            wait = began + self.count / PACKETS_PER_S - time.perf_counter()
            select.select([self._listener], [], [], max(wait, 0))
        time.sleep(_LAST_S)
        self._receive()

    def _send(self, number: int) -> None:
        if number % 10:
            flow = number % FLOWS
            packet = self._templates[flow][number // FLOWS & 1]
            self.refused[number] = bool(flow & 128)
        else:
            self.fresh[number] = True
            packet = bytearray(_encapsulated(_first(number // 10)))
        # Beside its complement the number leaves the checksum as it was.
        struct.pack_into("!II", packet, self._at, number, number ^ 0xFFFFFFFF)
        self.sent[number] = time.time_ns()
        self._sender.send(packet)

    def _receive(self) -> None:
        while True:
            try:
                packet, extra, _, _ = self._listener.recvmsg(512, 64)
            except BlockingIOError:
                return
            seconds, ns = struct.unpack("qq", extra[0][2])
            self.came[struct.unpack_from("!I", packet, self._at)[0]] = seconds * 1_000_000_000 + ns

    def between(self, begin: int, end: int) -> Any:
        """Numbers of the packets sent in a time."""
        return np.flatnonzero((self.sent[: self.count] >= begin) & (self.sent[: self.count] < end))

    def worst_ms(self, numbers: Any) -> float:
        """The longest way of those that came back."""
        there = numbers[self.came[numbers] != _NEVER]
        return float((self.came[there] - self.sent[there]).max()) / 1e6 if len(there) else 0.0


def _data(flow: int) -> tuple[bytes, bytes]:
    """What the client and what the server of a flow say, over and over."""
    client, server, port = frames.client(flow), frames.server(flow), frames.client_port(flow)
    return (
        frames.inner(frames.Kind.CLIENT_DATA, _INNER_BYTES, client, server, port),
        frames.inner(frames.Kind.SERVER_DATA, _INNER_BYTES, server, client, port),
    )


def _first(number: int) -> bytes:
    """Of a datagram's flow that nobody has seen; its payload begins where a segment's does."""
    client = f"10.{128 + (number >> 16 & 127)}.{number >> 8 & 255}.{number & 255}"
    return packets.udp(client, "198.18.0.1", 5000, 53, bytes(_INNER_BYTES - 28))


def _encapsulated(inner: bytes) -> bytes:
    assert len(inner) == _INNER_BYTES
    return packets.geneve(inner, endpoint=frames.ENDPOINT)


# The node ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _node(port: str, sessions: int) -> Iterator[tuple[Topology, Path]]:
    """A node behind its veth with so many sessions; and the folder with its policy and control socket."""
    directory = rundir.create()
    network = Topology(directory, 1)
    try:
        network.build()
        with inside(network.path("gwlb")):
            link = attach_pass("fw1")
        with (
            contextlib.closing(link),
            tempfile.TemporaryDirectory(prefix="everwall-") as folder,
            _process(network, Path(folder), port, sessions),
        ):
            yield network, Path(folder)
    finally:
        network.remove()
        directory.close(remove=True)


@contextlib.contextmanager
def _process(network: Topology, folder: Path, port: str, sessions: int) -> Iterator[None]:
    (folder / "policy.yaml").write_text(policy_text("first"))
    lines = [
        "plugin-op-commands=aws-gwlb-inspect:enable",
        "everwall-data-interface=data0",
        f"everwall-geneve-sources={topology.GATEWAY_DATA}/32",
        f"everwall-health-port={_HEALTH_PORT}",
        f"everwall-port={port}",
        f"everwall-max-sessions={sessions + 100_000}",
        "everwall-policy=policy.yaml",
        f"everwall-control-socket={folder / 'control.sock'}",
    ]
    (folder / "init-cfg.txt").write_text("\n".join(lines) + "\n")
    program = [sys.executable, "-m", "bench.rig.node", str(folder / "init-cfg.txt"), str(sessions)]
    command = launch.command(program, network.path("fw1"), outlive=False)
    with (folder / "log").open("w") as log:
        node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT)
    try:
        deadline = time.monotonic() + _START_S
        while not _active(folder):
            if node.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        node.kill()
        node.wait()


def _active(folder: Path) -> bool:
    try:
        return bool(request(folder / "control.sock", "status")["state"] == "active")
    except OSError:
        return False


# Measuring --------------------------------------------------------------------------------------------


class _Operator(threading.Thread):
    """Reloads the policy while packets pass, and notes when what was."""

    def __init__(self, folder: Path, settle_s: float) -> None:
        super().__init__(name="operator", daemon=True)
        self.settle_s = settle_s
        self.folder, self.control = folder, folder / "control.sock"
        self.done = threading.Event()
        self.at: dict[str, int] = {}
        """ns of the wall clock."""
        self.told: list[dict[str, Any]] = []
        self.bounced: list[int] = []
        self.problem = ""

    def run(self) -> None:
        try:
            time.sleep(self.settle_s)
            self._note("begin")
            time.sleep(_QUIET_S)
            self._reload("same", policy_text("second"))
            time.sleep(_QUIET_S)
            self._reload("refusing", policy_text("third", refuse=True))
            time.sleep(_QUIET_S)
            self._note("end")
        except (OSError, RuntimeError) as error:
            self.problem = str(error)
        finally:
            self.done.set()

    def _note(self, what: str) -> None:
        self.bounced.append(request(self.control, "counters")["counters"].get(BOUNCED, 0))
        self.at[what] = time.time_ns()

    def _reload(self, what: str, text: str) -> None:
        (self.folder / "policy.yaml").write_text(text)
        self._note(f"{what} asked")
        told = request(self.control, "policy", RELOAD_TIMEOUT_S, do="reload")
        self.at[f"{what} swapped"] = time.time_ns()
        if not told["ok"]:
            raise RuntimeError(told["error"])
        while told["rematch_percent"] < 100:
            time.sleep(0.005)
            told |= request(self.control, "policy")
        self.told.append(told)
        self._note(f"{what} done")


def _case(name: str, port: str, sessions: int) -> dict[str, Any]:
    with _node(port, sessions) as (network, folder):
        traffic = Traffic(network)
        try:
            # A session that was taken over is offloaded when its windows are known and nobody may be lying any more.
            operator = _Operator(folder, RELEARN_NS / SECOND_NS + _QUIET_S if port == "xdp" else _QUIET_S)
            operator.start()
            traffic.run(operator.done)
            operator.join()
        finally:
            traffic.close()
    if operator.problem:
        raise RuntimeError(f"{name}: {operator.problem}")
    return {f"{name}_{what}": figure for what, figure in _figures(traffic, operator).items()}


def _figures(traffic: Traffic, operator: _Operator) -> dict[str, float]:
    at, (same, refusing) = operator.at, operator.told
    quiet = traffic.between(at["begin"], at["same asked"])
    first = traffic.between(at["same asked"], at["same done"])
    rematch = traffic.between(at["same swapped"], at["same done"])
    second = traffic.between(at["refusing asked"], at["refusing done"])
    sent = np.arange(traffic.count)
    allowed = sent[~traffic.refused[: traffic.count] | (traffic.sent[: traffic.count] < at["refusing asked"])]
    doomed = sent[traffic.refused[: traffic.count]]
    last = int(traffic.came[doomed].max(initial=0))
    established = int((~traffic.fresh[first]).sum())
    return {
        "packets": traffic.count,
        "per_s": len(traffic.between(at["begin"], at["end"])) / ((at["end"] - at["begin"]) / 1e9),
        "lost": int((traffic.came[allowed] == _NEVER).sum()),
        "touched": same["ruled_out"],
        "swap_after_s": same["read_ms"] / 1000,
        "packets_waited_us": max(same["packets_waited_us"], refusing["packets_waited_us"]),
        "rematch_ms": (at["same done"] - at["same swapped"]) / 1e6,
        "rematch_refusing_ms": (at["refusing done"] - at["refusing swapped"]) / 1e6,
        "ruled_out": refusing["ruled_out"],
        "refused_passed_for_ms": max(last - at["refusing swapped"], 0) / 1e6,
        "bounced_share": (operator.bounced[2] - operator.bounced[1]) / max(established, 1),
        "worst_ms_quiet": traffic.worst_ms(quiet),
        "worst_ms_reload": traffic.worst_ms(first),
        "worst_ms_rematch": traffic.worst_ms(rematch),
        "worst_ms_refusing": traffic.worst_ms(second),
        "worst_ms_new_quiet": traffic.worst_ms(quiet[traffic.fresh[quiet]]),
        "worst_ms_new_reload": traffic.worst_ms(first[traffic.fresh[first]]),
    }


def run(cases: tuple[str, ...]) -> dict[str, Any]:
    """All figures of these cases. Raises RuntimeError where a node does not do what it has to."""
    warm(print, modules=FIREWALL)
    found: dict[str, Any] = {"rules": RULES}
    for name in cases:
        found |= _case(name, *CASES[name])
    return found


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: the quick cases."""
    del seconds  # a reload has a length of its own
    return {name.replace("_", " "): float(value) for name, value in run(QUICK).items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/reload.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only the cases {' and '.join(QUICK)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    return store.report(lambda: run(QUICK if options.quick else tuple(CASES)), BOUNDS, options.json)


if __name__ == "__main__":
    sys.exit(main())
