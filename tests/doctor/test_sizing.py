"""The arithmetic of memory, and the numbers it refuses."""

from __future__ import annotations

import pytest

from everwall.doctor.sizing import GB, RESERVED, SERVERS, SizeError, amount, size
from everwall.limits import SESSIONS_MAX


def test_the_other_vendors_example_is_its_own() -> None:
    """10 million sessions on each of 10 firewalls: 1.28 GB each, at least 12.8 GB in all."""
    assert size(10_000_000, 10).vendor == 12_800_000_000


def test_ours_is_sessions_names_and_headroom_in_one_sum() -> None:
    found = size(1_000_000, 3, host_names=20_000, replicas=1)
    assert found.sessions == 3_000_000
    assert found.data == round(3_000_000 * 73.3) + 20_000 * 55
    parts = found.data + found.headroom + found.fixed
    assert parts <= found.maxmemory < parts + 1_000_000, "the sum, rounded up to a megabyte"
    assert found.servers == 2


def test_a_machine_is_larger_than_maxmemory_by_what_is_reserved() -> None:
    for sessions in (1000, 3_000_000, 16_000_000):
        found = size(sessions, 20)
        assert found.maxmemory <= found.machine_gb * GB * (1 - RESERVED)


def test_there_is_not_a_machine_for_everything() -> None:
    assert size(SESSIONS_MAX, 300).machine_gb > 0
    assert size(SESSIONS_MAX, 300, host_names=SESSIONS_MAX * 300).machine_gb in (0, 2048)


def test_a_replica_costs_a_machine_and_a_backlog() -> None:
    assert size(1000, replicas=2).servers == 3
    assert size(1000, replicas=1).fixed > size(1000).fixed


def test_every_figure_says_where_it_comes_from() -> None:
    for server in SERVERS.values():
        for figure in (server.session, server.host_name, server.session_hashed):
            assert figure.source.startswith(("measured, ", "not measured, redis figure used"))
    assert size(1000, server="valkey8").session_bytes.bytes == size(1000).session_bytes.bytes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"sessions": 0}, "sessions: 0"),
        ({"sessions": -5}, "sessions: -5"),
        ({"sessions": SESSIONS_MAX + 1}, "sessions"),
        ({"sessions": 1, "firewalls": 0}, "firewalls: 0"),
        ({"sessions": 1, "firewalls": 301}, "firewalls: 301"),
        ({"sessions": 10, "firewalls": 2, "host_names": 21}, "host-names: 21: expected 0 to 20"),
        ({"sessions": 1, "host_names": -1}, "host-names: -1"),
        ({"sessions": 1, "replicas": 99}, "replicas: 99"),
        ({"sessions": 1, "server": "redis6"}, "expected one of redis7, valkey8, valkey9"),
    ],
)
def test_numbers_without_sense_are_refused_by_name(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(SizeError, match=named):
        size(**arguments)  # type: ignore[arg-type]


def test_amounts_read_as_people_say_them() -> None:
    assert amount(7_330_000_000) == "7.33 GB"
    assert amount(95_400_000) == "95 MB"
    assert amount(1_230_000) == "1.2 MB"
    assert amount(73) == "73 bytes"
