"""The doctor before real servers: each is wrong in one way, and that way is found."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources

import hiredis
import numpy as np
import pytest
import redis

from everwall.doctor import store_checks, store_facts
from everwall.doctor.findings import Finding, Level
from everwall.doctor.sizing import size
from everwall.limits import SECOND_NS
from everwall.session import image
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.members import Member, Members
from everwall.store.protocol import CLOCK_SCRIPT, Protocol, clock_command
from tests import needs
from tests.redis_server import PASSWORD, RedisServer, free_port
from tests.store.stores import KEYS, NODE_RIGHTS, sessions

PATIENCE_S = 60.0


@contextmanager
def running(*arguments: str, names: tuple[str, ...] = ()) -> Iterator[RedisServer]:
    needs.binary("redis-server")
    server = RedisServer(*names, arguments=arguments)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running("--maxmemory", "256mb") as started:
        yield started


def to(server: RedisServer, **changed: object) -> StoreConfig:
    config = StoreConfig(host="localhost", port=server.port, password=PASSWORD, ca_pem=server.ca_pem)
    return replace(config, **changed)  # type: ignore[arg-type]


def operator(server: RedisServer) -> redis.Redis:
    """A client with every right, to set up what a test is about."""
    ca = str(server.directory / "ca.pem")
    return redis.Redis(port=server.port, password=PASSWORD, ssl=True, ssl_ca_certs=ca, decode_responses=True)


def seen(config: StoreConfig, sessions: int = 100_000) -> dict[str, Finding]:
    findings = store_checks.findings(store_facts.collect(config), size(sessions))
    return {finding.check: finding for finding in findings}


def complaints(found: dict[str, Finding]) -> list[str]:
    """What is not ok, but for how quick the machine of the tests is."""
    return [name for name, finding in found.items() if finding.level is not Level.OK and name != "round-trip"]


def test_a_good_server_is_ok_but_for_its_missing_replica_and_nothing_is_left_there(
    server: RedisServer,
) -> None:
    with operator(server) as client:
        before = client.keys("*")
        found = seen(to(server))
        assert client.keys("*") == before
    assert complaints(found) == ["replication"]
    assert found["version"].text.startswith("redis ")
    assert "verified against the given authority" in found["tls"].text


def test_every_command_that_nodes_give_is_tried(server: RedisServer) -> None:
    """What the protocol says, and what its scripts call, stands in the table of the doctor."""
    protocol = Protocol(KEYS)
    rows = np.concatenate([sessions(1) for _ in range(4)])
    rows[:, image.OP] = [image.WRITE_FIRST, image.WRITE, image.DELETE, image.LOOKUP]
    said = protocol.greeting() + protocol.following() + protocol.encoded(rows, 0).commands
    tried = {words[0] for words in store_facts.permission_probes("everwall").values()}
    assert {command[0].decode() for command in said} <= tried
    scripts = [path.read_bytes() for path in (resources.files("everwall.store") / "scripts").iterdir()]
    assert len(scripts) > 6
    for script in scripts:
        called = {part.split(b"'", 1)[0].decode() for part in script.split(b"redis.call('")[1:]}
        assert called <= tried
    assert store_facts.meta_key("everwall").encode() in protocol.greeting()[0]
    assert store_facts.clock_key("everwall").encode() in protocol.greeting()[-1]


def test_an_authority_that_did_not_issue_the_certificate_gets_no_password(server: RedisServer) -> None:
    found = seen(to(server, ca_pem=None))
    assert found["tls"].level is Level.ERROR
    assert "issued by" in found["tls"].text, "who did issue it is said all the same"
    assert "auth" not in found


def test_a_certificate_for_another_name_is_an_error_until_the_name_is_given() -> None:
    with running(names=("store.example",)) as other:
        found = seen(to(other))
        assert found["tls"].level is Level.ERROR
        assert "server-name" in found["tls"].advice
        assert seen(to(other, server_name="store.example"))["tls"].level is Level.OK


def test_tls_before_a_plain_port_and_plain_before_a_tls_port_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secured = store_facts._secured

    def impatient(connection: socket.socket, *known: object) -> ssl.SSLSocket:
        connection.settimeout(0.5)  # a server without TLS never answers a handshake, however long one waits
        return secured(connection, *known)  # type: ignore[arg-type]

    monkeypatch.setattr(store_facts, "_secured", impatient)
    plain = free_port()
    with running("--port", str(plain)) as both:
        found = seen(to(both, port=plain))
        assert found["tls"].level is Level.ERROR
        assert "does not speak TLS" in found["tls"].text
        found = seen(to(both, port=plain, tls=False))
        assert (found["tls"].level, found["auth"].level) == (Level.WARNING, Level.OK)
        found = seen(to(both, tls=False))
        assert found["conversation"].level is Level.ERROR
        assert "leave out --no-tls" in found["conversation"].advice


def test_nobody_there() -> None:
    port = free_port()
    found = seen(StoreConfig(host="127.0.0.1", port=port))
    assert found["connect"].level is Level.ERROR
    assert "refused" in found["connect"].text


def test_a_wrong_password_and_a_missing_one(server: RedisServer) -> None:
    found = seen(to(server, password="wrong"))
    assert found["auth"].level is Level.ERROR
    assert "WRONGPASS" in found["auth"].text
    found = seen(to(server, password=None))
    assert "NOAUTH" in found["auth"].text
    assert "version" not in found


def test_a_server_without_a_password_is_a_warning_with_and_without_one() -> None:
    with running("--requirepass", "") as naked:
        found = seen(to(naked, password=None))
        assert found["auth"].level is Level.WARNING
        assert "needs no password" in found["auth"].text
        found = seen(to(naked))
        assert found["auth"].level is Level.WARNING
        assert "the server has none" in found["auth"].text


def test_a_server_that_wants_a_certificate_of_us() -> None:
    with running("--tls-auth-clients", "yes") as strict:
        found = seen(to(strict))
        assert found["conversation"].level is Level.ERROR
        assert "tls-auth-clients no" in found["conversation"].advice


def test_a_user_that_may_not_run_scripts(server: RedisServer) -> None:
    with operator(server) as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~{everwall*", "+@all", "-evalsha")
        found = seen(to(server, username="limited", password="pw"))
        assert found["permissions"].level is Level.ERROR
        assert "refused: EVALSHA (NOPERM" in found["permissions"].text
        assert found["auth"].text == "user limited is accepted"


def test_a_user_for_other_keys_is_refused_all_that_has_a_key(server: RedisServer) -> None:
    with operator(server) as client:
        client.execute_command("ACL", "SETUSER", "stranger", "on", ">pw", "~other:*", "+@all")
        found = seen(to(server, username="stranger", password="pw"))
    refused = (
        "DEL, EVALSHA, EXPIRE, GET, HDEL, HGET, HGETALL, HKEYS, HLEN, HMGET, HSET, HVALS, SET, TTL (NOPERM"
    )
    assert refused in found["permissions"].text


def test_the_user_of_the_documentation_may_do_enough(server: RedisServer) -> None:
    """No more rights than docs/store.md lists; without CONFIG a full bucket is tried, and gone soon."""
    with operator(server) as client:
        client.execute_command("ACL", "SETUSER", "node", "on", ">pw", "~{everwall*", *NODE_RIGHTS.split())
        found = seen(to(server, username="node", password="pw"))
        assert found["permissions"].level is Level.OK
        assert found["compact-buckets"].level is Level.WARNING, "OBJECT is not allowed either"
        client.execute_command("ACL", "SETUSER", "node", "+object|encoding")
        found = seen(to(server, username="node", password="pw"))
        assert found["compact-buckets"].level is Level.OK
        assert "a full bucket was tried" in found["compact-buckets"].text
        assert all(client.ttl(key) > 0 for key in client.keys("*doctor*"))


def test_settings_that_are_too_small_for_buckets_are_found_with_and_without_config() -> None:
    with running("--hash-max-listpack-entries", "64") as small, operator(small) as client:
        assert seen(to(small))["compact-buckets"].level is Level.WARNING
        client.execute_command("ACL", "SETUSER", "node", "on", ">pw", "~{everwall*", "+@all", "-config")
        found = seen(to(small, username="node", password="pw"))["compact-buckets"]
        assert found.level is Level.WARNING
        assert "hashtable" in found.text


def test_a_server_that_evicts() -> None:
    with running("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as evicting:
        with operator(evicting) as client:
            for number in range(200):
                client.set(f"other:{number}", "x" * 20_000)
        found = seen(to(evicting))
    assert found["maxmemory-policy"].level is Level.WARNING
    assert found["evictions"].level is Level.WARNING
    assert found["room"].level is Level.ERROR


def test_a_full_server_may_still_be_asked() -> None:
    """Where writes are refused for want of memory, permissions are still seen, and as they are."""
    with running("--maxmemory", "1") as full:
        found = seen(to(full))
    assert found["permissions"].level is Level.OK
    assert found["room"].level is Level.ERROR


def test_a_primary_with_its_replica(server: RedisServer) -> None:
    with running("--maxmemory", "256mb", "--repl-diskless-sync-delay", "0") as primary:
        follow = ("--replicaof", "127.0.0.1", str(primary.port), "--masterauth", PASSWORD)
        believe = ("--tls-replication", "yes", "--tls-ca-cert-file", str(primary.directory / "ca.pem"))
        with running(*follow, *believe) as replica:
            found = seen(to(replica))
            assert found["role"].level is Level.ERROR
            assert "writes are refused" in found["role"].text
            assert found["permissions"].level is Level.OK, "READONLY is no matter of permissions"
            deadline = time.monotonic() + PATIENCE_S
            while (found := seen(to(primary)))["replication"].level is not Level.OK:
                assert time.monotonic() < deadline, found["replication"]
            assert "is online" in found["replication"].text
            assert complaints(found) == []


def test_a_shard_of_a_cluster_that_serves_nothing() -> None:
    arguments = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_port()))
    with running(*arguments) as shard:
        found = seen(to(shard))
    assert found["cluster"].level is Level.ERROR
    assert found["permissions"].level is Level.OK
    assert "CLUSTERDOWN" in found["buckets"].text


def test_a_sentinel_is_told_from_a_store() -> None:
    with running() as watched:
        configuration = watched.directory / "sentinel.conf"
        configuration.write_text("")
        port = free_port()
        command = [
            "redis-server",
            str(configuration),
            "--sentinel",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
        ]
        sentinel = subprocess.Popen(command, cwd=watched.directory, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "auth" not in (found := seen(StoreConfig(host="127.0.0.1", port=port, tls=False))):
                assert time.monotonic() < deadline
        finally:
            sentinel.kill()
            sentinel.wait()
    assert found["role"].level is Level.ERROR
    assert "Sentinel" in found["role"].text


def test_the_agreed_buckets_are_read_and_another_programs_key_is_found(server: RedisServer) -> None:
    key = store_facts.meta_key("everwall")
    with operator(server) as client:
        try:
            client.set(key, 1563)
            assert "1,563 agreed, 64 sessions in each" in seen(to(server))["buckets"].text
            client.set(key, "nonsense")
            assert seen(to(server))["buckets"].level is Level.ERROR
            assert client.get(key) == "nonsense", "looking changed nothing"
            client.delete(key)
            client.hset(key, "a", "b")
            assert "WRONGTYPE" in seen(to(server))["buckets"].text
        finally:
            client.delete(key)


def test_store_time_is_read_as_nodes_left_it_and_another_programs_key_is_found(server: RedisServer) -> None:
    key = store_facts.clock_key("everwall")
    with operator(server) as client:
        try:
            assert seen(to(server))["store-time"].text == "the server's clock: no node has asked yet"
            client.script_load(CLOCK_SCRIPT)
            least_ns = time.time_ns() + 3600 * SECOND_NS
            client.execute_command(*clock_command(key.encode(), least_ns))
            found = seen(to(server))["store-time"]
            assert (found.level, found.text[:3]) == (Level.WARNING, "3,6")
            client.delete(key)
            client.hset(key, "a", "b")
            assert "WRONGTYPE" in seen(to(server))["store-time"].text
        finally:
            client.delete(key)


def test_nodes_whose_policies_differ_are_named(server: RedisServer) -> None:
    with operator(server) as client:
        client.flushall()
    assert "no node" in seen(to(server))["policies"].text
    client = make_client(to(server))
    try:
        for number, checksum in enumerate(["11", "11", "22"]):
            members = Members([b"a cluster secret of 32 bytes ..."], "everwall", number)
            members.meet(client, Member(f"fw{number}", "policy.yaml", checksum, "0.1.0"))
            if number == 1:
                assert seen(to(server))["policies"].text == "2 nodes have one policy: policy.yaml 11"
        found = seen(to(server))["policies"]
        assert found.level is Level.WARNING
        assert found.text == "policies differ: fw0, fw1 (policy.yaml 11, 0.1.0); fw2 (policy.yaml 22, 0.1.0)"
    finally:
        client.flushall()
        client.close()


def test_a_server_that_hangs_up_in_the_middle_is_an_error_and_no_traceback(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ask = store_facts._Conversation.ask

    def hang_up(self: store_facts._Conversation, *words: store_facts.Word) -> object:
        asked.append(words)
        if words == ("INFO",):
            raise ConnectionError("the server closed the connection")
        return ask(self, *words)

    monkeypatch.setattr(store_facts._Conversation, "ask", hang_up)
    found = seen(to(server))
    assert found["auth"].level is Level.OK, "what was learnt stands"
    assert found["conversation"].level is Level.ERROR
    assert "closed the connection" in found["conversation"].text
    assert ("INFO",) in asked


@pytest.mark.parametrize("reply", [None, 5, [], [b"x"], [[b"x"], 1], b"", b"\xff\x1b[2J", "²"], ids=repr)
def test_answers_without_sense_are_no_traceback_and_do_not_reach_the_terminal(
    reply: object, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    monkeypatch.setattr(store_facts._Conversation, "ask", lambda *_: reply)
    found = seen(to(server))
    assert found["version"].level is Level.ERROR
    assert all(finding.text.isprintable() for finding in found.values())


def test_what_is_no_redis_is_an_error(monkeypatch: pytest.MonkeyPatch, server: RedisServer) -> None:
    def garbage(self: store_facts._Conversation, *words: store_facts.Word) -> object:
        raise hiredis.ProtocolError("Protocol error, got 'H' as reply type byte")

    monkeypatch.setattr(store_facts._Conversation, "ask", garbage)
    assert "Protocol error" in seen(to(server))["conversation"].text
