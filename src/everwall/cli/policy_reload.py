"""``everwall policy reload``: a running firewall reads its policy again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from everwall.cli.common import CONTROL_OPTION, fail
from everwall.limits import RELOAD_TIMEOUT_S, RESYNC_WATCH_S
from everwall.management.control import request


def command(
    control: Annotated[Path, CONTROL_OPTION],
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until every live session was asked about again.")
    ] = RELOAD_TIMEOUT_S,
) -> None:
    """Read the bootstrap's policy again and decide by it from now on; SIGHUP does the same.

    A file with a mistake changes nothing. No packet is lost; live sessions that the policy refuses now end, all
    others go on. Ends with 1 when nobody answers, the file is wrong, or not all sessions were asked about in time.
    """
    before = _ask(control, "status")
    facts = _ask(control, "reload", timeout_s=RELOAD_TIMEOUT_S)
    for warning in facts["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(facts["summary"])
    typer.echo(f"read in {facts['read_ms']:,.0f} ms; packets waited for {facts['packets_waited_us']:,.0f} us")
    deadline = time.monotonic() + timeout
    while facts["rematch_percent"] < 100:
        if time.monotonic() > deadline:
            fail(f"only {facts['rematch_percent']} % of the sessions were asked about in {timeout:g} s")
        time.sleep(RESYNC_WATCH_S)
        facts = _ask(control, "status")
    ended = facts["ruled_out"] - before["ruled_out"]
    typer.echo(f"live sessions asked about again: {ended:,} ended, the others go on")


def _ask(control: Path, do: str, **options: Any) -> dict[str, Any]:
    try:
        answer = request(control, "policy", do=do, **options)
    except OSError as error:
        fail(f"{control}: {error.strerror or error}")
    if not answer["ok"]:
        fail(answer["error"])
    return answer
