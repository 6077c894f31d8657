"""``everwall replay``: what would the firewall do with this capture?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everwall.cli.common import ACCEPT_PORTS_OPTION, fail

if TYPE_CHECKING:
    from everwall.replay import Report

_WIDTH_OF_FILES = 240
"""Columns where nobody looks: nothing is folded."""
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Captures, pcap or pcapng.")],
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Decide by this policy, YAML or bootstrap.xml.  [default: allow all]"
        ),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there; - for stdout.")
    ] = None,
    handover_after: Annotated[
        int | None,
        typer.Option(metavar="K", help="Move every flow to a second engine after its K-th packet.", min=1),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many flows on the screen.", min=0)] = 50,
    accept_ports: Annotated[bool, ACCEPT_PORTS_OPTION] = False,
) -> None:
    """Judge the packets of captures as a firewall would, in the capture's own time, without privileges.

    Reads Ethernet, raw IP and Linux cooked captures, bare or inside GENEVE; several files are merged by
    time. Ends with 1 when a file could not be read to its end; what was read is reported all the same.
    """
    from everwall.config import ConfigError
    from everwall.policy.compile import Loaded, compile_policy, default_names
    from everwall.policy.files import read_policy_file
    from everwall.policy.match import allow_all
    from everwall.policy.settings import DEFAULT_SETTINGS
    from everwall.warm import is_warm

    try:
        written = read_policy_file(policy, accept_ports) if policy else None
        loaded = Loaded(written, *compile_policy(written)) if written else None
    except ConfigError as error:
        fail(str(error))
    if not is_warm():
        typer.echo("compiling the engine, once for each version (everwall warm does it ahead)", err=True)
    from everwall.replay import replay

    began = time.monotonic()
    report = replay(
        files,
        loaded.compiled if loaded else allow_all(),
        (loaded.names if loaded else default_names()).rule,
        handover_after or 0,
        loaded.policy.settings if loaded else DEFAULT_SETTINGS,
    )
    seconds = time.monotonic() - began
    text = json.dumps(report.as_json(seconds), indent=1)
    if as_json == Path("-"):
        typer.echo(text)
    else:
        if as_json:
            _write(as_json, text)
        _print(report, limit, seconds)
    for problem in report.errors:
        typer.echo(f"everwall: {problem}", err=True)
    if report.errors:
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


def _print(report: Report, limit: int, seconds: float) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    if report.flows[:limit]:
        console.print(_flow_table(report.flows[:limit]))
    if len(report.flows) > limit:
        console.print(f"... and {len(report.flows) - limit} flows more (--limit, --json)")
    dropped = sum(report.drops.values())
    console.print(
        f"{report.packets} packets in {seconds:.2f} s, {len(report.flows)} flows, {dropped} dropped"
    )
    for name, count in report.drops.items():
        console.print(f"  {name:<24}{count:>10}")
    if report.frames_without_ip:
        console.print(f"{report.frames_without_ip} frames without IP were passed over")
    if report.handed_over:
        console.print(f"{report.handed_over} flows went on in another engine")


def _flow_table(flows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    endpoints = any(flow["endpoint"] for flow in flows)
    titles = ["proto", "from", "to", "packets", "bytes", "state", "end", "rule", "verdict"]
    for title in (["endpoint"] if endpoints else []) + titles:
        table.add_column(title, justify="right" if title in ("packets", "bytes") else "left", overflow="fold")
    for flow in flows:
        cells = [
            _PROTOCOLS.get(flow["proto"], str(flow["proto"])),
            _end(flow["src"], flow["sport"]),
            _end(flow["dst"], flow["dport"]),
            str(flow["packets"]),
            str(flow["bytes"]),
            flow["state"],
            flow["end"] or "",
            escape(flow["rule"] or ""),
            flow["verdict"],
        ]
        table.add_row(*([f"{flow['endpoint']:x}"] if endpoints else []), *cells)
    return table


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
