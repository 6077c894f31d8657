"""Packets that the firewall makes itself go through the tunnel like all others, and are taken by the load balancer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.balancer.gateways import Story, cookie_of
from tests.balancer.gateways import returned as returned_by
from tests.conversations import Connection
from tests.naive import answers as naive
from tests.packets import attachment_option, cookie_option, endpoint_option, geneve, option, udp
from tests.regressions.appliance import BALANCERS, FIREWALL_TOO, Appliance, Outer, returned, sent
from tests.test_rematch import policy

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"
CLIENT6, SERVER6 = "2001:db8:1::5", "2001:db8:2::9"
FAMILIES = pytest.mark.parametrize("ends", [(CLIENT, SERVER), (CLIENT6, SERVER6)], ids=["4", "6"])
REFUSED = "name: refused; service: [tcp/23, udp/69]; action: deny"
OPEN = "name: open; action: allow"
BOTH = {naive.RESET_CLIENT, naive.RESET_SERVER}
OPTIONS = [
    cookie_option(0xC0),
    option(0x0104, 0x42, b"somebody else's."),
    attachment_option(8),
    endpoint_option(7),
]


def answer_of(packet: Outer, inner: bytes, made: bytes) -> Outer:
    """The way back of a packet with something else in its tunnel."""
    return returned(packet, packet.geneve[: len(packet.geneve) - len(inner)] + made)


@FAMILIES
def test_a_refusal_goes_back_through_the_tunnel_that_it_is_about(
    make: Callable[..., Appliance], ends: tuple[str, str]
) -> None:
    """To the load balancer it came from, from the address it went to, to the same source port, with every option."""
    firewall = make(policy(REFUSED, OPEN), resiliency=False)
    for inner, wanted in (
        (Connection(*ends, dport=23).syn(), naive.RESET_CLIENT),
        (udp(*ends, 5000, 69, b"file"), naive.UNREACHABLE),
    ):
        for balancer, source_port, to in (
            (BALANCERS[0], 50_001, "10.9.0.1"),
            (BALANCERS[1], 50_002, FIREWALL_TOO),
        ):
            packet = sent(geneve(inner, options=OPTIONS), balancer, source_port, to)
            (made,) = naive.answers(inner, {wanted}, True, False)
            assert firewall.through(packet) == answer_of(packet, inner, made)


@FAMILIES
@pytest.mark.parametrize("speaks", ["client", "server"])
def test_a_live_connection_that_a_new_policy_refuses_is_reset_at_both_ends_by_its_next_packet(
    make: Callable[..., Appliance], ends: tuple[str, str], speaks: str
) -> None:
    """Also one whose packets the cut-through answered until then: what its ends wait for stands in that packet."""
    firewall = make(policy(OPEN), resiliency=False)
    talk = Connection(*ends)
    for inner in (*talk.handshake(), *talk.exchange(3)):
        assert firewall.passes(sent(geneve(inner)))
    assert firewall.cut_through_was_tried
    firewall.replace_policy(policy("name: refused; action: reset-both"))
    inner = talk.data(getattr(talk, speaks))
    packet = sent(geneve(inner, cookie=0xFE), source_port=50_777)
    expected = naive.answers(inner, BOTH, speaks == "client", True)
    assert len(expected) == 2
    found = firewall.receive(packet)
    assert found == [answer_of(packet, inner, made) for made in expected]


def test_a_connection_that_waited_for_the_store_and_is_refused_is_reset(
    make: Callable[..., Appliance],
) -> None:
    former, firewall = Appliance(), make(policy("name: refused; action: reset-both"))
    talk = Connection(CLIENT, SERVER)
    for inner in talk.handshake():
        assert former.passes(sent(geneve(inner)))
    (record,) = former.engine.outbox()
    inner = talk.data()
    packet = sent(geneve(inner, cookie=0xA1), source_port=50_001)
    assert firewall.receive(packet) == []
    expected = [answer_of(packet, inner, made) for made in naive.answers(inner, BOTH, True, True)]
    assert firewall.answer(True, record) == expected


@FAMILIES
def test_our_load_balancer_takes_them_by_the_flow_and_its_cookie(ends: tuple[str, str]) -> None:
    """An unreachable is looked up by the packet it quotes; what has another cookie is dropped."""
    balancer, firewall = Story(), Appliance(policy(REFUSED, OPEN), resiliency=False)
    for inner in (Connection(*ends, dport=23).syn(), udp(*ends, 5000, 69)):
        name, outer = balancer.sent(inner)
        assert firewall.engine.counters["answers-held-back"] == 0
        (made,) = naive.answers(inner, {naive.RESET_CLIENT, naive.UNREACHABLE}, True, False)
        back = firewall.through(sent(outer))
        assert back is not None
        assert cookie_of(back.geneve) == cookie_of(outer)
        assert balancer.back(name, back.geneve)[1] == made
        assert balancer.dropped() == {}
    altered = returned_by(made, outer).replace(cookie_of(outer).to_bytes(4, "big"), b"\0\1\2\3")
    assert balancer.back(name, altered)[1] == b""
    assert balancer.dropped() == {"invalid-gwlb-flow-cookie": 1}


def test_the_end_of_a_refused_connection_ends_its_flow_at_our_load_balancer() -> None:
    """A client that tries again from the same port has a new flow, and the new cookie goes back to it."""
    balancer, firewall = Story(), Appliance(policy(REFUSED), resiliency=False)
    cookies = []
    for start in (1_000, 900_000):
        name, outer = balancer.sent(Connection(CLIENT, SERVER, dport=23, client_start=start).syn())
        back = firewall.through(sent(outer))
        assert back is not None
        assert balancer.back(name, back.geneve)[1] != b""
        cookies.append(cookie_of(outer))
    assert cookies[0] != cookies[1]
