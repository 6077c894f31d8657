"""State never goes backwards: neither in the store nor in an engine.

In the store every record has an order, (start, generation), which may only grow while the record
lives, and of two owners with the same order only the first may go on writing; a deletion may only take what is
not newer than the record it was asked with. In an engine a session moves along the life of a TCP connection in one
direction, and its generation never falls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.session import image
from everwall.session import table as t
from everwall.session.record import RECORD_BYTES
from everwall.sim.checkers import PromiseBroken
from everwall.sim.flows import Flow
from everwall.sim.loop import MS
from everwall.sim.node import Node
from everwall.sim.storage import StoreServer, moved, named, touched
from everwall.store.protocol import Command, StoreBatch

# How far a TCP session is in its life, by the numbers of states in a record. An unverified RST (6) is a
# doubt that the next segment lifts; the session is then as far as it was, and never before established.
_RANK = {1: 0, 2: 1, 3: 2, 6: 2, 4: 3, 11: 3, 5: 4, 10: 5}
_STATELESS = {7, 8, 9}


_DELETING = (image.DELETE, image.CLEAR)
_ORDER_COLUMNS = [image.START, image.GENERATION, image.OWNER, image.OP]


class Order(NamedTuple):
    """What decides between two records of a flow."""

    start: int
    generation: int


def order_of(value: bytes) -> Order:
    """Of a sealed record."""
    return Order(int.from_bytes(value[21:27], "big"), int.from_bytes(value[27:29], "big"))


def owner_of(value: bytes) -> bytes:
    """Of a sealed record."""
    return value[17:21]


def expiry_of(value: bytes) -> int:
    """Of a sealed record, seconds of store time."""
    return int.from_bytes(value[29:33], "big")


class StoreOrder:
    """Watches every command the store executes, and remembers which flows it acknowledged."""

    def __init__(self, server: StoreServer) -> None:
        self.acknowledged: dict[Flow, Order] = {}
        """Flow key -> order of the record that was written last, for all that were not deleted since."""
        self.ever: set[Flow] = set()
        """Flow keys that had a record once."""
        self._server = server
        self._places: dict[Flow, list[tuple[bytes, bytes]]] = {}
        """Flow key -> (bucket, field) of all places that were ever written to, the last one last."""
        self._held: list[tuple[bytes, bytes, bytes | None]] = []
        self._asked: dict[tuple[bytes, bytes], tuple[Order, bytes]] = {}
        """What the batch under way wants to delete, and for whom, whether its commands say so or not."""

    def place(self, flow: Flow) -> tuple[bytes, bytes]:
        """Bucket and field to which a flow key was written last."""
        return self._places[flow][-1]

    def held(self, flow: Flow) -> Order | None:
        """The order of the record that the store holds for a flow key at this moment, None without one."""
        values = [self._server.value(*place) for place in self._places.get(flow, ())]
        return max(
            (
                order_of(value)
                for value in values
                if value is not None
                and len(value) == RECORD_BYTES
                and expiry_of(value) >= self._server.store_s
            ),
            default=None,
        )

    def begins(self, batch: StoreBatch) -> None:
        """A batch is about to be executed."""
        self._asked = {}
        if not np.isin(batch.rows[:, image.OP], _DELETING).any():
            return
        for row, bucket, field in named(batch):
            start, generation, owner, operation = batch.rows[row, _ORDER_COLUMNS].tolist()
            if operation in _DELETING:
                asked = Order(start, generation), owner.to_bytes(4, "big")
                self._asked[bucket, field] = max(asked, self._asked.get((bucket, field), asked))

    def before(self, command: Command) -> None:
        """What lies there before the command."""
        self._held = [
            (bucket, field, self._server.value(bucket, field))
            for bucket, field, value in touched(command)
            if value is not None
        ]

    def after(self, command: Command) -> None:
        """Compare with what lies there now."""
        if moved(command):
            self._moved(command)
            return
        for bucket, field, old in self._held:
            if old is None or len(old) != RECORD_BYTES or expiry_of(old) < self._server.store_s:
                continue
            new = self._server.value(bucket, field)
            if new is None:
                self._deleted(command, *self._asked[bucket, field], old)
            elif new != old:
                self._replaced(command, new, old)

    def _moved(self, command: Command) -> None:
        """What leaves a bucket has come to another, or something later was there."""
        held = {(bucket, field): old for bucket, field, old in self._held}
        for field, source, target in moved(command):
            old, new = held[source, field], self._server.value(target, field)
            if old == self._server.value(source, field):
                continue  # the server did not know the script
            lives = old is not None and len(old) == RECORD_BYTES and expiry_of(old) >= self._server.store_s
            if old is not None and lives and (new is None or order_of(new) < order_of(old)):
                raise PromiseBroken(f"a record {order_of(old)} was lost on its way to another bucket")
            for places in self._places.values():
                if (source, field) in places and (target, field) not in places:
                    places.append((target, field))

    def _deleted(self, command: Command, by: Order, owner: bytes, old: bytes) -> None:
        how = command[0].decode()
        if by < order_of(old):
            raise PromiseBroken(f"{how} deleted a record {order_of(old)} for an older one {by}")
        if by == order_of(old) and owner != owner_of(old):
            raise PromiseBroken(f"{how} deleted a record {by} of another owner")

    def _replaced(self, command: Command, new: bytes, old: bytes) -> None:
        how, before, now = command[0].decode(), order_of(old), order_of(new)
        if now == before and owner_of(new) != owner_of(old):
            raise PromiseBroken(f"{how} wrote {now} over the record of another owner")
        if command[0] == b"HSET" and before.start > self._server.store_ns // MS:
            return  # from the future: by the own clock of a node that had no connection yet
        if now < before:
            raise PromiseBroken(f"{how} took a record back from {before} to {now}")

    def executed(self, batch: StoreBatch, replies: list[Any]) -> None:
        """Note which sessions the store holds now."""
        for row, bucket, field in named(batch):
            operation = batch.rows[row, image.OP]
            if operation in (image.LOOKUP, image.CLEAR):
                continue
            flow, place = flow_of_row(batch.rows[row]), (bucket, field)
            value = self._server.value(*place)
            if value is None:
                if all(self._server.value(*one) is None for one in self._places.get(flow, ())):
                    self.acknowledged.pop(flow, None)
            elif operation != image.DELETE:
                self.acknowledged[flow] = order_of(value)
                self._places[flow] = [*(one for one in self._places.get(flow, ()) if one != place), place]
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
