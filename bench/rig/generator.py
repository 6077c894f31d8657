"""The in-kernel traffic generator: says what is to be sent, runs it, and reads what came back.

Two ways of sending:

* ``run``: frames leave as fast as they can be made, or at a rate (frames that are not due are dropped before they
  leave). What the device under test does not take is lost, as on a wire.
* ``circle``: a fixed number of frames goes round; each that comes back leaves again as the next packet. The device
  under test is always busy and never flooded, whatever its speed; and a packet takes half of the generator's work,
  so that a device as fast as the generator can be driven to its end.

Generator and receiver share ``GENERATOR_CPU``; the thread that calls has to be pinned there and to live in the
generator's namespace.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from bench.rig import frames
from bench.rig.frames import Kind
from bench.rig.network import Pair
from bench.rig.programs import Programs

# The words of the program's struct, in its order.
_WORDS = (
    *("mode", "geneve", "clients", "servers", "interval", "backlog", "first", "flows"),
    *("opened", "open", "delay", "stamped", "flood", "ports", "source", "lenient"),
    *("due", "at", "turn", "step", "connection", "share", "strays", "behind"),
    *("pauses", "redirected", "mixed", "come", "loop", "began", "epoch"),
)
_AT = {name: index for index, name in enumerate(_WORDS)}
_SENT, _RETURNED, _OTHERS, _SUMS, _TEMPLATES = 32, 48, 64, 80, 112
_EPOCHS = 4
_SENT_IN, _COME_IN = _OTHERS + 1, _OTHERS + 1 + _EPOCHS
_LATENCIES = _TEMPLATES + 16 * 20
_BUCKETS, _BUCKET_NS = 65536, 250
_SCALE = 256

_FOREVER = 1 << 30
_BATCH_FAST, _BATCH_PACED, _BATCH_SLOW = 64, 128, 16
"""Frames made at a time. The kernel keeps as many that have come back; others are made anew, which takes as long again.
At a low rate the first of a batch would wait for the last."""
_SLOW_MAX = 500_000.0
_LATE_NS = 50_000
"""What the generator makes up for at once at a high rate, when its receiver has kept its processor. More is made up
for little by little: all at once it would overflow the device's queue, which would say nothing about the device."""
_LATE_PACKETS = 64
"""The same at a low rate."""
_DRAIN_S = 0.02
_LOOK_S = 0.01
"""How often frames that got lost on their way round are replaced: those of the epoch before the last that are
still not back. A round takes a fraction of a millisecond."""
_SOURCE_PORTS = 16
_LENIENT = 64
"""At full speed the outer header of one of so many packets is checked, else of every one."""
CIRCLING = 224
"""Frames that go round: fewer than the 256 that a veth queue holds."""


class Mode(IntEnum):
    """In the order of ``enum mode`` in the program."""

    DATA = 0
    OPEN = 1
    MIX = 2
    FLOOD = 3


@dataclass(frozen=True)
class Route:
    """Where packets leave: one pair with GENEVE, or two without, for either direction."""

    clients: Pair
    servers: Pair
    geneve: bool
    program: bool = True
    """Whether the device under test has an XDP program there."""

    @classmethod
    def encapsulated(cls, pair: Pair, program: bool = True) -> Route:
        return cls(pair, pair, True, program)


@dataclass(frozen=True)
class Traffic:
    """What is sent in a run."""

    mode: Mode = Mode.DATA
    flows: int = 10_000
    first: int = 0
    rate: float = 0.0
    """Packets per second; 0 is as fast as it goes."""
    size: int = 64
    stamped: bool = False
    opened: int = 0
    """First flow that is opened."""
    open: int = 0
    """Connections to open."""
    delay: int = 256
    """Connections begun between a SYN and its SYN-ACK, and again before the ACK."""
    flood: float = 0.0
    """Share of stray and malformed packets."""


@dataclass(frozen=True)
class Count:
    """What a run has shown."""

    seconds: float
    sent: npt.NDArray[np.uint64]
    returned: npt.NDArray[np.uint64]
    others: int
    behind_s: float
    """Time that the generator has not made up for by the end; the rate was not kept by so much."""
    latencies: npt.NDArray[np.uint64] | None

    @property
    def offered(self) -> float:
        """Packets per second that left."""
        return float(self.sent.sum()) / self.seconds

    @property
    def rate(self) -> float:
        """Packets per second that came back."""
        return float(self.returned.sum()) / self.seconds

    def sent_rate(self, *kinds: Kind) -> float:
        """Packets per second of some kinds that left."""
        return float(self.sent[list(kinds)].sum()) / self.seconds

    def loss(self, *kinds: Kind) -> float:
        """The fraction that did not come back, of all or of some kinds."""
        chosen = list(kinds) or list(Kind)
        sent = float(self.sent[chosen].sum())
        return 1 - float(self.returned[chosen].sum()) / sent if sent else 0.0

    def latency_us(self, quantile: float) -> float:
        """A quantile of the time from leaving to coming back."""
        assert self.latencies is not None, "packets were not stamped"
        added = self.latencies.cumsum()
        if not added[-1]:
            return float("nan")
        return float(np.searchsorted(added, quantile * float(added[-1]))) * _BUCKET_NS / 1000


