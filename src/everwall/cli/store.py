"""``everwall store``: the number of its buckets, and the cluster's secrets, changed under a running cluster."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from everwall.cli.common import CONTROL_OPTION, fail
from everwall.limits import RESYNC_WATCH_S
from everwall.management.control import request


class What(StrEnum):
    """What is changed."""

    buckets = "buckets"
    secrets = "secrets"


def command(
    what: Annotated[
        What,
        typer.Argument(
            help="buckets: how many there are, on all nodes at once, asked for on one of them. secrets: this node "
            "reads everwall-cluster-secret and -second in its init-cfg.txt again."
        ),
    ],
    control: Annotated[Path, CONTROL_OPTION],
    number: Annotated[
        int | None,
        typer.Argument(help="Of buckets: about a 64th of the cluster's sessions. None: only tell."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until the old buckets are empty.")
    ] = 600.0,
) -> None:
    """Change the session store under a running cluster; docs/store.md says how to go about it.

    Ends with 1 when nobody answers, the firewall refuses, or the change is not over in time; it goes on then.
    """
    if what is What.secrets:
        if number is not None:
            fail("secrets takes no number")
        told = _ask(control, "secrets")["secrets"]
        typer.echo(f"written with {told[0]}" + (f", read with {told[1]} as well" if len(told) > 1 else ""))
        return
    facts = _ask(control, "buckets", **({} if number is None else {"buckets": number}))
    said, deadline = "", time.monotonic() + timeout
    while True:
        line = _line(facts)
        if line != said:
            typer.echo(line)
            said = line
        change = facts["change"]
        if number is None or change is None or change["state"] == "settled":
            return
        if change["state"] == "given up":
            fail(change["error"])
        if change["state"] not in ("announced", "moving"):
            fail("the old buckets are asked until everything in them has expired")
        if time.monotonic() > deadline:
            fail(f"the change is not over after {timeout:g} s; it goes on")
        time.sleep(RESYNC_WATCH_S)
        facts = _ask(control, "buckets")


def _ask(control: Path, what: str, **arguments: int) -> dict[str, Any]:
    try:
        answer = request(control, what, **arguments)
    except OSError as error:
        fail(f"{control}: {error.strerror or error}")
    if not answer["ok"]:
        fail(answer["error"])
    return answer


def _line(facts: dict[str, Any]) -> str:
    if not facts["connected"]:
        return "the store does not answer"
    line = f"layout: {facts['layout']}; this node's sessions {facts['resync_percent']} %"
    change = facts["change"]
    if change is None:
        return line
    error = f"; {change['error']}" if change["error"] and change["state"] != "settled" else ""
    return (
        f"{line}; {change['state']}, looked through {change['percent']} %, moved {change['moved']:,}{error}"
    )
