"""The measurements: each takes contenders and lets rounds of at most a second alternate between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.rig.contenders import Contender, Order, Rig
from bench.rig.frames import Kind
from bench.rig.generator import Count, Mode, Traffic

LOSS_MAX = 0.001
"""Of a steady state."""
LATENCY_RATE = 50_000.0
ESTABLISHED = (Kind.CLIENT_DATA, Kind.SERVER_DATA)
FLOOD = (Kind.STRAY, Kind.MALFORMED)
FEW = 10_000
_HALVINGS = 7
_TRIAL_S, _TRIALS = 0.1, 5
"""Of a rate that may be a steady state."""
_DELAY = 128
"""Connections begun between a SYN and its SYN-ACK, and again before the ACK; with three packets for each, more than are
under way at once."""
_ATTEMPTS = 5
_SET_UP_S_MAX = 5.0


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


def watched(
    contender: Contender,
    act: Callable[[], Count],
    amount: Callable[[Count], float],
    order: Order = Order.TURNS,
) -> Round:
    """Run, and see what it took."""
    with contender.measured(order):
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


def saturate(rig: Rig, contender: Contender, seconds: float, flows: int = FEW, size: int = 64) -> Round:
    """As many packets as it returns, with as many under way as it can hold."""
    traffic = Traffic(flows=flows, size=size)
    return watched(
        contender, lambda: rig.generator.circle(contender.route, traffic, seconds), lambda c: c.rate
    )


def steady(rig: Rig, contender: Contender, flows: int = FEW, size: int = 64) -> float:
    """The highest rate found by halving at which less than ``LOSS_MAX`` is lost, packets per second.

    As RFC 2544 (section 26.1) searches, but the rate is judged by the median of ``_TRIALS`` short trials: where
    the machine stands still for a millisecond, a trial loses more than that at any rate. NAPI goes before the node.
    """
    good, low = 0.0, 0.0
    high = saturate(rig, contender, _TRIAL_S, flows, size).amount
    for _ in range(_HALVINGS):
        rate = (low + high) / 2
        traffic = Traffic(flows=flows, size=size, rate=rate)
        with contender.measured(Order.NAPI):
            trials = [rig.generator.run(contender.route, traffic, _TRIAL_S) for _ in range(_TRIALS)]
        if statistics.median(each.loss() for each in trials) < LOSS_MAX:
            good, low = max(good, statistics.median(each.rate for each in trials)), rate
        else:
            high = rate
    return good


def full_speed(rig: Rig, contender: Contender, seconds: float, flows: int = FEW) -> Round:
    """What comes back when the generator sends as fast as it can, whatever gets lost."""
    traffic = Traffic(flows=flows)
    return watched(contender, lambda: rig.generator.run(contender.route, traffic, seconds), lambda c: c.rate)


def latency(rig: Rig, contender: Contender, seconds: float) -> Round:
    """Median microseconds at ``LATENCY_RATE``; the count has the other quantiles."""
    traffic = Traffic(rate=LATENCY_RATE, stamped=True)
    return watched(
        contender,
        lambda: rig.generator.run(contender.route, traffic, seconds),
        lambda count: count.latency_us(0.5),
        Order.ALONE,
    )


# Connections ------------------------------------------------------------------------------------------


class Openings:
    """Hands out flows that nobody has opened yet."""

    def __init__(self, first: int) -> None:
        self.next = first

    def used(self, count: Count) -> Count:
        """What a run has opened is not opened again."""
        self.next += int(count.sent[Kind.SYN])
        return count


def open_connections(rig: Rig, contender: Contender, openings: Openings, seconds: float) -> Round:
    """Connections per second of which all three packets came back: the third passes only within a session."""
    traffic = Traffic(Mode.OPEN, opened=openings.next, delay=_DELAY)
    return watched(
        contender,
        lambda: openings.used(rig.generator.circle(contender.route, traffic, seconds)),
        lambda count: float(count.returned[Kind.ACK]) / count.seconds,
    )


def mixed(rig: Rig, contender: Contender, openings: Openings, seconds: float, rate: float = 0.0) -> Round:
    """Established flows, with one packet in twenty that opens a session and two that go on with it.

    As many as it takes, or at a rate: packets per second then, and else microseconds, are what is compared.
    """
    traffic = Traffic(Mode.MIX, rate=rate, stamped=bool(rate), opened=openings.next, delay=_DELAY)
    if rate:
        return watched(
            contender,
            lambda: openings.used(rig.generator.run(contender.route, traffic, seconds)),
            lambda count: count.latency_us(0.5),
            Order.ALONE,
        )
    return watched(
        contender,
        lambda: openings.used(rig.generator.circle(contender.route, traffic, seconds)),
        lambda count: count.rate,
    )


def flooded(rig: Rig, contender: Contender, established: float, flood: float, seconds: float) -> Round:
    """The loss of established flows beside a flood of stray and malformed packets; rates per second.

    NAPI goes before the node's threads, as where it runs in soft interrupts.
    """
    total = established + flood
    traffic = Traffic(Mode.FLOOD, rate=total, flood=flood / total)
    return watched(
        contender,
        lambda: rig.generator.run(contender.route, traffic, seconds),
        lambda count: count.loss(*ESTABLISHED),
        Order.NAPI,
    )


def set_up(rig: Rig, contender: Contender, flows: int) -> int:
    """Open ``flows`` connections by their handshakes; returns how many came to be."""
    there = 0
    with contender.measured():
        for _ in range(_ATTEMPTS):
            traffic = Traffic(Mode.OPEN, open=flows, delay=_DELAY)
            count = rig.generator.circle(
                contender.route, traffic, _SET_UP_S_MAX, lambda: rig.generator.returned(Kind.ACK) >= flows
            )
            there = int(count.returned[Kind.ACK])
            if there == flows:
                break
    return there
