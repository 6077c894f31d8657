"""``everwall resiliency``: session resiliency of a running firewall, switched on and off."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from everwall.cli.common import CONTROL_OPTION, fail
from everwall.limits import RESYNC_WATCH_S
from everwall.management.control import request


class Switch(StrEnum):
    """What to do."""

    on = "on"
    off = "off"
    status = "status"


def command(
    switch: Annotated[Switch, typer.Argument(help="Switch on or off, or only tell.")],
    control: Annotated[Path, CONTROL_OPTION],
    timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait, after `on`, until the store has every live session."),
    ] = 120.0,
) -> None:
    """Switch session resiliency of a running firewall on or off; `on` shows how far the store is.

    Off: nothing is written and nothing looked up; records in the store are left to expire. Ends with 1 when nobody
    answers, the firewall has no store to speak to, or the store has not every session in time.
    """
    facts = _ask(control, switch)
    typer.echo(f"session resiliency is {'on' if facts['enabled'] else 'off'}: {facts['why']}")
    if switch is Switch.off or not facts["enabled"]:
        return
    said, deadline = "", time.monotonic() + timeout
    while True:
        line = _line(facts)
        if line != said:
            typer.echo(line)
            said = line
        if switch is Switch.status or (facts["connected"] and facts["resync_percent"] == 100):
            return
        if time.monotonic() > deadline:
            fail(f"the store has not every session after {timeout:g} s")
        time.sleep(RESYNC_WATCH_S)
        facts = _ask(control, Switch.status)


def _ask(control: Path, switch: Switch) -> dict[str, Any]:
    try:
        answer = request(control, "resiliency", switch=switch.value)
    except OSError as error:
        fail(f"{control}: {error.strerror or error}")
    if not answer["ok"]:
        fail(answer["error"])
    return answer


def _line(facts: dict[str, Any]) -> str:
    if not facts["connected"]:
        return "the store does not answer"
    return f"resync {facts['resync_percent']} %, unsynced sessions {facts['unsynced_sessions']:,}"
