"""The measurements: each takes contenders and lets rounds of at most a second alternate between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.rig.contenders import Contender, Rig
from bench.rig.frames import Kind
from bench.rig.generator import Count, Mode, Traffic

LOSS_MAX = 0.001
"""Of a steady state."""
LATENCY_RATE = 50_000.0
OPEN = "open"
"""In a contender's limits: connections per second."""
_SEARCH_S = 0.25
_LITTLE, _MUCH = 0.01, 0.1
_STRIDE = 1.5
_ALL = 0.95
_AROUND = (0.9, 1.0, 1.1, 1.25)
_HALVINGS = 5
_DELAY_S = 0.002
"""Between a SYN, its SYN-ACK and the ACK."""
_DELAY_CONNECTIONS_MIN = 64


@dataclass(frozen=True)
class Round:
    """One contender's share of a round."""

    count: Count
    cpu_ns: int
    """Processor time that it took."""
    amount: float
    """What is compared: packets or connections per second, or microseconds."""

    @property
    def ns_per_packet(self) -> float:
        return self.cpu_ns / max(1, int(self.count.returned.sum()))

    @property
    def busy(self) -> float:
        """The part of its processor that it used."""
        return self.cpu_ns / 1e9 / self.count.seconds


Rounds = dict[str, list[Round]]


def watched(contender: Contender, act: Callable[[], Count], amount: Callable[[Count], float]) -> Round:
    """Run, and see what it took."""
    before = contender.cpu_ns()
    count = act()
    return Round(count, contender.cpu_ns() - before, amount(count))


def alternate(rounds: int, acts: Mapping[str, Callable[[], Round]]) -> Rounds:
    """Each act once a round, so that what disturbs the machine disturbs all of them."""
    found: Rounds = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            found[name].append(act())
    return found


def median(rounds: Sequence[Round]) -> float:
    """The median of what is compared."""
    return statistics.median(each.amount for each in rounds)


def ratio(rounds: Rounds, name: str, base: str) -> float:
    """The median of the ratios of paired rounds."""
    return statistics.median(a.amount / b.amount for a, b in zip(rounds[name], rounds[base], strict=True))


# Packets ----------------------------------------------------------------------------------------------


def saturate(rig: Rig, contender: Contender, seconds: float, flows: int = 10_000, size: int = 64) -> Round:
    """As many packets as it returns: frames that go round for what is as fast as the generator, and the
    rate at which most come back for the others."""
    traffic = Traffic(flows=flows, size=size)
    if contender.fast:
        return watched(
            contender, lambda: rig.generator.circle(contender.route, traffic, seconds), lambda c: c.rate
        )
    peak = f"peak {size}"
    if peak not in contender.limits:
        find_peak(rig, contender, flows, size)
    traffic = Traffic(flows=flows, size=size, rate=contender.limits[peak])
    found = watched(contender, lambda: rig.generator.run(contender.route, traffic, seconds), lambda c: c.rate)
    _adapt(contender, peak, found.count)
    return found


def _adapt(contender: Contender, which: str, count: Count) -> None:
    """Follow what the contender can do now: offer more than it takes, but not much more.

    What is far too much is not a fair question: it costs the work that is thrown away.
    """
    if count.loss() < _LITTLE:
        contender.limits[which] *= 1.15
    elif count.loss() > _MUCH:
        contender.limits[which] *= 0.85


def find_peak(rig: Rig, contender: Contender, flows: int, size: int) -> None:
    """The rate at which most packets come back, kept in the contender's ``limits``."""

    def offer(rate: float) -> tuple[float, float]:
        count = rig.generator.run(contender.route, Traffic(flows=flows, size=size, rate=rate), _SEARCH_S)
        return count.offered, count.rate

    contender.limits[f"peak {size}"] = _peak(offer, 100_000.0)


def _peak(offer: Callable[[float], tuple[float, float]], rate: float) -> float:
    """The best rate to offer: up in large steps while nearly all comes back, then around the end in small ones.

    ``offer`` tells how much left and how much came back.
    """
    sent, got = offer(rate)
    while got > sent * _ALL:
        rate *= _STRIDE
        before = sent
        sent, got = offer(rate)
        if sent < before * 1.1:
            break  # the generator's own end
    best, best_rate = got, rate
    for factor in _AROUND:
        tried = got * factor
        if (other := offer(tried)[1]) > best:
            best, best_rate = other, tried
    return best_rate


