"""State never goes backwards: neither in the store nor in an engine.

In the store every record has an order, (start, generation), which may only grow while the record
lives; a deletion may only take what is not newer than the record it was asked with. In an engine a session moves
along the life of a TCP connection in one direction, and its generation never falls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.session import image
from everwall.session import table as t
from everwall.sim.checkers import PromiseBroken
from everwall.sim.flows import Flow
from everwall.sim.node import Node
from everwall.sim.storage import StoreServer, named, touched
from everwall.store.protocol import Command, StoreBatch

# How far a TCP session is in its life, by the numbers of states in a record. An unverified RST (6) is a
# doubt that the next segment lifts; the session is then as far as it was, and never before established.
_RANK = {1: 0, 2: 1, 3: 2, 6: 2, 4: 3, 11: 3, 5: 4, 10: 5}
_STATELESS = {7, 8, 9}


class _Order(NamedTuple):
    start: int
    generation: int


def _order(value: bytes) -> _Order:
    return _Order(int.from_bytes(value[21:27], "big"), int.from_bytes(value[27:29], "big"))


def _expiry(value: bytes) -> int:
    return int.from_bytes(value[29:33], "big")


class StoreOrder:
    """Watches every command the store executes, and remembers which flows it acknowledged."""

    def __init__(self, server: StoreServer) -> None:
        self.acknowledged: dict[Flow, int] = {}
        """Flow key -> start in ms of store time, for all records written and not deleted since."""
        self.ever: set[Flow] = set()
        """Flow keys that had a record once."""
        self._server = server
        self._held: list[tuple[bytes, bytes, bytes, bytes | None]] = []

    def _value(self, bucket: bytes, field: bytes) -> bytes | None:
        found = self._server.memory.keys.get(bucket)
        return found.get(field) if isinstance(found, dict) else None

    def before(self, command: Command) -> None:
        """What lies there before the command."""
        self._held = [
            (bucket, field, value, self._value(bucket, field))
            for bucket, field, value in touched(command)
            if value
        ]

    def after(self, command: Command) -> None:
        """Compare with what lies there now."""
        now_s = self._server.now_s
        newest: dict[tuple[bytes, bytes], _Order] = {}
        for bucket, field, value, _ in self._held:
            # One script call may speak of the same record twice.
            newest[bucket, field] = max(_order(value), newest.get((bucket, field), _Order(0, 0)))
        for bucket, field, _, old in self._held:
            new = self._value(bucket, field)
            if old is None or _expiry(old) < now_s:
                continue
            how, by = command[0].decode(), newest[bucket, field]
            if new is None and by < _order(old):
                raise PromiseBroken(f"{how} deleted a record {_order(old)} for an older one {by}")
            if new is not None and _order(new) < _order(old):
                raise PromiseBroken(f"{how} took a record back from {_order(old)} to {_order(new)}")

    def executed(self, batch: StoreBatch, replies: list[Any]) -> None:
        """Note which sessions the store holds now."""
        for row, bucket, field in named(batch):
            operation = batch.rows[row, image.OP]
            if operation == image.LOOKUP:
                continue
            flow = flow_of_row(batch.rows[row])
            value = self._value(bucket, field)
            if value is None:
                self.acknowledged.pop(flow, None)
            elif operation != image.DELETE:
                self.acknowledged[flow] = _order(value).start
                self.ever.add(flow)


def flow_of_row(row: npt.NDArray[np.int64]) -> Flow:
    """The flow key that an image row is about."""
    key2 = int(row[image.KEY2])
    lower, upper = (
        _address(key2 >> 40, int(row[high]), int(row[high + 1]))
        for high in (image.LOWER_HIGH, image.UPPER_HIGH)
    )
    endpoint, protocol = int(row[image.ENDPOINT]), key2 >> 32 & 0xFF
    return Flow(endpoint, protocol, lower, key2 & 0xFFFF, upper, key2 >> 16 & 0xFFFF).key


def _address(family: int, high: int, low: int) -> bytes:
    if family == 4:
        return (low & 0xFFFFFFFF).to_bytes(4, "big")
    return (high & 2**64 - 1).to_bytes(8, "big") + (low & 2**64 - 1).to_bytes(8, "big")


class SessionOrder:
    """Looks at an engine's table after every few steps."""

    EVERY = 4
    """Steps from look to look; what is forbidden is forbidden over several steps as well."""

    def __init__(self) -> None:
        self._steps = 0
        self._before: dict[
            int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
        ] = {}

    def stepped(self, node: Node) -> None:
        """The engine has done something."""
        self._steps += 1
        if self._steps % self.EVERY == 0:
            self.look(node)

    def look(self, node: Node) -> None:
        """Compare every session that is still there with what it was."""
        table = node.engine.sessions_state.table
        ids = np.where(table.hot[:, t.KEY2] != 0, table.cold[:, t.ID], 0)
        states = table.short[:, t.STATE].astype(np.int64)
        generations = table.short[:, t.GENERATION].astype(np.int64)
        before = self._before.get(id(node))
        self._before[id(node)] = ids, states, generations
        if before is None:
            return
        same = (ids != 0) & (ids == before[0])
        if (generations[same] < before[2][same]).any():
            raise PromiseBroken(f"{node.name}: the generation of a session fell")
        for slot in np.flatnonzero(same & (states != before[1])):
            was, now = int(before[1][slot]), int(states[slot])
            if was in _STATELESS or now in _STATELESS or _RANK[now] < _RANK[was]:
                raise PromiseBroken(f"{node.name}: session {ids[slot]} went from state {was} back to {now}")
