"""A store with which all is well, and parts of it replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from everwall.doctor import store_checks
from everwall.doctor.findings import Finding, Level
from everwall.doctor.sizing import Size, size
from everwall.doctor.store_facts import Login, Reach, Server, StoreFacts, Tls
from everwall.store.connection import StoreConfig

DAY_S = 86_400
MS = 1_000_000

CONFIG = StoreConfig(host="store.example", password="secret", ca_pem="given")
INFO = {
    "redis_version": "7.0.15",
    "role": "master",
    "connected_slaves": "1",
    "slave0": "ip=10.0.0.6,port=6379,state=online,offset=1,lag=0",
    "cluster_enabled": "0",
    "aof_enabled": "0",
    "loading": "0",
    "rdb_last_bgsave_status": "ok",
    "used_memory": "1000000",
    "maxmemory": "1000000000",
    "maxmemory_policy": "noeviction",
    "total_system_memory": "4000000000",
    "evicted_keys": "0",
}
SERVER = Server(
    info=INFO,
    settings={"hash-max-listpack-entries": "512", "hash-max-listpack-value": "64"},
    buckets="1024",
    told="5000000000 200",
    now_us=5_000_900_000,
    round_trips_ns=(MS // 10,) * 200,
    skew_ns=1000,
)
GOOD = StoreFacts(
    CONFIG,
    Reach(("10.0.0.5",)),
    Tls("", "TLSv1.3", "CN=store.example", "CN=Authority", 90 * DAY_S),
    Login(),
    SERVER,
)
WANTED = size(65_536)


def seen(facts: StoreFacts, wanted: Size | None = WANTED) -> dict[str, Finding]:
    """The findings by what they are about, the worst of each."""
    found: dict[str, Finding] = {}
    order = [Level.OK, Level.WARNING, Level.ERROR]
    for finding in store_checks.findings(facts, wanted):
        before = found.get(finding.check)
        if before is None or order.index(before.level) < order.index(finding.level):
            found[finding.check] = finding
    return found


def about(check: str, wanted: Size | None = WANTED, **changed: Any) -> Finding:
    """What is found about ``check`` when these facts of the server are others."""
    return seen(replace(GOOD, server=replace(SERVER, **changed)), wanted)[check]


def informed(check: str, wanted: Size | None = WANTED, **changed: str | None) -> Finding:
    """The same for lines of INFO; None takes a line away."""
    info = {name: value for name, value in {**INFO, **changed}.items() if value is not None}
    return about(check, wanted, info=info)
