"""The device under test: a node as ``everwall firewall`` runs it, with a second way in for the benchmark.

``python -m bench.rig.node INIT_CFG``: one JSON request a line on standard input, one answer a line on standard
output. The node is the product's own; what is asked of it beyond (its threads, sessions put in by the
thousand, the store switched) is what no operator needs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from everwall.bootstrap.init_cfg import load_init_cfg
from everwall.management import logs
from everwall.node import Node
from everwall.session import state
from everwall.session.state import Sessions


class Device:
    """The requests by name."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _sessions(self) -> list[Sessions]:
        return [worker.sessions for worker in self._node.workers.all]

    def counters(self) -> dict[str, Any]:
        """Verdicts and counters of the engine."""
        return {"counters": self._node.workers.counters()}

    def store(self) -> dict[str, Any]:
        """What the store's thread says of itself."""
        return self._node.workers.store_status()

    def resiliency(self, on: int) -> dict[str, Any]:
        """Whether sessions are written to the store and looked up there."""
        for sessions in self._sessions:
            sessions.words[state.RESILIENCY] = on
        return {}

    def memory(self) -> dict[str, Any]:
        """Bytes of all arrays that grow with the sessions, and for how many sessions they are made."""
        arrays = {array.ctypes.data: array.nbytes for each in self._sessions for array in each.table}
        return {"bytes": sum(arrays.values()), "sessions": self._node.config.max_sessions}


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
    while not running.done() and node.state == "joining":
        await asyncio.sleep(0.01)
    if not running.done():
        threading.Thread(target=_answer, args=(Device(node),), daemon=True).start()
    await running


def main() -> None:
    logs.configure()
    config, _ = load_init_cfg(Path(sys.argv[1]))
    asyncio.run(_run(Node(config, None, 5.0)))


if __name__ == "__main__":
    main()
