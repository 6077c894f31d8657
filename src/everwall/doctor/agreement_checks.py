"""What the nodes of a cluster have agreed on in a store: the number of buckets, the time, their policies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everwall.doctor.findings import Finding, error, ok, warning
from everwall.doctor.sizing import Size
from everwall.doctor.store_facts import Server, clock_key, meta_key
from everwall.limits import (
    BUCKET_SESSIONS_HIGH,
    BUCKET_SESSIONS_LOW,
    CLOCK_AHEAD_MAX_S,
    CLOCK_PAUSE_S,
    SECOND_NS,
    SKEW_NS_MAX,
)
from everwall.store.layout import LayoutError, parse
from everwall.store.members import by_checksum
from everwall.store.protocol import buckets_for

_SECOND_US = 1_000_000


def agreed(server: Server, prefix: str, wanted: Size | None) -> Iterator[Finding]:
    """What stands under the keys that all nodes share; in a cluster one shard has them. Without ``wanted`` the number
    of buckets is not judged."""
    yield from _buckets(server, prefix, wanted)
    yield from _store_time(server, prefix)


def _buckets(server: Server, prefix: str, wanted: Size | None) -> Iterator[Finding]:
    key = meta_key(prefix)
    if server.buckets_error:
        if "GET" not in server.refused:
            yield _no_buckets(f"{key}: {server.buckets_error}", server.buckets_error.split(" ", 1)[0])
        return
    if server.buckets is None:
        yield ok("buckets", f"{key} is not set yet: the first node does that")
        return
    try:
        layout = parse(server.buckets.encode())
    except LayoutError as wrong:
        yield error(
            "buckets",
            f"{key} {wrong}",
            "nodes refuse this store: give them one release, or delete the key and the buckets beside it",
        )
        return
    agreed = layout.current.buckets
    if wanted is None:
        yield ok("buckets", f"{agreed:,} agreed")
        return
    each = wanted.sessions / agreed
    advice = (
        f"{buckets_for(wanted.sessions):,} would fit: everwall store buckets "
        f"{buckets_for(wanted.sessions)}, on one of the nodes"
    )
    if each > BUCKET_SESSIONS_HIGH:
        yield warning(
            "buckets",
            f"{agreed:,} agreed, {each:,.0f} sessions in each when full: long to search, at last not compact",
            advice,
        )
    elif each < BUCKET_SESSIONS_LOW:
        yield warning(
            "buckets", f"{agreed:,} agreed, {each:,.1f} sessions in each when full: memory is lost", advice
        )
    else:
        yield ok("buckets", f"{agreed:,} agreed, {each:,.0f} sessions in each when full")


def _no_buckets(text: str, code: str) -> Finding:
    """The key could not be read, and not for want of permission."""
    if code in ("MOVED", "ASK"):
        return warning("buckets", f"{text}: in another shard, and not looked at", "ask that one too")
    if code == "CLUSTERDOWN":
        return error("buckets", text, "the cluster does not serve all its slots: CLUSTER INFO")
    if code == "WRONGTYPE":
        return error("buckets", text, "another program uses this key: give the cluster a server of its own")
    return error("buckets", text, "ask the server's log")


def _store_time(server: Server, prefix: str) -> Iterator[Finding]:
    """How far store time is ahead of the server's clock (``store/scripts/clock.lua``)."""
    key = clock_key(prefix)
    if server.told_error:
        if server.told_error.startswith("WRONGTYPE"):
            yield _no_time(f"{key}: {server.told_error}")
        return
    if server.told is None:
        yield ok("store-time", "the server's clock: no node has asked yet")
        return
    if server.now_us is None:  # it may not be asked for, as is said of permissions
        return
    found = re.fullmatch(r"([0-9]{1,19}) ([0-9]{1,19})", server.told)
    if found is None:
        yield _no_time(f"{key} is no time: {server.told[:40]!r}")
        return
    latest_us, ahead_us = map(int, found.groups())
    silent_s = (server.now_us + ahead_us - latest_us) / _SECOND_US
    ahead_us = max(ahead_us, latest_us - server.now_us)
    text = f"{ahead_us / _SECOND_US:,.3f} s ahead of the server's clock"
    if latest_us > server.now_us + CLOCK_AHEAD_MAX_S * _SECOND_US:
        yield warning(
            "store-time",
            f"{key} is {ahead_us / _SECOND_US:,.0f} s ahead of the server's clock: not believed",
            "nodes go by that clock. It was set back by more than a day, or somebody else writes there: sessions of "
            "before may stand in the way of later ones between the same ends until they expire",
        )
    elif silent_s > CLOCK_PAUSE_S:
        yield ok("store-time", f"the server's clock: no node has asked for {silent_s:,.0f} s")
    elif ahead_us * 1000 > SKEW_NS_MAX:
        yield warning(
            "store-time",
            text,
            "that clock was set back, or the primary before had a later one: sessions are in order as they are. "
            f"Synchronise the clocks of all servers (more than {SKEW_NS_MAX / SECOND_NS:g} s)",
        )
    else:
        yield ok("store-time", text)


def _no_time(text: str) -> Finding:
    return warning(
        "store-time",
        text,
        "another program uses this key, and nodes write over it: give the cluster a server of its own",
    )


def policies(server: Server) -> Iterator[Finding]:
    groups = list(by_checksum(server.members).values())
    if not groups:
        yield ok("policies", "no node has told its policy within the last minute")
    elif len(groups) == 1:
        nodes = groups[0]
        text = f"{len(nodes)} nodes have" if len(nodes) > 1 else f"{nodes[0].node} alone has"
        yield ok("policies", f"{text} one policy: {nodes[0].policy} {nodes[0].checksum}")
    else:
        told = [
            f"{', '.join(node.node for node in nodes)} "
            f"({nodes[0].policy} {nodes[0].checksum}, {nodes[0].release})"
            for nodes in groups
        ]
        yield warning(
            "policies",
            f"policies differ: {'; '.join(told)}",
            "give all nodes one policy: a session that moves is judged by that of the node it comes to",
        )
