"""What tests of several folders share, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import needs
from tests.topologies import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three shards with a replica each, that nobody takes over from by itself; a test leaves it as it was."""
    needs.binary("redis-server")
    servers = Cluster(replicas=1, node_timeout_ms=60_000)
    yield servers
    servers.close()
