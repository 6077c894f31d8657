"""A packet's way through a worker and back while another Python thread of its process is busy, and while none is:
``python bench/worker.py [--seconds N] [--json FILE]``. Exit status 1: the busy thread moved the p99 too far.

One packet at a time goes over loopback to a worker that runs as in a node, and is waited for. Worker and sender
share the first processor, where one sleeps while the other runs; the busy thread, which never lets go of the
interpreter lock by itself, has the second. The rounds with it and without alternate, so that what else the machine
does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from everwall.engine import EngineConfig  # noqa: E402  (the path has to be set before)
from everwall.kernels import external  # noqa: E402
from everwall.limits import GENEVE_PORT  # noqa: E402
from everwall.policy.match import allow_all  # noqa: E402
from everwall.ports import port as ports  # noqa: E402
from everwall.system import monotonic  # noqa: E402
from everwall.workers import Workers  # noqa: E402
from tests import packets  # noqa: E402

NODE, BALANCER = "127.0.83.11", "127.0.83.12"
SOURCE_PORT = 45_000
ROUNDS = 10
MOVED_US_MAX = 100.0
"""What a busy thread may add to the p99."""
_MOVED = "p99 moved by the busy thread, us"
_SAMPLES_MAX = 1 << 20
_PATIENCE_S = 5

_send = external("send", "i64", "i32", "pointer", "i64", "i32")
_recv = external("recv", "i64", "i32", "pointer", "i64", "i32")


def measure(seconds: float) -> dict[str, float]:
    """Microseconds of a round trip: medians of the rounds' percentiles, and what the busy thread adds."""
    quiet_core, busy_core = _two_processors()
    own_cores = os.sched_getaffinity(0)
    command = [sys.executable, __file__, "--serve", f"{quiet_core},{busy_core}"]
    found: dict[str, list[np.ndarray]] = {"quiet": [], "busy": []}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        try:
            _ask(node, "start")
            os.sched_setaffinity(0, {quiet_core})
            with _Path() as path:
                path.times(200)  # loaded, and the session open
                for number in range(2 * ROUNDS):
                    which = ("quiet", "busy", "busy", "quiet")[number % 4]
                    _ask(node, which)
                    found[which].append(np.percentile(path.times_for(seconds / (2 * ROUNDS)), (50, 99, 99.9)))
            turns = int(_ask(node, "turns"))
        finally:
            os.sched_setaffinity(0, own_cores)
            node.kill()
    results = {}
    for which, rounds in found.items():
        for name, values in zip(("p50", "p99", "p99.9"), np.array(rounds).T, strict=True):
            results[f"round trip {name}, {which}, us"] = statistics.median(values.tolist()) / 1000
    moved = results["round trip p99, busy, us"] - results["round trip p99, quiet, us"]
    return {
        **results,
        _MOVED: moved,
        "turns of the busy thread, million a second": turns / (seconds / 2) / 1e6,
    }


def _two_processors() -> tuple[int, int]:
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise RuntimeError("the busy thread needs a processor of its own, and there is only one")
    return processors[0], processors[1]


def _ask(node: subprocess.Popen[str], what: str) -> str:
    assert node.stdin is not None
    assert node.stdout is not None
    node.stdin.write(what + "\n")
    node.stdin.flush()
    answer = node.stdout.readline().strip()
    if not answer:
        raise RuntimeError("the worker's process has ended")
    return answer


# The sender ------------------------------------------------------------------------------------------


class _Path:
    """To the worker and back, one packet at a time."""

    def __enter__(self) -> _Path:
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.bind((BALANCER, SOURCE_PORT))
        self._sender.connect((NODE, GENEVE_PORT))
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listener.bind((BALANCER, GENEVE_PORT))
        patience = np.array([_PATIENCE_S, 0], np.int64).tobytes()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        packet = packets.geneve(packets.udp("10.1.0.1", "10.2.0.1", 5000, 53, b"x" * 64))
        self._packet = np.frombuffer(packet, np.uint8).copy()
        self._times = np.zeros(_SAMPLES_MAX, np.int64)
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._listener.close()

    def times(self, count: int, at_most_ns: int = 1 << 62) -> np.ndarray:
        """Round trips in ns, ``count`` of them unless time is up before."""
        done = _round_trips(
            self._sender.fileno(), self._listener.fileno(), self._packet, self._times, count, at_most_ns
        )
        if done == 0:
            raise RuntimeError("a packet did not come back")
        return self._times[:done]

    def times_for(self, seconds: float) -> np.ndarray:
        """Round trips in ns, as many as fit."""
        return self.times(_SAMPLES_MAX, int(seconds * 1e9))


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _round_trips(sender, listener, packet, times, count, at_most_ns):  # type: ignore[no-untyped-def]
    scratch = times[times.shape[0] - 2 :]
    began = now = monotonic(scratch)
    done = 0
    while done < min(count, times.shape[0] - 2) and now - began < at_most_ns:
        _send(np.int32(sender), packet.ctypes.data, packet.shape[0], 0)
        if _recv(np.int32(listener), packet.ctypes.data, packet.shape[0], 0) != packet.shape[0]:
            return 0
        after = monotonic(scratch)
        times[done] = after - now
        now = after
        done += 1
    return done


# The worker's process -----------------------------------------------------------------------------------


def _serve(quiet_core: int, busy_core: int) -> None:
    """A worker, and a thread that is busy when standard input says so."""
    os.sched_setaffinity(0, {busy_core})
    workers = Workers(
        EngineConfig(max_sessions=1024, resiliency=False), allow_all(), [ports.open_udp(NODE)], [quiet_core]
    )
    busy = threading.Event()
    turns = [0]
    threading.Thread(target=_count, args=(busy, turns), daemon=True).start()
    for line in sys.stdin:
        what = line.strip()
        if what == "start":
            workers.start()
            while workers.heartbeat == 0:  # compiling, perhaps
                time.sleep(0.01)
        elif what == "busy":
            busy.set()
        elif what == "quiet":
            busy.clear()
        print(turns[0] if what == "turns" else what, flush=True)


def _count(busy: threading.Event, turns: list[int]) -> None:
    while busy.wait():
        for _ in range(100_000):
            turns[0] += 1


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/worker.py")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the measurement")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(*map(int, arguments.serve.split(",")))
        return 0
    results = measure(arguments.seconds)
    for what, number in results.items():
        print(f"{what:<46} {number:>10,.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"worker": results}, indent=2) + "\n")
    return int(results[_MOVED] > MOVED_US_MAX)


if __name__ == "__main__":
    sys.exit(_main())
