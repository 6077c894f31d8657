"""``everwall size``: the memory that sessions need."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from everwall.cli.common import fail
from everwall.doctor.sizing import (
    BUFFERS,
    CHURN,
    RESERVED,
    SERVERS,
    VENDOR_SESSION_BYTES,
    Size,
    SizeError,
    amount,
    size,
)


class Server(StrEnum):
    """The rows of the table of sizes."""

    redis7 = "redis7"
    valkey8 = "valkey8"
    valkey9 = "valkey9"


assert {server.value for server in Server} == SERVERS.keys()


def command(
    sessions: Annotated[int, typer.Option(help="Sessions of each firewall, at most.")],
    firewalls: Annotated[int, typer.Option(help="Firewalls that share the store.")],
    host_names: Annotated[int, typer.Option(help="Different host names among all sessions.")] = 0,
    replicas: Annotated[int, typer.Option(help="Copies of the store beside the primary.")] = 0,
    server: Annotated[Server, typer.Option(help="What the store is.")] = Server.redis7,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; sizes in bytes.")] = False,
) -> None:
    """How much memory the session store and the firewalls need, with the other vendor's formula beside it.

    Ends with 1 when the numbers make no sense.
    """
    try:
        found = size(sessions, firewalls, host_names, replicas, server.value)
    except SizeError as error:
        fail(f"--{error}")
    typer.echo(
        json.dumps(asdict(found)) if as_json else "\n".join(lines(found, sessions, firewalls, replicas))
    )


def lines(found: Size, sessions: int, firewalls: int, replicas: int) -> list[str]:
    """The answer, a row for each part of the sum."""
    per_session, per_name = found.session_bytes, found.host_name_bytes
    rows = [
        ("the other vendor's formula", found.vendor, f"{VENDOR_SESSION_BYTES} bytes a session"),
        (
            "sessions here",
            found.data - found.host_names,
            f"{per_session.bytes:g} bytes a session ({per_session.source})",
        ),
    ]
    if found.host_names:
        rows.append(("host names", found.host_names, f"{per_name.bytes:g} bytes a name ({per_name.source})"))
    rows += [
        (
            "head-room",
            found.headroom,
            f"{CHURN:.0%} dead records until their expiry, {BUFFERS:.0%} clients that are behind",
        ),
        (
            "server and connections",
            found.fixed,
            "empty server, connections of the nodes" + (", backlog of replication" if replicas else ""),
        ),
        ("maxmemory", found.maxmemory, "the sum; with maxmemory-policy noeviction"),
    ]
    width = max(len(name) for name, _, _ in rows)
    table = [f"{name:<{width}}  {amount(count):>12}  {why}" for name, count, why in rows]
    copies = (
        f"{found.servers} machines of that size, the primary and its copies" if replicas else "one machine"
    )
    if found.machine_gb:
        machine = f"Each server needs a machine with {found.machine_gb} GB of memory: {copies}."
    else:
        machine = f"No usual machine is that large: divide the firewalls among several stores ({copies})."
    return [
        f"{found.sessions:,} sessions: {sessions:,} on each of {firewalls:,} firewalls",
        "",
        *table,
        "",
        machine,
        f"{RESERVED:.0%} of its memory stay free, for fragmentation and for copies while a replica is filled.",
        f"Each firewall needs {amount(found.node)} for its own table of {sessions:,} sessions, with one worker.",
    ]
