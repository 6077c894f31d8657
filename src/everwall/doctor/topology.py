"""A store whatever its topology: who is to be spoken to, as Sentinels or a cluster say, and then each server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import redis

from everwall.doctor import store_checks
from everwall.doctor.agreement_checks import agreed
from everwall.doctor.findings import Finding, Level, error, ok, warning
from everwall.doctor.sizing import Size
from everwall.doctor.store_facts import StoreFacts, collect
from everwall.store.clients import SLOTS, ask_cluster, find_slots
from everwall.store.connection import Address, Login, StoreConfig, login_of, require_private, tls_context
from everwall.store.sentinels import Sentinels

_SENTINELS_MIN = 3
WantedFor = Callable[[str, int], Size | None]
"""What is wanted of one of so many shards, of a server of that kind (``sizing.SERVERS``)."""


def look(config: StoreConfig, wanted: WantedFor) -> list[Finding]:
    """All findings about a store. Raises ValueError for a CA certificate that cannot be read."""
    context, login = tls_context(config), login_of(config)
    if config.sentinels:
        return _behind_sentinels(config, context, login, wanted)
    if config.cluster:
        return _in_a_cluster(config, context, login, wanted)
    facts = collect(config)
    return [*store_checks.findings(facts, wanted(store_checks.kind_of(facts), 1)), *_replicas(config, facts)]


# Sentinels ----------------------------------------------------------------------------------------


def _behind_sentinels(
    config: StoreConfig, context: ssl.SSLContext | None, login: Login, wanted: WantedFor
) -> list[Finding]:
    told: dict[Address, dict[str, Any]] = {}
    found: list[Finding] = []
    sentinels = Sentinels(config, context, login)
    for address in config.sentinels:
        try:
            told[address] = sentinels.ask(address)
        except (redis.RedisError, OSError) as problem:
            found.append(
                warning(
                    "sentinel",
                    f"{address}: {problem}",
                    "nodes ask the next one: see that it runs, its port, certificate and password, and the name",
                )
            )
    sentinels.close()
    if not told:
        why = f"none of {len(config.sentinels)} tells who is primary of {config.service}"
        found.append(
            error("sentinel", why, "nodes find no store without: everwall-redis-sentinel names them")
        )
        return found
    found += _judge_sentinels(config, told)
    state = next(iter(told.values()))
    primary = Address(str(state["ip"]), int(state["port"]))
    try:
        require_private(config, primary)
    except redis.ConnectionError as problem:
        return [*found, error("tls", str(problem), "switch TLS on")]
    one = replace(config, host=primary.host, port=primary.port, sentinels=())
    facts = collect(one)
    found += store_checks.findings(facts, wanted(store_checks.kind_of(facts), 1))
    return [*found, *_replicas(one, facts)]


def _judge_sentinels(config: StoreConfig, told: dict[Address, dict[str, Any]]) -> Iterator[Finding]:
    primaries = sorted({f"{state['ip']}:{state['port']}" for state in told.values()})
    if len(primaries) > 1:
        yield error(
            "sentinel",
            f"they name different primaries of {config.service}: {', '.join(primaries)}",
            "wait for a failover under way to end; if it stays, reset the ones that are wrong (SENTINEL RESET)",
        )
    state = next(iter(told.values()))
    if state["is_sdown"] or state["is_odown"]:
        yield error(
            "sentinel", f"the primary {primaries[0]} is down, they say", "see whether a replica is left"
        )
    everybody, quorum = int(state["num-other-sentinels"]) + 1, int(state["quorum"])
    if quorum > everybody:
        yield error(
            "sentinel",
            f"a quorum of {quorum}, and {everybody} know one another: no failover can begin",
            "start the missing ones, or lower the quorum",
        )
    elif everybody < _SENTINELS_MIN:
        yield warning(
            "sentinel",
            f"{everybody} of them: when one is gone with the primary, nobody is left to order a failover",
            f"run {_SENTINELS_MIN} or more, on machines of their own",
        )
    else:
        yield ok(
            "sentinel",
            f"{len(told)} of {len(config.sentinels)} asked name {primaries[0]}; quorum {quorum} of {everybody}",
        )


# A cluster ----------------------------------------------------------------------------------------


def _in_a_cluster(
    config: StoreConfig, context: ssl.SSLContext | None, login: Login, wanted: WantedFor
) -> list[Finding]:
    try:
        ranges = find_slots(config, context, login)
    except redis.RedisError as problem:
        advice = (
            "everwall-redis-cluster names nodes of a cluster: see that they run, their port and certificate"
        )
        return [error("cluster", str(problem), advice)]
    primaries = sorted({address for *_, address in ranges})
    served = sum(last - first + 1 for first, last, _ in ranges)
    found = list(_judge_cluster(served, len(primaries), _told(config, context, login, primaries)))
    for address in primaries:
        try:
            require_private(config, address)
        except redis.ConnectionError as problem:
            found.append(error("tls", str(problem), "switch TLS on"))
            continue
        one = replace(config, host=address.host, port=address.port)
        facts = collect(one)
        kind = store_checks.kind_of(facts)
        each = [*store_checks.findings(facts, wanted(kind, len(primaries))), *_replicas(one, facts)]
        fine = [finding.check for finding in each if finding.level is Level.OK]
        bad = [finding for finding in each if finding.level is not Level.OK]
        found.append(ok("shard", f"{address}: {', '.join(fine)}"))
        found += [replace(finding, text=f"{address}: {finding.text}") for finding in bad]
        if facts.server is not None and facts.server.buckets_error.split(" ", 1)[0] != "MOVED":
            found += agreed(facts.server, config.prefix, wanted(kind, 1))
    return found


def _told(
    config: StoreConfig, context: ssl.SSLContext | None, login: Login, nodes: list[Address]
) -> dict[str, str]:
    """What the first node that answers says of the cluster: its state and one setting."""
    for address in nodes:
        try:
            return ask_cluster(config, context, login, address)
        except (redis.RedisError, OSError):
            continue
    return {}


def _judge_cluster(served: int, primaries: int, told: dict[str, str]) -> Iterator[Finding]:
    if served < SLOTS:
        yield error(
            "cluster",
            f"{SLOTS - served:,} of {SLOTS:,} slots are served by nobody",
            "sessions in them are not kept: redis-cli --cluster fix",
        )
    elif told.get("cluster_state") != "ok":
        yield error(
            "cluster",
            f"its state is {told.get('cluster_state', 'not known')}",
            "CLUSTER INFO says what is wrong",
        )
    else:
        yield ok("cluster", f"{SLOTS:,} slots on {primaries} primaries, state ok")
    if told.get("cluster-require-full-coverage") == "yes":
        yield warning(
            "full-coverage",
            "when one shard is gone all others refuse, too",
            "set cluster-require-full-coverage no: the sessions of the other shards are kept then",
        )
    if primaries == 1:
        yield warning(
            "cluster", "one primary has all slots", "a cluster of one is a single server with more words"
        )


# Both ---------------------------------------------------------------------------------------------


def _replicas(config: StoreConfig, facts: StoreFacts) -> Iterator[Finding]:
    """Whether as many replicas are there as strict sessions wait for."""
    if not config.wait_replicas or facts.server is None or facts.server.info.get("role") != "master":
        return
    info = facts.server.info
    online = sum(
        name.startswith("slave") and name[5:].isdigit() and "state=online" in value
        for name, value in info.items()
    )
    text = f"strict sessions wait for {config.wait_replicas}, {online} online"
    if online < config.wait_replicas:
        yield error(
            "wait-replicas",
            f"{text}: every strict session waits in vain and counts as strict-unacknowledged",
            "add replicas, or lower everwall-wait-replicas",
        )
    else:
        yield ok("wait-replicas", text)
