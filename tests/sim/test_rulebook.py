"""The plain reading of a rulebook and the compiled one agree, and packets are what the parsers think."""

from __future__ import annotations

import ipaddress
from random import Random

import pytest

from everwall.policy.match import ACTION_ALLOW, RULE_ACTION, RULE_ANSWER, match, zone_of
from everwall.sim import packets
from everwall.sim.flows import Flow, flow_of
from everwall.sim.packets import ACK, ICMP, ICMPV6, PSH, TCP, UDP
from everwall.sim.plan import draw

pytestmark = pytest.mark.kernel


def halves(address: bytes) -> tuple[int, int]:
    wide = address.rjust(16, b"\0")
    return int.from_bytes(wide[:8], "big", signed=True), int.from_bytes(wide[8:], "big", signed=True)


def some_flow(random: Random) -> Flow:
    six = random.random() < 0.4
    texts = (
        ("2001:db8:2::1", "2001:db8:3::1") if six else ("10.2.0.1", "10.2.255.255", "10.3.0.0", "10.9.9.9")
    )
    client = ipaddress.ip_address("2001:db8:1::1" if six else "10.1.0.1").packed
    server = ipaddress.ip_address(random.choice(texts)).packed
    protocol = random.choice((TCP, UDP, ICMPV6 if six else ICMP))
    port = random.choice((22, 23, 53, 443, 444, 5000, 5010, 5011, 5353, 8080))
    return Flow(random.choice((101, 202, 303)), protocol, client, 40_000, server, port)


@pytest.mark.parametrize("seed", range(30))
def test_both_readings_of_a_rulebook_agree(seed: int) -> None:
    random = Random(seed)
    plan = draw(seed)
    for book in (plan.rulebook, plan.change.rulebook if plan.change else plan.rulebook):
        compiled = book.compiled()
        for _ in range(20):
            flow = some_flow(random)
            zone = zone_of(compiled, flow.endpoint)
            ends = halves(flow.client) + halves(flow.server)
            family = 4 if len(flow.client) == 4 else 6
            ports = (flow.cport, flow.sport) if flow.protocol in (TCP, UDP) else (flow.cport, flow.cport)
            row = match(compiled, zone, zone, family, *ends, flow.protocol, *ports, 0)
            assert book.allows(flow) == (compiled.rules[row, RULE_ACTION] == ACTION_ALLOW), flow
            assert book.answers(flow) == (compiled.rules[row, RULE_ANSWER] != 0), flow


@pytest.mark.parametrize("address", ["10.1.0.1", "2001:db8::1"])
def test_packets_are_read_as_they_were_written(address: str) -> None:
    own, peer = ipaddress.ip_address(address).packed, ipaddress.ip_address(address).packed[:-1] + b"\x09"
    written = packets.tcp(own, 1, peer, 2, ACK | PSH, 2**32 + 5, 7, 99, b"text", scale=3)
    seen = packets.read(written)
    assert seen == packets.Packet(TCP, own, 1, peer, 2, ACK | PSH, 5, 7, 99, 3, False, b"text")
    assert flow_of(4, seen).turned == Flow(4, TCP, peer, 2, own, 1)
    assert packets.read(packets.udp(own, 1, peer, 2, b"text")).payload == b"text"
    ping = packets.read(packets.echo(own, peer, 77, True, b"text"))
    assert (ping.sport, ping.dport, ping.request, ping.payload) == (77, 77, True, b"text")
