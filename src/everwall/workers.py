"""The workers of a node as one: started, stopped, counted and asked together.

Each has a port, an engine, rings, and a store connection of its own; the answers to its questions come back to it. They
hand packets to one another (``handover.py``) and share nothing else, so what a node knows is a sum over them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from everwall.counters import Counter
from everwall.engine import EngineConfig, describe_sessions, drain_ring, use_settings, verdict_counts
from everwall.handover import abandon, make_handovers
from everwall.limits import MS_NS, STORE_STOP_S
from everwall.policy.match import CompiledPolicy
from everwall.policy.settings import SessionSettings
from everwall.ports.port import Port
from everwall.session import state
from everwall.session.resync import progress
from everwall.session.table import SharedTable
from everwall.store.protocol import Rows
from everwall.store.redis import RedisStore, StoreConfig
from everwall.worker import STOP, Worker


class WorkersError(RuntimeError):
    """The workers cannot run as they were asked to; the message says what to change."""


def choose_cores(
    workers: int, wanted: Sequence[int] | None, allowed: Collection[int]
) -> list[int] | list[None]:
    """The processor of each worker, or None for each that may run on any.

    Not asked for, one processor each for several workers, if there are as many. Raises WorkersError when
    ``wanted`` does not fit the workers or the processors of this process.
    """
    if wanted is None:
        if workers == 1 or len(allowed) < workers:
            return [None] * workers
        return sorted(allowed)[:workers]
    if len(wanted) < workers:
        raise WorkersError(
            f"everwall-worker-cores names {len(wanted)} processors for {workers} workers; give one to each"
        )
    for core in wanted:
        if core not in allowed:
            may = ",".join(map(str, sorted(allowed)))
            raise WorkersError(
                f"everwall-worker-cores: this process may use the processors {may}, not {core}"
            )
    return list(wanted[:workers])


class Helper(Protocol):
    """A thread beside the workers that speaks to the store."""

    def begin_stop(self) -> None: ...

    def stop(self, timeout: float) -> bool: ...


class Workers:
    """As many workers as there are ports."""

    def __init__(
        self,
        config: EngineConfig,
        policy: CompiledPolicy,
        ports: Sequence[Port],
        cores: Sequence[int | None],
        shared: Sequence[SharedTable | None] | None = None,
        control_words: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``config`` is that of all of them together; nothing runs until ``start``.

        ``shared``, each worker's slices, and ``control_words`` are what the cut-through program sees.
        """
        shared = shared or [None] * len(ports)
        self.cores = list(cores)
        with contextlib.ExitStack() as opened:
            # For each worker the eventfd that wakes it, and the one that wakes its store.
            self._wakes = [_eventfd(opened) for _ in ports]
            self._store_wakes = [_eventfd(opened) for _ in ports]
            handovers = make_handovers(self._wakes, config.frame_bytes)
            self.all = [
                Worker(
                    replace(config, worker=number, workers=len(ports)),
                    policy,
                    port,
                    self._wakes[number],
                    self._store_wakes[number],
                    handovers[number],
                    shared[number],
                    control_words,
                )
                for number, port in enumerate(ports)
            ]
            self._descriptors = opened.pop_all()
        self._stores: list[RedisStore] = []
        self._started: list[RedisStore] = []

    def connect(self, store: StoreConfig, keys: Rows, buckets: int) -> None:
        """Give each worker a store connection, once; with the workers running it is started at once."""
        self._stores = [
            RedisStore(
                store,
                keys,
                worker.sessions.requests,
                worker.loop.replies,
                self._store_wakes[number],
                self._wakes[number],
                worker.sessions.clock,
                buckets,
            )
            for number, worker in enumerate(self.all)
        ]
        if self.all[0].running:
            self._start_stores()

    def renew_login(self, user: str | None, file: Path) -> None:
        """Go into the store with the password that is in the file now. Raises ConfigError where there is none."""
        for store in self._stores:
            store.renew_login(user, None, file)

    def use_keys(self, keys: Rows) -> None:
        """Name and seal records by other keys from now on, those of other secrets."""
        for store in self._stores:
            store.use_keys(keys)

    @property
    def refused(self) -> tuple[int, int]:
        """Records that did not open, and genuine ones of another version."""
        each = [store.refused for store in self._stores]
        return sum(altered for altered, _ in each), sum(foreign for _, foreign in each)

    @property
    def connected(self) -> bool:
        """Whether ``connect`` was called; ``store_status`` says whether a store answers."""
        return bool(self._stores)

    def switch_resiliency(self, on: bool) -> None:
        """Write to the store and look up there from now on, or do neither; switched on, the live sessions go first."""
        for worker in self.all:
            worker.sessions.words[state.RESILIENCY] = int(on)

    def replace_policy(self, policy: CompiledPolicy, rematch: bool = True) -> list[int]:
        """Decide by another policy from now on, worker after worker; returns for how many ns packets of each waited.

        ``rematch``: whether live sessions are asked about again. Raises RuntimeError, and nothing has changed
        anywhere, when one of them cannot: none begins before all can.
        """
        with contextlib.ExitStack() as prepared:
            changes = [prepared.enter_context(worker.successor(policy, rematch)) for worker in self.all]
            return [change() for change in changes]

    def use_settings(self, settings: SessionSettings) -> None:
        """Keep sessions for other times from now on, and treat unknown ones otherwise."""
        for worker in self.all:
            use_settings(worker.sessions, settings)

    @property
    def rematching(self) -> int:
        """Per cent of the session tables that are still to be asked about after the last change of policy."""
        left = [int(worker.sessions.words[state.REMATCH_LEFT]) for worker in self.all]
        slots = [len(worker.sessions.table.tags) for worker in self.all]
        return -(-100 * sum(left) // sum(slots))

    def __len__(self) -> int:
        return len(self.all)

    # Life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Enter all loops; the stores connect by themselves. When it fails, ``stop`` ends what was begun."""
        for worker, core in zip(self.all, self.cores, strict=True):
            worker.start(core)
        self._start_stores()

    def _start_stores(self) -> None:
        for store in self._stores:
            store.start()
            self._started.append(store)

    def stop(self, *helpers: Helper | None) -> None:
        """Leave all loops and end the stores, after what they still have to write; to be called once.

        ``helpers`` speak to the store as well. All are told before any is waited for, and until one time: a store that
        hangs is waited for once.
        """
        until = time.monotonic() + STORE_STOP_S
        beside = [helper for helper in helpers if helper is not None]
        for helper in beside:
            helper.begin_stop()
        # All of them first: whoever goes on alone hands packets to those that have gone.
        for worker in self.all:
            worker.loop.control[STOP] = 1
        for worker in self.all:
            worker.stop()
        for worker in self.all:
            abandon(worker.sessions, worker.loop.handover)
        for store in self._started:
            store.begin_stop()  # a store that hangs is waited for once, not once for each worker
        ended = [store.stop() for store in self._started]
        for helper in beside:
            helper.stop(max(until - time.monotonic(), 0))
        if all(ended):  # a store that hangs may still want to wake its worker
            self._descriptors.close()

    @property
    def running(self) -> bool:
        """False as soon as one of them has stopped: its share of the flows goes nowhere."""
        return all(worker.running for worker in self.all)

    @property
    def heartbeat(self) -> int:
        """CLOCK_MONOTONIC ns at which the slowest last passed its loop; 0 until all have."""
        return min(worker.heartbeat for worker in self.all)

    # What they know -------------------------------------------------------------------------------------

    def count(self, which: Counter) -> int:
        """One counter, summed."""
        return sum(int(worker.sessions.counters[which]) for worker in self.all)

    def counters(self) -> dict[str, int]:
        """Verdicts and counters by name, summed."""
        verdicts = verdict_counts(np.sum([worker.sessions.verdicts for worker in self.all], axis=0))
        return {**verdicts, **{which.label: self.count(which) for which in Counter}}

    def each_counters(self) -> list[dict[str, int]]:
        """The same for each worker."""
        return [
            {
                **verdict_counts(worker.sessions.verdicts),
                **{which.label: int(worker.sessions.counters[which]) for which in Counter},
            }
            for worker in self.all
        ]

    def each(self) -> list[dict[str, Any]]:
        """Each worker at a glance."""
        now = time.monotonic_ns()
        counters = [worker.sessions.counters for worker in self.all]
        return [
            {
                "worker": number,
                "core": self.cores[number],
                "running": worker.running,
                "heartbeat_ms": round((now - worker.heartbeat) / MS_NS, 1),
                "sessions": int(counters[number][Counter.SESSIONS]),
                "received": int(counters[number][Counter.RECEIVED]),
                "handed_over": int(counters[number][Counter.HANDED_OVER]),
                "handed_in": int(counters[number][Counter.HANDED_IN]),
            }
            for number, worker in enumerate(self.all)
        ]

    def sessions(self, limit: int) -> list[dict[str, Any]]:
        """Live sessions as people read them, at most ``limit``."""
        rows: list[dict[str, Any]] = []
        for worker in self.all:
            rows += describe_sessions(worker.sessions, limit - len(rows))
        return rows

    def events(self) -> list[npt.NDArray[np.int64]]:
        """Session events since the last call, in the order of each worker."""
        return [event for worker in self.all for event in drain_ring(worker.sessions.events)]

    def watch_stores(self) -> None:
        """See how old what waits for the store is; called about ten times a second."""
        for store in self._started:
            store.watch()

    def store_status(self) -> dict[str, Any]:
        """What the operator sees of the store: sums, and the worst where a sum has no meaning."""
        if not self._stores:
            return {
                "connected": False,
                "resync_percent": 0,
                "resync_ms": None,
                "unsynced_sessions": self.count(Counter.SESSIONS),
            }
        stores = combined([store.status() for store in self._stores])
        # After that: whole is what a store is on the connection that was told of, not on the one before.
        each = [progress(worker.sessions) for worker in self.all]
        took = [one["resync_ms"] for one in each]
        whole = {
            "resync_percent": min(one["resync_percent"] for one in each),
            "resync_ms": None if None in took else max(took),
            "unsynced_sessions": sum(one["unsynced_sessions"] for one in each),
        }
        return {**stores, **whole}


def combined(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the same names as one: numbers of things are added, measures are the largest, yes is all of them."""
    together: dict[str, Any] = {}
    for name, first in each[0].items():
        values = [facts[name] for facts in each]
        if isinstance(first, bool):
            together[name] = all(values)
        elif isinstance(first, int):
            together[name] = sum(values)
        elif isinstance(first, float):
            together[name] = max(values, key=abs)
        else:
            together[name] = next((value for value in values if value is not None), None)
    return together


def _eventfd(opened: contextlib.ExitStack) -> int:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor
