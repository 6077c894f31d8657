"""The hosts' TCP must be right without a firewall, or it could not blame one."""

from __future__ import annotations

from random import Random

import pytest

from everwall.sim import packets
from everwall.sim.flows import Flow
from everwall.sim.hosts import Conversation, Hosts, Phase, TcpConnection
from everwall.sim.loop import MS, SECOND, Loop
from everwall.sim.network import Link, Quality
from everwall.sim.packets import ACK, RST, TCP
from everwall.sim.tcp import State, Style

FLOW = Flow(1, TCP, bytes((10, 1, 0, 1)), 40_000, bytes((10, 2, 0, 1)), 443)
GOOD = Quality(MS, 0, 0.0, 0.0, 0)
BAD = Quality(MS, 3 * MS, 0.1, 0.1, 20 * MS)


class Line:
    """Two hosts and the network between them; ``seen`` holds every packet sent."""

    def __init__(self, quality: Quality, seed: int = 1, window: int = 8_192, scale: int = 2) -> None:
        self.loop = Loop()
        self.ended = 0
        self.broken: list[str] = []
        self.seen: list[packets.Packet] = []
        self.link = Link(self.loop, Random(seed), quality, self._deliver)
        self.hosts = Hosts(self._enter)
        styles = Style(0xFFFFFF00, 400, window, scale), Style(77, 700, window, scale)
        self.connection = TcpConnection(self.loop, FLOW, styles, self._enter, self)
        self.hosts.add(self.connection)

    def _enter(self, endpoint: int, packet: bytes) -> None:
        self.seen.append(packets.read(packet))
        self.link.send(endpoint, packet)

    def _deliver(self, endpoint: int, packet: bytes) -> None:
        self.hosts.receive(endpoint, packet)

    def round_began(self, conversation: Conversation, push: bool) -> None: ...

    def round_ended(self, conversation: Conversation) -> None:
        self.ended += 1

    def broke(self, conversation: Conversation, why: str) -> None:
        self.broken.append(why)

    def pass_time(self, seconds: float) -> None:
        self.loop.run(self.loop.now + int(seconds * SECOND))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("window", "scale"), [(2_048, -1), (1_024, 3), (65_535, 7)])
def test_every_byte_arrives_over_a_bad_network(seed: int, window: int, scale: int) -> None:
    line = Line(BAD, seed, window, scale)
    for _ in range(4):
        line.connection.begin_round(1_500, 9_000)
        line.pass_time(60)
        assert not line.connection.in_round
    line.connection.begin_round(0, 3_000, push=True)
    line.pass_time(20)
    assert (line.ended, line.broken) == (5, [])
    assert (line.connection.server.received, line.connection.client.received) == (6_000, 39_000)
    line.connection.close(by_client=seed % 2 == 0)
    line.pass_time(120)
    assert line.connection.over
    assert line.broken == []


def test_nothing_is_sent_twice_over_a_good_network() -> None:
    line = Line(GOOD)
    line.connection.begin_round(1_500, 9_000)
    line.pass_time(1)
    sent = [(p.source, p.sequence) for p in line.seen if p.payload]
    assert len(sent) == len(set(sent))


def test_a_half_closed_connection_still_carries_what_the_server_says() -> None:
    line = Line(GOOD)
    line.connection.begin_round(10, 10)
    line.pass_time(1)
    line.connection.half_close()
    line.pass_time(1)
    assert line.connection.server.peer_closed
    line.connection.begin_round(0, 5_000, push=True)
    line.pass_time(1)
    assert line.ended == 2
    line.connection.finish()
    line.pass_time(3)
    assert line.connection.over
    assert line.connection.phase is Phase.CLOSED


def test_a_reset_with_the_right_sequence_ends_it_and_a_guess_is_challenged() -> None:
    line = Line(GOOD)
    line.connection.begin_round(10, 10)
    line.pass_time(1)
    exact = line.seen[-1].acknowledgement
    server, client = (FLOW.server, FLOW.sport), (FLOW.client, FLOW.cport)
    right = exact if line.seen[-1].source == FLOW.client else line.seen[-1].sequence
    line.hosts.receive(1, packets.tcp(*server, *client, RST, right + 100, 0, 0))
    assert line.connection.client.state is State.ESTABLISHED
    assert line.seen[-1].flags == ACK, "a challenge (RFC 5961)"
    line.hosts.receive(1, packets.tcp(*server, *client, RST, right, 0, 0))
    assert line.connection.client.state is State.DONE
    assert line.broken == ["client: reset"]


def test_a_network_that_swallows_everything_is_noticed() -> None:
    line = Line(GOOD)
    line.connection.begin_round(10, 10)
    line.pass_time(1)
    line.link.cut = True
    line.connection.begin_round(10, 10)
    line.pass_time(100)
    assert line.broken == ["client: gave_up"]


def test_a_byte_that_changed_on_its_way_is_noticed() -> None:
    line = Line(GOOD)
    line.connection.begin_round(10, 10)
    line.pass_time(1)
    last = line.seen[-1]
    assert last.source == FLOW.client
    numbers = last.acknowledgement, last.sequence
    forged = packets.tcp(FLOW.server, FLOW.sport, FLOW.client, FLOW.cport, ACK, *numbers, 100, b"x" * 300)
    line.hosts.receive(1, forged)
    assert line.broken == ["client: corrupt"]
