"""``everwall lab``: a whole cluster on this machine, real connections, and a failure to watch."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from everwall.cli.common import fail
from everwall.limits import WORKERS_MAX

if TYPE_CHECKING:
    from everwall.lab.capabilities import Choice


class Fail(StrEnum):
    """How the victim fails."""

    KILL = "kill"
    DRAIN = "drain"
    HANG = "hang"
    PARTITION = "partition"
    ISOLATE = "isolate"
    STORE = "store"


class Resiliency(StrEnum):
    """With session resiliency, without, or both one after the other."""

    BOTH = "both"
    ON = "on"
    OFF = "off"


class Rung(StrEnum):
    """How much of the real thing the machine allows."""

    AUTO = "auto"
    ROOT = "root"
    USER_NAMESPACE = "user-namespace"
    LOOPBACK = "loopback"


class Port(StrEnum):
    """How packets come to the firewalls."""

    AUTO = "auto"
    XDP = "xdp"
    RAW = "raw"
    UDP = "udp"


class CutThrough(StrEnum):
    """Whether established flows are answered in the kernel."""

    ON = "on"
    OFF = "off"


def command(
    firewalls: Annotated[int, typer.Option(help="Firewalls in the cluster.", min=2, max=16)] = 3,
    connections: Annotated[int, typer.Option(help="TCP connections.", min=1, max=5000)] = 300,
    how: Annotated[
        Fail,
        typer.Option(
            "--fail",
            help="kill: SIGKILL. drain: deregistered, then SIGTERM. hang: SIGSTOP. "
            "partition: data network cut, management stays. isolate: both cut. "
            "(After hang, partition, isolate the firewall is back at two thirds.) "
            "store: the store is killed and comes back empty; then as kill, once it was filled again.",
        ),
    ] = Fail.KILL,
    seconds: Annotated[float, typer.Option(help="Length of a run; the event comes at a third.", min=6)] = 30,
    resiliency: Annotated[
        Resiliency,
        typer.Option(help="Run with session resiliency, without it, or first with and then without."),
    ] = Resiliency.BOTH,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the last run's cluster running, and say how to look inside.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.", dir_okay=False)
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="Write a row per connection and all logs here.", file_okay=False)
    ] = None,
    rung: Annotated[
        Rung,
        typer.Option(
            help="root: namespaces and real TCP. user-namespace: the same without root. "
            "loopback: packets, where nothing is allowed."
        ),
    ] = Rung.AUTO,
    port: Annotated[
        Port, typer.Option(help="How packets come to the firewalls: the best that works here, or this one.")
    ] = Port.AUTO,
    cut_through: Annotated[
        CutThrough, typer.Option(help="Established flows are answered in the kernel (xdp port only).")
    ] = CutThrough.ON,
    workers: Annotated[int, typer.Option(help="Workers of each firewall.", min=1, max=WORKERS_MAX)] = 1,
    sweep: Annotated[bool, typer.Option("--sweep", help="Only end what --keep left running.")] = False,
) -> None:
    """Watch connections live through the death of the firewall that carried them.

    Builds clients, servers, a load balancer, firewalls and a store on this machine, fills the cluster with
    traffic and makes the firewall that carries most of it fail. The load balancer learns of that by its
    health checks alone. Ends with 1 when a promise was broken.
    """
    from everwall.lab import capabilities, lab, report, user_namespace
    from everwall.lab.measure import Run, broken_promises
    from everwall.lab.processes import LabError
    from everwall.lab.run import Options

    console = Console(stderr=False, highlight=False)
    runs: list[Run] = []
    error: str | None = None
    inside: list[str] = []
    modes = {"both": [True, False], "on": [True], "off": [False]}[resiliency.value]
    if keep:
        modes.reverse()  # the one worth looking at stays
    status = console.status("preparing")

    def progress(line: str) -> None:
        if console.is_terminal:
            status.update(line)
        elif line.partition(";")[0] not in said:
            said.add(line.partition(";")[0])
            console.print(line)

    said: set[str] = set()

    def finished(run: Run) -> None:
        runs.append(run)
        if evidence is not None:
            report.write_evidence(evidence, run)

    try:
        with lab.ended_by_signals(), status:
            if sweep:
                lab.sweep()
                return
            lab.prepare(progress)
            chosen = capabilities.choose(
                None if rung is Rung.AUTO else rung.value, None if port is Port.AUTO else port.value
            )
            if chosen.rung == capabilities.USER_NAMESPACE and not user_namespace.is_inside():
                status.stop()
                _say_rung(console, chosen)
                user_namespace.enter([sys.executable, "-m", "everwall", *sys.argv[1:]])
            bounce = chosen.port == capabilities.XDP and cut_through is CutThrough.ON
            if not user_namespace.is_inside():  # it was said before we came here
                _say_rung(console, chosen)
            _say_port(console, chosen, bounce)
            if how in (Fail.PARTITION, Fail.ISOLATE) and chosen.rung == capabilities.LOOPBACK:
                raise LabError(
                    f"--fail {how.value} needs network namespaces: {chosen.why_rung or 'not on loopback'}"
                )
            options = Options(
                firewalls,
                connections,
                how.value,
                seconds,
                evidence=evidence,
                port=chosen.port,
                cut_through=bounce,
                workers=workers,
            )
            for number, resilient in enumerate(modes):
                stays = keep and number == len(modes) - 1
                said.clear()
                console.print(f"[bold]Session resiliency {'on' if resilient else 'off'}[/bold]")
                inside = lab.perform(replace(options, keep=stays), chosen.rung, resilient, progress, finished)
    except (LabError, OSError) as problem:
        error = str(problem)
    except KeyboardInterrupt:
        error = "interrupted"
    runs.sort(key=lambda run: run.resiliency, reverse=True)
    if json_file is not None:
        report.write_json(json_file, runs, error)
    report.show(console, runs)
    if inside:
        console.print("The cluster is still running. To look inside:", *inside, sep="\n  ")
        console.print("It ends with the next 'everwall lab', or with 'everwall lab --sweep'.")
    if error is not None:
        fail(error)
    if any(broken_promises(run) for run in runs):
        raise typer.Exit(1)


_RUNGS = {
    "root": "Network namespaces, real TCP connections, a real store with TLS.",
    "user-namespace": "Network namespaces of an unprivileged user, real TCP connections, a real store with TLS.",
    "loopback": "Packet-level flows over loopback UDP.",
}


def _say_rung(console: Console, chosen: Choice) -> None:
    why = f" ({chosen.why_rung})" if chosen.why_rung else ""
    console.print(f"Rung: {chosen.rung}{why}. {_RUNGS[chosen.rung]}")


def _say_port(console: Console, chosen: Choice, bounce: bool) -> None:
    how = "established flows are answered in the kernel" if bounce else "every packet goes through the engine"
    why = f" ({chosen.why})" if chosen.why else ""
    console.print(f"Port of the firewalls: {chosen.port}{why}; {how}.")