class Generator:
    """Owner of the shared struct."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._words = programs.words
        signal.signal(signal.SIGALRM, lambda *_: None)

    def run(self, route: Route, traffic: Traffic, seconds: float) -> Count:
        """Send for so long."""
        packet = self.prepare(route, traffic)
        program = "generate_geneve" if route.geneve else "generate_plain"
        batch = _BATCH_FAST if not traffic.rate else _BATCH_SLOW if traffic.rate < _SLOW_MAX else _BATCH_PACED
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        self._programs.run_live(program, packet, _FOREVER, batch)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._result(start)

    def circle(
        self, route: Route, traffic: Traffic, seconds: float, until: Callable[[], bool] = lambda: False
    ) -> Count:
        """Let frames go round for so long, or ``until``; those that get lost are replaced."""
        assert not traffic.rate
        program = "generate_geneve" if route.geneve else "generate_plain"
        packet = self.prepare(route, traffic)
        start = time.monotonic()
        self._words[_AT["loop"]] = 1
        try:
            lost = 0
            while (left := start + seconds - time.monotonic()) > 0:
                if until():
                    break
                seen = self._seen()
                lost += self._next_epoch(seen)
                missing = CIRCLING - int(seen[_SENT : _SENT + 16].sum()) + int(seen[_AT["come"]]) + lost
                if missing > CIRCLING // 8:
                    self._programs.run_live(program, packet, missing, min(missing, _BATCH_FAST))
                time.sleep(min(left, _LOOK_S))
        finally:
            self._words[_AT["loop"]] = 0
        return self._result(start)

    def _seen(self) -> npt.NDArray[np.uint64]:
        """All words up to the templates as they were at one moment.

        The receiver goes before this thread on their processor: between two looks at a word hundreds of frames may
        have come and left.
        """
        words, come = self._words, _AT["come"]
        while True:
            before = int(words[come])
            seen: npt.NDArray[np.uint64] = words[:_TEMPLATES].copy()
            if int(words[come]) == before:
                return seen

    def _next_epoch(self, seen: npt.NDArray[np.uint64]) -> int:
        """What leaves from now on belongs to the next epoch; returns how many frames of an older one are lost."""
        words, epoch = self._words, int(seen[_AT["epoch"]])
        old = (epoch - 2) % _EPOCHS
        lost = int(seen[_SENT_IN + old]) - int(seen[_COME_IN + old])
        words[_SENT_IN + old] = words[_COME_IN + old] = 0
        words[_AT["epoch"]] = (epoch + 1) % _EPOCHS
        return lost

    def returned(self, kind: Kind) -> int:
        """How many packets of a kind have come back in the present run."""
        return int(self._words[_RETURNED + kind])

    def nanoseconds(self, route: Route, program: int | str, flows: int, repeat: int = 1_000_000) -> float:
        """What a program takes for a packet by BPF_PROG_TEST_RUN, going through ``flows`` flows in turn.

        The making of the packet is in it: about what a program takes that does nothing.
        """
        packet = self.prepare(route, Traffic(flows=flows))
        return float(self._programs.time(program, packet, repeat))

    def prepare(self, route: Route, traffic: Traffic) -> bytes:
        """Write down what is to be sent; returns a packet of the right length."""
        words = self._words
        words[:_SUMS] = 0
        words[_LATENCIES:] = 0
        interval = int(1e9 * _SCALE / traffic.rate) if traffic.rate else 0
        near, far = (socket.inet_aton(a) for a in (route.clients.near_address, route.clients.far_address))
        plan = {
            "mode": traffic.mode,
            "geneve": route.geneve,
            "clients": route.clients.index,
            "servers": route.servers.index,
            "interval": interval,
            # Never more at once than a veth queue holds.
            "backlog": min(max(_LATE_NS * _SCALE, _LATE_PACKETS * interval), CIRCLING * interval),
            "first": traffic.first,
            "flows": traffic.flows,
            "opened": traffic.opened,
            "open": traffic.open or 1 << 40,
            "delay": traffic.delay,
            "stamped": traffic.stamped,
            "flood": int(traffic.flood * 65536),
            "ports": _SOURCE_PORTS - 1,
            "source": int.from_bytes(far + near, "little"),
            "redirected": not route.program,
            "lenient": 0 if traffic.rate else _LENIENT - 1,
        }
        for name, value in plan.items():
            words[_AT[name]] = int(value)
        packet = b""
        for kind in Kind:
            pair = route.servers if kind in (Kind.SERVER_DATA, Kind.SYN_ACK) else route.clients
            inner = frames.inner(kind, traffic.size)
            if route.geneve:
                packet = frames.outer(len(inner), pair.far_mac + pair.near_mac, (near, far)) + inner
            else:
                packet = pair.far_mac + pair.near_mac + b"\x08\x00" + inner
            template = packet[: frames.TEMPLATE_BYTES].ljust(frames.TEMPLATE_BYTES, b"\0")
            at = _TEMPLATES + int(kind) * frames.TEMPLATE_BYTES // 8
            words[at : at + frames.TEMPLATE_BYTES // 8] = np.frombuffer(template, np.uint64)
            words[_SUMS + 2 * kind : _SUMS + 2 * kind + 2] = frames.sums(inner)
        return packet

    def _result(self, start: float) -> Count:
        seconds = time.monotonic() - start
        time.sleep(_DRAIN_S)
        words = self._words.copy()
        if words[_AT["began"]]:  # at a rate: without the milliseconds until the first frame is there
            seconds = int(words[_AT["due"]] - words[_AT["began"]]) / _SCALE / 1e9
        return Count(
            seconds,
            words[_SENT : _SENT + 16],
            words[_RETURNED : _RETURNED + 16],
            int(words[_OTHERS]),
            int(words[_AT["behind"]]) / _SCALE / 1e9,
            words[_LATENCIES:] if words[_AT["stamped"]] else None,
        )
