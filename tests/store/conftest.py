"""What the tests of this folder share: a real server, and the two stores that must answer alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import needs
from tests.redis_server import RedisServer
from tests.store.stores import Memory, Real


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A redis-server with TLS and AUTH for all tests of a file."""
    needs.binary("redis-server")
    running = RedisServer().start()
    yield running
    running.close()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Memory | Real]:
    """An empty store: the twin in memory, and the real server."""
    if request.param == "memory":
        yield Memory()
        return
    real = Real(request.getfixturevalue("server"))
    yield real
    real.close()
