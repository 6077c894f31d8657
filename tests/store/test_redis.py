"""The store's thread against real servers, the worker's side played by the test."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from everwall.limits import (
    CLOCK_TOLERANCE_NS,
    LOOKUP_DEADLINE_NS,
    LOOP_GAP_NS_MAX,
    MS_NS,
    SECOND_NS,
    STORE_TIMEOUT_S,
)
from everwall.rings import ring_length
from everwall.session import image
from everwall.session.image import DELETE, FAILED, FOUND, LOOKUP, LOST, MISSING, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_OFFSET
from everwall.store import conversation
from everwall.store.connection import StoreConfig, tls_context
from everwall.store.link import connect
from everwall.store.protocol import clock_key
from tests import needs
from tests.redis_server import PASSWORD, SERVERS, RedisServer, free_port
from tests.store.workers import PATIENCE_S, Worker, be_patient, eventually, sessions

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(scope="module", params=SERVERS)
def program(request):
    """The server's program."""
    return needs.server(request.param)


@pytest.fixture(scope="module")
def shared(program):
    server = RedisServer(program=program).start()
    yield server
    server.close()


@pytest.fixture
def own(program):
    """A server of the test's own, to be killed and stopped."""
    server = RedisServer(program=program).start()
    yield server
    server.close()


