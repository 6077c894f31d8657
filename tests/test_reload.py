"""Another policy for workers in their loops: nothing is lost on the way, and nobody is left between two threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from everwall.counters import Counter
from everwall.engine import EngineConfig, describe_sessions, drain_ring
from everwall.kernels import JIT
from everwall.policy.compile import compile_policy
from everwall.policy.match import CompiledPolicy, allow_all, deny_all, rule_id
from everwall.policy.model import Policy, Rule, Zone
from everwall.policy.words import parse_service
from everwall.ports import port as ports
from everwall.session import state, tcp
from everwall.worker import _NEXT, _WAITING, STOP, Worker
from everwall.workers import Workers
from tests import company, packets
from tests.conversations import Connection
from tests.descriptors import eventfds
from tests.fleet import ENDPOINT, PATIENCE_S, Fleet

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "172.16.0.1", "172.16.1.1"
RULES = 10_000 if JIT else 200
ADDRESS = "127.0.84.2"


@cache
def companys() -> Policy:
    return company.policy(RULES, 1)


@cache
def large(name: str, service: str = "any") -> CompiledPolicy:
    """A company's rules, of which none speaks about our hosts, and a last one that does."""
    policy = companys()
    ours = Zone("ours", (ENDPOINT,))
    services = None if service == "any" else parse_service(service)
    assert not isinstance(services, str)
    last = Rule(name, "allow", from_zones=("ours",), to_zones=("ours",), service=services)
    return compile_policy(replace(policy, zones=(*policy.zones, ours), rules=(*policy.rules, last)))[0]


