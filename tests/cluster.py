"""Nodes and the store they share, as tests see a cluster: no sockets, and a clock that tests move.

Every node is an engine with a clock of its own (its ``now`` differs from store time by an offset, as
monotonic clocks do); the store is the twin in memory behind the real protocol and the real seal.
"""

from __future__ import annotations

import numpy as np

from everwall.engine import Engine, EngineConfig
from everwall.limits import BUCKET_SLOTS, SECOND_NS
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.session import control, image, record, state, tcp
from everwall.session import table as t
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Protocol, reply_bytes
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests import packets
from tests.naive.cutthrough import BOUNCED, Program

SECRET = bytes(range(32))
START_S = 1_700_000_000


class Cluster:
    """A store, its clock, and nodes made by ``node``."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.time = START_S * SECOND_NS
        """Store time, ns."""
        self.nodes: list[Node] = []

    def node(self, policy: CompiledPolicy | None = None, secret: bytes = SECRET, **config: object) -> Node:
        made = Node(self, len(self.nodes) + 1, policy or allow_all(), secret, config)
        self.nodes.append(made)
        return made

    def wait(self, seconds: float) -> None:
        """Let time pass; nobody's timers run by that."""
        self.time += round(seconds * SECOND_NS)

    def records(self) -> dict[bytes, bytes]:
        """All sealed records in the store by field."""
        return {
            field: value
            for fields in self.store.keys.values()
            if isinstance(fields, dict)
            for field, value in fields.items()
        }


class Node:
    """One engine and its way to the store; with ``cut_through`` in its configuration, a program before it."""

    def __init__(
        self, cluster: Cluster, owner: int, policy: CompiledPolicy, secret: bytes, config: dict
    ) -> None:
        cut_through = config.pop("cut_through", False)
        self.cluster = cluster
        self.offset = cluster.time - owner * 1000 * SECOND_NS
        settings = {"max_sessions": 64, "owner": owner, "epoch_offset": self.offset, "seed": owner} | config
        if cut_through:
            self.program = _program(settings["max_sessions"], settings["seed"])
            self.engine = Engine(EngineConfig(**settings), policy, self.program.table, self.program.control)
        else:
            self.engine = Engine(EngineConfig(**settings), policy)
        self.protocol = Protocol(record.derive_keys(secret), buckets=16)
        self.released: list[bytes] = []

    @property
    def now(self) -> int:
        """The node's own time, ns."""
        return self.cluster.time - self.offset

    # Packets ------------------------------------------------------------------------------------

    def receive(self, *inners: bytes, endpoint: int = 0, bare: bool = True) -> list[Verdict]:
        """First verdicts on some packets in one batch, whatever the store may say later."""
        batch = packets.batch_of(inners, bare, endpoint)
        self.engine.receive(batch, len(inners), self.now)
        return [Verdict(int(verdict)) for verdict in batch.meta[:, m.VERDICT]]

    def judge(self, *inners: bytes, endpoint: int = 0, bare: bool = True) -> list[Verdict]:
        """Final verdicts, packet by packet, each with the store's answers at once."""
        verdicts = []
        for inner in inners:
            (verdict,) = self.receive(inner, endpoint=endpoint, bare=bare)
            before = self.engine.state.sessions.verdicts.copy()
            self.serve()
            changed = np.flatnonzero(self.engine.state.sessions.verdicts - before)
            verdicts.append(Verdict(int(changed[0])) if verdict == Verdict.PARK else verdict)
        return verdicts

    def drive(self, *inners: bytes, endpoint: int = 0) -> list[str | Verdict]:
        """As packets come to a node with a program: each is bounced, or judged by the engine, whose loop lives."""
        outcomes: list[str | Verdict] = []
        self.program.control[control.WORKER + control.BEAT] = self.now
        for inner in inners:
            outcome = self.program.run(inner, endpoint, self.now)
            outcomes += [outcome] if outcome == BOUNCED else self.receive(inner, endpoint=endpoint)
        return outcomes

    # Store --------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Let the store answer everything the node has asked."""
        self.answer(self.engine.outbox())

    def answer(self, rows: np.ndarray) -> None:
        """Let the store answer some requests, and those that follow from its answers."""
        while len(rows):
            seconds = self.cluster.time // SECOND_NS
            batch = self.protocol.encoded(rows, seconds)
            replies = [self.cluster.store.execute(command, seconds) for command in batch.commands]
            decoded = self.protocol.decode(batch, b"".join(map(reply_bytes, replies)), seconds)
            self.take(decoded.answers)
            rows = np.concatenate([decoded.again, self.engine.outbox()])

    def take(self, replies: np.ndarray) -> None:
        """Hand the engine some replies."""
        self.released += [packet for _, packet in self.engine.inbox(replies, self.now)]

    def reply(self, rows: np.ndarray, status: int) -> None:
        """Answer requests with one and the same status."""
        replies = rows.copy()
        replies[:, image.OP] = status
        self.take(replies)

    # Time ---------------------------------------------------------------------------------------

    def tick(self, seconds: float = 0) -> None:
        """Let time pass, then the timers run; a jump of a second takes the ageing hand once round."""
        self.cluster.wait(seconds)
        self.released += [packet for _, packet in self.engine.handle_timer(self.now)]

    def tick_through(self, passes: int) -> None:
        """As many seconds, in each of which the ageing hand goes round once."""
        for _ in range(passes):
            self.tick(1)

    def forget_everything(self) -> None:
        """What a restart does to sessions: they are gone, and nobody was told."""
        table = self.engine.state.sessions.table
        for slot in np.flatnonzero(table.hot[:, t.KEY2]):
            self.engine.hand_over(int(slot), self.now)
        self.engine.outbox()

    # What is known ------------------------------------------------------------------------------

    def sessions(self) -> list[dict]:
        return self.engine.sessions()

    def only_session(self) -> dict:
        (session,) = self.engine.sessions()
        return session

    def ends(self) -> list[str]:
        """Why sessions ended here since the last call."""
        return [
            tcp.END_NAMES[int(event[state.EVENT_REASON])]
            for event in self.engine.events()
            if event[state.EVENT_KIND] == state.EVENT_ENDED
        ]


def _program(sessions: int, seed: int) -> Program:
    """A program for one worker's table, as a node makes it."""
    slots = t.slots_for(sessions)
    words = np.zeros(control.WORDS, np.int64)
    words[control.SEED], words[control.WORKERS], words[control.SETS] = seed, 1, slots // BUCKET_SLOTS
    shared = t.SharedTable(
        np.zeros((slots, t.HOT_COLUMNS), np.int64),
        np.zeros(slots, np.uint8),
        np.zeros((slots, t.ADDRESS_COLUMNS), np.int64),
    )
    return Program(shared, words)
