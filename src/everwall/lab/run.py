"""One run of the lab from beginning to end: build, warm up, traffic, the event, the figures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everwall.dataplane import BOUNCED
from everwall.lab import configuration
from everwall.lab.cluster import Cluster, Site
from everwall.lab.measure import (
    COMES_BACK,
    NON_SYN,
    Connection,
    Node,
    Probe,
    Run,
    choose_victim,
    cpu_share,
    find_flaps,
    mark_ms,
    next_pace,
)
from everwall.lab.processes import LabError, Programs
from everwall.lab.rundir import RunDirectory
from everwall.lab.traffic.client import PROBE_SPREAD_S
from everwall.lab.traffic.driver import Traffic
from everwall.lab.traffic.fate import PROBE_DEADLINE_S
from everwall.verdict import Verdict

PROBE_FLOWS_PER_FIREWALL = 36
"""UDP flows, so that chance hardly ever puts fewer than 20 of them on the victim."""
FAST_PROBES = 30
"""UDP probe flows on the victim that send every 10 ms; the others send every 100 ms."""
ESTABLISH_DEADLINE_S = 20.0
PACE_STEP_S = 0.5
DECIDED_S = PROBE_DEADLINE_S + 1.0
"""So long after all of them have been probed, connections were answered or are lost."""
PROBED_S = PROBE_SPREAD_S + 60.0
"""So long after they were told to probe, all connections have done it, however busy the machine is."""
_TCP, _UDP = 6, 17
_DROPS = {verdict.label for verdict in Verdict if verdict > Verdict.PARK}
_FORWARDED = Verdict.FORWARD.label
_RESTORED = ("sessions-restored", "sessions-adopted")


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    firewalls: int = 3
    connections: int = 300
    fail: str = "kill"
    seconds: float = 30.0
    keep: bool = False
    evidence: Path | None = None
    port: str = "raw"
    """How packets come to the firewalls."""
    cut_through: bool = False
    workers: int = 1
    """Of each firewall."""


class Experiment:
    """A cluster under traffic, and the failure of one of its firewalls."""

    def __init__(self, options: Options, directory: RunDirectory, site: Site, resiliency: bool) -> None:
        self.options = options
        self.directory = directory
        self.site = site
        self.programs = Programs(directory, outlive=options.keep)
        self.cluster = Cluster(directory, site, self.programs, resiliency, options.workers)
        self.run = Run(
            resiliency="on" if resiliency else "off",
            fail=options.fail,
            traffic=site.traffic,
            firewalls=options.firewalls,
            rung=site.rung,
            port=options.port,
            cut_through="on" if options.cut_through else "off",
            workers=options.workers,
            seconds=options.seconds,
            opened=options.connections,
            detection_bound_ms=configuration.DETECTION_BOUND_MS,
        )
        self.counters: dict[str, dict[str, int]] = {}
        self.first: dict[tuple[int, str], str] = {}
        """Of each flow the firewall that carried it when it was seen first."""
        self.comes_back = 0.0
        """When the victim shall be back (s of the monotonic clock); 0: never, or it is back already."""
        self.back_ns = 0

    # The story -----------------------------------------------------------------------------------
    def perform(self, progress: Callable[[str], None]) -> Run:
        """Everything; raises LabError. The caller calls ``close`` whatever happens."""
        self.site.build()
        self.cluster.start(progress)
        probes = PROBE_FLOWS_PER_FIREWALL * self.options.firewalls
        traffic = self.site.start_traffic(self.programs, self.options.connections, probes)
        cpu = _processor_time()
        began = time.monotonic()
        self.began_ns = time.monotonic_ns()
        traffic.start()
        self._establish(traffic, progress)
        self._choose_probes(traffic, self.cluster.flow_targets())
        self._warm_up(traffic, began + self.options.seconds / 3, cpu, progress)
        if self.options.fail == "store" and self.cluster.resiliency:
            self.run.resync = self.cluster.lose_store(progress)
        victim = self._before(traffic)
        progress(f"{self.options.fail}: {victim}, which carries {len(self.run.on_victim)} connections")
        event, effective = self.cluster.fail(self.options.fail, victim)
        traffic.probe()
        if self.options.fail in COMES_BACK:
            self.comes_back = began + self.options.seconds * 2 / 3
        self._wait_for_answers(traffic, began + self.options.seconds, progress)
        self.run.cpu_share = cpu_share(cpu, _processor_time())
        self._after(traffic, event, effective)
        if self.options.keep:
            traffic.stay()
        else:
            traffic.stop()
        return self.run

    def close(self) -> None:
        """End everything that was started, remove everything that was made; never raises."""
        if self.options.evidence is not None:
            self._keep_logs(self.options.evidence)
        self.programs.stop()
        self.site.remove()

    # Before the event ----------------------------------------------------------------------------
    def _establish(self, traffic: Traffic, progress: Callable[[str], None]) -> None:
        deadline = time.monotonic() + ESTABLISH_DEADLINE_S
        while True:
            found = traffic.progress()
            self.first = self.cluster.flow_targets() | self.first
            progress(f"{found['established']} of {self.options.connections} connections are established")
            if found["established"] + found["failed"] >= self.options.connections:
                return
            if time.monotonic() > deadline:
                # The run goes on with those there are, and the report says how many are missing.
                return
            time.sleep(0.1)

    def _choose_probes(self, traffic: Traffic, carried: dict[tuple[int, str], str]) -> None:
        """Find the victim by the load balancer's flow table, and speed up the probes that it carries."""
        tcp, udp = traffic.sources()
        self.run.victim = choose_victim(
            carried[_TCP, source] for source in tcp.values() if (_TCP, source) in carried
        )
        if not self.run.victim:
            raise LabError("the load balancer's flow table knows none of the connections")
        fast = [number for number, source in udp.items() if carried.get((_UDP, source)) == self.run.victim]
        traffic.set_fast(fast[:FAST_PROBES])

    def _warm_up(
        self, traffic: Traffic, until: float, start: list[int], progress: Callable[[str], None]
    ) -> None:
        """Traffic until the event, its pace brought to the wanted share of the machine."""
        last = start
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, PACE_STEP_S))
            if left < PACE_STEP_S:
                return
            now = _processor_time()
            share = cpu_share(last, now)
            last = now
            self.run.pace = next_pace(self.run.pace, share)
            traffic.set_pace(self.run.pace)
            progress(f"traffic flows; {share:.0%} of the machine is busy; the event comes in {left:.0f} s")

    def _before(self, traffic: Traffic) -> str:
        """Write down who carries what, at the last moment before the event; returns the victim."""
        carried = self.cluster.flow_targets()
        # It may have been marked unhealthy meanwhile, though it was well, and carry nothing any more.
        self._choose_probes(traffic, carried)
        victim = self.run.victim
        tcp, udp = traffic.sources()
        self.run.connections = [
            Connection(
                number,
                "",
                source,
                carried.get((_TCP, source), ""),
                first_target=self.first.get((_TCP, source), ""),
            )
            for number, source in tcp.items()
        ]
        self.run.probes = [
            Probe(number, source, carried.get((_UDP, source), "")) for number, source in udp.items()
        ]
        self.run.store = self.cluster.store_facts()
        self.run.nodes = [Node(name, victim=name == victim) for name in self.cluster.firewalls]
        for node in self.run.nodes:
            node.flows_before = sum(target == node.name for target in carried.values())
            self.counters[node.name] = self.cluster.counters(node.name)
        return victim

    # After the event -----------------------------------------------------------------------------
    def _wait_for_answers(self, traffic: Traffic, until: float, progress: Callable[[str], None]) -> None:
        """Until the time is over, every connection was answered or is lost, and a victim that comes back is healthy."""
        probed_by = time.monotonic() + PROBED_S
        deadline = max(until, time.monotonic() + DECIDED_S)
        wanted = len(self.run.connections)
        while time.monotonic() < deadline:
            if self.comes_back and time.monotonic() >= self.comes_back and self._is_left(probed_by):
                self.comes_back = 0.0
                self.back_ns = self.cluster.bring_back(self.run.fail, self.run.victim)
                traffic.probe()
                probed_by = time.monotonic() + PROBED_S
                progress(f"{self.run.victim} is back")
            found = traffic.progress()
            if (found["probed"] < wanted or self.comes_back) and time.monotonic() < probed_by:
                deadline = max(deadline, time.monotonic() + DECIDED_S)
            progress(
                f"after the event: {found['answered']} of {wanted} connections answered, {found['lost']} lost"
            )
            decided = found["answered"] + found["lost"] >= wanted
            if decided and time.monotonic() >= until and not self.comes_back and self._is_healthy():
                return
            time.sleep(0.25)

    def _is_left(self, by: float) -> bool:
        """Whether the victim carries no connection any more: a quiet one would find it again as if nothing had been.

        True at ``by`` (s of the monotonic clock) in any case.
        """
        if time.monotonic() >= by:
            return True
        carried = self.cluster.flow_targets()
        return all(carried.get((_TCP, each.client)) != self.run.victim for each in self.run.connections)

    def _is_healthy(self) -> bool:
        """Whether the victim, if it came back, is a healthy target again."""
        return not self.back_ns or self._returned_ms(self.cluster.target_events()) is not None

    def _returned_ms(self, events: list[dict[str, Any]]) -> float | None:
        return mark_ms(events, self.run.victim, "healthy", self.back_ns) if self.back_ns else None

    def _after(self, traffic: Traffic, event: int, effective: int) -> None:
        report = traffic.report(event, effective)
        self._judge_connections(report, event)
        self._judge_probes(report)
        replies = report["icmp"]
        self.run.icmp_flows = len(replies)
        self.run.icmp_recovered = sum(each["first_after_ns"] is not None for each in replies)
        events = self.cluster.target_events()
        drain = self.run.fail == "drain"
        self.run.flapped = find_flaps(events, self.run.victim, self.began_ns, event)
        self.run.detection_ms = 0.0 if drain else mark_ms(events, self.run.victim, "unhealthy", event)
        self.run.returned_ms = self._returned_ms(events)
        carried = self.cluster.flow_targets()
        for each in self.run.connections:
            each.target_after = carried.get((_TCP, each.client), "")
        self._judge_nodes(list(carried.values()))

    def _judge_connections(self, report: dict[str, Any], event: int) -> None:
        seen = {row["number"]: row for row in report["connections"]}
        far = {row["number"]: row for row in report.get("server", [])}
        for each in self.run.connections:
            row, other = seen[each.number], far.get(each.number, {})
            each.kind = row["kind"]
            each.exchanges = row["exchanges"]
            each.verified = row["verified"] + other.get("verified", 0)
            each.corrupt = row["corrupt"] or other.get("corrupt", "")
            each.lost = row["lost"]
            each.stall_ms = row["stall_ns"] / 1e6
            each.stall_began_ms = (row["stall_began_ns"] - event) / 1e6
            if row["answered_ns"]:
                each.answered_ms = (row["answered_ns"] - row["probed_ns"]) / 1e6

    def _judge_probes(self, report: dict[str, Any]) -> None:
        delivered = {row["flow"]: row for row in report["probes"]}
        echoed = {row["flow"]: row for row in report["udp"]}
        for each in self.run.probes:
            near, far = echoed.get(each.number), delivered.get(each.number)
            if near is not None:
                each.sent, each.fast = near["sent"], near["fast"]
            if far is not None:
                each.delivered = far["packets"]
                if far["silence_ns"] is not None:
                    each.gap_ms = far["silence_ns"] / 1e6

    def _judge_nodes(self, carried: list[str]) -> None:
        """Counters of everybody; of a victim that cannot be asked any more, the ones before the event."""
        targets = {self.cluster.names[str(row["id"])]: row for row in self.cluster.targets()}
        for node in self.run.nodes:
            counted = self.cluster.counters(node.name) or self.counters[node.name]
            self._add_counters(node.name, counted)
            self.run.refused_after += counted.get(NON_SYN, 0) - self.counters[node.name].get(NON_SYN, 0)
            node.flows_after = sum(target == node.name for target in carried)
            node.sessions = counted.get("sessions")
            node.forwarded = counted.get(_FORWARDED, 0)
            node.bounced = counted.get(BOUNCED, 0)
            node.restored = sum(counted.get(label, 0) for label in _RESTORED)
            self.run.restored += node.restored
            row = targets.get(node.name, {})
            node.packets = int(row.get("packets_back", 0))
            node.health = str(row.get("state", ""))
        self._add_counters("gwlb", self.cluster.counters("gwlb"))
        self.run.kernel_drops = self.site.lost_packets()

    def _add_counters(self, name: str, counted: dict[str, int]) -> None:
        self.run.counters[name] = {label: count for label, count in counted.items() if count}
        drops = {label: count for label, count in counted.items() if label in _DROPS and count}
        self.run.drops_by_node[name] = drops
        for label, count in drops.items():
            self.run.drops[label] = self.run.drops.get(label, 0) + count
        self.run.drops.setdefault(NON_SYN, 0)

    def _keep_logs(self, evidence: Path) -> None:
        folder = evidence / f"logs-{self.run.resiliency}"
        folder.mkdir(parents=True, exist_ok=True)
        for log in self.directory.path.glob("*.log"):
            shutil.copy(log, folder / log.name)


def _processor_time() -> list[int]:
    """The first line of /proc/stat, in clock ticks."""
    with open("/proc/stat") as stat:
        return [int(word) for word in stat.readline().split()[1:]]
