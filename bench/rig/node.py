"""The device under test: a node as ``everwall firewall`` runs it, with a second way in for the benchmark.

``python -m bench.rig.node INIT_CFG SESSIONS``: one JSON request a line on standard input, one answer a line on standard
output. The node is the product's own, and begins with so many sessions; what is asked of it beyond (refreshes that
are due, the store switched) is what no operator needs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.rig import frames
from everwall.bootstrap.load import load_bootstrap
from everwall.limits import BUCKET_SLOTS, CONFIRM_NS, REFRESH_PASSES
from everwall.management import logs
from everwall.node import Node
from everwall.session import image, resync, state, tcp
from everwall.session import table as t
from everwall.session.state import Sessions
from everwall.takeover import restore_all
from everwall.worker import Worker

_CHUNK = 100_000
_PATIENCE_S = 10.0


class Device:
    """The requests by name. Nodes here have one worker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        (self._worker,) = node.workers.all

    @property
    def _sessions(self) -> Sessions:
        return self._worker.sessions

    def counters(self) -> dict[str, Any]:
        """Verdicts and counters of the engine, and what the program before it and the port count."""
        return {"counters": self._node.counters()}

    def store(self) -> dict[str, Any]:
        """What the store's thread says of itself."""
        return self._node.workers.store_status()

    def resiliency(self, on: int) -> dict[str, Any]:
        """Whether sessions are written to the store and looked up there.

        Those of a time without the store count as written when it begins: that they are not, and that each has to be
        written now, is no part of what is measured. Nor is that the ageing hand is more attentive after a gap.
        """
        sessions = self._sessions
        sessions.words[state.RESILIENCY] = on
        if not on:
            return {}
        deadline = time.monotonic() + _PATIENCE_S
        while sessions.words[state.CONNECTIONS] != sessions.clock[state.CLOCK_CONNECTIONS]:
            if time.monotonic() > deadline:
                raise RuntimeError("the worker does not begin to make the store whole")
            time.sleep(0.001)
        sessions.table.cold[:, t.WRITTEN] = time.monotonic_ns()
        while sessions.words[state.RESYNC] != resync.RESTING:
            if time.monotonic() > deadline:
                raise RuntimeError("the worker does not end to make the store whole")
            sessions.words[state.RESYNC_DONE] = sessions.words[state.RESYNC_TOTAL]  # it would find nothing
            time.sleep(0.001)
        sessions.words[state.GAP] -= CONFIRM_NS
        return {}

    def worker(self) -> dict[str, Any]:
        """The worker's thread as the system numbers it."""
        assert self._worker._thread is not None
        return {"thread": self._worker._thread.native_id}

    def refresh(self, count: int) -> dict[str, Any]:
        """Let so many established sessions be due for a refresh in the store, now."""
        table = self._sessions.table
        # Of those that the ageing hand asks within a second, as it asks all the others in theirs.
        slots = np.flatnonzero(table.tags.copy())
        passed = slots < self._sessions.words[state.AGEING_HAND]
        turns = slots // BUCKET_SLOTS + self._sessions.words[state.AGEING_PASS] + passed
        slots = slots[turns % REFRESH_PASSES == 0]
        drawn = np.unique(np.random.default_rng().integers(0, max(len(slots), 1), 2 * count))
        chosen = slots[drawn[: len(slots)]]
        chosen = chosen[table.short[chosen, t.STATE] == tcp.TCP_ESTABLISHED]
        chosen = np.random.default_rng().permutation(chosen)[:count]
        table.cold[chosen, t.WRITTEN] -= self._sessions.timeouts[tcp.TCP_ESTABLISHED]
        return {"due": len(chosen)}

    def memory(self) -> dict[str, Any]:
        """Bytes of all arrays that grow with the sessions, and for how many sessions they are made."""
        arrays = {array.ctypes.data: array.nbytes for array in self._sessions.table}
        return {"bytes": sum(arrays.values()), "sessions": self._node.config.max_sessions}


def _insert(worker: Worker, count: int) -> None:
    """Take over established sessions of the first flows at once, as after another node's death."""
    restored = 0
    for begin in range(0, count, _CHUNK):
        rows = _images(begin, min(_CHUNK, count - begin))
        restored += int(restore_all(worker.state, rows, len(rows), time.monotonic_ns()))
    if restored != count:
        raise RuntimeError(f"of {count} sessions {restored} could be inserted")


def _images(first: int, count: int) -> npt.NDArray[np.int64]:
    """The generator's flows as the store would hand them over."""
    rows = np.zeros((count, image.COLUMNS), np.int64)
    flows = np.arange(first, first + count, dtype=np.int64)
    rows[:, image.OP] = image.FOUND
    rows[:, image.ENDPOINT] = frames.ENDPOINT
    # A client (10/9) is the lower end, its server (198.18/16) the upper one.
    rows[:, image.LOWER_LOW] = 0x0A000000 | flows & 0x7FFFFF
    rows[:, image.UPPER_LOW] = 0xC6120000 | flows & 0xFF
    ports = frames.CLIENT_PORT_FIRST + (flows >> 23 & 0x7FFF) | frames.SERVER_PORT << 16
    rows[:, image.KEY2] = ports | 6 << 32 | 4 << 40
    rows[:, image.STATE] = tcp.TCP_ESTABLISHED
    rows[:, image.FLAGS] = image.REPLIED
    rows[:, image.SCALES] = 0x77
    rows[:, image.GENERATION] = 1
    rows[:, image.START] = time.time_ns() // 1_000_000
    rows[:, image.EXPIRY] = int(time.time()) + 7200
    return rows


def _answer(device: Device) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(device, request.pop("command"))(**request)
        except Exception as error:  # whatever it is, who asked has to see it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=_plain), flush=True)
    os._exit(0)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, np.integer) else str(value)


async def _run(node: Node) -> None:
    running = asyncio.ensure_future(node.run())
    while not running.done() and node.state != "active":  # until its workers run it counts as failing
        await asyncio.sleep(0.01)
    if not running.done():
        threading.Thread(target=_answer, args=(Device(node),), daemon=True).start()
    await running


def main() -> None:
    logs.configure()
    config = load_bootstrap(sys.argv[1]).config
    node = Node(config, None, 5.0)
    _insert(node.workers.all[0], int(sys.argv[2]))
    asyncio.run(_run(node))


if __name__ == "__main__":
    main()
