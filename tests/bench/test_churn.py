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


def test_what_is_opened_is_there_and_what_has_expired_is_swept(server):
    """How the memory grows is the benchmark's to say: it takes more sessions and a quiet machine."""
    try:
        found = churn.run(server, 4000, seconds=3.5, seed=1)
    except churn.TooSlow as error:
        pytest.skip(str(error))
    assert found["operations"] > 10_000
    assert found["swept_records"] > 100
    assert found["open_at_the_end"] > 0
