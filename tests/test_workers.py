"""The workers of a node as one: where they run, and what they know together."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from everwall import pipeline
from everwall.counters import Counter
from everwall.engine import EngineConfig
from everwall.handover import spread
from everwall.policy.match import allow_all
from everwall.ports import port as ports
from everwall.session import state
from everwall.session.record import derive_keys
from everwall.store.redis import RedisStore, StoreConfig
from everwall.worker import STOP, Worker
from everwall.workers import Workers, WorkersError, choose_cores, combined
from tests import packets
from tests.descriptors import eventfds

pytestmark = pytest.mark.kernel

ADDRESS = "127.0.84.1"


@contextlib.contextmanager
def workers(number: int, **options: Any) -> Iterator[Workers]:
    opened = [ports.open_udp(ADDRESS, shared=True) for _ in range(number)]
    made = Workers(EngineConfig(max_sessions=64), allow_all(), opened, [None] * number)
    try:
        yield made
    finally:
        made.stop()
        for port in opened:
            ports.close(port)


def test_each_worker_gets_a_processor_where_there_are_enough() -> None:
    assert choose_cores(1, None, {0, 1, 2}) == [None], "one worker goes where the system puts it"
    assert choose_cores(2, None, {5, 3, 4}) == [3, 4]
    assert choose_cores(4, None, {0, 1}) == [None] * 4, "two on one processor would wait for each other"
    assert choose_cores(2, (4, 0, 2), {0, 2, 4}) == [4, 0]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [((0,), "names 1 processors for 2 workers"), ((0, 9), "may use the processors 0,1, not 9")],
)
def test_processors_that_do_not_fit_are_named(wanted: tuple[int, ...], why: str) -> None:
    with pytest.raises(WorkersError, match=why):
        choose_cores(2, wanted, {0, 1})


def test_facts_of_several_stores_are_summed_or_the_worst() -> None:
    first = {
        "connected": True,
        "server": "redis",
        "written": 3,
        "rtt_ms": 0.5,
        "skew_ms": 1.0,
        "last_error": None,
    }
    other = {
        "connected": False,
        "server": None,
        "written": 4,
        "rtt_ms": 0.2,
        "skew_ms": -2.0,
        "last_error": "gone",
    }
    assert combined([first]) == first
    assert combined([first, other]) == {
        "connected": False,
        "server": "redis",
        "written": 7,
        "rtt_ms": 0.5,
        "skew_ms": -2.0,
        "last_error": "gone",
    }


def test_the_node_is_as_healthy_as_its_worst_worker() -> None:
    with workers(3) as three:
        assert (three.running, three.heartbeat) == (False, 0)
        three.start()
        deadline = time.monotonic() + 60
        while three.heartbeat == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert three.running
        three.all[1].stop()
        stopped = three.all[1].heartbeat
        while min(three.all[0].heartbeat, three.all[2].heartbeat) <= stopped:
            assert time.monotonic() < deadline, "the others go on"
            time.sleep(0.01)
        assert not three.running
        assert three.heartbeat == stopped, "the oldest counts"
        assert [row["running"] for row in three.each()] == [True, False, True]


def test_a_store_that_has_just_come_back_is_not_said_to_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be empty; what is said of it together is of one moment, not half of it of the connection before."""
    with workers(1) as one:
        one.connect(StoreConfig(host="127.0.0.1", port=1, tls=False), derive_keys(b"s" * 32), 16)
        (worker,) = one.all
        worker.sessions.words[state.RESILIENCY] = 1
        assert one.store_status()["resync_percent"] == 100, "of the connection before"
        status = RedisStore.status

        def come_back(store: RedisStore) -> dict[str, Any]:
            store._clock.count_connection()
            return {**status(store), "connected": True}

        monkeypatch.setattr(RedisStore, "status", come_back)
        facts = one.store_status()
        assert facts["connected"]
        assert facts["resync_percent"] < 100


def test_all_are_told_to_stop_before_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that went on alone would hand packets to those that have gone."""
    told: list[list[int]] = []

    def stop(self: Worker) -> None:
        told.append([int(worker.loop.control[STOP]) for worker in three.all])

    monkeypatch.setattr(Worker, "stop", stop)
    with workers(3) as three:
        pass
    assert told == [[1, 1, 1]] * 3


def test_a_store_that_hangs_is_waited_for_once_and_not_for_each_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[RedisStore] = []
    stop = RedisStore.stop

    def note(self: RedisStore, timeout: float = 1.0) -> bool:
        told.extend(store for store in three._stores if store._stop_at_ns is not None)
        return stop(self, timeout)

    monkeypatch.setattr(RedisStore, "stop", note)
    with workers(3) as three:
        three.connect(StoreConfig(host="127.0.0.1", port=1, tls=False), derive_keys(b"s" * 32), 16)
        three._start_stores()
    assert told == three._stores * 3, "all are to end by the time the first is waited for"


def test_what_is_between_workers_when_they_stop_is_counted() -> None:
    with workers(2) as pair:
        inner = packets.tcp("10.0.0.1", "10.0.1.1", 40_000, 80, flags="S")
        for worker in pair.all:
            batch = packets.batch_of([inner] * 4, bare=True)
            for row in range(4):
                pipeline.read(worker.state, batch, row)
            spread(worker.sessions, worker.loop.handover, batch, np.arange(4), 4, 0)
        assert pair.count(Counter.HANDED_OVER) == 4, "by the one that has not got the flow"
    assert pair.count(Counter.HANDED_IN) == 4
    assert pair.counters()["handover-stopped"] == 4


@pytest.mark.parametrize("fails", ["worker", "store"])
def test_what_has_begun_of_a_failed_start_can_be_stopped(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more threads")

    store = StoreConfig(host="127.0.0.1", port=1, tls=False)
    before = eventfds()
    opened = ports.open_udp(ADDRESS)
    try:
        one = Workers(EngineConfig(max_sessions=64), allow_all(), [opened], [0])
        one.connect(store, derive_keys(b"s" * 32), 16)
        with monkeypatch.context() as patched, pytest.raises(OSError, match="no more threads"):
            if fails == "worker":
                patched.setattr(os, "sched_setaffinity", refuse)
            else:
                patched.setattr(RedisStore, "start", refuse)
            one.start()
        assert one.running
        one.stop()
        assert not one.running
        assert eventfds() == before
    finally:
        ports.close(opened)


def test_counters_are_sums_and_each_ones_can_be_seen() -> None:
    with workers(2) as pair:
        for number, worker in enumerate(pair.all):
            worker.sessions.counters[Counter.RECEIVED] = 10 + number
            worker.sessions.verdicts[0] = 5
        assert pair.count(Counter.RECEIVED) == 21
        assert (pair.counters()["received"], pair.counters()["forward"]) == (21, 10)
        assert [one["received"] for one in pair.each_counters()] == [10, 11]
        assert pair.store_status() == {
            "connected": False,
            "resync_percent": 0,
            "resync_ms": None,
            "unsynced_sessions": 0,
        }


def test_a_worker_runs_on_the_processor_it_was_given() -> None:
    core = min(os.sched_getaffinity(0))
    with workers(1) as one:
        one.all[0].start(core)
        thread = one.all[0]._thread
        assert thread is not None
        assert thread.native_id is not None
        assert os.sched_getaffinity(thread.native_id) == {core}
