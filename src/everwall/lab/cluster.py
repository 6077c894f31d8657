"""A running cluster of the lab: store, load balancer and firewalls, started and watched.

Where its parts live (namespaces or loopback) is the business of a ``Site``; everything else is the
same on every rung.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from everwall.lab import configuration
from everwall.lab import store as stores
from everwall.lab.configuration import GatewayPlace, NodePlace
from everwall.lab.processes import ANSWER_DEADLINE_S, LabError, Program, Programs, wait_until
from everwall.lab.rundir import RunDirectory
from everwall.lab.traffic.driver import Traffic
from everwall.limits import BEAT_STALE_NS, SECOND_NS
from everwall.management.control import request

START_DEADLINE_S = 90.0
NODE_DRAIN_TIMEOUT_S = 60
RESYNC_DEADLINE_S = 30.0
"""A lab's few thousand sessions are written within a second; the rest is for reconnecting."""
_FLOWS_ASKED = 10_000


class Site(Protocol):
    """Where the parts of a lab live."""

    rung: str
    traffic: str
    """``tcp`` or ``packets``."""
    cut_through: bool
    """Firewalls have their established flows answered in the kernel."""
    nodes: list[NodePlace]
    gateway: GatewayPlace
    store_host: str
    store_port: int
    store_netns: str | None

    def build(self) -> None:
        """Prepare the places; raises LabError."""

    def connect(self) -> None:
        """Called once the load balancer and its endpoint exist."""

    def start_traffic(self, programs: Programs, connections: int, probes: int) -> Traffic:
        """Start the traffic programs; nothing is sent yet."""

    def cut_data(self, name: str) -> None:
        """Cut a firewall off the data network; raises LabError where that is impossible."""

    def cut_management(self, name: str) -> None:
        """Cut a firewall off the store; raises LabError where that is impossible."""

    def mend(self, name: str) -> None:
        """Undo what was cut."""

    def lost_packets(self) -> dict[str, int]:
        """Packets that the kernel dropped between the parts, by place."""

    def remove(self) -> None:
        """Remove whatever ``build`` made."""

    def look_inside(self, pid: int) -> list[str]:
        """Commands for a person who looks into a lab that was left running; ``pid``: one of its programs."""