@pytest.fixture
def worker():
    """Makes workers and ends them."""
    made: list[Worker] = []

    def make(config: StoreConfig, **options: int) -> Worker:
        made.append(Worker(config, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def config(server: RedisServer, **changes) -> StoreConfig:
    usual = {"host": "127.0.0.1", "port": server.port, "password": PASSWORD, "ca_pem": server.ca_pem}
    return StoreConfig(**{**usual, "prefix": f"t{time.monotonic_ns()}", **changes})


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis(
        port=server.port, password=PASSWORD, ssl=True, ssl_ca_data=server.ca_pem.decode(), protocol=2
    )


def cut_off(admin: redis.Redis, name: str) -> None:
    """Close the connections of the client ``name``."""
    for each in admin.client_list():
        if each["name"] == name:
            admin.client_kill_filter(_id=each["id"])  # it may have gone by itself


# Ordinary days -----------------------------------------------------------------------------------


def test_a_session_written_by_one_node_is_found_by_another_over_tls_and_auth(shared, worker):
    where = config(shared)
    one, other = worker(where).connected(), worker(where).connected()
    rows = sessions(20)
    assert one.outcome(rows, WRITE_FIRST) == [WRITTEN] * 20
    found = other.ask(rows, LOOKUP)
    rows[:, [image.OP, image.CONFIRM]] = FOUND, 1
    assert (found == rows).all()
    assert one.outcome(rows[:5], DELETE) == [WRITTEN] * 5
    assert other.outcome(rows, LOOKUP) == [MISSING] * 5 + [FOUND] * 15
    counts = {
        name: other.status[name] for name in ("looked_up", "found", "missing", "failed", "errors", "queue")
    }
    assert counts == {"looked_up": 40, "found": 35, "missing": 5, "failed": 0, "errors": 0, "queue": 0}
    assert one.status["deleted"] == 5
    assert one.status["server"].startswith(Path(shared.program).name.removesuffix("-server") + " ")
    assert (one.status["tls"], one.status["auth"]) == (True, True)


def test_a_thousand_lookups_at_once_are_all_answered(shared, worker):
    node = worker(config(shared)).connected()
    rows = sessions(1000)
    node.ask(rows[::2], WRITE_FIRST)
    assert node.outcome(rows, LOOKUP) == [FOUND, MISSING] * 500


def test_of_changes_that_were_made_a_worker_hears_only_if_it_asked(shared, worker):
    """An answer would wake it for nothing; of a loss it hears in any case."""
    where = config(shared)
    node, other = worker(where).connected(), worker(where).connected()
    rows = sessions(6)
    node.tell(rows[:4], WRITE_FIRST, confirm=False)
    node.tell(rows[4:], WRITE_FIRST)
    assert node.answers(2)[:, image.TAG].tolist() == [4, 5]
    eventually(lambda: node.status["written"] == 6, "all are written")
    other.ask(sessions(1, OWNER=2, GENERATION=1), WRITE)
    node.tell(rows[:2], WRITE, confirm=False)
    assert node.answers(1)[0, [image.TAG, image.OP]].tolist() == [0, LOST]


def test_a_takeover_makes_the_former_owner_lose(shared, worker):
    where = config(shared)
    old, new = worker(where).connected(), worker(where).connected()
    old.ask(sessions(1, OWNER=1), WRITE_FIRST)
    assert new.outcome(sessions(1, OWNER=2, GENERATION=1), WRITE) == [WRITTEN]
    assert old.outcome(sessions(1, OWNER=1), WRITE) == [LOST]
    assert old.status["lost"] == 1


def test_the_clock_tells_store_time(shared, worker):
    node = worker(config(shared)).connected()
    eventually(lambda: abs(store_ns_of(node) - time.time_ns()) < SECOND_NS, "store time")
    assert node.clock[CLOCK_CONNECTIONS] == 1


def store_ns_of(node: Worker) -> int:
    """What a node takes for the time."""
    return time.monotonic_ns() + int(node.clock[CLOCK_OFFSET])


def test_what_time_it_is_a_server_that_has_lost_it_hears_from_a_node_that_lives(shared, worker):
    """Its clock was 500 s further once: it is set back, fails over to a replica that is behind, is emptied."""
    where, admin = config(shared), client(shared)
    node, key = worker(where).connected(), clock_key(where.prefix)
    further_us = 500_000_000
    admin.set(key, f"{time.time_ns() // 1000 + further_us} {further_us}")
    eventually(lambda: store_ns_of(node) > time.time_ns() + 490 * SECOND_NS, "it goes with the cluster's")
    eventually(
        lambda: node.clock[CLOCK_CONNECTIONS] == 2, "it offers its sessions again, too: that was a leap"
    )
    before = store_ns_of(node)
    admin.delete(key)
    eventually(lambda: admin.exists(key), "somebody asks again")
    newcomer = worker(where).connected()
    assert store_ns_of(newcomer) >= before - 2 * CLOCK_TOLERANCE_NS
    assert store_ns_of(node) >= before
    assert node.clock[CLOCK_CONNECTIONS] == 2, "to the one that lives nothing has happened"


def test_a_server_that_takes_no_writes_tells_no_time_and_is_asked_for_sessions_all_the_same(shared, worker):
    """For want of replicas, or because it cannot save: time goes on by the node's own clock."""
    where, admin = config(shared), client(shared)
    node, rows = worker(where).connected(), sessions(5)
    node.ask(rows, WRITE_FIRST)
    admin.config_set("min-replicas-to-write", 1)
    try:
        eventually(lambda: "NOREPLICAS" in (node.status["last_error"] or ""), "it was asked")
        assert node.status["connected"]
        assert node.outcome(rows, LOOKUP) == [FOUND] * 5
    finally:
        admin.config_set("min-replicas-to-write", 0)
    told = admin.get(clock_key(where.prefix))
    eventually(lambda: admin.get(clock_key(where.prefix)) != told, "it tells again")
    assert node.outcome(rows, WRITE) == [WRITTEN] * 5
    assert node.status["connections"] == 1, "the link was never given up"


def test_an_acl_user_needs_no_more_than_the_documentation_says(shared, worker):
    where = config(shared, username="wall", password="pw")
    allowed = "set get hget hset hdel expire evalsha script|load time info client|setname"
    with client(shared) as admin:
        admin.acl_setuser(
            "wall",
            enabled=True,
            passwords=["+pw"],
            keys=["{" + where.prefix + "}:buckets", "{" + where.prefix + ":*"],
            commands=[f"+{command}" for command in allowed.split()],
        )
    node = worker(where).connected()
    row = sessions(1)
    asked = [node.outcome(row, operation) for operation in (WRITE_FIRST, WRITE, LOOKUP, DELETE, LOOKUP)]
    assert asked == [[WRITTEN], [WRITTEN], [FOUND], [WRITTEN], [MISSING]]
    assert node.status["errors"] == 0


def test_a_full_reply_ring_loses_no_answer(shared, worker):
    node = worker(config(shared), reply_rows=16).connected()
    rows = sessions(200)
    assert node.outcome(rows, WRITE_FIRST) == [WRITTEN] * 200


def test_stopping_sends_what_waits(shared, worker):
    where = config(shared)
    node, reader = worker(where).connected(), worker(where).connected()
    rows = sessions(2000)
    node.tell(rows, WRITE_FIRST)
    assert node.store.stop(PATIENCE_S)
    assert reader.outcome(rows[-100:], LOOKUP) == [FOUND] * 100


# Whom a node believes ----------------------------------------------------------------------------


def assert_refused(node: Worker, reason: str) -> None:
    """The node does not connect, says why, and answers every look-up meanwhile."""
    eventually(lambda: reason in (node.status["last_error"] or ""), f"the reason: {reason}")
    assert node.outcome(sessions(3), LOOKUP) == [FAILED] * 3
    assert not node.status["connected"]
    assert node.clock[CLOCK_CONNECTIONS] == 0


def test_a_wrong_password_is_said_and_nothing_is_sent(shared, worker):
    assert_refused(worker(config(shared, password="wrong")), "invalid username-password pair")


def test_no_password_is_said(shared, worker):
    assert_refused(worker(config(shared, password=None)), "Authentication required")


def test_a_server_with_a_certificate_of_another_authority_is_refused(shared, own, worker):
    assert_refused(worker(config(shared, ca_pem=own.ca_pem)), "CERTIFICATE_VERIFY_FAILED")


def test_without_an_authority_of_ours_the_systems_are_believed(shared, worker):
    assert_refused(worker(config(shared, ca_pem=None)), "CERTIFICATE_VERIFY_FAILED")


def test_with_an_authority_of_ours_the_systems_are_not_believed(shared):
    from everwall.store.connection import tls_context

    context = tls_context(config(shared))
    assert context is not None
    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_certificate_for_another_name_is_refused_unless_that_name_is_expected(worker, program):
    server = RedisServer("store.example", program=program).start()
    try:
        assert_refused(worker(config(server)), "IP address mismatch")
        named = worker(config(server, server_name="store.example")).connected()
        assert named.outcome(sessions(1), WRITE_FIRST) == [WRITTEN]
    finally:
        server.close()


def test_a_ca_certificate_that_is_none_is_refused_at_once(shared):
    with pytest.raises(ValueError, match="CA certificate cannot be read"):
        Worker(config(shared, ca_pem="-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----"))


def test_a_password_is_never_shown(shared, worker):
    where = config(shared, password="wrong-and-secret")
    node = worker(where)
    eventually(lambda: node.status["last_error"] is not None, "a first attempt")
    assert "wrong-and-secret" not in repr(where) + repr(node.status)


# Bad days ----------------------------------------------------------------------------------------


def test_where_nothing_listens_lookups_fail_at_once(worker):
    node = worker(StoreConfig("127.0.0.1", free_port(), tls=False))
    eventually(lambda: "refused" in (node.status["last_error"] or ""), "a first attempt")
    assert node.outcome(sessions(100), LOOKUP) == [FAILED] * 100


def test_a_killed_server_is_noticed_and_used_again_when_it_is_back(own, worker):
    node = worker(config(own)).connected()
    rows = sessions(10)
    node.ask(rows, WRITE_FIRST)
    own.kill()
    eventually(lambda: not node.status["connected"], "the loss is noticed although nothing was asked")
    assert node.outcome(rows, LOOKUP) == [FAILED] * 10

    own.start()
    eventually(lambda: node.status["connected"], "a new connection")
    assert node.clock[CLOCK_CONNECTIONS] == 2, "whoever watches it offers the live sessions again"
    assert node.outcome(rows, LOOKUP) == [MISSING] * 10, "the server kept nothing"
    assert node.outcome(rows, WRITE) == [WRITTEN] * 10, "its scripts were lost too and are loaded again"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 10


def test_more_writes_than_can_wait_drop_the_oldest_and_do_not_keep_the_thread_from_connecting(own, worker):
    node = worker(config(own)).connected()
    own.kill()
    eventually(lambda: not node.status["connected"], "the loss is noticed")
    rows = sessions(10_000)
    for endpoint in range(5):
        rows[:, image.ENDPOINT] = endpoint
        node.tell(rows, WRITE_FIRST, confirm=False)
        assert node.outcome(sessions(1), LOOKUP) == [FAILED], "look-ups are answered meanwhile"
        eventually(lambda: ring_length(node.requests) == 0, "the ring is emptied")
    own.start()
    eventually(lambda: node.status["dropped"] + node.status["written"] == 50_000, "all that waits is written")
    assert node.status["dropped"] > 0
    assert node.outcome(rows[-100:], LOOKUP) == [FOUND] * 100, "the newest are kept"


def test_writes_outlive_a_lost_connection_and_deletes_do_not(own, worker):
    node = worker(config(own)).connected()
    rows = sessions(4)
    own.kill()
    eventually(lambda: not node.status["connected"], "the loss is noticed")
    node.tell(rows[:3], WRITE_FIRST)
    node.tell(rows[2:], DELETE)
    own.start()
    assert node.answers(2)[:, image.OP].tolist() == [WRITTEN, WRITTEN]
    assert node.status["dropped"] == 2
    assert node.outcome(rows, LOOKUP) == [FOUND, FOUND, MISSING, MISSING], "a closed session is not revived"


def test_a_kept_write_does_not_overwrite_whoever_took_over_meanwhile(own, worker):
    """A node cut off from the store comes back with the first write of a session that moved on."""
    where = config(own)
    old, new = worker(replace(where, owner=1)).connected(), worker(replace(where, owner=2)).connected()
    with client(own) as admin:
        admin.acl_setuser("default", enabled=False)
        cut_off(admin, "everwall-00000001")
        eventually(lambda: not old.status["connected"], "the old owner is cut off")
        old.tell(sessions(1, OWNER=1), WRITE_FIRST)
        assert new.outcome(sessions(1, OWNER=2, GENERATION=1), WRITE) == [WRITTEN]
        admin.acl_setuser("default", enabled=True)
    assert old.answers(1)[0, image.OP] == LOST
    assert new.ask(sessions(1), LOOKUP)[0, image.OWNER] == 2


def test_a_hung_server_holds_nothing_up(own, worker, patience):
    node = worker(config(own)).connected()
    rows = sessions(5)
    node.ask(rows, WRITE_FIRST)
    link, later = node.store._router.shard.ordinary, time.monotonic_ns() + int(PATIENCE_S * SECOND_NS)
    link._probed_ns = later  # nothing else is asked meanwhile
    eventually(lambda: node.status["pipelines"] == 0, "nothing is under way")
    link.confirmed_ns = later
    own.hang()
    try:
        patience.setattr(conversation, "LOOKUP_DEADLINE_NS", LOOKUP_DEADLINE_NS)
        before = time.monotonic_ns()
        assert node.outcome(rows, LOOKUP) == [FAILED] * 5, "after the look-up deadline"
        assert time.monotonic_ns() - before >= LOOKUP_DEADLINE_NS
        assert node.outcome(rows, LOOKUP) == [FAILED] * 5, "while it is known to be silent"
        assert node.status["pipelines"] == 1, "it was not asked at all"
        assert node.status["connected"], "all that with the connection that there was"
        patience.setattr(conversation, "_TIMEOUT_NS", int(STORE_TIMEOUT_S * SECOND_NS))
        assert node.outcome(rows, LOOKUP) == [FAILED] * 5
        eventually(lambda: not node.status["connected"], "the connection is given up")
        assert "did not answer" in node.status["last_error"]
        be_patient(patience)
    finally:
        own.wake()
    eventually(lambda: node.status["connected"], "a new connection")
    assert node.outcome(rows, LOOKUP) == [FOUND] * 5


def test_scripts_flushed_under_a_running_node_are_loaded_again(own, worker):
    node = worker(config(own)).connected()
    rows = sessions(300)
    node.ask(rows, WRITE)
    with client(own) as admin:
        admin.script_flush()
    assert node.outcome(rows, WRITE) == [WRITTEN] * 300
    assert "NOSCRIPT" in node.status["last_error"]
    assert node.status["connections"] == 1


def test_a_full_server_refuses_writes_and_still_answers_lookups(own, worker):
    node = worker(config(own)).connected()
    rows = sessions(3)
    node.ask(rows[:1], WRITE_FIRST)
    with client(own) as admin:
        admin.config_set("maxmemory", 1)
        node.tell(rows[1:2], WRITE_FIRST)
        node.tell(rows[2:], WRITE)
        eventually(lambda: node.status["unwritten"] == 2, "both writes are refused")
        assert "OOM" in node.status["last_error"]
        assert node.outcome(rows, LOOKUP) == [FOUND, MISSING, MISSING]
        admin.config_set("maxmemory", 0)
    assert node.outcome(rows[1:], WRITE) == [WRITTEN, WRITTEN]


def test_a_node_that_connects_to_a_full_server_finds_what_is_there(own, worker):
    where = config(own)
    rows = sessions(3)
    worker(where).connected().ask(rows, WRITE_FIRST)
    with client(own) as admin:
        admin.config_set("maxmemory", 1)
        late = worker(where).connected()
        assert late.outcome(rows, LOOKUP) == [FOUND] * 3
        admin.config_set("maxmemory", 0)


def test_what_a_full_server_refused_is_offered_again(own, worker):
    node = worker(config(own)).connected()
    with client(own) as admin:
        admin.config_set("maxmemory", 1)
        node.tell(sessions(1), WRITE_FIRST)
        eventually(lambda: node.status["unwritten"] == 1, "the write is refused")
        admin.config_set("maxmemory", 0)
    eventually(
        lambda: node.clock[CLOCK_CONNECTIONS] == 2, "whoever watches it offers the live sessions again"
    )
    assert node.status["connections"] == 1


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_thread_that_stood_still_compares_what_waited_meanwhile(shared, worker, replicas):
    """A node that is stopped with a first write in its queue wakes when another has the session."""
    where = config(shared)
    new = worker(replace(where, owner=2)).connected()
    old = worker(replace(where, owner=1, wait_replicas=replicas)).connected()
    stopped = Stopped(old.store._poll)
    old.store._poll = stopped
    eventually(lambda: stopped.sleeping, "the thread stands still")
    old.tell(sessions(1, OWNER=1), WRITE_FIRST)
    assert new.outcome(sessions(1, OWNER=2, GENERATION=1), WRITE) == [WRITTEN]
    stopped.go_on.set()
    assert old.answers(1)[0, image.OP] == LOST
    assert new.ask(sessions(1), LOOKUP)[0, image.OWNER] == 2


class Stopped:
    """A poll object that stops its thread once, for at least as long as a gap takes."""

    def __init__(self, poll) -> None:
        self._poll = poll
        self.sleeping = False
        self.go_on = threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._poll, name)

    def poll(self, timeout: int):
        began = time.monotonic_ns()
        if not self.sleeping:
            self.sleeping = True
            assert self.go_on.wait(PATIENCE_S)
            while time.monotonic_ns() - began <= timeout * MS_NS + LOOP_GAP_NS_MAX:
                time.sleep(0.01)
        return self._poll.poll(timeout)


def test_a_connection_that_is_given_up_takes_with_it_what_was_not_received(shared):
    link = connect(config(shared), tls_context(config(shared)), []).link
    lingers = link._socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", lingers) == (1, 0)
    patience_ms = link._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert patience_ms == STORE_TIMEOUT_S * 1000, "and while this process stands still the system gives it up"
    link.close()


def test_a_server_that_became_a_replica_is_left_and_the_write_reaches_its_successor(own, worker):
    node = worker(config(own)).connected()
    row = sessions(1)
    with client(own) as admin:
        admin.replicaof("127.0.0.1", free_port())
        node.tell(row, WRITE_FIRST)
        eventually(lambda: "READONLY" in (node.status["last_error"] or ""), "the refusal is noticed")
        admin.replicaof("NO", "ONE")
    assert node.answers(1)[0, image.OP] == WRITTEN
    assert node.outcome(row, LOOKUP) == [FOUND]


def test_a_server_that_answers_nonsense_is_left(own, worker):
    """Something else writes the meta key while the node is away."""
    where = config(own)
    node = worker(where).connected()
    meta_key = "{" + where.prefix + "}:buckets"
    with client(own) as admin:
        admin.set(meta_key, "many")
        cut_off(admin, "everwall-00000000")
        eventually(lambda: "holds no bucket count" in (node.status["last_error"] or ""), "the refusal")
        assert node.outcome(sessions(2), LOOKUP) == [FAILED, FAILED]
        admin.set(meta_key, "64")
    eventually(lambda: node.status["connected"], "a connection once it is right again")
