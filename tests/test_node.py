"""Firewall nodes as processes on loopback, with a real Redis over TLS: joining, forwarding, takeover, drain."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretBytes
from redis import Redis

from everwall.bootstrap.init_cfg import InitCfg, RedisEndpoint
from everwall.limits import INNER_MTU_MAX
from everwall.node import Node
from everwall.ports import port as ports
from everwall.workers import Workers
from tests import needs, packets
from tests.descriptors import eventfds
from tests.nodes import (
    ANSWER_S,
    CLIENT,
    POLICY,
    SECRET,
    SERVER,
    START_S,
    Balancer,
    Process,
    c2s,
    handshake,
    s2c,
    until,
)
from tests.redis_server import PASSWORD, RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    needs.binary("redis-server")
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []

    def begin(number: int, redis: RedisServer | None, **options: str) -> Process:
        running.append(Process(tmp_path, number, redis, **options))
        return running[-1]

    yield begin
    for process in running:
        process.end()


def test_a_connection_survives_the_death_of_its_node(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first, second = start(1, redis), start(2, redis)
    first.ready()
    second.ready()
    assert first.health() == (200, "ok")
    until(lambda: first.ask("status")["store"]["connected"], ANSWER_S, "the store")
    assert "session resiliency is on" in first.said()

    handshake(balancer, first)
    until(lambda: first.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    first.process.kill()
    first.process.wait()

    # The longest packet that AWS carries, and it has to wait for the store's answer.
    longest = b"still here".ljust(INNER_MTU_MAX - 40, b".")
    assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=longest))
    assert balancer.through(second, s2c(flags="A", seq=5001, ack=1001 + len(longest)))
    counters = second.counters()
    assert counters["sessions-restored"] == 1
    assert "non-syn-tcp" not in counters
    (row,) = second.ask("sessions")["sessions"]
    assert (row["src"], row["sport"], row["dst"], row["dport"]) == (CLIENT, 33000, SERVER, 80)
    assert (row["state"], row["rule"], row["zone"], row["generation"]) == ("established", "web", "spoke", 1)
    assert row["packets"] == 4 or row["packets"] == 5  # the last of the first node's may be unwritten

    assert balancer.dropped(second, packets.tcp(CLIENT, SERVER, 33001, 80, flags="A"), "non-syn-tcp")


def test_without_a_cluster_secret_nothing_is_restored_and_the_last_line_says_so(
    balancer: Balancer, start: Callable[..., Process], redis: RedisServer
) -> None:
    node = start(3, redis, extra="everwall-cluster-secret-file=")
    text = (node.folder / "init-cfg.txt").read_text()
    node.end()
    (node.folder / "init-cfg.txt").write_text(text.replace(f"everwall-cluster-secret={SECRET}\n", ""))
    node = restart(node)
    try:
        node.ready()
        assert "no everwall-cluster-secret" in node.last_line()
        assert not node.ask("resiliency")["enabled"]
        refused = node.ask("resiliency", switch="on")
        assert (refused["ok"], "no everwall-cluster-secret" in refused["error"]) == (False, True)
        assert balancer.dropped(node, c2s(flags="A", seq=1, ack=1), "non-syn-tcp")
        assert node.counters()["lookups"] == 0
    finally:
        node.end()


def restart(node: Process) -> Process:
    """The same node again, with what its init-cfg.txt says now."""
    fresh = Process.__new__(Process)
    fresh.__dict__.update(node.__dict__)
    fresh.log = (node.folder / "log").open("w+")
    fresh.process = subprocess.Popen(
        node.process.args, stdin=subprocess.DEVNULL, stdout=fresh.log, stderr=fresh.log
    )
    return fresh


def test_a_dead_store_never_stops_live_traffic(balancer: Balancer, start: Callable[..., Process]) -> None:
    needs.binary("redis-server")
    server = RedisServer().start()
    try:
        node = start(4, server).ready()
        handshake(balancer, node)
        server.kill()
        until(lambda: not node.ask("store")["connected"], ANSWER_S, "the node to notice")
        assert balancer.through(node, c2s(flags="PA", seq=1001, ack=5001, payload=b"data"))
        other = {"flags": "S", "seq": 7}
        assert balancer.through(node, packets.tcp(CLIENT, SERVER, 33002, 80, **other)), "new sessions too"
        stray = packets.tcp(CLIENT, SERVER, 33003, 80, flags="A")
        assert balancer.dropped(node, stray, "store-unavailable")
        assert node.health() == (200, "ok")
        server.start()
        until(lambda: node.ask("store")["connected"], ANSWER_S, "the node to reconnect")
    finally:
        server.close()


def test_a_store_that_came_back_empty_is_made_whole_before_the_node_dies(
    balancer: Balancer, start: Callable[..., Process]
) -> None:
    needs.binary("redis-server")
    server = RedisServer().start()
    try:
        first, second = start(14, server), start(15, server)
        first.ready()
        second.ready()
        handshake(balancer, first)
        until(lambda: whole(first), ANSWER_S, "the session in the store")
        server.kill()
        until(lambda: not first.ask("store")["connected"], ANSWER_S, "the node to notice")
        server.start()
        until(lambda: whole(first) and second.ask("store")["connected"], ANSWER_S, "the resync")
        first.process.kill()
        first.process.wait()
        assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"still here"))
    finally:
        server.close()


def test_a_node_whose_policy_is_not_the_others_says_so(start: Callable[..., Process]) -> None:
    needs.binary("redis-server")
    server = RedisServer().start()
    try:
        first = start(20, server).ready()
        facts = until(lambda: housekept(first), ANSWER_S, "the first to be known")
        assert facts["memory"]["used_bytes"] > 0
        assert facts["memory"]["policy"] == "noeviction"
        assert (facts["writes_per_s"], facts["lag_ms"], facts["policy_differs_on"]) == (0, 0.0, "")
        second = start(21, server, policy=POLICY.replace("tcp/80", "tcp/8080")).ready()
        until(lambda: second.ask("store")["policy_differs_on"], ANSWER_S, "the difference")
        facts = second.ask("status")["store"]
        assert facts["policy_differs_on"] == "fw20"
        assert [(row["node"], row["same_policy"]) for row in facts["members"]] == [
            ("fw21", True),
            ("fw20", False),
        ]
        until(lambda: "another policy" in second.said(), ANSWER_S, "the line in the log")
        assert second.said().count("another policy") == 1
    finally:
        server.close()


def housekept(node: Process) -> dict[str, Any] | None:
    """What a node says of its store once it has spoken to the others through it."""
    facts = node.ask("store")
    return facts if facts["housekeeping"]["connected"] else None


def whole(node: Process) -> bool:
    """Whether the node says that the store has all its sessions."""
    facts = node.ask("store")
    return facts["connected"] and (facts["resync_percent"], facts["unsynced_sessions"]) == (100, 0)


def test_resiliency_is_switched_on_and_off_while_the_node_runs(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first = start(16, redis, extra="plugin-op-commands=aws-gwlb-inspect:enable")
    second = start(17, redis).ready()
    first.ready()
    handshake(balancer, first)
    assert first.ask("resiliency")["unsynced_sessions"] == 1
    command = [sys.executable, "-m", "everwall", "resiliency"]
    done = subprocess.run(
        [*command, "on", "--control", str(first.control)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "resync 100 %, unsynced sessions 0"
    assert first.ask("resiliency", switch="off")["enabled"] is False
    written = first.counters()["writes"]
    assert balancer.through(first, packets.tcp(CLIENT, SERVER, 33004, 80, flags="S", seq=1))
    assert balancer.through(first, packets.tcp(SERVER, CLIENT, 80, 33004, flags="SA", seq=1, ack=2))
    assert balancer.through(first, packets.tcp(CLIENT, SERVER, 33004, 80, flags="A", seq=2, ack=2))
    assert first.counters()["writes"] == written
    assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"went on in time"))


def renewed(node: Process, said: str) -> bool:
    """Whether a node has named all its records as ``store secrets`` has said."""
    first, *others = node.ask("store")["secrets"].split(", ")
    return f"written with {first}" in said and len(others) == said.count("read with") and whole(node)


def command(node: Process, *words: str) -> str:
    """An operator's command, which has to end well."""
    words = (sys.executable, "-m", "everwall", *words, "--control", str(node.control))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_cluster_secret_is_rotated_while_the_nodes_run_and_a_connection_survives_that_as_well(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first, second = (
        start(19, redis, extra="everwall-redis-prefix=rotated"),
        start(20, redis, extra="everwall-redis-prefix=rotated"),
    )
    first.ready()
    second.ready()
    handshake(balancer, first)
    until(lambda: first.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    told = []
    for secrets in ((SECRET, "6a" * 32), ("6a" * 32, SECRET), ("6a" * 32, "")):
        for node in (first, second):
            text = (node.folder / "init-cfg.txt").read_text()
            kept = [line for line in text.splitlines() if "cluster-secret" not in line]
            lines = [f"everwall-cluster-secret={secrets[0]}", f"everwall-cluster-secret-second={secrets[1]}"]
            (node.folder / "init-cfg.txt").write_text("\n".join(kept + lines) + "\n")
            told.append(command(node, "store", "secrets"))
        for node, names in zip((first, second), told[-2:], strict=True):
            until(partial(renewed, node, names), ANSWER_S, "all to be named by them")
    assert [len(set(told[k : k + 2])) for k in (0, 2, 4)] == [1, 1, 1], "the nodes agree after each step"
    assert "read with" in told[0]
    assert "read with" not in told[4]
    (first.folder / "init-cfg.txt").write_text("hostname=first\n")
    assert "no everwall-cluster-secret" in first.ask("secrets")["error"]
    first.process.kill()
    first.process.wait()
    assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"with the new one"))
    assert second.counters()["sessions-restored"] == 1
    assert second.counters()["records-refused"] == 0