class Cluster:
    """Store, load balancer and firewalls of one run."""

    def __init__(
        self, directory: RunDirectory, site: Site, programs: Programs, resiliency: bool, workers: int = 1
    ) -> None:
        self.directory = directory
        self.site = site
        self.programs = programs
        self.resiliency = resiliency
        self.workers = workers
        self.firewalls: dict[str, Program] = {}
        self.names: dict[str, str] = {}
        """The load balancer's target ids and the names of the firewalls behind them."""

    def control(self, name: str) -> Path:
        """The control socket of ``gwlb`` or of a firewall."""
        return self.directory.path / f"{name}.sock"

    # Start ---------------------------------------------------------------------------------------
    def start(self, progress: Callable[[str], None]) -> None:
        """Start everything and wait until every firewall is healthy; raises LabError."""
        site = self.site
        progress("starting the store")
        self.store = stores.start(self.programs, site.store_host, site.store_port, site.store_netns)
        progress("starting the load balancer")
        path = self.directory.path / "gwlb.yaml"
        configuration.write(path, configuration.gateway(site.gateway, site.nodes))
        place = site.gateway
        self.gateway = self._everwall("gwlb", ["gwlb", "--config", str(path)], place.netns, place.xdp_pass)
        progress(f"starting {len(site.nodes)} firewalls")
        secret = configuration.new_secret()
        for node in site.nodes:
            self._start_firewall(node, secret)
        wait_until("the load balancer", lambda: self._ready("gwlb"), START_DEADLINE_S, [self.gateway])
        site.connect()
        self.names = {str(target["id"]): self._name_of(target) for target in self.targets()}
        running = [self.gateway, *self.firewalls.values()]
        for name in self.firewalls:
            wait_until(f"firewall {name}", partial(self._active, name), START_DEADLINE_S, running)
        wait_until("healthy targets", self._all_healthy, START_DEADLINE_S, running)

    def _start_firewall(self, place: NodePlace, secret: str) -> None:
        folder = self.directory.path / place.name
        text = configuration.init_cfg(
            place, self.site.gateway.address, self.store, secret, self.resiliency, self.control(place.name)
        )
        configuration.write(folder / "init-cfg.txt", text)
        configuration.write(folder / "policy.yaml", configuration.policy())
        arguments = ["firewall", "--bootstrap", str(folder / "init-cfg.txt")]
        arguments += ["--drain-timeout", str(NODE_DRAIN_TIMEOUT_S), "--workers", str(self.workers)]
        self.firewalls[place.name] = self._everwall(place.name, arguments, place.netns)

    def _everwall(
        self, name: str, arguments: list[str], netns: str | None, xdp_pass: tuple[str, ...] = ()
    ) -> Program:
        line = [sys.executable, "-m", "everwall", *arguments, "--control", str(self.control(name))]
        return self.programs.start(name, line, netns, xdp_pass=xdp_pass)

    def _ready(self, name: str) -> bool:
        try:
            return bool(request(self.control(name), "status", timeout_s=ANSWER_DEADLINE_S)["ok"])
        except OSError:
            return False

    def _active(self, name: str) -> bool:
        try:
            return self.ask(name, "status").get("state") == "active"
        except OSError:
            return False

    def _all_healthy(self) -> bool:
        return all(target["state"] == "healthy" for target in self.targets())

    def _name_of(self, target: dict[str, Any]) -> str:
        for place in self.site.nodes:
            if place.name == target["id"] or place.data_address == str(target.get("address")):
                return place.name
        raise LabError(f"the load balancer has a target that is no firewall of the lab: {target}")

    # Questions -----------------------------------------------------------------------------------
    def ask(self, name: str, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer of ``gwlb`` or a firewall; raises OSError when it is gone, LabError when it refuses."""
        answer = request(self.control(name), command, timeout_s=ANSWER_DEADLINE_S, **arguments)
        if not answer.pop("ok"):
            raise LabError(f"{name} refused '{command}': {answer.get('error')}")
        return answer

    def targets(self) -> list[dict[str, Any]]:
        answer = self.ask("gwlb", "targets")
        rows: list[dict[str, Any]] = answer["targets"]
        return rows

    def target_events(self) -> list[dict[str, Any]]:
        """State changes of targets, with the firewalls' names instead of target ids."""
        events = self.ask("gwlb", "targets")["events"]
        return [each | {"target": self.names.get(str(each["target"]), "")} for each in events]

    def flow_targets(self) -> dict[tuple[int, str], str]:
        """Of each flow of the load balancer, by (protocol, client's address:port): the firewall."""
        flows = {}
        for row in self.ask("gwlb", "flows", limit=_FLOWS_ASKED)["flows"]:
            name = self.names.get(str(row["target"]), "")
            flows[int(row["proto"]), f"{row['src']}:{row['sport']}"] = name
            flows[int(row["proto"]), f"{row['dst']}:{row['dport']}"] = name
        return flows

    def store_facts(self) -> dict[str, Any]:
        """What the store says it is, and how it is reached."""
        server = stores.describe(self.store, self.site.store_netns)
        return {"server": server, "tls": self.store.tls, "auth": bool(self.store.password)}

    def counters(self, name: str) -> dict[str, int]:
        """Counters of a process; empty when it is gone."""
        try:
            answer = request(self.control(name), "counters", timeout_s=ANSWER_DEADLINE_S)
        except OSError:
            return {}
        found: dict[str, int] = answer.get("counters", {})
        return found

    # Failures ------------------------------------------------------------------------------------
    def fail(self, how: str, victim: str) -> tuple[int, int]:
        """Make the event; returns its time, and the time from which its effect is certain (both ns).

        A packet sent after the second moment cannot have passed through the victim as it was before.
        """
        program = self.firewalls[victim]
        event = time.monotonic_ns()
        if how in ("kill", "store"):
            program.signal(signal.SIGKILL)
            program.process.wait()
        elif how == "hang":
            program.signal(signal.SIGSTOP)
            if not program.wait_stopped(ANSWER_DEADLINE_S):
                raise LabError(f"{victim} did not stop")
            if self.site.cut_through:
                # The program before a stopped firewall answers until it misses the dead man's word.
                time.sleep(BEAT_STALE_NS / SECOND_NS)
        elif how == "partition":
            self.site.cut_data(victim)
        elif how == "isolate":
            self.site.cut_data(victim)
            self.site.cut_management(victim)
        elif how == "drain":
            return self._drain(victim)
        return event, time.monotonic_ns()

    def bring_back(self, how: str, victim: str) -> int:
        """Undo a hang or a cut; returns when (ns). The victim is a target again by its health checks."""
        began = time.monotonic_ns()
        if how == "hang":
            self.firewalls[victim].signal(signal.SIGCONT)
        else:
            self.site.mend(victim)
        return began

    def lose_store(self, progress: Callable[[str], None]) -> dict[str, Any]:
        """Kill the store, start it empty, and wait until every firewall says that it has all sessions again.

        Returns what the report says about that; raises LabError when it does not come to pass in time.
        """
        before = {name: self.ask(name, "store")["connections"] for name in self.firewalls}
        self.store = stores.restart(self.programs, self.store, self.site.store_netns)
        began = time.monotonic()
        while True:
            each = {name: self.ask(name, "store") for name in self.firewalls}
            percents = {
                # Who has not connected again yet speaks of the store that is gone.
                name: facts["resync_percent"]
                if facts["connected"] and facts["connections"] >= before[name] + self.workers
                else 0
                for name, facts in each.items()
            }
            unsynced = sum(facts["unsynced_sessions"] for facts in each.values())
            took = time.monotonic() - began
            percent = min(percents.values())
            progress(f"the store is back, and empty; resync {percent} %, unsynced sessions {unsynced:,}")
            if percent == 100:
                return {
                    "percent": percent,
                    "unsynced_sessions": unsynced,
                    "took_ms": round(took * 1000, 1),
                    "nodes_ms": {name: facts["resync_ms"] for name, facts in each.items()},
                }
            if took > RESYNC_DEADLINE_S:
                far = ", ".join(
                    f"{name} {percents[name]} % (last error: {facts['last_error']})"
                    for name, facts in each.items()
                )
                raise LabError(f"resync after the store's loss: not within {RESYNC_DEADLINE_S:.0f} s: {far}")
            time.sleep(0.05)

    def _drain(self, victim: str) -> tuple[int, int]:
        """Deregister the victim and ask it to drain; the event is the end of the deregistration delay."""
        target = next(number for number, name in self.names.items() if name == victim)
        began = time.monotonic_ns()
        self.ask("gwlb", "deregister", target=target)
        self.firewalls[victim].signal(signal.SIGTERM)
        deadline = time.monotonic() + configuration.DEREGISTRATION_DELAY_S + ANSWER_DEADLINE_S
        while time.monotonic() < deadline:
            ends = [
                int(each["time_ns"])
                for each in self.target_events()
                if each["target"] == victim and each["state"] == "unused" and int(each["time_ns"]) >= began
            ]
            if ends:
                return ends[0], ends[0]
            time.sleep(0.02)
        raise LabError(f"the deregistration of {victim} did not end")
