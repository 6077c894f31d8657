"""A loaded cut-through program and its plain twin, side by side over the same arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import numpy as np

from everwall import flow
from everwall.limits import SECOND_NS, sessions_per_worker
from everwall.ports.bpf import CutThrough
from everwall.ports.libbpf import XDP_DROP, XDP_PASS, XDP_TX
from everwall.session import control, offload, state
from everwall.session import table as t
from everwall.session.state import Sessions
from everwall.session.table import SharedTable, make_table, slots_for
from everwall.wire import meta as m
from everwall.wire.geneve import decapsulate
from everwall.wire.packet import parse
from tests import frames, packets
from tests.naive import cutthrough as naive

SEED = 0x0123456789ABCDEF
SOURCES = [IPv4Network("10.9.0.0/24"), IPv4Network("192.0.2.7/32")]
EPOCH = 77
_CLOCK_MONOTONIC_COARSE = 6
_AHEAD_NS = 3600 * SECOND_NS
"""A dead man's word of so much later is fresh however long the machine stands still."""


def clock() -> int:
    """The time in ns by the clock that the program reads, a tick behind, or as long as its processor stood still."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)


def pass_loop(sessions: Sessions, now: int) -> None:
    """A worker's pass of its loop at ``now`` ns: it did not stand still before, and will not until the next one.

    Else a machine that does would have the sessions withdrawn, or the program hand up what it was to bounce.
    """
    sessions.words[state.PASSED] = now
    offload.stamp(sessions, now)
    if sessions.words[state.CUT_THROUGH]:
        beat = control.WORKER + sessions.words[state.WORKER] * control.WORKER_WORDS + control.BEAT
        sessions.shared[beat] = now + _AHEAD_NS


@dataclass(frozen=True)
class Flow:
    """A conversation behind an endpoint; packets of either direction."""

    source: str
    destination: str
    protocol: int
    sport: int
    dport: int
    endpoint: int = 1

    def turned(self) -> Flow:
        return replace(
            self, source=self.destination, destination=self.source, sport=self.dport, dport=self.sport
        )

    def inner(
        self, size: int = 24, *, flags: str | int = "A", seq: int = 1000, ack: int = 1, **fields: object
    ) -> bytes:
        """A packet from ``source`` with so many bytes of payload."""
        ends = (self.source, self.destination, self.sport, self.dport)
        if self.protocol == packets.TCP:
            return packets.tcp(*ends, flags, seq, ack, payload=b"d" * size, **fields)  # type: ignore[arg-type]
        return packets.udp(*ends, payload=b"d" * size, **fields)  # type: ignore[arg-type]

    def frame(self, size: int = 24, **fields: object) -> bytes:
        return frames.frame(packets.geneve(self.inner(size, **fields), self.endpoint))


FLOWS = [
    Flow("10.0.0.1", "10.0.1.1", packets.TCP, 40_000, 80),
    Flow("10.0.1.1", "10.0.0.1", packets.UDP, 53, 40_001, endpoint=0xFEDC_BA98_7654_3210),
    Flow("2001:db8::1", "2001:db8::2", packets.TCP, 40_000, 443, endpoint=0x0A1B_2C3D_0000_0000),
    # The higher of both by its first half is the lower by its second.
    Flow("fe80::1", "2001:db8::2", packets.UDP, 40_000, 53),
    # Only the ports tell the ends apart; then nothing does.
    Flow("10.0.0.5", "10.0.0.5", packets.TCP, 7, 9, endpoint=2),
    Flow("2001:db8::5", "2001:db8::5", packets.UDP, 65_535, 1, endpoint=2),
    Flow("10.0.0.6", "10.0.0.6", packets.UDP, 9, 9, endpoint=2),
]


class Rig:
    """The program with sessions of its own making, and its twin, which gets a copy of all before each frame."""

    def __init__(
        self,
        sessions: int = 64,
        workers: int = 1,
        *,
        frags: bool = False,
        addresses: Sequence[str] = (frames.FIREWALL,),
    ) -> None:
        each = sessions_per_worker(sessions, workers)
        slots = slots_for(each)
        self.addresses = [IPv4Address(address) for address in addresses]
        self.program = CutThrough(workers=workers, slots=slots, queues=1, frags=frags)
        self.shared = SharedTable(self.program.hot, self.program.tags, self.program.addresses)
        self.tables = [
            make_table(each, SharedTable(*(array[w * slots : (w + 1) * slots] for array in self.shared)))
            for w in range(workers)
        ]
        self.begin()

    def begin(self) -> None:
        """No sessions, all words as a node sets them, workers that pass their loops."""
        for array in self.shared:
            array[:] = 0
        self.program.control[control.ROOM :] = 0
        self.program.configure(seed=SEED, sources=SOURCES, addresses=self.addresses)
        self.slots: dict[Flow, tuple[int, int]] = {}
        self.counted = self.program.counters()
        for worker in range(len(self.tables)):
            self.word(worker, control.WANT, EPOCH << 16 | 1)
        self.stay_alive()

    def close(self) -> None:
        self.program.close()

    def word(self, worker: int, which: int, value: int) -> None:
        self.program.control[control.WORKER + worker * control.WORKER_WORDS + which] = value

    def room(self, left: int) -> None:
        """The worker takes so many more packets."""
        room = self.program.control[control.ROOM :]
        room[control.LIMIT] = room[control.HANDED] + left

    def stay_alive(self) -> None:
        """All workers pass their loops, however long the machine stands still."""
        self.beat(-_AHEAD_NS, range(len(self.tables)))

    def beat(self, age: int, workers: Sequence[int] = (0,)) -> None:
        """These workers passed their loops ``age`` ns ago, and not since."""
        for worker in workers:
            self.word(worker, control.BEAT, time.monotonic_ns() - age)

    def add(self, flow_: Flow, reached: tuple[int, int] = (1000, 1000)) -> None:
        """A session as the engine would offload it; ``reached`` by end, lower first."""
        batch = packets.batch_of([packets.geneve(flow_.inner(0), flow_.endpoint)])
        assert decapsulate(batch.data, batch.meta, 0) == 0
        assert parse(batch.data, batch.meta, 0) == 0
        flow.make_key(batch.meta, 0, SEED)
        worker = ((int(batch.meta[0, m.HASH]) >> 32 & 0xFFFFFFFF) * len(self.tables)) >> 32
        table = self.tables[worker]
        slot = int(t.add_session(table, batch.meta, 0))
        assert slot >= 0
        table.hot32[slot, t.END_LOWER : t.END_UPPER + 1] = reached
        table.hot32[slot, t.CONTROL] = EPOCH << 16 | len(self.slots) % 100 << 1 | 1
        self.slots[flow_] = (worker, slot)

    def line(self, flow_: Flow) -> np.ndarray:
        """The hot line of a session as uint32."""
        worker, slot = self.slots[flow_]
        line: np.ndarray = self.tables[worker].hot32[slot]
        return line

    def run(self, frame: bytes) -> str:
        """What becomes of a frame by the program's books, after the twin has agreed on everything."""
        twin = naive.Program(
            SharedTable(*(array.copy() for array in self.shared)), self.program.control.copy()
        )
        before = clock()
        action, out, _ = self.program.test_run(frame)
        after = clock()
        outcome, octets = self._count()
        # The program's own moment is one of these. Only for the dead man's word it matters which.
        expected, returned = twin.frame(frame, after if outcome == "stale" else before)
        assert outcome == expected, f"program {outcome}, twin {expected}: {frame.hex()}"
        assert out == returned, f"{outcome}: {frame.hex()}"
        assert action == {naive.BOUNCED: XDP_TX, naive.NO_ROOM: XDP_DROP}.get(outcome, XDP_PASS)
        assert np.array_equal(self.program.control, twin.control)
        assert (octets > 0) == (outcome == naive.BOUNCED)
        self._compare(twin.table, (after >> t.SEEN_SHIFT) - (before >> t.SEEN_SHIFT))
        return outcome

    def _count(self) -> tuple[str, int]:
        """The outcome of the one packet since the last call, and its bytes if it was bounced."""
        before, self.counted = self.counted, self.program.counters()
        octets = self.counted["bounced-bytes"] - before.pop("bounced-bytes")
        (outcome,) = (name for name, count in before.items() if self.counted[name] != count)
        return outcome, octets

    def _compare(self, twin: SharedTable, took: int) -> None:
        """The arrays are equal; the clock of the last packet within the units that the call took."""
        ours, theirs = (array.view(np.uint32) for array in (self.shared.hot, twin.hot))
        late = (ours[:, t.SEEN] - theirs[:, t.SEEN]).astype(np.int32)
        assert np.all((late >= 0) & (late <= took)), "seen at this packet"
        theirs[:, t.SEEN] = ours[:, t.SEEN]
        for mine, other in zip(self.shared, twin):
            assert np.array_equal(mine, other)
