"""The targets of a load balancer and what becomes of them: states, reasons, timers, events.

No sockets and no clock here: probes report their outcome with the time, and the states follow.
Names of states and reasons are those of the AWS Elastic Load Balancing API (TargetHealth). What
the data path has to know stands in ``rows`` (columns in ``choice.py``), two plain numbers for each
target: may new flows come, must present flows go.

::

                 healthy_threshold_count answers           unhealthy_threshold_count failures
    initial ────────────────────────────────▶ healthy ◀──────────────────────────────▶ unhealthy
       │                                         │                                         │
       └──────────────── deregister ─────────────┴─────────────────────────────────────────┘
                              │
                              ▼      deregistration_delay.timeout_seconds
                          draining ─────────────────────────────────────▶ unused
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

import numpy as np
import numpy.typing as npt

from everwall.balancer.choice import (
    ADDRESS,
    CHOICE,
    COLUMNS,
    FAIL_OPEN,
    HEALTHY,
    MOVE,
    NEVER,
    REFERENCE,
)
from everwall.limits import GWLB_EVENTS_MAX, GWLB_TARGETS_MAX


class State(StrEnum):
    """State of a target, as AWS names it."""

    INITIAL = "initial"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNUSED = "unused"
    DRAINING = "draining"


class Reason(StrEnum):
    """Why a target is in its state; a healthy one has no reason."""

    NONE = ""
    REGISTRATION = "Elb.RegistrationInProgress"
    INITIAL_CHECKING = "Elb.InitialHealthChecking"
    FAILED_CHECKS = "Target.FailedHealthChecks"
    TIMEOUT = "Target.Timeout"
    CODE_MISMATCH = "Target.ResponseCodeMismatch"
    DEREGISTRATION = "Target.DeregistrationInProgress"
    NOT_REGISTERED = "Target.NotRegistered"


@dataclass
class Target:
    """One registered target, or one that was."""

    id: str
    address: str
    row: int
    """Where it stands in ``Targets.rows``."""
    reference: int
    state: State
    reason: Reason
    since: int
    """Nanoseconds; when it came into its state."""
    successes: int = 0
    """Probes answered in a row."""
    failures: int = 0
    """Probes failed in a row."""
    failing: bool = False
    """The last ``unhealthy_threshold_count`` probes failed; a draining target keeps its state then."""
    gone_at: int | None = None
    """Nanoseconds; the end of the deregistration delay."""


@dataclass(frozen=True)
class Event:
    """One change of state."""

    time: int
    target: str
    state: State
    reason: Reason


class Targets:
    """All targets of one load balancer."""

    def __init__(
        self,
        *,
        healthy_threshold: int = 5,
        unhealthy_threshold: int = 2,
        rebalance: bool = False,
        deregistration_delay: int = 300 * 10**9,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """``rebalance``: both ``target_failover`` attributes. ``deregistration_delay``: nanoseconds.

        ``told`` hears of every event when it happens.
        """
        self._told = told
        self.healthy_threshold = healthy_threshold
        self.unhealthy_threshold = unhealthy_threshold
        self.rebalance = rebalance
        self.deregistration_delay = deregistration_delay
        self.rows: npt.NDArray[np.int64] = np.zeros((GWLB_TARGETS_MAX, COLUMNS), np.int64)
        self.rows[:, REFERENCE] = -1
        self.events: deque[Event] = deque(maxlen=GWLB_EVENTS_MAX)
        self._targets: dict[str, Target] = {}
        self._next_reference = 0

    def __iter__(self) -> Iterator[Target]:
        return iter(list(self._targets.values()))

    def __getitem__(self, target_id: str) -> Target:
        """Raises KeyError for a target that was never registered."""
        return self._targets[target_id]

    def __contains__(self, target_id: object) -> bool:
        return target_id in self._targets

    def by_reference(self, reference: int) -> Target | None:
        """The target that a flow entry names, while it is known."""
        return next((target for target in self._targets.values() if target.reference == reference), None)

    def register(self, target_id: str, address: str, now: int) -> Target:
        """Add a target by its IPv4 address, or take a deregistered one back.

        Raises ValueError for an id or address that is in use, for what is no IPv4 address, and
        when ``GWLB_TARGETS_MAX`` are registered.
        """
        number = int(IPv4Address(address))
        known = self._targets.get(target_id)
        if known and known.state is not State.UNUSED and known.state is not State.DRAINING:
            raise ValueError(f"target {target_id} is registered already")
        for other in self._targets.values():
            if other.address == address and other.id != target_id and other.state is not State.UNUSED:
                raise ValueError(f"address {address} is registered already, as target {other.id}")
        if known and known.address == address:
            # Flows that stayed with it (no_rebalance) find it again under the same reference.
            known.successes = known.failures = 0
            known.failing, known.gone_at = False, None
            self._enter(known, State.INITIAL, Reason.REGISTRATION, now)
            return known
        row = self._free_row(known)
        reference = self._next_reference * GWLB_TARGETS_MAX + row
        self._next_reference += 1
        target = Target(target_id, address, row, reference, State.INITIAL, Reason.REGISTRATION, now)
        self._targets[target_id] = target
        self.rows[row, CHOICE] = NEVER
        self.rows[row, ADDRESS] = number
        self.rows[row, REFERENCE] = reference
        self._enter(target, State.INITIAL, Reason.REGISTRATION, now)
        return target

    def _free_row(self, replaced: Target | None) -> int:
        """A row never used, or else that of the target that was deregistered longest ago."""
        if replaced:
            return replaced.row
        used = {target.row for target in self._targets.values()}
        for row in range(GWLB_TARGETS_MAX):
            if row not in used:
                return row
        unused = [target for target in self._targets.values() if target.state is State.UNUSED]
        if not unused:
            raise ValueError(f"{GWLB_TARGETS_MAX} targets are registered, the most there may be")
        oldest = min(unused, key=lambda target: target.since)
        del self._targets[oldest.id]
        return oldest.row

    def deregister(self, target_id: str, now: int) -> Target:
        """Take a target out: no new flows at once, gone after the deregistration delay.

        Raises KeyError for an unknown target, ValueError for one that is not registered any more.
        """
        target = self._targets[target_id]
        if target.state in (State.DRAINING, State.UNUSED):
            raise ValueError(f"target {target_id} is {target.state} already")
        target.gone_at = now + self.deregistration_delay
        self._enter(target, State.DRAINING, Reason.DEREGISTRATION, now)
        self.handle_timer(now)
        return target

    def started(self, target_id: str, now: int) -> None:
        """The first probe of a target is on its way."""
        target = self._targets[target_id]
        if target.reason is Reason.REGISTRATION:
            self._enter(target, State.INITIAL, Reason.INITIAL_CHECKING, now)

    def probed(self, target_id: str, outcome: Reason, now: int) -> None:
        """One probe came to its end: ``Reason.NONE`` means answered, else why it failed."""
        target = self._targets.get(target_id)
        if target is None or target.state is State.UNUSED:
            return  # it was deregistered while the probe was under way
        if outcome is Reason.NONE:
            target.successes, target.failures = target.successes + 1, 0
            if target.successes >= self.healthy_threshold:
                self.judge(target_id, True, outcome, now)
        else:
            target.failures, target.successes = target.failures + 1, 0
            if target.failures >= self.unhealthy_threshold:
                self.judge(target_id, False, outcome, now)

    def judge(self, target_id: str, healthy: bool, reason: Reason, now: int) -> None:
        """Call a target healthy or not, whatever its probes said so far."""
        target = self._targets[target_id]
        if target.state is State.UNUSED:
            return
        if target.state is State.DRAINING:
            if target.failing is healthy:
                target.failing = not healthy
                self._enter(target, State.DRAINING, reason or Reason.DEREGISTRATION, now)
            return
        target.failing = not healthy
        state = State.HEALTHY if healthy else State.UNHEALTHY
        if target.state is not state:
            self._enter(target, state, reason, now)

    def next_timer(self) -> int | None:
        """Nanoseconds of the next end of a deregistration delay."""
        return min((target.gone_at for target in self if target.gone_at is not None), default=None)

    def handle_timer(self, now: int) -> None:
        """End every deregistration delay that is over."""
        for target in self:
            if target.gone_at is not None and target.gone_at <= now:
                target.gone_at = None
                self._enter(target, State.UNUSED, Reason.NOT_REGISTERED, now)

    def _enter(self, target: Target, state: State, reason: Reason, now: int) -> None:
        if target.state is not state:
            target.since = now
        target.state, target.reason = state, reason
        choice, move = {
            State.INITIAL: (FAIL_OPEN, False),
            State.HEALTHY: (HEALTHY, False),
            State.UNHEALTHY: (FAIL_OPEN, True),
            State.DRAINING: (NEVER, target.failing),
            State.UNUSED: (NEVER, True),
        }[state]
        self.rows[target.row, CHOICE] = choice
        self.rows[target.row, MOVE] = int(move and self.rebalance)
        event = Event(now, target.id, state, reason)
        self.events.append(event)
        self._told(event)
