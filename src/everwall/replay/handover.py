"""A flow moves to another engine in the middle: through the record, the store's protocol and a parked packet.

The giver offers the session and forgets it; the taker receives the next packet, does not know it, asks,
and is answered from a store in memory. Resiliency is on for that one packet only, so that
everything else is judged as without a store.
"""

from __future__ import annotations

import numpy as np

from everwall.engine import Engine
from everwall.limits import CLUSTER_SECRET_BYTES_MIN, SECOND_NS
from everwall.session import parking, record, state
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Protocol, reply_bytes
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch


class Handover:
    """Moves sessions between engines that share nothing else."""

    def __init__(self) -> None:
        # Records never leave this process, so any secret will do.
        self._protocol = Protocol(record.derive_keys(bytes(CLUSTER_SECRET_BYTES_MIN)))
        self._store = MemoryStore()
        self.count = 0

    def move(self, giver: Engine, taker: Engine, slot: int, batch: Batch, i: int, now: int) -> None:
        """Take the session in the giver's slot over to the taker with packet ``i``, which gets its final verdict."""
        giver.hand_over(slot, now)
        self._serve(giver, now)
        words = taker.state.sessions.words
        words[state.RESILIENCY] = 1
        taker.receive(Batch(batch.data[i : i + 1], batch.meta[i : i + 1]), 1, now)
        judged = taker.state.sessions.verdicts.copy()
        self._serve(taker, now)
        if batch.meta[i, m.VERDICT] == Verdict.PARK:
            batch.meta[i, m.VERDICT] = np.flatnonzero(taker.state.sessions.verdicts - judged)[0]
        words[state.RESILIENCY] = 0
        parking.overdue(taker.state.sessions, now)  # strikes the answered look-up off the list of deadlines
        self.count += 1

    def _serve(self, engine: Engine, now: int) -> None:
        """Answer all requests of an engine."""
        seconds = now // SECOND_NS
        rows = engine.outbox()
        while len(rows):
            batch = self._protocol.encoded(rows, seconds)
            replies = [self._store.execute(command, now / SECOND_NS) for command in batch.commands]
            decoded = self._protocol.decode(batch, b"".join(map(reply_bytes, replies)), seconds)
            engine.inbox(decoded.answers, now)
            rows = np.concatenate([decoded.again, engine.outbox()])
