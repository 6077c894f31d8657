"""What the lab tells at the end: a report to read, a JSON file, and evidence connection by connection."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from everwall.lab.measure import COMES_BACK, Connection, Probe, Run, broken_promises, histogram
from everwall.verdict import Verdict

_EVENTS = {
    "kill": "was killed (SIGKILL)",
    "drain": "was deregistered and drained",
    "hang": "was stopped in its tracks (SIGSTOP)",
    "partition": "was cut off the data network",
    "isolate": "was cut off everything: data, health checks and store",
    "store": "was killed (SIGKILL)",
}
_BAR = 28
_MEANINGS = {verdict.label: verdict.meaning for verdict in Verdict}


def show(console: Console, runs: Sequence[Run]) -> None:
    """Print the report of all runs."""
    if not runs:
        return
    console.print()
    console.print(_headline(runs))
    console.print(_figures(runs))
    for run in runs:
        console.print(_stalls(run))
    console.print(_nodes(runs))
    console.print(_drops(runs))
    console.print(_verdict(runs))


def _headline(runs: Sequence[Run]) -> Text:
    run = runs[0]
    text = Text()
    if run.resync:
        text.append("The store was killed and came back empty; once the firewalls had filled it again, ")
    text.append(f"{run.victim} {_EVENTS[run.fail]}", style="bold")
    text.append(f" while it carried {len(run.on_victim)} of {len(run.connections)} {_things(run)}.\n")
    for each in runs:
        lost = len(each.lost)
        style = "green" if (lost == 0) == (each.resiliency == "on") else "red"
        text.append(f"With resiliency {each.resiliency}: ")
        if lost:
            text.append(f"{lost} {_things(run)} lost", style=style)
            text.append(f", {len(each.connections) - lost} went on.\n")
        else:
            text.append(f"all {len(each.connections)} {_things(run)} went on", style=style)
            text.append(", none was lost.\n")
    if run.fail in COMES_BACK:
        text.append(f"{run.victim} came back at two thirds of the run.\n")
    return text


def _things(run: Run) -> str:
    return "connections" if run.traffic == "tcp" else "flows"


def _figures(runs: Sequence[Run]) -> Table:
    things = _things(runs[0])
    caption = (
        "gap: longest silence of a UDP flow of the victim from the event on\n"
        f"stall: longest time that data of one of the {things} waited for its answer, all {things}"
    )
    table = Table(title="Figures", title_justify="left", caption=caption, caption_justify="left")
    table.add_column(things)
    for run in runs:
        table.add_column(f"resiliency {run.resiliency}", justify="right")

    def row(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    row("before the event", [str(len(run.connections)) for run in runs])
    row("after it", [str(len(run.connections) - len(run.lost)) for run in runs])
    row("  on the victim", [str(len(run.on_victim)) for run in runs])
    row("lost in all", [str(len(run.lost)) for run in runs])
    row("  on the victim", [str(sum(bool(c.lost) for c in run.on_victim)) for run in runs])
    row("bytes verified", [_bytes(sum(c.verified for c in run.connections)) for run in runs])
    row("with wrong bytes", [str(sum(bool(c.corrupt) for c in run.connections)) for run in runs])
    row("detection", [_ms(run.detection_ms) for run in runs])
    if any(run.returned_ms is not None for run in runs):
        row("healthy after return", [_ms(run.returned_ms) for run in runs])
    row("gap p50 / p99 / max", [_three(run.gap_ms) for run in runs])
    row("stall p50 / p99 / max", [_three(run.stall_ms) for run in runs])
    row("UDP probes on victim", [str(len(run.probes_on_victim)) for run in runs])
    if any(run.icmp_flows for run in runs):
        row("ICMP flows went on", [f"{run.icmp_recovered} of {run.icmp_flows}" for run in runs])
    row("sessions restored", [f"{run.restored:,}" for run in runs])
    if any(run.flapped for run in runs):
        row("others marked unhealthy", [str(len(run.flapped)) for run in runs])
        row("  lost by that", [str(len(run.lost_by_flaps)) for run in runs])
    row("port of the firewalls", [_port(run) for run in runs])
    if any(run.workers > 1 for run in runs):
        row("workers of each", [str(run.workers) for run in runs])
    row("packets forwarded", [f"{run.forwarded:,}" for run in runs])
    if any(run.cut_through == "on" for run in runs):
        row("  answered in the kernel", [f"{run.bounced:,} ({run.bounced_share:.0%})" for run in runs])
    row("processors busy", [f"{run.cpu_share:.0%}" for run in runs])
    if any(run.resync for run in runs):
        row("resync after its loss", [_resync(run.resync) for run in runs])
    row("store", [_store(run.store) for run in runs])
    return table


def _stalls(run: Run) -> Table:
    """Bars of how long connections waited for an answer at the longest."""
    table = Table(
        title=f"Stalls, resiliency {run.resiliency}",
        title_justify="left",
        show_header=False,
        box=None,
    )
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    counted = histogram([each.stall_ms for each in run.connections])
    most = max((count for _, count in counted), default=0)
    low = 0
    for bound, count in counted:
        label = f"{low} to {bound} ms" if bound else f"over {low} ms"
        length = max(1, round(_BAR * count / most)) if count else 0
        table.add_row(label, str(count), "█" * length)
        low = bound or low
    return table


def _nodes(runs: Sequence[Run]) -> Table:
    table = Table(
        title="What each firewall carried, before and after the event",
        title_justify="left",
        caption="* the victim",
        caption_justify="left",
    )
    table.add_column("run")
    table.add_column("firewall")
    for name in ("flows", "after", "packets", "in kernel", "sessions", "restored"):
        table.add_column(name, justify="right")
    table.add_column("health")
    for run in runs:
        for node in run.nodes:
            table.add_row(
                run.resiliency if node is run.nodes[0] else "",
                f"{node.name} *" if node.victim else node.name,
                f"{node.flows_before:,}",
                f"{node.flows_after:,}",
                f"{node.packets:,}",
                f"{node.bounced:,}",
                "-" if node.sessions is None else f"{node.sessions:,}",
                "-" if node.restored is None else f"{node.restored:,}",
                node.health,
                style="bold" if node.victim else "",
            )
        table.add_section()
    return table


def _drops(runs: Sequence[Run]) -> Table:
    table = Table(title="Drops by name", title_justify="left")
    table.add_column("name")
    for run in runs:
        table.add_column(f"resiliency {run.resiliency}", justify="right")
    table.add_column("meaning")
    names = sorted({name for run in runs for name, count in run.drops.items() if count})
    for name in names:
        table.add_row(name, *(f"{run.drops.get(name, 0):,}" for run in runs), _MEANINGS.get(name, ""))
    if not names:
        table.add_row("none", *("0" for _ in runs), "")
    return table


def _verdict(runs: Sequence[Run]) -> Panel:
    lines = [f"resiliency {run.resiliency}: {line}" for run in runs for line in broken_promises(run)]
    if lines:
        return Panel("\n".join(lines), title="Broken promises", border_style="red", title_align="left")
    return Panel("Every promise was kept.", border_style="green")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


def _three(figures: dict[str, float | None]) -> str:
    if figures["max"] is None:
        return "-"
    return " / ".join(f"{value:,.0f}" for value in figures.values() if value is not None) + " ms"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _port(run: Run) -> str:
    return f"{run.port}, cut-through" if run.cut_through == "on" else run.port


def _resync(facts: dict[str, Any]) -> str:
    if not facts:
        return "-"
    missing = f", {facts['unsynced_sessions']:,} unsynced" if facts["unsynced_sessions"] else ""
    return f"{facts['percent']} % in {_ms(facts['took_ms'])}{missing}"


def _store(facts: dict[str, Any]) -> str:
    if not facts:
        return "-"
    words = [str(facts.get("server", ""))]
    words += ["TLS" if facts.get("tls") else "no TLS", "AUTH" if facts.get("auth") else "no AUTH"]
    return ", ".join(words)


def write_json(path: Path, runs: Sequence[Run], error: str | None = None) -> None:
    """Write the runs; ``error`` says why some are missing or unfinished."""
    content: dict[str, Any] = {"runs": [run.to_json() for run in runs]}
    if error is not None:
        content["error"] = error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_evidence(directory: Path, run: Run) -> None:
    """A row for each connection and for each UDP probe flow, and every counter that is not 0."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"counters-{run.resiliency}.json").write_text(json.dumps(run.counters, indent=2) + "\n")
    _table(directory / f"connections-{run.resiliency}.csv", Connection, run.connections)
    _table(directory / f"probes-{run.resiliency}.csv", Probe, run.probes)


def _table(path: Path, kind: type[Connection] | type[Probe], rows: Sequence[Connection | Probe]) -> None:
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, [each.name for each in fields(kind)])
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row))