@pytest.fixture
def fleet() -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(workers: int, **options: Any) -> Fleet:
        made.append(Fleet(workers, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_ten_thousand_rules_come_while_packets_pass_and_none_is_lost(
    fleet: Callable[..., Fleet], workers: int
) -> None:
    node = fleet(workers, policy=large("before"), one_address=True, resiliency=True)
    node.start()
    talks = [Connection(CLIENT, SERVER, port) for port in range(41_000, 41_012)]
    for step in zip(*(talk.handshake() for talk in talks)):
        node.through(*step)
    ids = live(node)
    changes, done = [large("after"), large("before"), allow_all(), large("after")], threading.Event()
    waited: list[int] = []

    def change() -> None:
        for policy in changes:
            waited.extend(worker.replace_policy(policy) for worker in node.workers)
        done.set()

    changing = threading.Thread(target=change)
    changing.start()
    fresh = 42_000
    while not done.is_set():
        node.through(*(talk.data() for talk in talks))
        node.through(*(talk.data(talk.server) for talk in talks))
        node.through(packets.udp(CLIENT, SERVER, fresh, 53))  # a new session finds a policy at any moment
        fresh += 1
    changing.join()
    node.through(*(talk.data() for talk in talks))
    assert len(waited) == len(changes) * workers
    assert all(nanoseconds > 0 for nanoseconds in waited), "each was handed from thread to thread"
    assert {name for told in node.verdicts() for name in told} == {"forward"}
    assert ids <= live(node), "the very same sessions"
    assert sum(node.counter(Counter.SESSIONS_RULED_OUT)) == 0


def live(node: Fleet) -> set[int]:
    """The ids of the established TCP sessions."""
    rows = [row for worker in node.workers for row in describe_sessions(worker.sessions)]
    return {row["id"] for row in rows if row["state"] == "established"}


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that threads do by themselves."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def test_sessions_that_the_other_policy_refuses_end_and_the_rest_have_its_rule(
    fleet: Callable[..., Fleet],
) -> None:
    node = fleet(1, policy=large("before"))
    node.start()
    (worker,) = node.workers
    talks = [Connection(CLIENT, SERVER, port, dport) for dport in (80, 22) for port in range(41_000, 41_005)]
    for step in zip(*(talk.handshake() for talk in talks)):
        node.through(*step)
    worker.replace_policy(large("after", "tcp/80"))
    until(lambda: not worker.sessions.words[state.REMATCH_LEFT], "all were asked about")
    assert node.counter(Counter.SESSIONS_RULED_OUT) == [5]
    rows = describe_sessions(worker.sessions)
    assert {(row["dport"], row["rule"]) for row in rows} == {(80, rule_id("after"))}
    reasons = {int(event[state.EVENT_REASON]) for event in drain_ring(worker.sessions.events)}
    assert reasons == {tcp.END_POLICY_DENY}
    node.through(*(talk.data() for talk in talks[:5]))
    node.send(0, talks[5].data())
    until(lambda: node.verdicts()[0].get("non-syn-tcp") == 1, "the others are strangers now")


# Between two threads -------------------------------------------------------------------------------------


@pytest.fixture
def one() -> Iterator[Worker]:
    opened, wake, store_wake = ports.open_udp(ADDRESS), *(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
    worker = Worker(EngineConfig(max_sessions=64), allow_all(), opened, wake, store_wake)
    yield worker
    worker.stop()
    ports.close(opened)
    os.close(wake)
    os.close(store_wake)


def test_a_worker_that_is_not_in_its_loop_yet_begins_with_the_other_policy(one: Worker) -> None:
    policy = deny_all()
    assert one.replace_policy(policy) == 0
    assert one.state.policy is policy


def test_the_other_thread_is_on_the_same_processor_and_the_former_one_has_gone(one: Worker) -> None:
    core = min(os.sched_getaffinity(0))
    one.start(core)
    former, before = one._thread, eventfds()
    until(lambda: one.heartbeat, "the loop")
    assert one.replace_policy(deny_all()) > 0
    assert one._thread is not former
    assert one.running
    assert former is not None
    assert not former.is_alive()
    assert one._thread is not None
    assert os.sched_getaffinity(one._thread.native_id or 0) == {core}
    assert eventfds() == before
    heard = one.heartbeat
    until(lambda: one.heartbeat > heard, "the loop to go on")


def test_a_worker_whose_thread_has_just_gone_is_running_all_the_same(
    one: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node ends, and fails its health checks, once a worker does not run."""
    one.start()
    former, seen = one._thread, []
    assert former is not None
    join = former.join

    def gone() -> None:
        join()
        seen.append(one.running)

    monkeypatch.setattr(former, "join", gone)
    one.replace_policy(deny_all())
    assert seen == [True]


@pytest.mark.parametrize("fails", ["start", "place"])
def test_when_no_other_thread_comes_the_former_one_stays(
    one: Worker, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_: object) -> None:
        raise (RuntimeError if fails == "start" else OSError)("can't start new thread")

    one.start()
    former, policy, before = one._thread, one.state.policy, eventfds()
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(*(threading.Thread, "start") if fails == "start" else (Worker, "_pin"), refuse)
        one.replace_policy(deny_all())
    assert (one._thread, one.state.policy) == (former, policy)
    assert (eventfds(), worker_threads()) == (before, 1)
    heard = one.heartbeat
    until(lambda: one.heartbeat > heard, "the loop to go on")
    assert one.replace_policy(deny_all()) > 0, "a later attempt succeeds"


def test_a_stop_in_the_middle_ends_both(one: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread has come and waits, and the worker is told to stop."""
    one.start()
    begin, told = one._begin, threading.Event()

    def begin_and_stop(state_: Any) -> threading.Thread:
        successor = begin(state_)
        one.loop.control[STOP] = 1
        os.eventfd_write(int(one.loop.descriptors[0]), 1)
        told.set()
        return successor

    monkeypatch.setattr(one, "_begin", begin_and_stop)
    with contextlib.suppress(RuntimeError):  # whether it still came to the loop or not
        one.replace_policy(deny_all())
    assert told.is_set()
    one.stop()
    assert not one.running
    assert worker_threads() == 0


def test_a_loop_that_ends_by_itself_takes_the_waiting_thread_along(
    one: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that ends is started anew; one whose worker only seems to run is not."""
    one.start()
    begin, former = one._begin, one._thread
    assert former is not None

    def begin_and_fail(state_: Any) -> threading.Thread:
        one.loop.control[STOP] = 1
        os.eventfd_write(int(one.loop.descriptors[0]), 1)
        former.join()
        one.loop.control[STOP] = 0  # before the other thread comes, which would heed it as well
        successor = begin(state_)
        until(lambda: one.loop.control[_NEXT] == _WAITING, "the other thread")
        return successor

    monkeypatch.setattr(one, "_begin", begin_and_fail)
    assert one.replace_policy(deny_all()) == 0
    assert not one.running
    assert worker_threads() == 0


def worker_threads() -> int:
    return sum(thread.name == "worker" for thread in threading.enumerate())


def test_what_was_prepared_and_is_not_wanted_leaves_no_trace(one: Worker) -> None:
    one.start()
    former, policy, before = one._thread, one.state.policy, eventfds()
    with one.successor(deny_all()):
        assert worker_threads() == 2, "the other one waits"
    assert (one._thread, one.state.policy, worker_threads(), eventfds()) == (former, policy, 1, before)
    assert not one.sessions.words[state.REMATCH_LEFT]
    heard = one.heartbeat
    until(lambda: one.heartbeat > heard, "the loop to go on")


def test_none_of_several_workers_changes_before_all_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that one of them had ended for a policy that does not come would be gone."""
    opened = [ports.open_udp(ADDRESS, shared=True) for _ in range(3)]
    three = Workers(EngineConfig(max_sessions=64), allow_all(), opened, [None] * 3)
    try:
        three.start()
        threads, former = [worker._thread for worker in three.all], three.all[0].state.policy
        begin = Worker._begin
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="can't start new thread"):

            def fail_at_the_last(worker: Worker, state_: Any) -> threading.Thread:
                if worker is three.all[2]:
                    raise RuntimeError("can't start new thread")
                return begin(worker, state_)

            patched.setattr(Worker, "_begin", fail_at_the_last)
            three.replace_policy(deny_all())
        assert [worker._thread for worker in three.all] == threads
        assert all(worker.state.policy is former for worker in three.all)
        assert not any(int(worker.sessions.words[state.REMATCH_LEFT]) for worker in three.all)
        assert (three.rematching, worker_threads()) == (0, 3), "nobody has been asked about anything"
        policy = deny_all()
        assert all(nanoseconds > 0 for nanoseconds in three.replace_policy(policy))
        assert all(worker.state.policy is policy for worker in three.all)
    finally:
        three.stop()
        for port in opened:
            ports.close(port)


def test_workers_that_do_not_run_yet_have_the_other_policy_and_ask_where_they_are_to() -> None:
    opened = [ports.open_udp(ADDRESS, shared=True) for _ in range(2)]
    two = Workers(EngineConfig(max_sessions=64), allow_all(), opened, [None] * 2)
    try:
        assert two.replace_policy(allow_all(), rematch=False) == [0, 0]
        assert two.rematching == 0, "nobody's sessions are asked about"
        assert two.replace_policy(deny_all()) == [0, 0]
        assert two.rematching == 100
    finally:
        two.stop()
        for port in opened:
            ports.close(port)
