"""One run: the plan of a seed carried out on engines, balancer and store, under the eyes of the checkers."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random
from typing import Any

import numpy as np

from everwall.balancer.gateway import Gateway
from everwall.balancer.targets import State, Targets
from everwall.counters import Counter
from everwall.engine import Engine, EngineConfig
from everwall.limits import LB_IDLE_TCP_S, STORE_PREFIX_DEFAULT
from everwall.session import image, record, tcp
from everwall.sim import packets
from everwall.sim import plan as plans
from everwall.sim.balance import Balancer
from everwall.sim.checkers import PromiseBroken, books
from everwall.sim.checkers.liveness import BOUND, Liveness
from everwall.sim.checkers.order import SessionOrder, StoreOrder, flow_of_row
from everwall.sim.checkers.passage import Passage
from everwall.sim.checkers.records import Records
from everwall.sim.flows import Flow, flow_of
from everwall.sim.hosts import Hosts
from everwall.sim.loop import MS, SECOND, Loop
from everwall.sim.network import Link
from everwall.sim.node import Node
from everwall.sim.operator import STEPS, Operator
from everwall.sim.packets import ICMP, ICMPV6, TCP, UDP
from everwall.sim.plan import Plan
from everwall.sim.rulebook import Rulebook
from everwall.sim.storage import Rows, StoreServer, named
from everwall.sim.storelink import StoreLink
from everwall.sim.strikes import Strikes
from everwall.sim.traffic import Traffic
from everwall.store.layout import Epoch, Layout, meta_key
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Protocol
from everwall.verdict import Verdict

EPOCH = 1_750_000_000 * SECOND
"""Store time at the beginning of every run."""
SETTLING = 8 * SECOND
"""After the last word of the hosts: by then nothing is on its way any more."""
BUCKETS = 64
MIXED, STRICT = "mixed", "strict"
"""Which rules are strict: about a third of them, or all."""
SKEW = 20 * MS
"""By so much a node may be wrong about store time without noticing."""
_MOVING = Layout(
    Epoch(1, 2 * BUCKETS), Epoch(0, BUCKETS), from_s=EPOCH // SECOND, until_s=2 * EPOCH // SECOND
)
"""Another number of buckets is written to, and the former one is asked still."""
_BALANCER = int(IPv4Address("10.9.0.1"))
_FIRST_NODE = int(IPv4Address("10.9.1.1"))


class SimulationFailure(Exception):
    """A run broke a promise; the message says how to see it again."""

    def __init__(self, seed: int, when: int, what: str, story: list[str], mode: str = MIXED) -> None:
        self.seed = seed
        self.what = what
        lines = [f"seed {seed}, after {when / SECOND:.6f} s: {what}"]
        lines += [f"    {line}" for line in story]
        arguments = "" if mode == MIXED else f" ARGS='--mode {mode}'"
        lines.append(f"see it again: make sim SEED={seed}{arguments}")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Report:
    """What a run that kept all promises did."""

    seed: int
    seconds: float
    nodes: int
    flows: int
    packets: int
    rounds: int
    faults: tuple[str, ...]
    restored: int
    restored_after_kill: int
    adopted: int
    denied: int
    """Stored sessions that a changed policy kept out."""
    answered: int
    """Packets with which nodes answered refused ones."""
    excused: int
    lost: int
    """Excused conversations that broke indeed."""
    demoted: int
    demanded: int
    """Conversations of failing nodes that the store had to have, and had."""
    acknowledged: int
    """Strict conversations that were answered when the store had them."""
    lost_by_store: int
    """Those of them that broke because the store lost them."""
    drops: dict[str, int]

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.nodes} nodes, {self.seconds:.0f} s, {self.flows} flows, "
            f"{self.packets} packets, {self.rounds} rounds; {', '.join(self.faults)}; "
            f"restored {self.restored}, denied {self.denied}, excused {self.excused}, lost {self.lost}"
        )


class Cluster:
    """A simulated cluster; ``engine`` is the class of its nodes' engines, ``memory`` what its store consists of,
    ``link`` and ``protocol`` how they speak with it."""

    def __init__(
        self,
        plan: Plan,
        engine: type[Engine] = Engine,
        memory: MemoryStore | None = None,
        mode: str = MIXED,
        link: type[StoreLink] = StoreLink,
        protocol: type[Protocol] = Protocol,
    ) -> None:
        self.plan = plan
        self._mode = mode
        self._link_class, self._protocol = link, protocol
        self.loop = loop = Loop()
        self.story: deque[str] = deque(maxlen=30)
        """What happened lately, for whoever has to understand a failure."""
        self._engine = engine
        self._random = Random(f"{plan.seed}/cluster")
        self._rulebook = plan.rulebook
        self._rulebooks = [plan.rulebook]
        self.operator = Operator(self)
        self.server = StoreServer(loop, EPOCH, Random(f"{plan.seed}/store"), plan.store_delay, memory)
        self.server.lag, self.server.waits = plan.lag, plan.wait_replicas
        if plan.moving:
            self.server.memory.keys[meta_key(STORE_PREFIX_DEFAULT)] = str(_MOVING).encode()
        self.store_order = self.server.witness = StoreOrder(self.server)
        self.session_order = SessionOrder()
        targets = Targets(rebalance=True, deregistration_delay=plan.deregistration_delay)
        self.gateway = Gateway(
            address=_BALANCER,
            endpoints=list(plan.endpoints),
            targets=targets,
            now=0,
            max_flows=512,
            idle_tcp=LB_IDLE_TCP_S * SECOND,
            seed=self._random.getrandbits(62),
        )
        self._network = Random(f"{plan.seed}/network")
        self.balancer = Balancer(loop, self.gateway, self._to_node, self._to_hosts)
        self.edge_in = Link(loop, self._network, plan.edge, self.balancer.enter)
        self.hosts = Hosts(self.edge_in.send)
        self.edge_out = Link(loop, self._network, plan.edge, self.hosts.receive)
        self.passage = Passage(
            loop, self.hosts.by_flow.get, self.store_order.ever.__contains__, self._idle(max)
        )
        self.records = Records(loop, self.server, self.store_order, self._strict_everywhere, self._idle(min))
        self.liveness = Liveness(loop, self.records.is_stored, self.passage.carriers, self.allowed_everywhere)
        self.traffic = Traffic(loop, plan, self.hosts, self.edge_in.send, self.liveness, self._forge)
        self.nodes: list[Node] = []
        """Every life of every node."""
        self.current: dict[str, Node] = {}
        self.to_nodes: dict[int, Link] = {}
        self.from_nodes: dict[int, Link] = {}
        self._withheld: dict[Flow, deque[str]] = {}
        self.strikes = Strikes(self)
        for i in range(plan.nodes):
            address = _FIRST_NODE + i
            self.to_nodes[address] = Link(loop, self._network, plan.data, self._arrive_at(address))
            self.from_nodes[address] = Link(loop, self._network, plan.data, self.balancer.returned)
            name = f"fw{i + 1}"
            self.start(name, address)
            targets.register(name, str(IPv4Address(address)), 0)
            self.gateway.set_target_state(name, State.HEALTHY, 0)

    def _idle(self, which: Callable[[Iterable[int]], int]) -> dict[int, int]:
        """The longest or shortest idle time-out by protocol, ns."""
        timeouts = {**_DEFAULT_IDLE, **self.plan.timeouts}
        of_tcp = which(value for state, value in timeouts.items() if state not in _DATAGRAMS)
        icmp = timeouts[tcp.ICMP]
        return {TCP: of_tcp, UDP: timeouts[tcp.UDP], ICMP: icmp, ICMPV6: icmp}

    def allowed_everywhere(self, flow: Flow) -> bool:
        """Whether every rulebook so far allows a flow."""
        return all(book.allows(flow) for book in self._rulebooks)

    def _strict_everywhere(self, flow: Flow) -> bool:
        return all(book.is_strict(flow) for book in self._rulebooks)

    def tell(self, what: str) -> None:
        """A line of the story."""
        self.story.append(f"{self.loop.now / SECOND:12.6f}  {what}")

    # The network ---------------------------------------------------------------------------------------------

    def _to_node(self, address: int, outer: bytes) -> None:
        self.to_nodes[address].send(outer)

    def _from_node(self, address: int, outer: bytes) -> None:
        self.from_nodes[address].send(address, outer)

    def _to_hosts(self, endpoint: int, packet: bytes) -> None:
        self.edge_out.send(endpoint, packet)

    def _arrive_at(self, address: int) -> Any:
        name = f"fw{address - _FIRST_NODE + 1}"
        return lambda outer: self.current[name].receive(outer)

    # Witness of nodes ------------------------------------------------------------------------------------------

    def arrived(self, node: Node, outer: bytes) -> None:
        """A node takes a packet in."""
        self.passage.arrived(node, outer)

    def forwarded(self, node: Node, outer: bytes) -> None:
        """A node lets a packet out."""
        self.passage.forwarded(node, outer)
        packet = packets.read(packets.inner_of(outer))
        flow = flow_of(int.from_bytes(outer[12:20], "big"), packet)
        conversation = self.hosts.by_flow.get(flow) or self.hosts.by_flow.get(flow.turned)
        if conversation is not None:
            self.records.forwarded(node, flow, packet, conversation)
        self.strikes.let_out(node, packet)

    def made(self, node: Node, outer: bytes) -> None:
        """A node lets a packet of its own out."""
        self.passage.made(node, outer)

    def withheld(self, node: Node, outer: bytes, verdict: Verdict) -> None:
        """A node parks a packet or drops it."""
        flow = flow_of(int.from_bytes(outer[12:20], "big"), packets.read(packets.inner_of(outer)))
        self._remember(flow, f"{node.name} {verdict.label}: {flow}")

    def answered(self, node: Node, rows: Rows) -> None:
        """The store answers a node."""
        for row in rows:
            if row[image.OP] != image.WRITTEN:
                outcome = _OUTCOMES[int(row[image.OP])]
                self._remember(flow_of_row(row), f"{node.name} is told by the store: {outcome}")
        self.strikes.answered(node, rows)

    def _remember(self, flow: Flow, what: str) -> None:
        """Keep the last of what happened to a flow, for the story of a failure."""
        lines = self._withheld.setdefault(flow.key, deque(maxlen=10))
        lines.append(f"{self.loop.now / SECOND:12.6f}  {what}")

    def stepped(self, node: Node, asked: Rows) -> None:
        """A node's engine has done something."""
        self.session_order.stepped(node)
        self.strikes.asked(node, asked)

    # Nodes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, address: int) -> None:
        """A node begins its life; what time it is it knows from its own clock until the store says so."""
        random = self._random
        offset = random.randint(1, 10**6) * SECOND
        skew = random.choice((0, 2 * MS, SECOND, 3_600 * SECOND)) * random.choice((-1, 1))
        config = EngineConfig(
            max_sessions=256,
            owner=random.getrandbits(32),
            timeouts=self.plan.timeouts,
            parked_packets=256,
            lookups=64,
            ring_rows=1024,
            epoch_offset=EPOCH - offset + skew,
            epoch_guessed=True,
            seed=random.getrandbits(62),
        )
        node = Node(
            self.loop,
            name,
            address,
            self._engine(config, self._rulebook.compiled()),
            offset,
            self._rulebook,
            lambda deliver, set_clock: self._link(name, deliver, set_clock),
            self._from_node,
            self,
        )
        self.nodes.append(node)
        self.current[name] = node

    def _link(
        self, name: str, deliver: Callable[[Rows], None], set_clock: Callable[[int, bool], None]
    ) -> StoreLink:
        random = self._random
        # A node in the middle of a rotation writes with either secret, and reads both.
        keys = STEPS[1 + len(self.nodes) % 2] if self.plan.moving else self.operator.keys_of(name)
        protocol = self._protocol(keys, buckets=BUCKETS)
        error = random.randint(-SKEW, SKEW)
        return self._link_class(
            self.loop,
            name,
            self.server,
            protocol,
            keys,
            Random(random.random()),
            error,
            deliver,
            set_clock,
        )

    # Changes ---------------------------------------------------------------------------------------------------

    def _change_policy(self, rulebook: Rulebook, apart: int) -> None:
        self._rulebook = rulebook
        self._rulebooks.append(rulebook)
        self.tell(f"policy changes: {rulebook.rules[0]}")
        for i, node in enumerate(self.current.values()):
            if node.alive:
                self.loop.after(i * apart, node.replace_policy, rulebook)

    def _forge(self, flow: Flow, random: Random) -> None:
        """Somebody who can write to the store puts a record of another flow there, or makes one up."""
        row = np.zeros((1, image.COLUMNS), np.int64)
        row[0, image.OP] = image.LOOKUP
        key = flow.key
        row[0, image.ENDPOINT] = key.endpoint
        for column, address in ((image.LOWER_HIGH, key.client), (image.UPPER_HIGH, key.server)):
            wide = address.rjust(16, b"\0")
            row[0, column] = int.from_bytes(wide[:8], "big", signed=True)
            row[0, column + 1] = int.from_bytes(wide[8:], "big", signed=True)
        family = 4 if len(key.client) == 4 else 6
        row[0, image.KEY2] = key.cport | key.sport << 16 | key.protocol << 32 | family << 40
        assert flow_of_row(row[0]) == key
        keys = random.choice(STEPS[1:3] if self.plan.moving else STEPS[:1])
        batch = Protocol(keys, buckets=BUCKETS).encoded(row, self.server.store_s)
        _, bucket, field = next(named(batch))
        genuine = [
            value
            for found in self.server.memory.keys.values()
            if isinstance(found, dict)
            for value in found.values()
        ]
        value = random.choice(genuine) if genuine else random.randbytes(record.RECORD_BYTES)
        found = self.server.memory.keys.setdefault(bucket, {})
        assert isinstance(found, dict)
        found[field] = value

    # The run ---------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Everything of the plan; raises SimulationFailure when a promise is broken."""
        try:
            self._run()
        except PromiseBroken as broken:
            story = list(self.story)
            if broken.flow is not None:
                story += self._withheld.get(broken.flow.key, ())
            raise SimulationFailure(self.plan.seed, self.loop.now, str(broken), story, self._mode) from broken
        return self._report()

    def _run(self) -> None:
        plan = self.plan
        self.traffic.begin()
        self.strikes.begin()
        self.operator.begin()
        if plan.change:
            change = plan.change
            self.loop.at(change.at, self._change_policy, change.rulebook, change.apart)
        step = plan.duration // 8
        for part in range(1, 9):
            self.loop.run(part * step)
            for node in self.nodes:
                books.check_engine(node)
        self.traffic.last_words()
        self.loop.run(self.loop.now + BOUND + SECOND)
        self.traffic.stop()
        self.loop.run(self.loop.now + SETTLING)
        for node in self.nodes:
            node.read_events()
            books.check_engine(node)
            books.check_events(node)
        books.check_network(
            self.gateway, self.nodes, self.edge_in, self.edge_out, self.to_nodes, self.from_nodes
        )
        self.records.must_not_have_lost(self.liveness.lost, self.allowed_everywhere)
        if self.strikes.restored_before is None:
            raise PromiseBroken("nobody was killed")
        if self.strikes.must_restore and self.restored() <= self.strikes.restored_before:
            raise PromiseBroken("after the kill no session was restored")

    def restored(self) -> int:
        """Sessions taken over from the store so far."""
        return sum(node.engine.counters["sessions-restored"] for node in self.nodes)

    def _total(self, which: Counter) -> int:
        return sum(node.engine.counters[which.label] for node in self.nodes)

    def _report(self) -> Report:
        drops: dict[str, int] = {}
        for node in self.nodes:
            for name, times in node.engine.verdicts.items():
                if name not in ("forward", "park"):
                    drops[name] = drops.get(name, 0) + times
        assert self.strikes.restored_before is not None
        faults = [*self.strikes.done, *self.operator.done]
        if self.plan.change:
            faults.insert(0, "policy change")
        return Report(
            seed=self.plan.seed,
            seconds=self.plan.duration / SECOND,
            nodes=self.plan.nodes,
            flows=len(self.traffic.conversations),
            packets=self._total(Counter.RECEIVED),
            rounds=self.liveness.rounds,
            faults=tuple(faults),
            restored=self.restored(),
            restored_after_kill=self.restored() - self.strikes.restored_before,
            adopted=self._total(Counter.SESSIONS_ADOPTED),
            denied=self._total(Counter.RESTORE_DENIED),
            answered=self.passage.answers,
            excused=len(self.liveness.excused),
            lost=len(self.liveness.lost),
            demoted=self._total(Counter.SESSIONS_DEMOTED),
            demanded=self.records.demanded,
            acknowledged=len(self.records.answered),
            lost_by_store=len(self.records.answered & self.records.ever_lost & set(self.liveness.lost)),
            drops=drops,
        )


_OUTCOMES = {
    image.FOUND: "found",
    image.MISSING: "missing",
    image.REFUSED: "refused",
    image.FAILED: "failed",
    image.LOST: "lost, another node owns it",
}
_DATAGRAMS = (tcp.UDP, tcp.ICMP, tcp.OTHER)
# The operator's defaults, said again because the checkers ask the engine for nothing.
_DEFAULT_IDLE = {tcp.TCP_HALF_CLOSED_CLIENT: 120 * SECOND, tcp.UDP: 30 * SECOND, tcp.ICMP: 6 * SECOND}


def simulate(
    seed: int,
    engine: type[Engine] = Engine,
    memory: MemoryStore | None = None,
    mode: str = MIXED,
    **planted: Any,
) -> Report:
    """Run one seed; raises SimulationFailure. ``planted``: as of Cluster."""
    # Engines are large and few: Python would not look for the circles of former runs before there are thousands.
    gc.collect()
    plan = plans.draw_strict(seed) if mode == STRICT else plans.draw(seed)
    return Cluster(plan, engine, memory, mode, **planted).run()