def steady(rig: Rig, contender: Contender, flows: int = 10_000, size: int = 64) -> float:
    """The highest rate found by halving at which less than ``LOSS_MAX`` is lost, packets per second."""

    def lost(rate: float) -> Count:
        return rig.generator.run(contender.route, Traffic(flows=flows, size=size, rate=rate), _SEARCH_S)

    top = saturate(rig, contender, _SEARCH_S, flows, size).amount * 1.1
    good, low, high = 0.0, 0.0, top
    for _ in range(_HALVINGS + 2):
        middle = (low + high) / 2 if low else high / 2
        count = lost(middle)
        if count.loss() < LOSS_MAX:
            good, low = max(good, count.rate), middle
        else:
            high = middle
    return good


def latency(rig: Rig, contender: Contender, seconds: float, mode: Mode = Mode.DATA, opened: int = 0) -> Round:
    """Median microseconds at ``LATENCY_RATE``; the count has the other quantiles."""
    traffic = Traffic(mode, rate=LATENCY_RATE, stamped=True, opened=opened, delay=_DELAY_CONNECTIONS_MIN)
    return watched(
        contender,
        lambda: rig.generator.run(contender.route, traffic, seconds),
        lambda count: count.latency_us(0.5),
    )


# Connections ------------------------------------------------------------------------------------------


class Openings:
    """Hands out flows that nobody has opened yet."""

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self, count: int) -> int:
        first = self._next
        self._next += count
        return first


def open_connections(
    rig: Rig, contender: Contender, openings: Openings, seconds: float, which: str = OPEN
) -> Round:
    """Connections per second of which all three packets came back: the third passes only within a session.

    As many are offered as it can open, by the limit ``which``.
    """
    per_second = contender.limits[which]
    traffic = Traffic(
        Mode.OPEN,
        rate=per_second * 3,
        opened=openings.take(int(per_second * seconds * 1.2) + 1000),
        delay=max(_DELAY_CONNECTIONS_MIN, int(per_second * _DELAY_S)),
    )
    found = watched(
        contender,
        lambda: rig.generator.run(contender.route, traffic, seconds),
        lambda count: float(count.returned[Kind.ACK]) / count.seconds,
    )
    _adapt(contender, which, found.count)
    return found


def find_opening_peak(
    rig: Rig, contender: Contender, openings: Openings, before: Callable[[], None] = lambda: None
) -> None:
    """The rate of new connections at which most come to be, kept in the contender's ``limits``."""

    def offer(rate: float) -> tuple[float, float]:
        before()
        contender.limits[OPEN] = rate
        tried = open_connections(rig, contender, openings, _SEARCH_S)
        return float(tried.count.sent[Kind.ACK]) / tried.count.seconds, tried.amount

    contender.limits[OPEN] = _peak(offer, 20_000.0)


def mixed(rig: Rig, contender: Contender, openings: Openings, rate: float, seconds: float) -> Round:
    """Established flows, with one packet in twenty that opens a session and two that go on with it."""
    traffic = Traffic(
        Mode.MIX,
        rate=rate,
        stamped=True,
        opened=openings.take(int(rate * seconds * 1.2 / 20) + 1000),
        delay=max(_DELAY_CONNECTIONS_MIN, int(rate / 20 * _DELAY_S)),
    )
    return watched(
        contender, lambda: rig.generator.run(contender.route, traffic, seconds), lambda count: count.rate
    )


def flooded(rig: Rig, contender: Contender, established: float, flood: float, seconds: float) -> Round:
    """The loss of established flows beside a flood of stray and malformed packets; rates per second."""
    total = established + flood
    traffic = Traffic(Mode.FLOOD, rate=total, flood=flood / total)
    return watched(
        contender,
        lambda: rig.generator.run(contender.route, traffic, seconds),
        lambda count: count.loss(Kind.CLIENT_DATA, Kind.SERVER_DATA),
    )


def set_up(rig: Rig, contender: Contender, flows: int) -> int:
    """Open ``flows`` connections by their handshakes; returns how many came to be."""
    missing, rate, there = flows, 50_000.0, 0
    for _ in range(6):
        count = rig.generator.open(contender.route, 0, flows, rate)
        there = int(count.returned[Kind.ACK])
        missing = flows - there
        if missing <= flows // 10_000:
            break
        rate /= 2
    return there
