"""Fragments: the first one tells the ports, the later ones follow it, and nothing is reassembled."""

from __future__ import annotations

import random

import pytest

from everwall.limits import FRAGMENTS_MAX
from everwall.policy.match import deny_all
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests import packets
from tests.cluster import Cluster, Node

pytestmark = pytest.mark.kernel

FORWARD = Verdict.FORWARD
UNMATCHED = Verdict.FRAGMENT_UNMATCHED
FAMILIES = {"IPv4": ("10.0.0.1", "10.0.1.1"), "IPv6": ("2001:db8::1", "2001:db8::2")}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def ends(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def node() -> Node:
    return Cluster().node(resiliency=False)


def datagram(
    ends: tuple[str, str], ident: int = 1, sport: int = 5000, size: int = 3000, turned: bool = False
) -> list[bytes]:
    """A UDP datagram in three fragments."""
    source, destination = reversed(ends) if turned else ends
    ports = (53, sport) if turned else (sport, 53)
    return packets.fragments(packets.udp(source, destination, *ports, b"x" * size), 1480, ident)


def test_later_fragments_follow_the_first_into_its_session(node: Node, ends: tuple[str, str]) -> None:
    parts = datagram(ends)
    assert node.receive(*parts) == [FORWARD] * 3
    session = node.only_session()
    assert (session["packets"], session["bytes"]) == (3, sum(map(len, parts)))
    assert (session["sport"], session["dport"]) == (5000, 53)


def test_without_the_first_nothing_is_known(node: Node, ends: tuple[str, str]) -> None:
    first, second, third = datagram(ends)
    assert node.receive(second, third) == [UNMATCHED] * 2
    assert node.receive(first, third, second) == [FORWARD] * 3  # in whatever order after it
    assert node.sessions()[0]["packets"] == 3


def test_datagrams_are_told_apart(node: Node, ends: tuple[str, str]) -> None:
    one, other = datagram(ends, ident=1, sport=1001), datagram(ends, ident=2, sport=1002)
    assert node.receive(one[0], other[0], one[1], other[1], other[2]) == [FORWARD] * 5
    assert {row["sport"]: row["packets"] for row in node.sessions()} == {1001: 2, 1002: 3}


def test_a_datagram_has_a_direction(node: Node, ends: tuple[str, str]) -> None:
    node.receive(datagram(ends, ident=9)[0])
    assert node.receive(datagram(ends, ident=9, turned=True)[1]) == [UNMATCHED]


def test_endpoints_are_told_apart(node: Node, ends: tuple[str, str]) -> None:
    first, second, _ = datagram(ends)
    node.receive(first, endpoint=1)
    # So many others that some fall into the set of the first one's entry.
    batch = packets.batch_of([second] * 2000, bare=True)
    batch.meta[:, m.ENDPOINT] = range(2, 2002)
    node.engine.receive(batch, 2000, node.now)
    assert set(batch.meta[:, m.VERDICT]) == {UNMATCHED}
    assert node.receive(second, endpoint=1) == [FORWARD]


def test_only_ipv4_tells_protocols_apart(node: Node) -> None:
    # RFC 791 names a datagram by its protocol too, RFC 8200 does not: there the first fragment tells it.
    node.receive(datagram(FAMILIES["IPv4"])[0])
    other = packets.fragments(packets.ip(*FAMILIES["IPv4"], 47, b"g" * 3000), 1480, 1)[1]
    assert node.receive(other) == [UNMATCHED]


def test_an_answer_in_fragments_belongs_to_the_same_session(node: Node, ends: tuple[str, str]) -> None:
    assert node.receive(*datagram(ends), *datagram(ends, turned=True)) == [FORWARD] * 6
    assert node.only_session()["packets"] == 6


def test_tcp_and_echo_are_fragmented_too(node: Node, ends: tuple[str, str]) -> None:
    syn = packets.fragments(packets.tcp(*ends, 1, 2, "S", payload=b"d" * 2000), 1480, 5)
    echo = packets.fragments(packets.icmp_echo(*ends, 7, payload=b"p" * 2000), 1480, 6)
    assert node.receive(*syn, *echo) == [FORWARD] * 4
    assert [row["packets"] for row in node.sessions()] == [2, 2]


def test_memory_of_a_first_fragment_lasts_thirty_seconds(node: Node, ends: tuple[str, str]) -> None:
    first, second, third = datagram(ends)
    node.receive(first)
    node.cluster.wait(29.9)
    assert node.receive(second) == [FORWARD]
    node.cluster.wait(0.1)
    assert node.receive(third) == [UNMATCHED]


def test_a_refused_first_fragment_lets_nothing_follow(ends: tuple[str, str]) -> None:
    node = Cluster().node(deny_all(), resiliency=False)
    assert node.receive(*datagram(ends)) == [Verdict.POLICY_DENY, UNMATCHED, UNMATCHED]


def test_a_flood_of_first_fragments_is_bounded_and_named(node: Node, ends: tuple[str, str]) -> None:
    dice = random.Random(3)
    idents = dice.sample(range(1 << 16), 4 * FRAGMENTS_MAX // 3)
    verdicts = []
    for at in range(0, len(idents), 256):
        firsts = [datagram(ends, ident, size=1500)[0] for ident in idents[at : at + 256]]
        verdicts += node.receive(*firsts)
    assert set(verdicts) == {FORWARD, Verdict.FRAGMENT_TABLE_FULL}
    assert verdicts.count(FORWARD) <= FRAGMENTS_MAX
    # What was remembered before the flood still is, and with time there is room again.
    kept = idents[verdicts.index(FORWARD)]
    assert node.receive(datagram(ends, kept, size=1500)[1]) == [FORWARD]
    node.cluster.wait(31)
    lost = idents[verdicts.index(Verdict.FRAGMENT_TABLE_FULL)]
    assert node.receive(*datagram(ends, lost, size=1500)) == [FORWARD] * 2


def test_later_fragments_wait_with_the_first_for_the_store(ends: tuple[str, str]) -> None:
    # The reply of a flow that policy would not open: the store is asked, and all three parts wait.
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    ask, answer = packets.udp(*ends, 5000, 53), packets.udp(*reversed(ends), 53, 5000)
    first.judge(ask, answer)
    syn = [packets.tcp(*ends, 9, 80, "S"), packets.tcp(*reversed(ends), 80, 9, "SA", ack=1)]
    first.judge(*syn, packets.tcp(*ends, 9, 80, "A", 1, 1))
    parts = packets.fragments(packets.tcp(*ends, 9, 80, "A", 1, 1, payload=b"d" * 3000), 1480, 8)
    assert second.receive(*parts) == [Verdict.PARK] * len(parts)
    second.serve()
    assert second.released == [bytes(part) for part in parts]
    assert second.only_session()["state"] == "established"
