"""Workers of one node on loopback, a load balancer that chooses whom it sends to, and a store that the test plays.

Each worker has a port on an address of its own, so that a test decides which worker a packet comes to; with
``one_address`` all have the same and the system spreads packets over them, knowing nothing of flows.
"""

from __future__ import annotations

import itertools
import os
import socket
import time

import numpy as np

from everwall import pipeline
from everwall.engine import EngineConfig, drain_ring, verdict_counts
from everwall.handover import make_handovers, worker_of
from everwall.limits import FRAME_BYTES, GENEVE_PORT, LOOP_GAP_NS_MAX, SECOND_NS, sessions_per_worker
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.ports import port as ports
from everwall.rings import ring_push
from everwall.session import control, image, record, state
from everwall.session.fragments import datagram_hash
from everwall.session.table import ADDRESS_COLUMNS, HOT_COLUMNS, SharedTable, slots_for
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Protocol, reply_bytes
from everwall.wire import meta as m
from everwall.worker import Worker, turn
from tests import packets
from tests.cluster import SECRET

SEED = 0x5EED
ENDPOINT = 0xAA
SOURCE_PORTS = range(25_000, 25_016)
"""Outer; below the ports that the system gives to whoever asks for any."""
PATIENCE_S = 60.0
_NETWORK = itertools.count(1)


def shared_table(max_sessions: int, workers: int) -> SharedTable:
    """What a cut-through program would see of one worker's table."""
    slots = slots_for(sessions_per_worker(max_sessions, workers))
    return SharedTable(
        np.zeros((slots, HOT_COLUMNS), np.int64),
        np.zeros(slots, np.uint8),
        np.zeros((slots, ADDRESS_COLUMNS), np.int64),
    )


