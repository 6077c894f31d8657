"""The way of a packet in its corners: fragments, endpoints without a zone, a takeover in an outage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from everwall.engine import Engine, EngineConfig
from everwall.limits import SECOND_NS
from everwall.policy.compile import load_policy
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.session import image
from everwall.session import table as t
from everwall.session.tcp import RELEARN_NS
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests.cluster import Cluster
from tests.conversations import Connection
from tests.packets import batch_of, fragments, geneve, icmp_echo, tcp

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.7", "10.2.0.9"
ENDPOINT = 0xAA


class Node:
    """An engine, its clock, and a store that the test plays."""

    def __init__(self, policy: CompiledPolicy | None = None) -> None:
        config = EngineConfig(max_sessions=64, parked_packets=16, lookups=8, owner=1)
        self.engine = Engine(config, policy or allow_all())
        self.now = 1_000 * SECOND_NS

    def take(self, packet: bytes, endpoint: int = ENDPOINT) -> Verdict:
        batch = batch_of([geneve(packet, endpoint=endpoint)])
        self.engine.receive(batch, 1, self.now)
        return Verdict(int(batch.meta[0, m.VERDICT]))

    def take_all(self, packets: Sequence[bytes]) -> list[Verdict]:
        return [self.take(packet) for packet in packets]

    def answer(self, asked: np.ndarray, outcome: int, found: np.ndarray | None = None) -> int:
        """The store's answer to a look-up; returns how many packets are let go."""
        reply = (asked if found is None else found).copy()
        reply[image.OP], reply[image.TAG] = outcome, asked[image.TAG]
        return len(self.engine.inbox(reply.reshape(1, -1), self.now))


# Fragments -------------------------------------------------------------------------------------------


def test_the_acknowledgement_of_a_segment_in_fragments_is_in_the_window() -> None:
    node, talk = Node(), Connection(CLIENT, SERVER)
    assert set(node.take_all(talk.handshake())) == {Verdict.FORWARD}
    pieces = fragments(talk.data(size=3_000), 1_400)
    assert node.take_all(pieces) == [Verdict.FORWARD] * 3
    assert node.take(talk.ack(talk.server)) is Verdict.FORWARD, (
        "all 3,000 bytes, of which one piece had a header"
    )
    assert node.take(talk.data()) is Verdict.FORWARD
    beyond = talk.segment(talk.server, "A", ack=talk.client.next + 200_000)
    assert node.take(beyond) is Verdict.TCP_WINDOW, "what no window ever allowed was not sent"


def test_the_rest_of_a_refused_datagram_opens_no_session() -> None:
    node = Node()
    pieces = fragments(icmp_echo(SERVER, CLIENT, reply=True, payload=b"e" * 300), 104)
    assert node.take(pieces[0]) is Verdict.PARK, "a reply that nobody asked for here"
    (asked,) = node.engine.outbox()
    assert node.answer(asked, image.MISSING) == 0
    assert node.engine.verdicts["icmp-unsolicited"] == 1
    assert node.take_all(pieces[1:]) == [Verdict.FRAGMENT_UNMATCHED] * (len(pieces) - 1)
    assert node.engine.counters["sessions"] == 0


def test_the_rest_of_a_datagram_that_waited_with_a_refused_one_opens_no_session_either() -> None:
    node = Node()
    pieces = fragments(icmp_echo(SERVER, CLIENT, reply=True, payload=b"e" * 300), 104)
    assert node.take_all(pieces) == [Verdict.PARK] * len(pieces)
    (asked,) = node.engine.outbox()
    assert node.answer(asked, image.MISSING) == 0
    assert node.engine.verdicts["fragment-unmatched"] == len(pieces) - 1
    assert node.engine.counters["sessions"] == 0


# Endpoints ---------------------------------------------------------------------------------------------


