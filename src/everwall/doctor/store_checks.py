"""What the facts about a store mean for sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everwall.doctor.agreement_checks import agreed, policies
from everwall.doctor.findings import Finding, error, ok, warning
from everwall.doctor.sizing import SERVERS, Size, amount
from everwall.doctor.store_facts import Login, Reach, Server, StoreFacts, Tls, percentile_ns
from everwall.limits import (
    BUCKET_FIELDS_SEEN,
    CERTIFICATE_DAYS_MIN,
    LOOKUP_DEADLINE_NS,
    MS_NS,
    RECORD_BYTES_MAX,
    REPLICA_LAG_S_MAX,
    SAME_ZONE_NS_MAX,
    SECOND_NS,
    SKEW_NS_MAX,
)
from everwall.store.connection import StoreConfig

_DAY_S = 86_400
_REDIS_MIN, _VALKEY_MIN = 7, 8


def findings(facts: StoreFacts, wanted: Size | None) -> list[Finding]:
    """All findings, in the order in which things were tried; without what the cluster needs room and buckets are not
    judged."""
    found = list(_reach(facts.config, facts.reach))
    if facts.reach.resolve_error or facts.reach.connect_error:
        return found
    found += _tls(facts.config, facts.tls)
    if facts.login is not None:
        found += _login(facts.config, facts.login)
    if facts.broken:
        found.append(error("conversation", facts.broken, _broken_advice(facts)))
    if facts.server is not None:
        server = facts.server
        for check in _SERVER_CHECKS:
            found += check(server)
        found += _cluster(server, bool(facts.config.cluster))
        found += _memory(server, wanted)
        found += _room(server, wanted)
        if not facts.config.cluster:
            found += agreed(server, facts.config.prefix, wanted)
        found += policies(server)
    return found


# The way there ------------------------------------------------------------------------------------


def _reach(config: StoreConfig, reach: Reach) -> Iterator[Finding]:
    if reach.resolve_error:
        yield error(
            "name",
            f"{config.host} has no address: {reach.resolve_error}",
            "correct redis-endpoint, or the resolver of this machine",
        )
        return
    addresses = ", ".join(reach.addresses)
    yield ok("name", addresses if addresses == config.host else f"{config.host} is {addresses}")
    if reach.connect_error:
        yield error(
            "connect",
            f"no connection to port {config.port}: {reach.connect_error}",
            "nodes reach the store from their management interface: look at routes, security groups and the port",
        )
    else:
        yield ok("connect", f"port {config.port} answers")


def _tls(config: StoreConfig, tls: Tls | None) -> Iterator[Finding]:
    if tls is None:
        yield warning(
            "tls",
            "not used: password and sessions can be read on the way",
            "switch on the server's in-transit encryption and leave out --no-tls; "
            "nodes refuse a store without TLS unless it is on loopback",
        )
        return
    shown = f"{tls.version}, certificate of {tls.subject or 'nobody'}, issued by {tls.issuer or 'nobody'}"
    if tls.error:
        seen = f" ({shown})" if tls.seconds_left is not None else ""
        yield error("tls", f"not verified: {tls.error}{seen}", _tls_advice(config, tls))
        return
    against = "the given authority" if config.ca_pem else "the system's authorities"
    yield ok("tls", f"{shown}, verified against {against}")
    if tls.seconds_left is None:
        return
    days = int(tls.seconds_left // _DAY_S)
    if days < CERTIFICATE_DAYS_MIN:
        yield warning(
            "certificate",
            f"expires in {days} day{'' if days == 1 else 's'}",
            "renew it: nodes cannot connect again after that, live sessions go on",
        )
    else:
        yield ok("certificate", f"expires in {days} days")


def _tls_advice(config: StoreConfig, tls: Tls) -> str:
    if tls.seconds_left is None:
        return "switch on the server's in-transit encryption, or name the port that has it"
    if tls.seconds_left < 0:
        return "renew the server's certificate"
    if "mismatch" in tls.error:
        return (
            f"{config.server_name or config.host} is not in it: everwall-redis-server-name says another name"
        )
    return "name the authority that issued it: redis-certificate, base64 of its certificate"


def _login(config: StoreConfig, login: Login) -> Iterator[Finding]:
    user = f"user {config.username}" if config.username else "the default user"
    if login.error:
        yield error("auth", login.error, _auth_advice(login.error))
    elif login.needless:
        yield warning(
            "auth",
            "a password was given and the server has none: whoever reaches the port can write",
            "set a password on the server (requirepass, AUTH token or ACL user)",
        )
    elif login.open and config.password is None:
        yield warning(
            "auth",
            "the default user needs no password: whoever reaches the port can delete every session",
            "set a password on the server and redis-auth on the nodes",
        )
    elif login.open:
        yield warning(
            "auth",
            f"{user} is accepted, and so is the default user without a password",
            "switch the default user off (ACL SETUSER default off) or give it a password",
        )
    else:
        yield ok("auth", f"{user} is accepted")


def _auth_advice(text: str) -> str:
    code = text.split(" ", 1)[0]
    if code == "NOAUTH":
        return "give the password: redis-auth in init-cfg.txt, --redis-auth-file here"
    if code == "WRONGPASS":
        return "the password or the user is another; after a rotation every node needs the new one"
    if code == "LOADING":
        return "the server reads its data from disk: ask again when it is done"
    return "ask the server's log"


def _broken_advice(facts: StoreFacts) -> str:
    if facts.login is not None:
        return "see whether the server was restarted, or is overloaded"
    if facts.tls is None:
        return "if the server speaks TLS on this port, leave out --no-tls"
    return (
        "it may want a certificate of its clients, which nodes do not have (tls-auth-clients no); see its log"
    )


# The server ---------------------------------------------------------------------------------------


def _permissions(server: Server) -> Iterator[Finding]:
    if server.refused:
        names = ", ".join(sorted(server.refused))
        yield error(
            "permissions",
            f"refused: {names} ({next(iter(server.refused.values()))})",
            "let the user do what docs/store.md lists, on keys that begin with the prefix in braces",
        )
    else:
        yield ok("permissions", "every command that nodes give is allowed on their keys")


def _version(server: Server) -> Iterator[Finding]:
    if server.info_error:
        yield warning("version", f"not known, INFO: {server.info_error}", "allow INFO to this user")
        return
    valkey = server.info.get("valkey_version")
    name, version = ("valkey", valkey) if valkey else ("redis", server.info.get("redis_version", ""))
    least = _VALKEY_MIN if valkey else _REDIS_MIN
    major = _whole(version.split(".", 1)[0])
    if major < least:
        yield error(
            "version",
            f"{name} {version or 'of unknown version'}",
            f"take redis {_REDIS_MIN} or valkey {_VALKEY_MIN}, or newer",
        )
    else:
        yield ok("version", f"{name} {version}")


def _role(server: Server) -> Iterator[Finding]:
    if server.info.get("redis_mode") == "sentinel":
        yield error(
            "role",
            "a Sentinel, which holds no sessions",
            "name it with everwall-redis-sentinel, and what it calls the store with everwall-redis-sentinel-service",
        )
        return
    role = server.info.get("role")
    if role is None:
        return
    if role != "master":
        link = server.info.get("master_link_status", "unknown")
        yield error(
            "role",
            f"a replica of {server.info.get('master_host', '?')} (link {link}): writes are refused",
            "name the primary's endpoint, the one that follows a failover",
        )
        return
    yield ok("role", "primary")
    replicas = [
        dict(word.partition("=")[::2] for word in value.split(","))
        for name, value in server.info.items()
        if name.startswith("slave") and name[5:].isdigit()
    ]
    if not replicas:
        yield warning(
            "replication",
            "no replica: when this server dies, what it holds is gone until nodes have written it anew",
            "add a replica with automatic failover",
        )
    for replica in replicas:
        where = f"{replica.get('ip', '?')}:{replica.get('port', '?')}"
        state, lag = replica.get("state", "?"), replica.get("lag", "?")
        if state != "online":
            yield warning(
                "replication", f"replica {where} is {state}", "wait until it is online, or see its log"
            )
        elif _whole(lag, REPLICA_LAG_S_MAX + 1) > REPLICA_LAG_S_MAX:
            yield warning(
                "replication",
                f"replica {where} was last heard of {lag} s ago",
                "a failover now would lose what was written since: look at its network and load",
            )
        else:
            yield ok("replication", f"replica {where} is online, lag {lag} s")


def _cluster(server: Server, wanted: bool) -> Iterator[Finding]:
    if server.info.get("cluster_enabled") == "1":
        if not wanted:
            yield error(
                "cluster",
                "a shard of a cluster, spoken to as if it were all of it: keys of others are answered with MOVED",
                "name its nodes with everwall-redis-cluster instead of redis-endpoint, or switch cluster mode off",
            )
    elif "cluster_enabled" in server.info:
        yield ok("cluster", "cluster mode is off")


def _persistence(server: Server) -> Iterator[Finding]:
    info = server.info
    if "aof_enabled" not in info:
        return
    if info.get("loading") == "1":
        yield warning("persistence", "the server reads its data from disk", "ask again when it is done")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error(
            "persistence",
            "the last snapshot failed: a server refuses writes then (stop-writes-on-bgsave-error)",
            "make room on its disk, or switch snapshots off: save ''",
        )
    elif info["aof_enabled"] == "1":
        yield ok(
            "persistence", "append-only file: not needed, nodes write their sessions anew; it costs speed"
        )
    else:
        yield ok("persistence", "no append-only file; snapshots, if any, need memory for the copy")


def _memory(server: Server, wanted: Size | None) -> Iterator[Finding]:
    info = server.info
    if "used_memory" not in info:
        return
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    if not limit:
        enough = amount(wanted.maxmemory) if wanted else "what `everwall size` says"
        yield warning(
            "maxmemory",
            f"no limit, {amount(used)} used: the system may kill the server before it says no",
            f"set maxmemory to {enough}, at most three quarters of the machine's memory",
        )
    else:
        yield ok("maxmemory", f"{amount(limit)}, {amount(used)} used")
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        yield warning(
            "maxmemory-policy",
            f"{policy}: a full server throws away whole buckets, about 64 sessions each, and tells nobody",
            "set maxmemory-policy noeviction: a full server then refuses writes, and nodes show that",
        )
    else:
        yield ok("maxmemory-policy", "noeviction")
    evicted = _number(info, "evicted_keys")
    if evicted:
        yield warning(
            "evictions",
            f"{evicted:,} keys were evicted since the server started",
            "sessions are missing: give it more memory, and noeviction",
        )
    elif "evicted_keys" in info:
        yield ok("evictions", "none")


def _compact(server: Server) -> Iterator[Finding]:
    figures = SERVERS[_kind(server)]
    cost = f"{figures.session_hashed.bytes:g} instead of {figures.session.bytes:g} bytes a session"
    advice = "set hash-max-listpack-entries 512 and hash-max-listpack-value 64, as servers come"
    if not server.settings:
        why = f"CONFIG cannot be read here ({server.settings_error.split(' ', 1)[0]})"
        if server.compact in ("listpack", "ziplist"):
            yield ok("compact-buckets", f"{why}; a full bucket was tried and is kept compact")
        elif server.compact:
            yield warning(
                "compact-buckets", f"{why}; a full bucket was tried: {server.compact}, {cost}", advice
            )
        else:
            yield warning(
                "compact-buckets",
                f"not known: {why}, and a bucket could not be tried",
                "look at hash-max-listpack-entries (512) and hash-max-listpack-value (64) in the parameter group",
            )
        return
    entries = _number(server.settings, "hash-max-listpack-entries")
    value = _number(server.settings, "hash-max-listpack-value")
    if entries < BUCKET_FIELDS_SEEN or value < RECORD_BYTES_MAX:
        yield warning(
            "compact-buckets",
            f"hash-max-listpack-entries {entries}, -value {value}: too small for buckets, {cost}",
            advice,
        )
    else:
        yield ok("compact-buckets", f"hash-max-listpack-entries {entries}, -value {value}")


def _clock(server: Server) -> Iterator[Finding]:
    if server.skew_ns is None:
        return
    text = f"the server's clock is {abs(server.skew_ns) / MS_NS:,.1f} ms {'ahead' if server.skew_ns > 0 else 'behind'}"
    if abs(server.skew_ns) > SKEW_NS_MAX:
        yield warning(
            "clock",
            text,
            f"sessions go by store time alone, logs and certificates do not: synchronise both "
            f"(more than {SKEW_NS_MAX / SECOND_NS:g} s apart)",
        )
    else:
        yield ok("clock", text)


def _round_trip(server: Server) -> Iterator[Finding]:
    trips = server.round_trips_ns
    if not trips:
        return
    middle, high = percentile_ns(trips, 0.5), percentile_ns(trips, 0.99)
    text = f"p50 {middle / MS_NS:.2f} ms, p99 {high / MS_NS:.2f} ms, of {len(trips)}"
    deadline = f"a look-up that takes {LOOKUP_DEADLINE_NS // MS_NS} ms has failed"
    if middle >= LOOKUP_DEADLINE_NS:
        yield error("round-trip", text, f"{deadline}: take a store that is near the firewalls")
    elif high >= LOOKUP_DEADLINE_NS:
        yield warning("round-trip", text, f"{deadline}: see what holds the server or the network up")
    elif middle > SAME_ZONE_NS_MAX:
        yield warning(
            "round-trip",
            text,
            "this is not the same zone, or a busy server: the first packet of every moved flow waits that long",
        )
    else:
        yield ok("round-trip", text)


_SERVER_CHECKS: tuple[Callable[[Server], Iterator[Finding]], ...] = (
    _permissions,
    _version,
    _role,
    _persistence,
    _compact,
    _clock,
    _round_trip,
)


# Room ---------------------------------------------------------------------------------------------


def _room(server: Server, wanted: Size | None) -> Iterator[Finding]:
    if wanted is None or "used_memory" not in server.info:
        return
    need = wanted.data + wanted.headroom
    used = _number(server.info, "used_memory")
    limit = _number(server.info, "maxmemory") or _number(server.info, "total_system_memory")
    if not limit:
        return
    free = max(limit - used, 0)
    text = f"{wanted.sessions:,} sessions need {amount(need)} with head-room, {amount(free)} are free"
    if need <= free:
        yield ok("room", text)
    elif need <= limit:
        yield warning(
            "room",
            f"{text} of {amount(limit)}",
            "enough if what is stored now are these sessions; otherwise give the server more memory",
        )
    else:
        yield error(
            "room",
            f"{text} of {amount(limit)}: new sessions would be refused",
            f"give it {amount(wanted.maxmemory)} (`everwall size` has the sum)",
        )


def _number(facts: dict[str, str], name: str) -> int:
    return _whole(facts.get(name, ""))


def _whole(text: str, otherwise: int = 0) -> int:
    """A whole number, as servers write them."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


def _kind(server: Server) -> str:
    """The row of the table of sizes that is nearest to this server."""
    valkey = server.info.get("valkey_version", "")
    if not valkey:
        return "redis7"
    return "valkey8" if valkey.startswith("8.") else "valkey9"


def kind_of(facts: StoreFacts) -> str:
    """The same of what was collected; redis7 where no server answered."""
    return _kind(facts.server) if facts.server is not None else "redis7"
