"""Which of two links to one server a request takes. No I/O."""

from __future__ import annotations

import numpy as np
import pytest

from everwall.session import image
from everwall.session.image import DELETE, LOOKUP, WRITE, WRITE_FIRST
from everwall.session.record import field_of
from everwall.store.protocol import Protocol
from everwall.store.router import Shard
from tests.store.stores import KEYS, asking, sessions
from tests.store.test_crowding import trade, unreachable

pytestmark = pytest.mark.kernel


def strict() -> Shard:
    return Shard(trade(), Protocol(KEYS, "test", 64), unreachable, leads=True, replicas=1)


def put(shard: Shard, rows, operation: int, confirm: int = 0) -> None:
    rows = asking(rows, operation)
    rows[:, image.CONFIRM] = confirm
    shard.put(rows, np.array([field_of(rows, i, KEYS, 0) for i in range(len(rows))]))


def under_way(shard: Shard) -> None:
    """What waits at the link that waits for replicas is sent, and not answered yet."""
    awaited = shard.awaited
    assert awaited is not None
    pipeline = awaited._idle.pop()
    batch = pipeline.batch
    batch.count = awaited._take(awaited.backlog.queue, batch.pipeline.rows, batch.pipeline.fields, 512)
    awaited._pipelines.append(pipeline)


@pytest.mark.parametrize("operation", [DELETE, WRITE])
def test_what_follows_a_write_that_replicas_are_waited_for_does_not_overtake_it_on_its_way(operation):
    """A delete that came first, over the other link, would leave a closed session in the store."""
    shard, rows = strict(), sessions(20)
    put(shard, rows[:10], WRITE_FIRST, image.REPLICATED)
    under_way(shard)
    put(shard, rows, operation)
    assert shard.awaited is not None
    assert shard.awaited.backlog.take(100)[:, image.TAG].tolist() == list(range(10)), "behind it"
    assert shard.ordinary.backlog.take(100)[:, image.TAG].tolist() == list(range(10, 20))


def test_a_look_up_waits_for_no_replica():
    shard, rows = strict(), sessions(10)
    put(shard, rows, WRITE_FIRST, image.REPLICATED)
    under_way(shard)
    put(shard, rows, LOOKUP)
    assert len(shard.ordinary.backlog) == 10