def test_the_store_is_not_asked_about_endpoints_without_a_zone(tmp_path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        """
zones:
  spoke: {endpoints: [vpce-00000000000000aa]}
rules:
  - {name: all, source: any, destination: any, service: any, action: allow}
"""
    )
    node = Node(load_policy(file).compiled)
    assert node.take(tcp(CLIENT, SERVER, 40_000, 80, "A"), ENDPOINT) is Verdict.PARK
    assert len(node.engine.outbox()) == 1
    for stray in (tcp(CLIENT, SERVER, 40_000, 80, "A"), icmp_echo(SERVER, CLIENT, reply=True)):
        assert node.take(stray, ENDPOINT + 1) is Verdict.ENDPOINT_UNMAPPED
    assert len(node.engine.outbox()) == 0


# Takeover ---------------------------------------------------------------------------------------------


def test_a_session_taken_over_in_an_outage_lets_the_lost_segments_be_sent_again() -> None:
    former, talk = Node(), Connection(CLIENT, SERVER)
    former.take_all(talk.handshake())
    (record,) = former.engine.outbox()
    node = Node()
    lost = [talk.data(), talk.data()]
    assert node.take(lost[0]) is Verdict.PARK
    (asked,) = node.engine.outbox()
    assert node.answer(asked, image.FOUND, record) == 1
    assert node.take(lost[1]) is Verdict.FORWARD
    node.now += RELEARN_NS + SECOND_NS
    node.engine.handle_timer(node.now)
    assert node.take(lost[0]) is Verdict.FORWARD, "the server was not heard yet: nobody knows its window"
    assert node.take(talk.ack(talk.server)) is Verdict.FORWARD


def test_a_syn_into_the_middle_of_a_connection_that_moved_does_not_cost_it() -> None:
    former, talk = Node(), Connection(CLIENT, SERVER)
    former.take_all(talk.handshake())
    (record,) = former.engine.outbox()
    node = Node()
    assert node.take(
        tcp(talk.client.address, talk.server.address, talk.client.port, talk.server.port, seq=77)
    ) is (Verdict.FORWARD), "forged, or of a client that begins anew: nobody can tell yet"
    assert node.take(talk.ack(talk.server)) is Verdict.FORWARD, "the server's challenge"
    assert node.take(talk.data()) is Verdict.PARK, "the client goes on as if connected"
    (asked,) = node.engine.outbox()
    assert node.answer(asked, image.FOUND, record) == 1
    assert node.engine.sessions()[0]["state"] == "established"
    assert node.take(talk.ack(talk.server)) is Verdict.FORWARD
    node.take(tcp(CLIENT, SERVER, 5, 6, seq=1))
    node.engine.outbox()
    assert node.take(tcp(CLIENT, SERVER, 5, 6, flags="A", seq=9, ack=9)) is Verdict.PARK
    (asked,) = node.engine.outbox()
    assert node.answer(asked, image.MISSING) == 0
    assert node.engine.verdicts["tcp-state"] == 1, "a connection that never was stays refused by its name"


def test_a_blind_rst_after_a_takeover_does_not_cost_the_connection_its_record() -> None:
    cluster, talk = Cluster(), Connection(CLIENT, SERVER)
    former, node = cluster.node(), cluster.node()
    former.judge(*talk.handshake())
    blind = talk.segment(talk.client, "R", seq=123_456_789)
    assert node.judge(blind) == [Verdict.FORWARD], "the receiver knows what to think of it"
    assert node.only_session()["state"] == "unverified-rst"
    node.tick(31)
    assert node.ends() == ["tcp-rst-from-client"]
    node.serve()
    assert node.judge(talk.data(), talk.data(talk.server)) == [Verdict.FORWARD] * 2
    assert node.only_session()["state"] == "established"


# Looking inside ------------------------------------------------------------------------------------------


def test_a_session_that_is_being_made_while_somebody_looks_is_left_out() -> None:
    node = Node()
    node.take_all(Connection(CLIENT, SERVER).handshake())
    table = node.engine.sessions_state.table
    free = int(np.flatnonzero(table.tags == 0)[0])
    table.tags[free] = table.hot[free, t.KEY2] = 1  # the key stands, nothing else does
    assert [row["state"] for row in node.engine.sessions()] == ["established"]