def test_records_that_somebody_spoilt_are_logged_with_their_number(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first, second = (start(number, redis, extra="everwall-redis-prefix=spoilt") for number in (21, 22))
    first.ready()
    second.ready()
    handshake(balancer, first)
    until(lambda: first.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    with client(redis) as admin:
        (key,) = admin.keys("{spoilt:0:*")
        (field,) = admin.hkeys(key)
        admin.hset(key, field, b"\x10" * 52)
    assert balancer.dropped(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"x"), "restore-refused")
    until(lambda: "records in the store were refused" in second.said(), ANSWER_S, "a line in the log")
    assert second.counters()["records-refused"] == 1
    assert 1 <= second.ask("store")["refused"] <= second.counters()["lookups"], (
        "once more for each that is late"
    )


@pytest.mark.skipif(os.environ.get("EVERWALL_DEEP") != "1", reason="twenty seconds: a campaign's")
def test_the_number_of_buckets_is_changed_while_nodes_run_and_their_sessions_move(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first, second = (start(number, redis, extra="everwall-redis-prefix=grown") for number in (23, 24))
    first.ready()
    second.ready()
    handshake(balancer, first)
    until(lambda: first.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    refused = second.ask("buckets", buckets=0)
    assert (refused["ok"], "buckets must be" in refused["error"]) == (False, True)
    said = command(first, "store", "buckets", "50000")
    assert "settled" in said.splitlines()[-1]
    until(lambda: second.ask("store")["layout"] == "v1 epoch 1 buckets 50000", ANSWER_S, "the other to hear")
    with client(redis) as admin:
        assert admin.keys("{grown:0:*") == []
        assert len(admin.keys("{grown:1:*")) == 1
    first.process.kill()
    first.process.wait()
    assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"in another bucket"))
    assert second.counters()["sessions-restored"] == 1


def client(server: RedisServer) -> Redis:
    ca_pem = server.ca_pem.decode()
    return Redis(port=server.port, password=PASSWORD, ssl=True, ssl_ca_data=ca_pem, protocol=2)


def test_a_node_is_an_acl_user_with_keys_of_its_own_prefix(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    with client(redis) as admin:
        allowed = {"keys": ["{blue}:*", "{blue:*"], "commands": ["+@all"]}
        admin.acl_setuser("wall", enabled=True, passwords=[f"+{PASSWORD}"], **allowed)
    node = start(18, redis, extra="everwall-redis-user=wall\neverwall-redis-prefix=blue").ready()
    handshake(balancer, node)
    until(lambda: node.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    with client(redis) as admin:
        nodes = [each for each in admin.client_list() if each["name"].startswith("everwall")]
        assert {each["user"] for each in nodes} == {"wall"}
        assert admin.keys("{blue:0:*")


def test_sigterm_drains_and_the_traffic_log_tells_what_ended(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    node = start(5, redis).ready()
    handshake(balancer, node)
    node.process.send_signal(signal.SIGTERM)
    until(lambda: node.ask("status")["state"] == "draining", ANSWER_S, "the drain")
    assert node.health() == (200, "draining"), node.said()
    assert balancer.through(node, c2s(flags="PA", seq=1001, ack=5001, payload=b"data")), "it still forwards"
    assert balancer.through(node, s2c(flags="A", seq=5001, ack=1005))
    assert balancer.through(node, c2s(flags="RA", seq=1005, ack=5001))
    assert node.process.wait(timeout=2 * ANSWER_S) == 0, node.said()


def test_workers_share_the_packets_and_the_store_knows_nothing_of_them(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    first = start(9, redis, extra="everwall-workers=2")
    second = start(
        10, redis, extra="plugin-op-commands=set-dp-cores:3,set-sess-ress:True,aws-gwlb-inspect:enable"
    )
    first.ready()
    second.ready()
    handshake(balancer, first)
    until(lambda: first.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    counters = first.ask("counters")
    assert [len(first.ask("status")["workers"]), len(second.ask("status")["workers"])] == [2, 3]
    assert sum(one["forward"] for one in counters["workers"] if "forward" in one) == 3
    assert counters["counters"]["forward"] == 3
    until(lambda: connections(redis) == [3, 4], ANSWER_S, "one for each worker, and one to keep house")
    first.process.kill()
    first.process.wait()
    assert balancer.through_in_time(second, c2s(flags="PA", seq=1001, ack=5001, payload=b"still here"))
    assert second.counters()["sessions-restored"] == 1


def connections(server: RedisServer) -> list[int]:
    """How many each of the nodes has to a server."""
    with client(server) as admin:
        names = [each["name"] for each in admin.client_list() if each["name"].startswith("everwall-")]
    return sorted(names.count(name) for name in set(names))


def test_a_node_without_traffic_leaves_the_processor_alone(
    redis: RedisServer, start: Callable[..., Process]
) -> None:
    """Polling its rings without a pause looks like good performance until nobody sends anything."""
    node = start(11, redis, extra="everwall-workers=2").ready()
    until(lambda: idles(node.process.pid), ANSWER_S, "two seconds in which it does next to nothing")


def idles(pid: int) -> bool:
    """Whether a process leaves most of the processor alone for two seconds: what it starts with takes its time."""
    began = cpu_seconds(pid)
    time.sleep(2)
    return cpu_seconds(pid) - began < 0.5


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_policy_and_endpoint_zone_decide(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    node = start(6, redis).ready()
    assert balancer.dropped(node, packets.tcp(CLIENT, SERVER, 33004, 22, flags="S"), "policy-deny")
    assert balancer.dropped(node, c2s(flags="S"), "endpoint-unmapped", endpoint=0xBB)


def test_the_policy_is_read_again_and_a_wrong_one_changes_nothing(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process]
) -> None:
    node = start(19, redis, extra="everwall-workers=2").ready()
    handshake(balancer, node)
    until(lambda: node.ask("store")["written"] >= 1, ANSWER_S, "the session in the store")
    file = node.folder / "policy.yaml"

    file.write_text(POLICY.replace("name: web", "name: web again"))
    told = node.ask("policy", do="reload")
    assert told["ok"], told
    assert "1 rule" in told["summary"]
    until(lambda: node.ask("policy")["rematch_percent"] == 100, ANSWER_S, "the live sessions")
    (row,) = node.ask("sessions")["sessions"]
    assert (row["rule"], row["state"]) == ("web again", "established")

    file.write_text(POLICY.replace("tcp/80", "tcp/99999"))
    refused = node.ask("policy", do="reload")
    assert refused["error"] == (
        f"policy: {file}:10:15: rules[1].service[1]: 'tcp/99999': expected ports up to 65535"
    )
    file.write_text("")
    assert "write 'rules: []'" in node.ask("policy", do="reload")["error"], (
        "not a policy that ends every session"
    )
    node.process.send_signal(signal.SIGHUP)
    until(lambda: node.said().count("the policy stays as it was") == 3, ANSWER_S, "the log")
    assert balancer.through(node, c2s(flags="PA", seq=1001, ack=5001, payload=b"not touched"))

    file.write_text(POLICY.replace("tcp/80", "tcp/443"))
    node.process.send_signal(signal.SIGHUP)
    until(lambda: node.ask("sessions")["total"] == 0, ANSWER_S, "the end of what is refused now")
    until(lambda: "policy-deny" in (node.folder / "traffic.log").read_text(), ANSWER_S, "the traffic log")
    ended = json.loads((node.folder / "traffic.log").read_text().splitlines()[-1])
    assert (ended["end"], ended["rule"]) == ("policy-deny", "web again"), "by the name it had"
    assert (ended["event"], ended["action"], ended["refused_by"]) == ("end", "deny", "intrazone-default")
    assert node.counters()["deletes"] == 1, "nobody restores it"
    stranger = c2s(flags="PA", seq=1012, ack=5001, payload=b"a stranger")
    assert balancer.dropped(node, stranger, "non-syn-tcp")
    assert node.ask("status")["policy"]["ruled_out"] == 1


SSH = """
  - name: ssh
    source: any
    destination: any
    service: tcp/22
    action: allow
"""


@pytest.mark.parametrize(
    "reloaded", [True, pytest.param(False, marks=needs.deep)], ids=["reloaded", "started with it"]
)
def test_a_stored_session_is_asked_about_under_the_policy_of_whoever_restores_it(
    redis: RedisServer, balancer: Balancer, start: Callable[..., Process], reloaded: bool
) -> None:
    changed = POLICY.replace("rules:\n", f"rules:{SSH.replace('allow', 'drop')}", 1)
    prefix = f"everwall-redis-prefix=changed-{reloaded}"
    first = start(27, redis, extra=prefix, policy=POLICY + SSH)
    second = start(28, redis, extra=prefix, policy=POLICY + SSH if reloaded else changed)
    first.ready()
    second.ready()
    for port in (80, 22):
        for way in ({"flags": "S", "seq": 1000}, None, {"flags": "A", "seq": 1001, "ack": 5001}):
            if way is None:
                packet = packets.tcp(SERVER, CLIENT, port, 33_005, flags="SA", seq=5000, ack=1001)
            else:
                packet = packets.tcp(CLIENT, SERVER, 33_005, port, **way)
            assert balancer.through(first, packet)
    until(lambda: first.ask("store")["written"] >= 2, ANSWER_S, "both sessions in the store")
    if reloaded:
        (second.folder / "policy.yaml").write_text(changed)
        assert second.ask("policy", do="reload")["ok"]
    first.process.kill()
    first.process.wait()
    data = {"flags": "PA", "seq": 1001, "ack": 5001, "payload": b"still here"}
    assert balancer.dropped(second, packets.tcp(CLIENT, SERVER, 33_005, 22, **data), "policy-deny")
    assert balancer.through_in_time(second, packets.tcp(CLIENT, SERVER, 33_005, 80, **data)), (
        "only another rule changed"
    )
    counters = second.counters()
    assert (counters["restore-denied"], counters["policy-deny"]) == (1, 1), counters
    assert (counters["sessions-restored"], counters.get("non-syn-tcp", 0)) == (1, 0)
    (row,) = second.ask("sessions")["sessions"]
    assert (row["dport"], row["rule"], row["state"]) == (80, "web", "established")


def test_a_node_that_cannot_start_says_why_in_one_line(tmp_path: Path, start: Callable[..., Process]) -> None:
    node = start(7, None, extra="everwall-health-port=none")
    assert node.process.wait(timeout=START_S) == 1
    assert "everwall-health-port" in node.said()
    assert "Traceback" not in node.said()


@pytest.mark.parametrize("fails", ["traffic log", "certificate", "threads"])
def test_a_node_that_cannot_start_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Whoever starts it within a process, as tests and benchmarks do, may want to try again."""
    config = InitCfg(
        data_address=IPv4Address("127.0.82.13"),
        port="udp",
        max_sessions=64,
        session_resiliency=True,
        redis_endpoint=RedisEndpoint("127.0.0.1", 1),
        cluster_secret=SecretBytes(bytes.fromhex(SECRET)),
        redis_certificate=b"none" if fails == "certificate" else None,
        traffic_log=tmp_path / "missing" / "log" if fails == "traffic log" else None,
    )

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Workers, "start", refuse)
    before = eventfds()
    with pytest.raises((OSError, ValueError, RuntimeError), match=r"missing|certificate|can't start"):
        asyncio.run(Node(config, None, 0.0).run())
    assert eventfds() == before
    ports.close(ports.open_udp("127.0.82.13"))  # refused where the address is still taken


def test_the_endpoint_is_shown_and_logged_though_its_low_word_is_0(
    balancer: Balancer, start: Callable[..., Process]
) -> None:
    rest = "{name: rest, from: spoke, to: spoke, source: any, destination: any, service: any, action: drop}"
    policy = f"{POLICY}    log-start: yes\n  - {rest}\n"
    node = start(12, None, extra="plugin-op-commands=aws-gwlb-inspect:enable", policy=policy).ready()
    name, number = "vpce-0a1b2c3d00000000", 0x0A1B2C3D_00000000
    assert balancer.through(node, c2s(flags="S", seq=1000), endpoint=number)
    (session,) = node.ask("sessions")["sessions"]
    assert session["endpoint"] == name
    ssh = packets.tcp(CLIENT, SERVER, 33000, 22, flags="S", seq=1000)
    assert balancer.dropped(node, ssh, "policy-deny", endpoint=number)
    traffic_log = node.folder / "traffic.log"
    until(
        lambda: '"aged-out"' in traffic_log.read_text(),
        ANSWER_S,
        "the end of a handshake that nobody answers",
    )
    begun, refused, ended = (json.loads(line) for line in traffic_log.read_text().splitlines())
    assert {line["endpoint"] for line in (begun, refused, ended)} == {name}
    assert [line["event"] for line in (begun, refused, ended)] == ["start", "refused", "end"]
    assert [line["action"] for line in (begun, refused, ended)] == ["allow", "drop", "allow"]
    assert (refused["rule"], refused["refused_by"], refused["dport"]) == ("rest", "rest", 22)
    assert (begun["end"], begun["rule"], begun["refused_by"]) == (None, "web", None)


def test_show_prints_what_the_node_knows(redis: RedisServer, start: Callable[..., Process]) -> None:
    node = start(8, redis).ready()
    command = [sys.executable, "-m", "everwall", "show", "status", "--control", str(node.control), "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True, env=os.environ).stdout)
    assert shown["name"] == "fw8"
    assert shown["state"] == "active"


@needs.deep
def test_the_password_of_the_store_changes_while_the_node_runs(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    """The file is read again at SIGHUP; the connection stays, and the old password is of no use any more."""
    needs.binary("redis-server")
    server = RedisServer().start()
    try:
        secret = tmp_path / "redis-auth"
        secret.write_text(PASSWORD)
        secret.chmod(0o600)
        certificate = base64.b64encode(server.ca_pem).decode()
        node = start(
            18,
            None,
            extra=f"redis-endpoint=127.0.0.1:{server.port}\nredis-certificate={certificate}\n"
            f"everwall-redis-auth-file={secret}",
        ).ready()
        until(lambda: node.ask("store")["connected"], START_S, "the store")
        with server.client() as admin:
            admin.config_set("requirepass", "another")
        secret.write_text("another")
        node.process.send_signal(signal.SIGHUP)
        until(lambda: "was read again" in node.said(), ANSWER_S, "the new password")
        with server.client(password="another") as admin:
            names = [each for each in admin.client_list() if each["name"].startswith("everwall-")]
            assert [each["cmd"] for each in names] != []
            connections = node.ask("store")["connections"]
            for each in names:
                admin.client_kill(each["addr"])
        until(
            lambda: node.ask("store")["connections"] > connections, START_S, "a connection with the new one"
        )
        secret.write_text("two\nlines")
        node.process.send_signal(signal.SIGHUP)
        until(lambda: "one line with the password" in node.said(), ANSWER_S, "the refusal")
        assert node.ask("store")["connected"]
    finally:
        server.close()
