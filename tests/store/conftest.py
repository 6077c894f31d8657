"""What the tests of this folder share: real servers, and the stores that must answer alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import needs
from tests.redis_server import RedisServer
from tests.store import workers
from tests.store.stores import Memory, Real


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A redis-server with TLS and AUTH for all tests of a file."""
    yield from _started("redis-server")


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    """The same, of Valkey."""
    yield from _started("valkey-server")


def _started(program: str) -> Iterator[RedisServer]:
    running = RedisServer(program=needs.server(program)).start()
    yield running
    running.close()


@pytest.fixture
def patience() -> Iterator[pytest.MonkeyPatch]:
    """For tests that are not about time-outs: the product's are too short for a machine that is busy with others.

    ``undo`` brings those of the product back, ``workers.be_patient`` these.
    """
    with pytest.MonkeyPatch.context() as patch:
        workers.be_patient(patch)
        yield patch


@pytest.fixture(params=["memory", "redis", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[Memory | Real]:
    """An empty store: the twin in memory, and the real servers."""
    if request.param == "memory":
        yield Memory()
        return
    real = Real(request.getfixturevalue("server" if request.param == "redis" else "valkey"))
    yield real
    real.close()
