"""Facts about a store in, findings out: each with its level, its reason and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everwall.doctor.findings import Level
from everwall.doctor.sizing import size
from everwall.doctor.store_facts import Login, Reach, Tls
from tests.doctor.stores import DAY_S, GOOD, INFO, MS, SERVER, about, informed, seen


def test_a_good_store_is_ok_from_the_name_to_the_buckets() -> None:
    found = seen(GOOD)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert {"name", "tls", "auth", "permissions", "role", "replication", "room", "buckets"} <= found.keys()
    assert all(not finding.advice for finding in found.values())


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    bad = replace(
        GOOD,
        tls=None,
        login=Login(open=True),
        server=replace(
            SERVER,
            info={**INFO, "maxmemory": "0", "maxmemory_policy": "allkeys-lru", "evicted_keys": "3"},
            settings={},
            refused={"SET": "NOPERM this user has no permissions"},
            buckets="many",
            round_trips_ns=(60 * MS,) * 200,
            skew_ns=-5000 * MS,
        ),
    )
    found = [finding for finding in seen(bad).values() if finding.level is not Level.OK]
    assert len(found) >= 10
    assert all(finding.advice for finding in found)


# The way there ------------------------------------------------------------------------------------


def test_a_name_without_an_address_ends_the_examination() -> None:
    found = seen(replace(GOOD, reach=Reach(resolve_error="Name or service not known")))
    assert found.keys() == {"name"}
    assert found["name"].level is Level.ERROR


def test_a_port_that_nobody_listens_on_is_an_error() -> None:
    found = seen(replace(GOOD, reach=Reach(("10.0.0.5",), connect_error="Connection refused")))
    assert found["name"].level is Level.OK
    assert found["connect"].level is Level.ERROR
    assert "Connection refused" in found["connect"].text


def test_plain_tcp_is_a_warning() -> None:
    found = seen(replace(GOOD, config=replace(GOOD.config, tls=False), tls=None))
    assert found["tls"].level is Level.WARNING
    assert "certificate" not in found


@pytest.mark.parametrize(
    ("tls", "advice"),
    [
        (Tls("self-signed certificate in certificate chain", "", "CN=a", "CN=b", DAY_S), "redis-certificate"),
        (Tls("Hostname mismatch, certificate is not valid", "", "CN=a", "CN=b", DAY_S), "server-name"),
        (Tls("certificate has expired", "", "CN=a", "CN=b", -DAY_S), "renew"),
        (Tls("the server does not speak TLS on this port"), "in-transit encryption"),
    ],
)
def test_a_certificate_that_does_not_hold_is_an_error_with_its_own_advice(tls: Tls, advice: str) -> None:
    found = seen(replace(GOOD, tls=tls, login=None, server=None))
    assert found["tls"].level is Level.ERROR
    assert tls.error in found["tls"].text
    assert advice in found["tls"].advice
    assert "auth" not in found, "no password was said to that server"


def test_a_certificate_that_ends_soon_is_a_warning() -> None:
    assert GOOD.tls is not None
    found = seen(replace(GOOD, tls=replace(GOOD.tls, seconds_left=20 * DAY_S)))
    assert found["certificate"].level is Level.WARNING
    assert "20 days" in found["certificate"].text


@pytest.mark.parametrize(
    ("login", "password", "level", "text"),
    [
        (Login(), "secret", Level.OK, "accepted"),
        (Login(error="WRONGPASS invalid"), "secret", Level.ERROR, "WRONGPASS"),
        (Login(error="NOAUTH Authentication required."), None, Level.ERROR, "NOAUTH"),
        (Login(open=True, needless=True), "secret", Level.WARNING, "server has none"),
        (Login(open=True), None, Level.WARNING, "needs no password"),
        (Login(open=True), "secret", Level.WARNING, "so is the default user"),
    ],
)
def test_who_may_go_in(login: Login, password: str | None, level: Level, text: str) -> None:
    found = seen(replace(GOOD, config=replace(GOOD.config, password=password), login=login))["auth"]
    assert found.level is level
    assert text in found.text


# The server ---------------------------------------------------------------------------------------


def test_a_command_that_is_refused_is_an_error_that_names_it() -> None:
    found = about("permissions", refused={"EVALSHA": "NOPERM this user has no permissions"})
    assert found.level is Level.ERROR
    assert "EVALSHA" in found.text


@pytest.mark.parametrize(
    ("versions", "level"),
    [
        ({"redis_version": "7.0.15"}, Level.OK),
        ({"redis_version": "6.2.14"}, Level.ERROR),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, Level.OK),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.8"}, Level.ERROR),
        ({"redis_version": None}, Level.ERROR),
    ],
)
def test_redis_from_7_and_valkey_from_8(versions: dict[str, str | None], level: Level) -> None:
    assert informed("version", **versions).level is level


def test_without_info_the_version_is_not_known_and_nothing_is_made_up() -> None:
    facts = replace(GOOD, server=replace(SERVER, info={}, info_error="NOPERM", refused={"INFO": "NOPERM"}))
    found = seen(facts)
    assert found["version"].level is Level.WARNING
    assert not {"role", "maxmemory", "room", "persistence", "cluster"} & found.keys()


def test_a_replica_refuses_writes() -> None:
    found = informed("role", role="slave", master_host="10.0.0.5", master_link_status="down")
    assert found.level is Level.ERROR
    assert "10.0.0.5 (link down)" in found.text


@pytest.mark.parametrize(
    ("replica", "level"),
    [
        ("ip=10.0.0.6,port=6379,state=online,offset=1,lag=1", Level.OK),
        ("ip=10.0.0.6,port=6379,state=online,offset=1,lag=30", Level.WARNING),
        ("ip=10.0.0.6,port=6379,state=wait_bgsave,offset=0,lag=0", Level.WARNING),
        (None, Level.WARNING),
    ],
)
def test_replication_wants_a_replica_that_is_online_and_heard_of(replica: str | None, level: Level) -> None:
    assert informed("replication", slave0=replica).level is level


def test_a_shard_is_not_the_whole_store() -> None:
    assert informed("cluster", cluster_enabled="1").level is Level.ERROR


def test_a_snapshot_that_failed_stops_writes() -> None:
    assert informed("persistence", rdb_last_bgsave_status="err").level is Level.ERROR
    assert informed("persistence", aof_enabled="1").level is Level.OK


def test_no_limit_of_memory_is_a_warning_that_names_a_limit() -> None:
    found = informed("maxmemory", size(1_000_000, 2), maxmemory="0")
    assert found.level is Level.WARNING
    assert "188 MB" in found.advice
    assert "everwall size" in informed("maxmemory", None, maxmemory="0").advice


def test_a_policy_that_evicts_is_a_warning_because_whole_buckets_go() -> None:
    found = informed("maxmemory-policy", maxmemory_policy="volatile-ttl")
    assert found.level is Level.WARNING
    assert "whole buckets" in found.text
    assert informed("evictions", evicted_keys="12345").text.startswith("12,345 keys")


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"hash-max-listpack-entries": "512", "hash-max-listpack-value": "64"}, Level.OK),
        ({"hash-max-listpack-entries": "128", "hash-max-listpack-value": "52"}, Level.OK),
        ({"hash-max-listpack-entries": "64", "hash-max-listpack-value": "64"}, Level.WARNING),
        ({"hash-max-listpack-entries": "512", "hash-max-listpack-value": "48"}, Level.WARNING),
    ],
)
def test_buckets_must_fit_the_compact_encoding(settings: dict[str, str], level: Level) -> None:
    found = about("compact-buckets", settings=settings)
    assert found.level is level
    assert level is Level.OK or "131 instead of 73.3 bytes" in found.text


@pytest.mark.parametrize(
    ("compact", "level"), [("listpack", Level.OK), ("hashtable", Level.WARNING), ("", Level.WARNING)]
)
def test_where_config_is_forbidden_a_bucket_that_was_tried_decides(compact: str, level: Level) -> None:
    found = about("compact-buckets", settings={}, settings_error="NOPERM no", compact=compact)
    assert found.level is level
    assert "CONFIG cannot be read here (NOPERM)" in found.text


def test_clocks_that_differ_by_seconds_are_a_warning() -> None:
    assert about("clock", skew_ns=-900 * MS).level is Level.OK
    found = about("clock", skew_ns=-2500 * MS)
    assert found.level is Level.WARNING
    assert "2,500.0 ms behind" in found.text


@pytest.mark.parametrize(
    ("told", "level", "text"),
    [
        (None, Level.OK, "no node has asked yet"),
        ("1000000000 900000", Level.OK, "0.900 s ahead"),
        ("1000000000 2500000", Level.WARNING, "2.500 s ahead"),
        ("1000000000 0", Level.OK, "0.000 s ahead"),
        ("0 90000000", Level.OK, "no node has asked for 1,090 s"),
        ("1005000000 0", Level.WARNING, "5.000 s ahead"),
        ("87500000000 0", Level.WARNING, "86,500 s ahead of the server's clock: not believed"),
        ("today", Level.WARNING, "is no time: 'today'"),
        ("1 2 3", Level.WARNING, "is no time"),
    ],
)
def test_store_time_far_ahead_of_the_servers_clock_is_a_warning(
    told: str | None, level: Level, text: str
) -> None:
    """The clock stands at 1,000 s."""
    found = about("store-time", told=told, now_us=1_000_000_000)
    assert found.level is level
    assert text in found.text


def test_of_store_time_nothing_is_said_where_the_server_may_not_be_asked_for_its_own() -> None:
    assert "store-time" not in seen(replace(GOOD, server=replace(SERVER, now_us=None)))


@pytest.mark.parametrize(
    ("trips", "level", "hint"),
    [
        ((MS // 2,) * 200, Level.OK, ""),
        ((2 * MS,) * 200, Level.WARNING, "same zone"),
        ((MS // 2,) * 190 + (80 * MS,) * 10, Level.WARNING, "50 ms has failed"),
        ((60 * MS,) * 200, Level.ERROR, "50 ms has failed"),
    ],
)
def test_round_trips(trips: tuple[int, ...], level: Level, hint: str) -> None:
    found = about("round-trip", round_trips_ns=trips)
    assert found.level is level
    assert hint in found.advice


# What the cluster makes of it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buckets", "level", "text"),
    [
        (None, Level.OK, "not set yet"),
        ("1024", Level.OK, "64 sessions in each"),
        ("128", Level.WARNING, "512 sessions in each"),
        ("65536", Level.WARNING, "1.0 sessions in each"),
        ("0", Level.ERROR, "no bucket count"),
        ("a lot", Level.ERROR, "no bucket count"),
        ("v1 epoch 3 buckets 1024", Level.OK, "64 sessions in each"),
        ("v1 epoch 1 buckets 128 from 5; epoch 0 buckets 9 until 9", Level.WARNING, "512 sessions in each"),
        ("v2 epoch 3 buckets 1024", Level.ERROR, "layout of version 2, and this release knows version 1"),
    ],
)
def test_the_agreed_number_of_buckets_fits_the_sessions(buckets: str | None, level: Level, text: str) -> None:
    found = about("buckets", buckets=buckets)
    assert found.level is level
    assert text in found.text


def test_buckets_are_not_judged_by_sessions_that_nobody_named() -> None:
    assert about("buckets", None, buckets="65536").level is Level.OK
    assert "room" not in seen(GOOD, None)


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        ("WRONGTYPE Operation against a key", Level.ERROR, "another program"),
        ("MOVED 4711 10.0.0.7:6379", Level.WARNING, "ask that one too"),
        ("CLUSTERDOWN Hash slot not served", Level.ERROR, "all its slots"),
        ("MASTERDOWN Link with MASTER is down", Level.ERROR, "log"),
    ],
)
def test_a_key_that_cannot_be_read_says_why(answer: str, level: Level, text: str) -> None:
    found = about("buckets", buckets_error=answer)
    assert found.level is level
    assert answer in found.text
    assert text in found.advice


def test_a_sentinel_is_no_store() -> None:
    found = informed("role", redis_mode="sentinel", role=None)
    assert found.level is Level.ERROR
    assert "Sentinel" in found.text


@pytest.mark.parametrize(
    ("used", "limit", "level"),
    [
        ("1000000", "1000000000", Level.OK),
        ("950000000", "1000000000", Level.WARNING),
        ("1000000", "50000000", Level.ERROR),
        ("1000000", "0", Level.OK),  # the machine's memory is the limit
    ],
)
def test_room_for_the_sessions(used: str, limit: str, level: Level) -> None:
    wanted = size(1_000_000)
    assert informed("room", wanted, used_memory=used, maxmemory=limit).level is level