class Fleet:
    """``workers`` workers; nothing moves but by ``step`` or, after ``start``, in threads."""

    def __init__(
        self,
        workers: int,
        *,
        one_address: bool = False,
        policy: CompiledPolicy | None = None,
        cut_through: bool = False,
        **config: int,
    ) -> None:
        # Addresses that no other process and no other fleet uses.
        self._prefix = f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}."
        network = next(_NETWORK) % 25 * 10
        self.balancer = f"{self._prefix}{network + 9}"
        self.addresses = [f"{self._prefix}{network + (1 if one_address else 1 + w)}" for w in range(workers)]
        self.listener = self._socket(GENEVE_PORT)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.senders = {number: self._socket(number) for number in SOURCE_PORTS}
        self.ports = [ports.open_udp(address, shared=True) for address in self.addresses]
        self.wakes = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers)]
        self.store_wakes = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers)]
        handovers = make_handovers(self.wakes, FRAME_BYTES)
        self.control_words = np.zeros(control.WORDS, np.int64)
        settings = {"max_sessions": 1024, "seed": SEED, "workers": workers, "resiliency": False} | config
        self.workers = [
            Worker(
                EngineConfig(worker=w, **settings),
                policy or allow_all(),
                self.ports[w],
                self.wakes[w],
                self.store_wakes[w],
                handovers[w],
                shared_table(settings["max_sessions"], workers) if cut_through else None,
                self.control_words,
            )
            for w in range(workers)
        ]
        for worker in self.workers:  # the test is a slow store
            worker.sessions.words[state.LOOKUP_DEADLINE] = int(PATIENCE_S) * SECOND_NS
        self.now = 1_000 * SECOND_NS
        self.store = MemoryStore()
        self.protocol = Protocol(record.derive_keys(SECRET), buckets=16)

    def _socket(self, number: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((self.balancer, number))
        made.setblocking(False)
        return made

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        for port in self.ports:
            ports.close(port)
        for descriptor in self.wakes + self.store_wakes:
            os.close(descriptor)
        for sock in [self.listener, *self.senders.values()]:
            sock.close()

    # Whose is it ---------------------------------------------------------------------------------------

    def owner(self, inner: bytes) -> int:
        """The worker that has the flow of a packet."""
        return int(worker_of(self._read(inner)[0, m.HASH], len(self.workers)))

    def keeper(self, inner: bytes) -> int:
        """The worker of the datagram that a fragment is part of."""
        return int(worker_of(datagram_hash(self._read(inner), 0, SEED), len(self.workers)))

    def _read(self, inner: bytes) -> np.ndarray:
        batch = packets.batch_of([packets.geneve(inner, endpoint=ENDPOINT)])
        batch.meta[0, m.PEER_ADDRESS] = ports.address_number(self.balancer)
        pipeline.read(self.workers[0].state, batch, 0)
        return batch.meta

    # By hand ---------------------------------------------------------------------------------------------

    def send(self, worker: int, *inners: bytes, source: int = SOURCE_PORTS[0]) -> None:
        """Packets from the load balancer to the address of a worker."""
        for inner in inners:
            packet = packets.geneve(inner, endpoint=ENDPOINT)
            self.senders[source].sendto(packet, (self.addresses[worker], GENEVE_PORT))

    def step(self, *workers: int) -> None:
        """One turn of each worker named, in that order; of all, until nothing moves, when none is."""
        for worker in workers:
            self._turn(worker)
        while not workers:
            if not sum(self._turn(worker) for worker in range(len(self.workers))):
                return

    def wait(self, passed: int) -> None:
        """Let ns pass; the loops pass often enough not to notice a gap."""
        while passed > 0:
            self.now += min(passed, LOOP_GAP_NS_MAX)
            passed -= LOOP_GAP_NS_MAX
            self.step()

    def settle(self) -> None:
        """All turns, and all answers of the store, until nothing moves."""
        self.step()
        while self.serve():
            self.step()

    def _turn(self, worker: int) -> bool:
        which = self.workers[worker]
        return bool(turn(which.state, which.port, which.loop, self.now))

    def returned(self) -> list[bytes]:
        """Inner packets that came back to the load balancer by now, in order."""
        back = []
        while True:
            try:
                packet = self.listener.recv(4096)
            except BlockingIOError:
                return back
            back.append(packet[len(packets.geneve(b"", endpoint=ENDPOINT)) :])

    # In threads -------------------------------------------------------------------------------------------

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def through(self, *inners: bytes) -> None:
        """Send packets from ever other source ports; all of them, and nothing else, has to come back."""
        for number, inner in enumerate(inners):
            self.send(0, inner, source=SOURCE_PORTS[number % len(SOURCE_PORTS)])
        waiting, deadline = sorted(inners), time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} of {len(inners)} are missing: {self.told()}"
            self.serve()
            for packet in self.returned():
                waiting.remove(packet)
            time.sleep(0.001)

    # The store ----------------------------------------------------------------------------------------------

    def serve(self) -> int:
        """Answer what the workers have asked, each its own questions; returns how many those were."""
        served = 0
        seconds = (time.monotonic_ns() if self.workers[0].running else self.now) // SECOND_NS
        for worker, wake in zip(self.workers, self.wakes):
            asked = drain_ring(worker.sessions.requests)
            if not len(asked):
                continue
            batch = self.protocol.encoded(asked, seconds)
            replies = [self.store.execute(command, seconds) for command in batch.commands]
            rows = self.protocol.decode(batch, b"".join(map(reply_bytes, replies)), seconds).answers
            assert ring_push(worker.loop.replies, rows, len(rows)) == len(rows)
            os.eventfd_write(wake, 1)
            served += len(asked)
        return served

    # What is known ------------------------------------------------------------------------------------------

    def counter(self, which: int) -> list[int]:
        return [int(worker.sessions.counters[which]) for worker in self.workers]

    def verdicts(self) -> list[dict[str, int]]:
        return [verdict_counts(worker.sessions.verdicts) for worker in self.workers]

    def told(self) -> str:
        asked = [
            int((drain_ring(worker.sessions.requests)[:, image.OP] > 0).sum()) for worker in self.workers
        ]
        return f"{self.verdicts()}, asked and not answered: {asked}"
