"""What tests of several folders share: how hypothesis works, and what takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import needs
from tests.nodes import Balancer
from tests.redis_server import SERVERS
from tests.topologies import Cluster

# A machine that has other work to do is no fault of a test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", params=SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three shards with a replica each, that nobody takes over from by itself; a test leaves it as it was."""
    servers = Cluster(replicas=1, node_timeout_ms=60_000, program=needs.server(request.param))
    yield servers
    servers.close()


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    """A load balancer on loopback."""
    made = Balancer()
    yield made
    made.close()
