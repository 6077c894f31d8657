"""What a policy says beside its rules, in firewall nodes as processes: host names, and how sessions are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dns.rcode
import pytest

from tests import needs, packets
from tests.nameserver import Nameserver, records
from tests.nodes import ANSWER_S, CLIENT, POLICY, SERVER, Balancer, Process, c2s, s2c, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int, str, str], Process]]:
    """Nodes without a store, by number, policy and further lines of their file."""
    running: list[Process] = []

    def begin(number: int, policy: str, more: str = "") -> Process:
        extra = f"plugin-op-commands=aws-gwlb-inspect:enable\n{more}"
        running.append(Process(tmp_path, number, None, policy=policy, extra=extra))
        return running[-1].ready()

    yield begin
    for process in running:
        process.end()


NAMED = POLICY.replace(
    "destination: any", "destination: [{fqdn: here.example.com}, {fqdn: gone.example.com}]"
)


def test_host_names_of_the_policy_are_asked_for_beside_the_packets_and_their_last_answers_stay(
    balancer: Balancer, start: Callable[..., Process]
) -> None:
    needs.root()  # of the port that DNS has
    server = Nameserver(records(f"here.example.com. A {SERVER}"), "127.0.82.53", 53)
    try:
        node = start(20, NAMED, "dns-primary=127.0.82.53")
        assert balancer.through(node, c2s(flags="S", seq=1000)), "no traffic comes before the first answer"
        assert balancer.through(node, s2c(flags="SA", seq=5000, ack=1001))
        assert balancer.through(node, c2s(flags="A", seq=1001, ack=5001))
        told = node.ask("status")["policy"]
        assert (told["host_names"], told["unresolved_host_names"]) == (2, 1)
        assert node.said().count("a host name of the policy is not resolved: it matches nothing") == 1

        server.reply = records("here.example.com. A 10.2.0.77")
        assert node.ask("policy", do="reload")["ok"]  # asks for all names at once
        until(lambda: node.said().count("other addresses of host names") == 2, ANSWER_S, "the other address")
        assert node.said().count("another policy") == 1, "what was asked for is not what came by itself"
        elsewhere = packets.tcp(CLIENT, "10.2.0.77", 33001, 80, flags="S", seq=1)
        assert balancer.through(node, elsewhere)
        assert balancer.dropped(node, packets.tcp(CLIENT, SERVER, 33002, 80, flags="S"), "policy-deny")
        assert balancer.through(node, c2s(flags="PA", seq=1001, ack=5001, payload=b"it had begun before"))

        server.reply = records(rcode=dns.rcode.SERVFAIL)
        assert node.ask("policy", do="reload")["ok"]
        until(lambda: "its last addresses stay" in node.said(), ANSWER_S, "the news that nobody knows")
        assert balancer.through(node, packets.tcp(CLIENT, "10.2.0.77", 33003, 80, flags="S"))
    finally:
        server.close()


def test_what_the_policy_says_about_sessions_holds_from_the_start_and_from_a_reload_on(
    balancer: Balancer, start: Callable[..., Process]
) -> None:
    lenient = POLICY + "sessions: {tcp-reject-non-syn: no}\n"
    node = start(21, lenient)
    assert "opens a session where a rule allows its sender" in node.said()
    assert balancer.through(node, c2s(flags="PA", seq=1001, ack=5001, payload=b"in the middle"))
    (node.folder / "policy.yaml").write_text(POLICY + "sessions: {timeout-tcp: 1}\n")
    assert node.ask("policy", do="reload")["ok"]
    stranger = packets.tcp(CLIENT, SERVER, 33004, 80, flags="PA", seq=1, ack=1)
    assert balancer.dropped(node, stranger, "non-syn-tcp")
    until(
        lambda: node.ask("sessions")["total"] == 0,
        ANSWER_S,
        "the end of the session that was idle for a second",
    )
