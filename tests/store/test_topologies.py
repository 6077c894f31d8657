"""The store's thread where the primary changes: replicas, Sentinels, an endpoint that moves, a password that does."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter

import pytest

from everwall.config import ConfigError
from everwall.limits import MS_NS, STRICT_WAIT_NS, WAIT_REPLICAS_MS
from everwall.rings import ring_length
from everwall.session import image
from everwall.session.image import DELETE, FOUND, LOOKUP, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.state import CLOCK_CONNECTIONS
from everwall.store import conversation, router
from everwall.store.connection import Address, StoreConfig
from everwall.store.sentinels import Named, Sentinels
from tests import needs
from tests.redis_server import PASSWORD, SERVERS, RedisServer
from tests.store.workers import Firewall, Worker, be_patient, eventually, sessions
from tests.topologies import Replicated, Watched

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def worker():
    made: list[Worker] = []

    def make(config, **options: int) -> Worker:
        made.append(Worker(config, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module", params=SERVERS)
def program(request):
    """The servers' program."""
    return needs.server(request.param)


@pytest.fixture
def pair(program):
    """A primary and its replica."""
    servers = Replicated(program=program)
    yield servers
    servers.close()


@pytest.fixture
def watched(program):
    servers = Watched(sentinels=3 if needs.DEEP else 1, program=program)
    yield servers
    servers.close()


