"""Faults as they strike: which node, which moment, what becomes of it, and when all is well again."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from random import Random
from typing import TYPE_CHECKING

from everwall.balancer.targets import State
from everwall.limits import STORE_RECONNECT_MAX_S, STORE_TIMEOUT_S
from everwall.session import image
from everwall.sim.hosts import TcpConnection
from everwall.sim.loop import MS, SECOND
from everwall.sim.network import Link
from everwall.sim.node import Node
from everwall.sim.packets import ACK, SYN, TCP, Packet
from everwall.sim.plan import MOMENT_WAIT, Fault, Kind, Moment
from everwall.sim.storage import Rows

if TYPE_CHECKING:
    from everwall.sim.cluster import Cluster

RECONNECTION = int((STORE_TIMEOUT_S + STORE_RECONNECT_MAX_S) * SECOND)
"""Longest that a node takes to find out that the store is there again."""


class Strikes:
    """Carries the faults of a plan out on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.done: list[str] = []
        """Faults that struck, in order."""
        self.restored_before: int | None = None
        """Sessions that had been restored when the first kill struck; None before."""
        self.must_restore = False
        """The first kill hit connections that the store has kept since."""
        self._cluster = cluster
        self._loop = cluster.loop
        self._server = cluster.server
        self._random = Random(f"{cluster.plan.seed}/strikes")
        self._waiting: list[Fault] = []
        """Faults that wait for their moment."""

    def begin(self) -> None:
        """Plan all faults of the run."""
        for fault in self._cluster.plan.faults:
            self._loop.at(fault.at, self._due, fault)

    def _due(self, fault: Fault) -> None:
        if fault.kind.is_of_store:
            self.hurt_store(fault)
        elif fault.moment is Moment.NONE:
            self._strike(fault, None)
        else:
            self._waiting.append(fault)
            self._loop.after(MOMENT_WAIT, self._waited_enough, fault)

    # The moment ----------------------------------------------------------------------------------------------

    def asked(self, node: Node, rows: Rows) -> None:
        """A node asks the store for something."""
        if self._waiting and (rows[:, image.OP] == image.WRITE_FIRST).any():
            self._come(Moment.ASKED, node)

    def answered(self, node: Node, rows: Rows) -> None:
        """The store answers a node."""
        if self._waiting and (rows[:, image.OP] == image.WRITTEN).any():
            self._come(Moment.ANSWERED, node)

    def let_out(self, node: Node, packet: Packet) -> None:
        """A node lets a packet out."""
        if self._waiting and packet.protocol == TCP and packet.flags & (SYN | ACK) == SYN | ACK:
            self._come(Moment.LET_OUT, node)

    def _come(self, moment: Moment, node: Node) -> None:
        for fault in [one for one in self._waiting if one.moment is moment]:
            self._waiting.remove(fault)
            self._loop.after(fault.after, self._strike, fault, node)

    def _waited_enough(self, fault: Fault) -> None:
        if fault in self._waiting:
            self._waiting.remove(fault)
            self._strike(fault, None)

    # Nodes ---------------------------------------------------------------------------------------------------

    def _well(self, node: Node) -> bool:
        """Whether new flows go to a node."""
        return node in self._active()

    def _active(self) -> list[Node]:
        cluster = self._cluster
        return [
            node
            for node in cluster.current.values()
            if node.alive
            and not node.hung
            and not cluster.to_nodes[node.address].cut
            and cluster.gateway.targets[node.name].state is State.HEALTHY
        ]

    def _strike(self, fault: Fault, chosen: Node | None) -> None:
        cluster, active = self._cluster, self._active()
        if len(active) < 2:
            cluster.tell(f"no {fault.kind}: too few nodes are left")
            return
        node = chosen if chosen in active else max(active, key=self._stored_connections)
        assert node is not None
        carries = self._stored_connections(node)
        cluster.tell(f"{fault.kind} {node.name} ({fault.moment}), which carries {carries} stored connections")
        self.done.append(f"{fault.kind} {node.name}")
        live = cluster.traffic.live
        if fault.kind in (Kind.KILL, Kind.HANG, Kind.ISOLATE):
            carried = cluster.liveness.carried(live, node)
            # What another policy refuses has ended, or is about to.
            allowed = [one for one in carried if cluster.allowed_everywhere(one.flow)]
            cluster.records.must_hold(node, allowed)
        cluster.liveness.struck(live, node, self._well_again(fault))
        strike: dict[Kind, Callable[[Node, Fault], None]] = {
            Kind.KILL: self._kill,
            Kind.HANG: self._hang,
            Kind.DRAIN: self._drain,
            Kind.PARTITION: self._cut,
            Kind.ISOLATE: self._cut,
        }
        strike[fault.kind](node, fault)
        cluster.traffic.probe()

    def _well_again(self, fault: Fault) -> int:
        """When the balancer knows of a fault that strikes now, and the store can be reached."""
        until = self._loop.now + fault.detection
        for other in self._cluster.plan.faults:
            over = other.at + other.lasts + RECONNECTION
            if other.kind.is_of_store and other.at <= until + SECOND and over > self._loop.now:
                until = max(until, over)
        return until

    def _stored_connections(self, node: Node) -> int:
        cluster = self._cluster
        return sum(
            isinstance(one, TcpConnection)
            and one.live
            and cluster.passage.carriers.get(one.flow.key) is node
            and cluster.records.is_stored(one)
            and cluster.allowed_everywhere(one.flow)
            for one in cluster.traffic.live
        )

    def _kill(self, node: Node, fault: Fault) -> None:
        if self.restored_before is None:
            self.restored_before = self._cluster.restored()
            self.must_restore = self._stored_connections(node) > 0
        node.kill()
        self._loop.after(fault.detection, self._mark, node, False)
        if fault.back:
            self._loop.after(fault.detection + fault.back, self._restart, node)

    def _hang(self, node: Node, fault: Fault) -> None:
        node.hang()
        self._loop.after(fault.detection, self._mark, node, False)
        if fault.lasts:
            self._loop.after(fault.lasts, self._resume, node)
        else:
            self._loop.after(fault.detection + SECOND, node.kill)
            self._loop.after(fault.detection + fault.back, self._restart, node)

    def _resume(self, node: Node) -> None:
        self._cluster.tell(f"{node.name} goes on")
        node.resume()
        self._mark_soon(node)

    def _drain(self, node: Node, fault: Fault) -> None:
        cluster = self._cluster
        cluster.gateway.targets.deregister(node.name, self._loop.now)
        self._loop.after(cluster.plan.deregistration_delay + 3 * SECOND, node.kill)
        self._loop.after(fault.back, self._restart, node)

    def _cut(self, node: Node, fault: Fault) -> None:
        """Nothing passes between balancer and node; isolated, it does not reach the store either."""
        cluster = self._cluster
        links = cluster.to_nodes[node.address], cluster.from_nodes[node.address]
        for link in links:
            link.cut = True
        if fault.kind is Kind.ISOLATE:
            self._cut_from_store({node.name}, fault.lasts)
        self._loop.after(fault.detection, self._mark, node, False)
        self._loop.after(fault.lasts, self._heal, node, links)

    def _heal(self, node: Node, links: tuple[Link, Link]) -> None:
        self._cluster.tell(f"{node.name} is connected again")
        for link in links:
            link.cut = False
        self._mark_soon(node)

    def _mark_soon(self, node: Node) -> None:
        self._loop.after(self._random.randint(200, 800) * MS, self._mark, node, True)

    def _mark(self, node: Node, healthy: bool) -> None:
        """What the health checks find out about a node, if it still is so."""
        cluster = self._cluster
        if cluster.current[node.name] is not node:
            return
        well = node.alive and not node.hung and not cluster.to_nodes[node.address].cut
        if well is healthy and cluster.gateway.targets[node.name].state is not State.UNUSED:
            cluster.gateway.set_target_state(
                node.name, State.HEALTHY if healthy else State.UNHEALTHY, self._loop.now
            )
            cluster.tell(f"{node.name} is {'healthy' if healthy else 'unhealthy'} for the balancer")

    def _restart(self, node: Node) -> None:
        cluster = self._cluster
        cluster.start(node.name, node.address)
        if cluster.gateway.targets[node.name].state is State.UNUSED:
            cluster.gateway.targets.register(node.name, str(IPv4Address(node.address)), self._loop.now)
        self._loop.after(self._random.randint(300, 1_000) * MS, self._mark, cluster.current[node.name], True)
        cluster.tell(f"{node.name} is started again")

    # The store -----------------------------------------------------------------------------------------------

    def hurt_store(self, fault: Fault) -> None:
        """The store gets into trouble."""
        self._cluster.tell(f"{fault.kind} for {fault.lasts / SECOND:.1f} s")
        self.done.append(str(fault.kind))
        server = self._server
        names = set(self._cluster.current)
        if fault.kind is Kind.STORE_SLOW:
            server.slow_down(fault.delay)
        elif fault.kind is Kind.STORE_DOWN:
            self._cut_from_store(names, fault.lasts)
        elif fault.kind is Kind.STORE_SPLIT:
            few = self._random.sample(sorted(names), self._random.randint(1, len(names) - 1))
            self._cut_from_store(set(few), fault.lasts)
        elif fault.kind is Kind.STORE_HUNG:
            server.stop()
        elif fault.kind is Kind.STORE_FULL:
            server.fill(True)
        elif fault.kind is Kind.STORE_CLOCK:
            self._losing(lambda: server.set_clock(fault.step))
        else:
            self._losing(lambda: self._die(fault))
        self._loop.after(fault.lasts, self._mend_store, fault)

    def _die(self, fault: Fault) -> None:
        server = self._server
        server.die()
        if fault.kind is Kind.STORE_EMPTIED:
            server.lose_everything()
        elif fault.kind is Kind.STORE_FAILED_OVER:
            server.lose_last_writes()
            if fault.step:
                server.set_clock(fault.step)

    def _losing(self, happens: Callable[[], None]) -> None:
        """Something after which the store may not have what it had."""
        cluster = self._cluster
        before = {one for one in cluster.traffic.live if cluster.records.is_stored(one)}
        happens()
        lost = cluster.records.store_lost(before)
        if lost:
            self.must_restore = self.must_restore and cluster.restored() != self.restored_before
            cluster.tell(f"the store has lost {len(lost)} of {len(before)} conversations")
        cluster.liveness.store_lost(lost, self._well)

    def _mend_store(self, fault: Fault) -> None:
        server = self._server
        if fault.kind is Kind.STORE_SLOW:
            server.slow_down(0)
        elif fault.kind is Kind.STORE_HUNG:
            server.go_on()
        elif fault.kind is Kind.STORE_FULL:
            server.fill(False)
        elif server.refusing:
            server.come_back()

    def _cut_from_store(self, names: set[str], lasts: int) -> None:
        self._server.cut(names)
        self._loop.after(lasts, self._join_store, names)

    def _join_store(self, names: set[str]) -> None:
        self._server.heal(names)
