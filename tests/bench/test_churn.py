"""Half an hour of churn in the store's memory, in a few seconds."""

from __future__ import annotations

import pytest

from bench import churn
from tests import needs
from tests.redis_server import RedisServer


@pytest.fixture
def server():
    needs.binary("redis-server")
    server = RedisServer().start()
    yield server
    server.close()


def test_memory_for_a_session_stays_what_it_was(server):
    """So few sessions have room to spare in the allocator's classes: the bench holds its bound with many more."""
    try:
        found = churn.run(server, 4000, seconds=3.5, seed=1)
    except churn.TooSlow as error:
        pytest.skip(str(error))
    assert found["operations"] > 10_000
    assert found["swept_records"] > 100
    assert found["last_growth_of_a_record"] < 1.15
    assert found["fragmentation"] > 0