# An endpoint whose name moves ---------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch):
    """A name that leads where ``point`` says, as the one that a provider moves at a failover."""
    resolve, ports = socket.getaddrinfo, {}

    def getaddrinfo(host, port, *arguments, **more):
        if host == "store.example":
            return resolve("127.0.0.1", ports["now"], *arguments, **more)
        return resolve(host, port, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return lambda server: ports.update(now=server.port)


def named(servers: Replicated, **changes):
    return servers.config(host="store.example", server_name="localhost", **changes)


def test_a_primary_that_became_a_replica_is_left_for_the_one_that_the_name_leads_to(pair, worker, endpoint):
    endpoint(pair.primary)
    node = worker(named(pair)).connected()
    rows = sessions(20)
    node.ask(rows[:10], WRITE_FIRST)
    old, new = pair.admin(pair.primary), pair.admin(pair.replicas[0])
    pair.replicated(pair.primary)
    new.replicaof("NO", "ONE")
    endpoint(pair.replicas[0])
    old.replicaof("127.0.0.1", pair.replicas[0].port)
    assert node.outcome(rows[10:], WRITE_FIRST) == [WRITTEN] * 10, "refused by the one, made by the other"
    assert "READONLY" in (node.status["last_error"] or "")
    assert node.outcome(rows, LOOKUP) == [FOUND] * 20
    assert node.clock[CLOCK_CONNECTIONS] == 2, "whoever watches it offers the live sessions again"
    assert new.dbsize() > 0


def test_a_primary_that_died_is_followed_by_the_one_that_the_name_leads_to(pair, worker, endpoint):
    endpoint(pair.primary)
    node = worker(named(pair)).connected()
    rows = sessions(20)
    node.ask(rows, WRITE_FIRST)
    pair.replicated(pair.primary)
    pair.primary.kill()
    eventually(lambda: not node.status["connected"], "the loss is noticed")
    node.tell(rows[:5], WRITE)
    node.tell(rows[5:10], DELETE)
    pair.admin(pair.replicas[0]).replicaof("NO", "ONE")
    endpoint(pair.replicas[0])
    assert node.answers(5)[:, image.OP].tolist() == [WRITTEN] * 5
    assert node.status["dropped"] == 5, "deletes may be another's session by now"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 20
    assert node.outcome(rows, WRITE) == [WRITTEN] * 20


def test_a_name_that_leads_to_a_replica_is_no_store_until_that_is_promoted(pair, worker, endpoint):
    endpoint(pair.replicas[0])
    node = worker(named(pair))
    eventually(lambda: "read only replica" in (node.status["last_error"] or ""), "the refusal")
    assert not node.status["connected"]
    pair.admin(pair.replicas[0]).replicaof("NO", "ONE")
    assert node.connected().outcome(sessions(1), WRITE_FIRST) == [WRITTEN]


# Sentinels ----------------------------------------------------------------------------------------


def test_sentinels_lead_to_the_primary_and_after_its_death_to_the_replica(watched, worker):
    node = worker(watched.config()).connected()
    assert node.status["primary"] == f"127.0.0.1:{watched.primary.port}"
    rows = sessions(20)
    node.ask(rows, WRITE_FIRST)
    watched.replicated(watched.primary)
    if needs.DEEP:
        watched.sentinels.pop(0).kill()
    watched.primary.kill()
    watched.hurry()
    eventually(lambda: not node.status["connected"], "the loss is noticed")
    node.tell(rows[:5], WRITE)
    assert node.answers(5)[:, image.OP].tolist() == [WRITTEN] * 5, "kept for the successor"
    assert node.status["primary"] == f"127.0.0.1:{watched.replicas[0].port}"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 20


@pytest.fixture
def named_by_sentinels(monkeypatch):
    """A Sentinel that is asked often and says what it is told to; returns how often each was named."""
    said: dict[str, Named] = {}
    asked: Counter[Named] = Counter()

    def find(_: Sentinels) -> Named:
        named = said["now"]
        asked[named] += 1
        return named

    def name(server: RedisServer, epoch: int) -> Counter[Named]:
        said["now"] = Named(Address("127.0.0.1", server.port), epoch)
        return asked

    monkeypatch.setattr(router, "SENTINEL_WATCH_S", 0.1)
    monkeypatch.setattr(Sentinels, "find", find)
    return name


@pytest.mark.parametrize("wait_replicas", [0, 1])
def test_a_former_primary_that_still_answers_is_left_when_sentinels_name_another(
    pair, worker, named_by_sentinels, wait_replicas
):
    """As after an ordered failover, or one behind a partition: nothing is ever refused there."""
    named_by_sentinels(pair.primary, 1)
    where = pair.config(sentinels=(Address("127.0.0.1", 1),), service="any", wait_replicas=wait_replicas)
    node = worker(where).connected()
    rows = sessions(20)
    node.ask(rows, WRITE_FIRST)
    pair.replicated(pair.primary)
    pair.admin(pair.replicas[0]).replicaof("NO", "ONE")
    node.outcome(rows, WRITE)  # lost: nobody reads it there
    named_by_sentinels(pair.replicas[0], 2)
    eventually(lambda: node.status["primary"] == f"127.0.0.1:{pair.replicas[0].port}", f"{node.status}")
    assert "the Sentinels name" in node.status["last_error"]
    assert node.clock[CLOCK_CONNECTIONS] == 2, "whoever watches it offers the live sessions again"
    assert node.outcome(rows, WRITE) == [WRITTEN] * 20
    assert node.outcome(rows, LOOKUP) == [FOUND] * 20
    old = pair.admin(pair.primary)
    eventually(
        lambda: not [each for each in old.client_list() if each["name"].startswith("everwall")],
        "no link stays behind",
    )
    asked = named_by_sentinels(pair.primary, 1)
    asked.clear()
    eventually(lambda: asked.total() > 2, "one that was cut off is asked, and what it said is heard")
    assert node.status["connections"] == 2, "and not followed back"


@needs.deep
def test_a_failover_that_was_ordered_moves_the_node_under_traffic(watched, worker):
    node = worker(watched.config()).connected()
    rows = sessions(200)
    node.ask(rows, WRITE_FIRST)
    watched.hurry()
    watched.sentinels[0].client(password="another horse").execute_command("SENTINEL FAILOVER", "sessions")
    successor = f"127.0.0.1:{watched.replicas[0].port}"
    written = 0

    def moved() -> bool:
        nonlocal written
        written += node.outcome(rows, WRITE).count(WRITTEN)
        return bool(node.status["connected"] and node.status["primary"] == successor)

    eventually(moved, f"the move: {node.status}")
    assert written
    assert node.outcome(rows, WRITE) == [WRITTEN] * 200
    assert node.outcome(rows, LOOKUP) == [FOUND] * 200


@needs.deep
@pytest.mark.parametrize("failover", ["ordered", "killed"])
def test_what_a_failover_lost_is_made_whole_from_the_live_sessions(watched, failover):
    """Writes that the replica never saw, and writes to the former primary while nobody has told it."""
    primary, replica = watched.primary, watched.replicas[0]
    node = Firewall(watched.config(prefix="failover", owner=1))
    try:
        eventually(node.whole, "a connection")
        node.open(500, 1000)
        eventually(lambda: node.whole() and node.store.status()["written"] >= 500, "all is written")
        watched.replicated(primary)
        opened = 500
        watched.hurry()
        if failover == "ordered":
            admin = watched.sentinels[0].client(password="another horse")
            admin.execute_command("SENTINEL FAILOVER", "sessions")
        else:
            os.kill(replica.pid, signal.SIGSTOP)
            node.open(500, 2000)
            opened += 500
            eventually(lambda: node.whole() and node.store.status()["written"] >= 1000, "the primary has it")
            primary.kill()
            os.kill(replica.pid, signal.SIGCONT)
        moved = f"127.0.0.1:{replica.port}"

        def followed() -> bool:
            nonlocal opened
            node.open(1, 10_000 + opened)
            opened += 1
            status = node.store.status()
            return bool(status["connected"] and status["primary"] == moved)

        eventually(followed, f"the successor: {node.store.status()}")
        eventually(node.whole, "resync")
        kept = watched.admin(replica)
        there = sum(kept.hlen(key) for key in kept.keys("{failover:0:*"))
        assert there == opened == len(node.engine.sessions())
    finally:
        node.close()


# Replicas that are waited for ---------------------------------------------------------------------


def ask_strictly(node: Worker, rows, operation: int = WRITE_FIRST) -> None:
    node.tell(rows, operation, confirm=image.REPLICATED)


def acknowledged(node: Worker, rows) -> list[int]:
    """Outcomes of strict writes."""
    ask_strictly(node, rows)
    return node.answers(len(rows))[:, image.OP].tolist()


def awaited(node: Worker) -> tuple[list[int], int]:
    """What waits for a replica at the server, by pipelines, and what waits for that here."""
    link = node.store._router.shard.awaited
    return [each.batch.count for each in list(link._pipelines) if not each.probe], len(link.backlog)


def test_a_strict_write_is_acknowledged_when_the_replica_has_it(pair, worker):
    node = worker(pair.config(host="localhost", port=pair.primary.port, wait_replicas=1)).connected()
    rows = sessions(30)
    assert acknowledged(node, rows) == [WRITTEN] * 30
    replica = pair.admin(pair.replicas[0])
    kept = sum(replica.hlen(key) for key in replica.keys("{" + node.prefix + ":0:*"))
    assert kept == 30, "without waiting: it was there before the answer was"


def test_without_its_replica_a_strict_write_is_made_and_not_acknowledged_and_nothing_else_waits(
    pair, worker, patience
):
    node = worker(pair.config(host="localhost", port=pair.primary.port, wait_replicas=1)).connected()
    rows = sessions(70)
    assert acknowledged(node, rows[:10]) == [WRITTEN] * 10
    pair.replicas[0].hang()
    try:
        ask_strictly(node, rows[10:20])
        eventually(lambda: awaited(node) == ([10], 0), "it waits at the server")
        assert node.outcome(rows[:10], LOOKUP) == [FOUND] * 10, "look-ups have a link of their own"
        assert node.outcome(rows[20:30], WRITE_FIRST) == [WRITTEN] * 10, "and so has what is not strict"
        assert awaited(node) == ([10], 0), "and it waits still"
        assert node.outcome(rows[10:20], LOOKUP) == [FOUND] * 10, "the primary has it all the same"
    finally:
        pair.replicas[0].wake()
    assert node.answers(10)[:, image.OP].tolist() == [WRITTEN] * 10
    patience.setattr(conversation, "WAIT_REPLICAS_MS", WAIT_REPLICAS_MS)
    pair.replicas[0].hang()
    try:
        ask_strictly(node, rows[30:40])
        eventually(lambda: node.status["unreplicated"] == 10, "the server gives the replica up")
        assert ring_length(node.replies) == 0, "and nobody says that it was written"
        assert node.outcome(rows[30:40], LOOKUP) == [FOUND] * 10, "as it was"
    finally:
        pair.replicas[0].wake()
    be_patient(patience)
    assert acknowledged(node, rows[40:]) == [WRITTEN] * 30
    assert node.status["connections"] == 1


def test_what_follows_a_strict_write_that_waits_does_not_overtake_it(pair, worker):
    """A delete that came before its write would leave a closed session in the store."""
    node = worker(pair.config(host="localhost", port=pair.primary.port, wait_replicas=1)).connected()
    pair.replicas[0].hang()
    try:
        rows = sessions(60)
        ask_strictly(node, rows[:40])
        eventually(lambda: awaited(node) == ([40], 0), "one pipeline waits at the server")
        ask_strictly(node, rows[40:])
        eventually(lambda: awaited(node) == ([40], 20), "the next waits for it")
        node.tell(rows[20:], DELETE)
        eventually(lambda: awaited(node) == ([40], 40), "so do the deletes")
    finally:
        pair.replicas[0].wake()
    answered = sorted(
        [*range(40), *range(20, 60)]
    )  # a write that waited when its session was closed is not made
    assert node.answers(80)[:, image.TAG].tolist() == answered
    assert node.outcome(rows, LOOKUP) == [FOUND] * 20 + [image.MISSING] * 40
    assert STRICT_WAIT_NS == 100 * MS_NS


# A password that changes --------------------------------------------------------------------------


@pytest.fixture
def server(program):
    one = RedisServer(program=program).start()
    yield one
    one.close()


def allow(server: RedisServer, *passwords: str) -> None:
    """The user ``wall`` goes in with these passwords, and no others."""
    with server.client() as admin:
        admin.acl_setuser(
            "wall",
            enabled=True,
            reset_passwords=True,
            passwords=[f"+{password}" for password in passwords],
            keys=["*"],
            commands=["+@all"],
        )


def test_a_password_is_rotated_under_traffic_and_the_old_one_withdrawn(server, worker, tmp_path):
    file = tmp_path / "redis-auth"
    file.write_text("old\n")
    allow(server, "old")
    where = {"host": "localhost", "port": server.port, "ca_pem": server.ca_pem, "username": "wall"}
    node = worker(StoreConfig(**where, password_file=file, prefix="rotation")).connected()
    rows = sessions(50)
    done, wrong = threading.Event(), []

    def traffic() -> None:
        while not done.is_set():
            wrong.extend(outcome for outcome in node.outcome(rows, WRITE) if outcome != WRITTEN)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        allow(server, "old", "new")
        file.write_text("new\n")
        node.store.renew_login("wall", None, file)
        allow(server, "new")
        with server.client() as admin:
            eventually(lambda: admin.acl_log()[:1] == [], "nobody was refused")
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert node.status["connections"] == 1, "the link is the same"
    with server.client() as admin:
        for each in admin.client_list():
            if each["user"] == "wall":
                admin.client_kill(each["addr"])
    eventually(lambda: node.status["connections"] == 2, f"with the new password: {node.status}")
    assert node.outcome(rows, LOOKUP) == [FOUND] * 50


def test_a_password_file_is_read_anew_at_every_connection(server, worker, tmp_path):
    """Nobody told the node; it is refused, reads again, and goes in."""
    file = tmp_path / "redis-auth"
    file.write_text("old")
    allow(server, "old")
    config = StoreConfig("localhost", server.port, "wall", password_file=file, ca_pem=server.ca_pem)
    node = worker(config).connected()
    with server.client() as admin:
        admin.acl_deluser("wall")  # closes its connections
    allow(server, "new")
    eventually(lambda: "invalid username-password" in (node.status["last_error"] or ""), "the refusal")
    file.write_text("new")
    eventually(lambda: node.status["connected"], "the new one")
    assert node.outcome(sessions(3), WRITE_FIRST) == [WRITTEN] * 3


def test_a_live_link_becomes_that_of_another_user(server, worker):
    allow(server, "old")
    node = worker(StoreConfig("localhost", server.port, password=PASSWORD, ca_pem=server.ca_pem)).connected()
    node.store.renew_login("wall", "old")
    with server.client() as admin:
        eventually(
            lambda: (
                "wall"
                in {each["user"] for each in admin.client_list() if each["name"].startswith("everwall")}
            ),
            "AUTH on the link",
        )
    assert node.outcome(sessions(3), WRITE_FIRST) == [WRITTEN] * 3
    assert node.status["connections"] == 1


def test_a_wrong_new_password_is_said_and_the_link_goes_on(server, worker):
    node = worker(StoreConfig("localhost", server.port, password=PASSWORD, ca_pem=server.ca_pem)).connected()
    node.store.renew_login(None, "mistyped")
    eventually(lambda: "WRONGPASS" in (node.status["last_error"] or ""), "the refusal")
    assert "mistyped" not in repr(node.status)
    assert node.outcome(sessions(3), WRITE_FIRST) == [WRITTEN] * 3
    assert node.status["connections"] == 1


def test_a_password_file_that_is_none_changes_nothing(server, worker, tmp_path):
    node = worker(StoreConfig("localhost", server.port, password=PASSWORD, ca_pem=server.ca_pem)).connected()
    with pytest.raises(ConfigError, match="one line with the password"):
        (tmp_path / "two").write_text("a\nb")
        node.store.renew_login(None, None, tmp_path / "two")
    assert node.outcome(sessions(3), WRITE_FIRST) == [WRITTEN] * 3
